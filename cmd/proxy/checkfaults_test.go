//go:build !nodev

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/pemfile/pemtest"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// checkLines runs check in both formats, and returns its text and its lines
// of JSON. Both must agree, and each failure must end with what to do.
func checkLines(t *testing.T, code int, args ...string) (text string, findings []finding) {
	t.Helper()
	var plain, lines, stderr bytes.Buffer
	args = append([]string{"check"}, args...)
	if got := run(t.Context(), args, &plain, &stderr); got != code {
		t.Errorf("exit code %d, want %d:\n%s%s", got, code, &plain, &stderr)
	}
	if got := run(t.Context(), append(args, "--format", "json"), &lines, &stderr); got != code {
		t.Errorf("JSON: exit code %d, want %d:\n%s", got, code, &lines)
	}

	var totals checkTotals
	fails := 0
	for line := range strings.Lines(lines.String()) {
		var f finding
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		switch f.Type {
		case "check":
			findings = append(findings, f)
		case "summary":
			if err := json.Unmarshal([]byte(line), &totals); err != nil {
				t.Fatal(err)
			}
		}
		if f.Status != "fail" {
			continue
		}

		fails++
		if f.Action == "" || f.Error == "" || strings.Contains(f.Error, "\n") || actions[f.Check] == "" {
			t.Errorf("a failure without an action, an error or a known name: %s", line)
		}
		if !strings.Contains(plain.String(), f.Action+"\n") {
			t.Errorf("no line ends with the action %q:\n%s", f.Action, &plain)
		}
	}

	if fails != totals.Failed || fails != strings.Count("\n"+plain.String(), "\nFAIL  ") {
		t.Errorf("%d failures in JSON, its summary says %d:\n%s", fails, totals.Failed, &plain)
	}
	return plain.String(), findings
}

// wantFinding looks for a finding by the name of the check, its status, and a
// part of its text, error or action.
func wantFinding(t *testing.T, findings []finding, check, status, part string) {
	t.Helper()
	for _, f := range findings {
		if f.Check == check && f.Status == status && strings.Contains(f.Text+": "+f.Error+"; "+f.Action, part) {
			return
		}
	}
	t.Errorf("no %s of %s with %q: %+v", status, check, part, findings)
}

// What check once called ok, and did not work.
func TestCheckFindsWhatDoesNotWork(t *testing.T) {
	store := proxytest.ServeStore(t)
	direct, bucket := client(strings.TrimPrefix(store, "http://"), proxytest.AccessKey, proxytest.SecretKey), "bucket"
	if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	used := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(used.Close)

	dir := t.TempDir()
	dangling := filepath.Join(dir, "audit.log")
	if err := os.Symlink("missing/audit.log", dangling); err != nil {
		t.Fatal(err)
	}

	for _, row := range []struct {
		name, bucket        string
		old, changed        string // in the configuration
		code                int
		check, status, part string
	}{
		{"a bucket that does not exist", "nosuch", "", "", 1, checkCredentials, "fail", "create the bucket"},
		{"and nothing is said of it", "nosuch", "", "", 1, checkCapabilities, "skip", "nosuch"},
		{"a bucket without a rule", bucket, `rules: [{buckets: ["*"]`, `rules: [{buckets: ["other-*"]`, 1, checkRule, "fail", "add the bucket"},
		{"a bucket with a rule", bucket, `rules: [{buckets: ["*"]`, `rules: [{buckets: ["b*"]`, 0, checkRule, "ok", bucket},
		{"no audit log", "", "", "", 0, checkAuditLog, "note", "audit log: none"},
		{"a new audit log", "", "limits:", "audit: {file: " + dir + "/new.log}\nlimits:", 0, checkAuditLog, "ok", "will create"},
		{
			"an audit log whose directory is missing", "", "limits:", "audit: {file: " + dir + "/missing/a.log}\nlimits:",
			1, checkAuditLog, "fail", "create the directory",
		},
		{"a link to nothing", "", "limits:", "audit: {file: " + dangling + "}\nlimits:", 1, checkAuditLog, "fail", "create the directory"},
		{"a directory", "", "limits:", "audit: {file: " + dir + "}\nlimits:", 1, checkAuditLog, "fail", "is a directory"},
		{
			"a port in use", "", "listen: 127.0.0.1:0\nadmin", "listen: " + used.Listener.Addr().String() + "\nadmin",
			1, checkPort, "fail", "end the program",
		},
		{
			"an address of another machine", "", "admin_listen: 127.0.0.1:0", "admin_listen: 192.0.2.1:9001",
			1, checkPort, "fail", "to an address of this machine",
		},
		{"a short secret", "", "secret_key: appsecretappsecret", "secret_key: appsecret", 0, checkClientSecret, "warn", "choose a longer"},
		{"a wrong secret at the store", "", "secret_key: store", "secret_key: other", 1, checkCredentials, "fail", "check origin.secret_key"},
	} {
		t.Run(row.name, func(t *testing.T) {
			config := writeConfig(t, store, "127.0.0.1:0", "127.0.0.1:0", row.old, row.changed)
			args := []string{"--config", config}
			if row.bucket != "" {
				args = append(args, "--bucket", row.bucket)
			}
			text, findings := checkLines(t, row.code, args...)
			wantFinding(t, findings, row.check, row.status, row.part)
			if row.bucket == "nosuch" && strings.Contains(text, "ok    store") {
				t.Errorf("ok without a bucket:\n%s", text)
			}
		})
	}
}

// A port that a proxy with the same configuration uses is no failure.
func TestCheckBesideTheProxy(t *testing.T) {
	listen, admin := freePort(t), freePort(t)
	config := writeConfig(t, proxytest.ServeStore(t), listen, admin)
	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)

	_, findings := checkLines(t, 0, "--config", config)
	wantFinding(t, findings, checkPort, "note", listen)
	wantFinding(t, findings, checkPort, "note", admin)
	s.end(t)
}

func TestCheckCertificates(t *testing.T) {
	now := time.Now()
	expired := pemtest.Between(t, "expired", now.Add(-2*time.Hour), now.Add(-time.Hour))
	early := pemtest.Between(t, "early", now.Add(time.Hour), now.Add(2*time.Hour))
	soon, long := pemtest.New(t, "soon"), pemtest.Between(t, "long", now.Add(-time.Hour), now.Add(1000*time.Hour))
	old := filepath.Join(t.TempDir(), "old.pem")
	if err := os.WriteFile(old, expired.Cert, 0o600); err != nil {
		t.Fatal(err)
	}
	store := proxytest.ServeStore(t)
	chain := pemtest.Pair{Cert: append(bytes.Clone(long.Cert), expired.Cert...), Key: long.Key}

	for _, row := range []struct {
		name         string
		pair         pemtest.Pair
		settings     string
		code         int
		status, part string
	}{
		{"expired", expired, "", 1, "fail", "expired on"},
		{"not yet valid", early, "", 1, "fail", "not valid before"},
		{"an intermediate that expired", chain, "", 1, "fail", "expired on"},
		{"expires soon", soon, "", 0, "warn", "renew it"},
		{"valid", long, "", 0, "ok", "valid until"},
		{"an authority of clients that expired", long, "client_ca_file: " + old, 1, "fail", "renew it"},
		{"no such file", long, "client_ca_file: " + old + ".not", 1, "fail", "correct tls.cert_file"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
			pemtest.Replace(t, cert, row.pair.Cert)
			pemtest.Replace(t, key, row.pair.Key)
			config := writeConfig(t, store, "127.0.0.1:0", "127.0.0.1:0", "{ends_on_this_machine: true}",
				"{cert_file: "+cert+", key_file: "+key+", "+strings.TrimSuffix(row.settings+", ", ", ")+"}")
			_, findings := checkLines(t, row.code, "--config", config)
			wantFinding(t, findings, checkCertificate, row.status, row.part)
		})
	}
}

// Whatever a store answers, no document of it is printed, and what was not
// found out is not ok.
func TestCheckPrintsNoDocuments(t *testing.T) {
	t.Parallel()
	target, err := url.Parse(proxytest.ServeStore(t))
	if err != nil {
		t.Fatal(err)
	}
	direct, bucket := client(target.Host, proxytest.AccessKey, proxytest.SecretKey), "bucket"
	if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	const document = `<?xml version="1.0"?><Error><Code>InternalError</Code><Message>m</Message><Secret/></Error>`

	for _, row := range []struct {
		name   string
		status int
		lies   func(r *http.Request) bool
	}{
		{"200 to uploads", 200, func(r *http.Request) bool { return r.Method == http.MethodPost }},
		{"403 to uploads", 403, func(r *http.Request) bool { return r.Method == http.MethodPost }},
		{"202 to PUT", 202, func(r *http.Request) bool { return r.Method == http.MethodPut }},
		{"200 to listings", 200, func(r *http.Request) bool { return r.Method == http.MethodGet && r.URL.Path == "/bucket" }},
		{"403 to DELETE", 403, func(r *http.Request) bool { return r.Method == http.MethodDelete }},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel() // what only reads is repeated after pauses
			through := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(target)
				r.Out.Host = r.In.Host // the signature covers it
			}}
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !row.lies(r) {
					through.ServeHTTP(w, r)
					return
				}
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Type", "application/xml")
				w.WriteHeader(row.status)
				_, _ = io.WriteString(w, document)
			}))
			t.Cleanup(front.Close)

			config := writeConfig(t, front.URL, "127.0.0.1:0", "127.0.0.1:0")
			text, _ := checkLines(t, 1, "--config", config, "--bucket", bucket)
			if strings.Contains(text, "<") {
				t.Errorf("a document:\n%s", text)
			}
		})
	}
}

// A script that reads JSON gets it for a wrong configuration too.
func TestCheckFormats(t *testing.T) {
	path := writeConfig(t, "http://127.0.0.1:1", "127.0.0.1:0", "127.0.0.1:0", "admin_listen", "admin_lisen")
	var out, stderr bytes.Buffer
	if code := run(t.Context(), []string{"check", "--config", path, "--format", "json"}, &out, &stderr); code != 1 ||
		!strings.Contains(out.String(), `"check":"configuration","status":"fail"`) ||
		!strings.Contains(out.String(), "config.yaml:2:1: unknown key") {
		t.Errorf("exit code %d:\n%s", code, &out)
	}
	if code := run(t.Context(), []string{"check", "--config", path, "--format", "xml"}, &out, &stderr); code != 2 {
		t.Errorf("a format that does not exist: exit code %d", code)
	}
}

// Each name of a check is documented.
func TestChecksAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range actions {
		if !strings.Contains(string(text), "| `"+name+"` |") {
			t.Errorf("docs/troubleshooting.md has no row for %s", name)
		}
	}
}

// A listener on all interfaces is asked on this machine.
func TestIsProxy(t *testing.T) {
	other := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	_, port, err := net.SplitHostPort(other.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"0.0.0.0:" + port, ":" + port, other.Listener.Addr().String(), "nonsense"} {
		if isProxy(t.Context(), address) {
			t.Errorf("%s is not a proxy", address)
		}
	}
}

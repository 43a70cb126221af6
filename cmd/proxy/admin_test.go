package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

// adminDo sends a request to the admin port and returns the status and the
// body.
func adminDo(t *testing.T, method, url string, header http.Header) (int, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}

	if header != nil {
		r.Header = header
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()

	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

func keysOf(t *testing.T, admin string) []keyStatus {
	t.Helper()
	status, body := adminDo(t, "GET", "http://"+admin+"/admin/keys", nil)
	var out struct{ Keys []keyStatus }
	if err := json.Unmarshal(body, &out); err != nil || status != http.StatusOK {
		t.Fatal(status, string(body), err)
	}
	return out.Keys
}

func TestAdmin(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	listen, admin := freePort(t), freePort(t)
	t.Chdir(t.TempDir()) // the embedded store changes it
	s := start(t, "dev", "--listen", listen, "--admin-listen", admin, "--data", dir)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	c := client(listen, devAccessKey, devSecretKey)

	bucket, key := "demo", "k"
	if _, err := c.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &bucket, Key: &key, Body: strings.NewReader("x"),
	}); err != nil {
		t.Fatal(err)
	}

	keys := keysOf(t, admin)
	if len(keys) != 1 || keys[0].Name != "dev" || keys[0].State != "usable" || keys[0].DEKs != 1 ||
		keys[0].RevocationSeconds != 4 ||
		keys[0].Answer != "ok" {
		t.Errorf("%+v", keys)
	}

	url := "http://" + admin + "/admin/purge"
	for _, row := range []struct {
		method, url string
		header      http.Header
		status      int
		body        string
	}{
		{"GET", url, nil, http.StatusMethodNotAllowed, ""},
		{"POST", url + "?key=other", nil, http.StatusNotFound, `unknown key "other"`},
		{"POST", url + "?keys=dev", nil, http.StatusBadRequest, `unknown parameter "keys"`},
		{"POST", url, http.Header{"Sec-Fetch-Site": {"cross-site"}}, http.StatusForbidden, ""}, // from a page of another site
		{"POST", url + "?key=dev", nil, http.StatusOK, `"purged": 1`},
		{"POST", url, nil, http.StatusOK, `"purged": 0`},
		{"GET", "http://" + admin + "/admin/ttl-advisor", nil, http.StatusOK, "<svg"},
		{"GET", "http://" + admin + "/admin/ttl-advisor?format=json", nil, http.StatusOK, `"revocation_window_seconds"`},
	} {
		status, body := adminDo(t, row.method, row.url, row.header)
		if status != row.status || !bytes.Contains(body, []byte(row.body)) {
			t.Errorf("%s %s: %d %.300s, want %d %s", row.method, row.url, status, body, row.status, row.body)
		}
	}

	if keys := keysOf(t, admin); keys[0].DEKs != 0 {
		t.Errorf("after the purge: %+v", keys)
	}
	if err := os.Rename(filepath.Join(dir, "kms.key"), filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}

	if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &bucket, Key: &key, Body: strings.NewReader("x"),
	}); err == nil {
		t.Error("stored without a key")
	}
	if keys := keysOf(t, admin); keys[0].State != "revoked" || keys[0].Answer != "key not found" ||
		keys[0].RevokedSince == nil {
		t.Errorf("without the key file: %+v", keys)
	}

	s.end(t)
}

// A key that does not work is logged at once, and requests for other keys
// are served. It is opened when that becomes possible.
func TestServeWithABrokenKey(t *testing.T) {
	t.Parallel()
	listen, admin := freePort(t), freePort(t)
	dir := t.TempDir()
	late := filepath.Join(dir, "late.key")
	path := writeConfig(t, sink(t).URL, listen, admin, "rules: [", "rules: [{buckets: [late], key: late}, ",
		"keys: [", "keys: [{name: late, provider: local, key_file: "+late+"}, ")
	s := start(t, "serve", "--config", path)

	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	c := client(listen, "appkey", "appsecretappsecret")
	put := func(bucket string) error {
		key := "k"
		_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x")})
		return err
	}
	if err := put("other"); err != nil {
		t.Errorf("the key that works: %v", err)
	}

	if err := put("late"); err == nil || !strings.Contains(err.Error(), "KMS.NotFoundException") {
		t.Errorf("the key that does not: %v", err)
	}
	states := map[string]string{}
	for _, k := range keysOf(t, admin) {
		states[k.Name] = k.State
	}

	if states["late"] != "unopened" || states["main"] != "usable" {
		t.Errorf("%v", states)
	}
	if err := kms.CreateLocalKeyFile(late); err != nil {
		t.Fatal(err)
	}

	for deadline := time.Now().Add(time.Minute); put("late") != nil; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the key is not opened when it is there")
		}
	}
	s.end(t)
}

func TestReload(t *testing.T) {
	listen, admin := freePort(t), freePort(t)
	path := writeConfig(t, sink(t).URL, listen, admin)
	s := start(t, "serve", "--config", path)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	metrics := "http://" + admin + "/metrics"
	const window = `cmekproxy_revocation_window_seconds{key="main"} `
	waitMetric(t, metrics, window+"12\n")

	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	rewrite := func(more string) {
		t.Helper()
		if err := os.WriteFile(path, append(bytes.Clone(text), more...), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil { // the proxy runs in this process
			t.Fatal(err)
		}
	}

	rewrite("dek_cache: {ttl: 20s, revocation_probe: 0}\n")
	waitMetric(t, metrics, window+"20\n")
	rewrite("dek_cache: {ttl: nonsense}\n")
	rewrite("dek_cache: {ttl: 30s, revocation_probe: 4s}\nlog: {level: debug}\n")
	waitMetric(t, metrics, window+"6\n")
	s.end(t)
}

// adminGuard returns the admin API with its access control, as it is reached
// at a local address.
func adminGuard(t *testing.T, token config.Secret, local string) func(host, authorization string) int {
	t.Helper()
	a := &server{
		backend: &backend{cfg: devConfig("127.0.0.1:0", "127.0.0.1:0", ""), log: zap.NewNop(), metrics: metrics.New()},
	}
	a.adminToken.Store(&token)
	a.keys = newEmptyRing(t)
	handler := a.sidePorts(newHealth())[0].mux

	return func(host, authorization string) int {
		r := httptest.NewRequestWithContext(
			context.WithValue(
				t.Context(),
				http.LocalAddrContextKey,
				net.Addr(&net.TCPAddr{IP: net.ParseIP(local), Port: 9001}),
			),
			http.MethodGet,
			"http://"+host+"/admin/keys",
			nil,
		)

		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w.Code
	}
}

func newEmptyRing(t *testing.T) *keyring.Keyring {
	t.Helper()
	cache := dekcache.New(dekcache.Config{})
	t.Cleanup(cache.Close)
	ring, err := keyring.New(keyring.Config{Cache: cache})
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// TestWhoReachesAdmin: web pages that resolve to this machine and the
// network are refused; clients with the token are accepted.
func TestWhoReachesAdmin(t *testing.T) {
	t.Parallel()
	const token = "a-token-of-some-length"
	for _, c := range []struct {
		name, local         string
		token               config.Secret
		host, authorization string
		want                int
	}{
		{"on loopback", "127.0.0.1", "", "127.0.0.1:9001", "", http.StatusOK},
		{"localhost", "127.0.0.1", "", "localhost:9001", "", http.StatusOK},
		{"IPv6", "::1", "", "[::1]:9001", "", http.StatusOK},
		{"a name that leads to loopback", "127.0.0.1", "", "attacker.example:9001", "", http.StatusForbidden},
		{"a name that looks like loopback", "127.0.0.1", "", "127.0.0.1.attacker.example", "", http.StatusForbidden},
		{"from the network", "10.1.2.3", "", "10.1.2.3:9001", "", http.StatusForbidden},
		{"from the network, by a loopback name", "10.1.2.3", "", "localhost:9001", "", http.StatusForbidden},
		{"with the token, from the network", "10.1.2.3", token, "10.1.2.3:9001", "Bearer " + token, http.StatusOK},
		{"without the token", "10.1.2.3", token, "10.1.2.3:9001", "", http.StatusUnauthorized},
		{"without the token, on loopback", "127.0.0.1", token, "127.0.0.1:9001", "", http.StatusUnauthorized},
		{"with another token", "127.0.0.1", token, "127.0.0.1:9001", "Bearer " + token + "x", http.StatusUnauthorized},
		{"with a part of the token", "127.0.0.1", token, "127.0.0.1:9001", "Bearer " + token[:5], http.StatusUnauthorized},
		{"as a password", "10.1.2.3", token, "10.1.2.3:9001", basic("", token), http.StatusOK},
		{"as a password of a user", "10.1.2.3", token, "10.1.2.3:9001", basic("admin", token), http.StatusOK},
		{"as a user", "10.1.2.3", token, "10.1.2.3:9001", basic(token, ""), http.StatusUnauthorized},
		{"with another password", "10.1.2.3", token, "10.1.2.3:9001", basic("admin", "x"), http.StatusUnauthorized},
		{"a password without a token", "10.1.2.3", "", "10.1.2.3:9001", basic("", ""), http.StatusForbidden},
		{"with another scheme", "127.0.0.1", token, "127.0.0.1:9001", "Basic " + token, http.StatusUnauthorized},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := adminGuard(t, c.token, c.local)(c.host, c.authorization); got != c.want {
				t.Errorf("status %d, want %d", got, c.want)
			}
		})
	}
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// TestPortsApart: each port serves its own paths only.
func TestPortsApart(t *testing.T) {
	t.Parallel()
	listen, admin, health, figures := freePort(t), freePort(t), freePort(t), freePort(t)
	config := writeConfig(
		t,
		sink(t).URL,
		listen,
		admin,
		"limits:",
		fmt.Sprintf(
			"health_listen: %s\nmetrics_listen: %s\nadmin_token: a-token-of-some-length\nlimits:",
			health,
			figures,
		),
	)

	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+health+"/readyz", http.StatusOK)
	for _, c := range []struct {
		at, path string
		want     int
	}{
		{health, "/healthz", http.StatusOK},
		{health, "/metrics", http.StatusNotFound},
		{health, "/admin/keys", http.StatusNotFound},
		{figures, "/metrics", http.StatusOK},
		{figures, "/readyz", http.StatusNotFound},
		{admin, "/metrics", http.StatusNotFound},
		{admin, "/healthz", http.StatusNotFound},
		{admin, "/admin/keys", http.StatusUnauthorized},
		{admin, "/", http.StatusUnauthorized},
		{health, "/", http.StatusNotFound},
		{figures, "/", http.StatusNotFound},
	} {
		if status, _ := adminDo(t, http.MethodGet, "http://"+c.at+c.path, http.Header{
			"Host": {"10.0.0.7"},
		}); status != c.want {
			t.Errorf("%s at %s: %d, want %d", c.path, c.at, status, c.want)
		}
	}

	bearer := http.Header{"Authorization": {"Bearer a-token-of-some-length"}}
	if status, _ := adminDo(t, http.MethodGet, "http://"+admin+"/admin/keys", bearer); status != http.StatusOK {
		t.Errorf("with the token: %d", status)
	}
	s.end(t)
}

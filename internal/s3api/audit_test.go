package s3api_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// auditLog is the audit log of a proxy, in a file. full makes writing fail.
type auditLog struct {
	t    testing.TB
	path string
	full atomic.Bool

	mu   sync.Mutex
	read int // bytes of the log
}

func newAuditLog(t testing.TB) *auditLog {
	return &auditLog{t: t, path: filepath.Join(t.TempDir(), "audit.log")}
}

// option makes a proxy write the log.
func (a *auditLog) option(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
	log, err := audit.New(audit.Config{File: a.path, Now: time.Now})
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { log.Close() })
	cfg.Auditor = s3api.Trail(func(r audit.Record) error {
		if a.full.Load() {
			return errors.New("no space left on device")
		}
		return log.Write(r)
	})
}

func (a *auditLog) text() string {
	a.t.Helper()
	text, err := os.ReadFile(a.path)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(text)
}

// take returns the records since the last take.
func (a *auditLog) take() (records []audit.Record) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	text := a.text()[a.read:]
	a.read += len(text)

	for line := range strings.Lines(text) {
		var r audit.Record
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			a.t.Fatalf("%v: %s", err, line)
		}
		records = append(records, r)
	}

	return records
}

// want compares the records since the last take, each written as "event
// operation source result".
func (a *auditLog) want(name string, want ...string) []audit.Record {
	a.t.Helper()
	records := a.take()
	var got []string
	for _, r := range records {
		got = append(got, r.Event+" "+r.Operation+" "+r.Source+" "+r.Result)
	}
	if !slices.Equal(got, want) {
		a.t.Errorf("%s: %q, want %q", name, got, want)
	}
	return records
}

func TestEachUseOfAKeyIsAudited(t *testing.T) {
	server := kmstest.StartTest(t)
	arn, err := server.CreateKey()
	if err != nil {
		t.Fatal(err)
	}
	log := newAuditLog(t)
	p := newProxy(t, withKMS(server, arn), log.option)

	before := time.Now()
	path := "/" + p.bucket + "/a%20b"
	put := p.send(request{method: "PUT", path: path, body: []byte("x")})

	r := log.want("PUT", "create PutObject kms ok")[0]
	if r.Time.Before(before.Add(-time.Second)) || r.Time.After(
		time.Now(),
	) || r.KMSKeyName != "main" || r.KMSKey != arn || len(r.KMSRequestID) != 32 || r.Client != "app" ||
		!strings.HasPrefix(r.Remote, "127.0.0.1:") || r.RequestID == "" ||
		r.RequestID != put.Header.Get("X-Amz-Request-Id") ||
		r.Bucket != p.bucket ||
		r.Key != "a b" {
		t.Errorf("%+v, answered to request %s", r, put.Header.Get("X-Amz-Request-Id"))
	}

	p.send(request{method: "GET", path: path})
	log.want("GET", "open GetObject cache ok")
	p.keys.PurgeAll()
	p.send(request{method: "GET", path: path + "?X-Amz-Expires=60", presign: true})
	log.want("presigned GET", "open GetObject kms ok")
	p.send(request{method: "HEAD", path: path})
	log.want("HEAD, with a key at hand", "open HeadObject cache ok")

	p.keys.PurgeAll()
	p.send(request{method: "HEAD", path: path})
	p.send(request{method: "GET", path: path, secret: "another"})
	p.send(request{method: "GET", path: path + "-none"})
	p.send(request{method: "DELETE", path: path + "-none"})
	log.want("what uses no key")

	server.SetFaults(kmstest.Faults{Deny: true})
	p.keys.PurgeAll()
	p.send(request{method: "GET", path: path})
	p.send(request{method: "PUT", path: path + "-new", body: []byte("x")})

	if r := log.want("refused", "open GetObject kms access denied", "create PutObject kms access denied"); len(r) == 2 &&
		len(r[0].KMSRequestID) != 32 {
		t.Errorf("%+v", r[0])
	}
}

// Records of temporary credentials have the access key, in addition to the
// client.
func TestSessionsAreAudited(t *testing.T) {
	const accessKey, secret, token = "ASIATEAM", "secret-of-session", "token/of+session=="
	file := filepath.Join(t.TempDir(), "sessions.json")
	text := fmt.Sprintf(
		`[{"access_key":%q,"secret_key":%q,"session_token":%q,"expires":%q,"client":"app"}]`,
		accessKey,
		secret,
		token,
		time.Now().Add(time.Hour).Format(time.RFC3339),
	)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	log := newAuditLog(t)
	p := newProxy(t, log.option, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) {
		sessions, err := access.OpenSessions(file, time.Now, func(error, int) {})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Clients.UseSessions(sessions)
	})

	p.put("k", []byte("text"))
	if r := log.want("the client's own", "create PutObject kms ok")[0]; r.Client != "app" || r.Session != "" {
		t.Errorf("%+v", r)
	}
	temporary := p.as("", "", func(o *s3.Options) {
		o.Credentials = credentials.NewStaticCredentialsProvider(accessKey, secret, token)
	})

	out, err := temporary.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &p.bucket, Key: new("k")})
	if err != nil {
		t.Fatal(err)
	}
	out.Body.Close()

	if r := log.want("temporary ones", "open GetObject cache ok")[0]; r.Client != "app" || r.Session != accessKey {
		t.Errorf("%+v", r)
	}

	for _, hidden := range []string{secret, token} {
		if strings.Contains(log.text(), hidden) {
			t.Errorf("%q is in the log", hidden)
		}
	}
}

func TestMultipartIsAudited(t *testing.T) {
	log := newAuditLog(t)
	p := newProxy(t, log.option)
	p.upload("m", []int{5 * mib, 10})

	for _, r := range log.take() {
		if r.Result != audit.OK || r.Bucket != p.bucket || r.Key != "m" || r.RequestID == "" ||
			r.KMSKeyVersion != "1" ||
			!slices.Contains([]string{"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}, r.Operation) {
			t.Errorf("%+v", r)
		}
	}

	p.mustGet("m")
	if records := log.take(); len(records) == 0 || records[0].Operation != "GetObject" || records[0].Event != "open" {
		t.Errorf("%+v", records)
	}
}

// While the log cannot be written, no byte is sent or stored. Afterwards
// everything works as before.
func TestNoUseWithoutAudit(t *testing.T) {
	log := newAuditLog(t)
	p := newProxy(t, log.option)
	text := []byte("a text that must not get out")
	p.put("k", text)

	for _, purge := range []bool{false, true} {
		t.Run(fmt.Sprintf("purged %t", purge), func(t *testing.T) {
			if purge {
				p.keys.PurgeAll()
			}
			log.full.Store(true)

			for _, r := range []request{
				{method: "GET", path: "/" + p.bucket + "/k"},
				{method: "PUT", path: "/" + p.bucket + "/new", body: text},
				{method: "POST", path: "/" + p.bucket + "/new?uploads="},
			} {
				a := p.send(r)
				if a.StatusCode != http.StatusServiceUnavailable || a.Code != "ServiceUnavailable" ||
					a.Header.Get("Retry-After") == "" ||
					bytes.Contains(a.body, text) {
					t.Errorf("%s %s: %d %s", r.method, r.path, a.StatusCode, a.body)
				}
				if !bytes.Contains(a.body, []byte("audit log")) || bytes.Contains(a.body, []byte("no space")) {
					t.Errorf("%s %s: the client gets %s", r.method, r.path, a.body)
				}
			}

			if !strings.Contains(p.log.String(), "no space left on device") {
				t.Error("the reason is not in the log")
			}
			if p.isStored("new") {
				t.Error("stored without audit")
			}

			if uploads, err := p.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{
				Bucket: &p.bucket,
			}); err != nil ||
				len(uploads.Uploads) != 0 {
				t.Errorf("uploads were begun: %+v, %v", uploads, err)
			}
			log.full.Store(false)

			if got := p.mustGet("k"); !bytes.Equal(got, text) {
				t.Errorf("%q", got)
			}
		})
	}
}

// The watcher of a blocked stream writes records for the same request as the
// stream.
func TestRenewalsAreAuditedForTheirRequest(t *testing.T) {
	log := newAuditLog(t)
	p := newProxy(t, log.option)
	p.put("k", randomText(20<<20))
	log.take()

	out, err := p.client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &p.bucket, Key: new("k")})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	opened := log.want("GET", "open GetObject cache ok")[0]
	p.keys.PurgeAll()

	var records []audit.Record
	for deadline := time.Now().Add(20 * time.Second); len(records) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not renewed while no client reads")
		}
		records = log.take()
	}

	r := records[0]
	if len(records) != 1 || r.Event != "renew" || r.Result != audit.OK || r.RequestID != opened.RequestID ||
		r.Operation != "GetObject" ||
		r.Client != "app" ||
		r.Key != "k" {
		t.Errorf("%+v", records)
	}

	if _, err := io.Copy(io.Discard, out.Body); err != nil {
		t.Error(err)
	}
}

// A running transfer ends if its renewal cannot be audited.
func TestUnauditedRenewalEndsADownload(t *testing.T) {
	log := newAuditLog(t)
	p := newProxy(t, log.option)
	text := randomText(20 << 20)
	p.put("k", text)

	out, err := p.client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &p.bucket, Key: new("k")})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	log.full.Store(true)
	p.keys.PurgeAll() // ends the lease

	got := &bytes.Buffer{}
	if _, err := got.ReadFrom(out.Body); err == nil || got.Len() == len(text) {
		t.Errorf("%d bytes, %v: not cut", got.Len(), err)
	}
}

func BenchmarkAuditedGet(b *testing.B) {
	for name, options := range map[string][]option{"without": nil, "with": {newAuditLog(b).option}} {
		b.Run(name, func(b *testing.B) {
			p := newProxy(b, options...)
			p.put("k", randomText(4096))
			b.ReportAllocs()
			for b.Loop() {
				p.mustGet("k")
			}
		})
	}
}

// Readers of the log rely on these names, in each record of an S3 request.
func TestAuditFieldsGolden(t *testing.T) {
	const fields = "time event result kms_key_name kms_key kms_key_version source client remote request_id operation bucket key"
	log := newAuditLog(t)
	p := newProxy(t, log.option)
	p.put("k", []byte("text"))
	p.mustGet("k")
	var got []string
	for line := range strings.Lines(log.text()) {
		got = append(got, strings.Join(fieldNames(t, line), " "))
	}
	if want := []string{fields, fields}; !slices.Equal(got, want) {
		t.Errorf("the records have the fields %q, want %q", got, want)
	}
}

// fieldNames returns the names in a flat JSON object, in order.
func fieldNames(t *testing.T, object string) (names []string) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(object))
	for isName := false; ; isName = !isName {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}

		if name, ok := token.(string); ok && isName {
			names = append(names, name)
		}
	}
}

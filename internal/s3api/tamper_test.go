package s3api_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// mustRefuse reads an object whole and in ranges. The test fails if a read
// succeeds, or returns a byte that differs from the plaintext.
func mustRefuse(t *testing.T, p *proxy, name, key string, text []byte, codes ...string) {
	t.Helper()
	got, _, err := p.get(key)
	if err == nil {
		t.Errorf("%s: GET ends cleanly with %d bytes", name, len(got))
		return
	}
	if !bytes.HasPrefix(text, got) {
		t.Errorf("%s: GET yields bytes that were never stored", name)
	}

	if len(codes) > 0 && got == nil {
		for _, want := range codes {
			if code(err) == want {
				return
			}
		}
		t.Errorf("%s: GET fails with %s, want %v", name, code(err), codes)
	}
}

const integrity = "ObjectIntegrityError"

// Promise P2: if the store alters, truncates, reorders, swaps or moves what
// it stores, every read fails.
func TestTampering(t *testing.T) {
	p := newProxy(t)
	const n = crypt.StoredSegmentSize
	text := randomText(3*crypt.SegmentSize + 100)
	p.put("k", text)
	p.put("other", randomText(len(text)))
	body, meta := p.stored("k")
	otherBody, otherMeta := p.stored("other")

	seg := func(i int) []byte { return body[i*n : min((i+1)*n, len(body))] }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	flip := func(i int) []byte { b := bytes.Clone(body); b[i] ^= 1; return b }

	with := func(name, value string) http.Header {
		h := maps.Clone(meta)
		h["X-Amz-Meta-Cmek-"+name] = []string{value}
		return h
	}
	for _, row := range []struct {
		name string
		body []byte
		meta http.Header
	}{
		{"bit in the header's length", flip(0), meta},
		{"bit in the salt", flip(5), meta},
		{"bit in the nonce prefix", flip(35), meta},
		{"bit in the first segment", flip(100), meta},
		{"bit in a middle segment", flip(2*n + 7), meta},
		{"bit in the last tag", flip(len(body) - 1), meta},
		{"last byte cut", body[:len(body)-1], meta},
		{"last segment cut", body[:3*n], meta},
		{"cut to the header", body[:40], meta},
		{"emptied", nil, meta},
		{"trailing byte", append(bytes.Clone(body), 0), meta},
		{"trailing segment", join(body, seg(1)), meta},
		{"segments swapped", join(seg(0), seg(2), seg(1), seg(3)), meta},
		{"segment duplicated", join(seg(0), seg(1), seg(1), seg(3)), meta},
		{"segment dropped", join(seg(0), seg(2), seg(3)), meta},
		{"body of another object", otherBody, meta},
		{"envelope of another object", body, otherMeta},
		{"object replaced by another", otherBody, otherMeta},
		{"plaintext under the envelope", text, meta},
		{"MAC of another object", body, with("Mac", otherMeta.Get("X-Amz-Meta-Cmek-Mac"))},
		{"wrapped DEK of another object", body, with("Dek", otherMeta.Get("X-Amz-Meta-Cmek-Dek"))},
		{"header of another object", body, with("Header", otherMeta.Get("X-Amz-Meta-Cmek-Header"))},
		{"smaller size", body, with("Size", "1")},
		{"smaller size, body cut to fit", body[:2*n], with("Size", "131032")},
		{"unknown version", body, with("V", "3")},
		{"unknown suite", body, with("Suite", "0")},
		{"unknown entry", body, with("Extra", "1")},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.meta == nil {
				t.Fatal(row.name)
			}
			p.store("k", row.body, row.meta)
			mustRefuse(t, p, row.name, "k", text)
		})
	}

	p.store("k", body, meta)
	if !bytes.Equal(p.mustGet("k"), text) {
		t.Error("the untouched object cannot be read any more")
	}
}

func TestMovedObjects(t *testing.T) {
	p := newProxy(t)
	text := randomText(1000)
	p.put("k", text)
	body, meta := p.stored("k")
	p.store("moved", body, meta)
	mustRefuse(t, p, "moved to another key", "moved", nil, integrity)
	p.bucket = p.newBucket("elsewhere-")
	p.store("k", body, meta)
	mustRefuse(t, p, "moved to another bucket", "k", nil, integrity)
}

// If a store removes the envelope of an encrypted object, it must not be
// read as plaintext.
func TestStrippedEnvelope(t *testing.T) {
	p := newProxy(t)
	p.put("k", randomText(1000))
	body, meta := p.stored("k")
	p.store("k", body, nil)
	mustRefuse(t, p, "envelope stripped", "k", nil, "PlaintextObject")
	p.store("k", []byte("planted by the store"), nil)
	mustRefuse(t, p, "plaintext planted", "k", nil, "PlaintextObject")

	if a := p.send(request{method: "HEAD", path: "/" + p.bucket + "/k"}); a.StatusCode != http.StatusForbidden {
		t.Errorf("HEAD of a stripped object: %d", a.StatusCode)
	}
	a := p.send(request{method: "GET", path: "/" + p.bucket + "/k", header: http.Header{"Range": {"bytes=999999-"}}})
	if a.StatusCode != http.StatusForbidden {
		t.Errorf("range behind a stripped object: %d", a.StatusCode)
	}

	for name := range meta {
		partial := maps.Clone(meta)
		delete(partial, name)
		p.store("k", body, partial)
		mustRefuse(t, p, name+" stripped", "k", nil, integrity)
	}
}

func TestPlaintextWhereAllowed(t *testing.T) {
	p := newProxy(t)
	p.bucket = p.newBucket("plain-")
	text := randomText(200_000)
	p.store("old", text, http.Header{"X-Amz-Meta-Color": {"blue"}})
	if got := p.mustGet("old"); !bytes.Equal(got, text) {
		t.Error("the plaintext object is altered")
	}

	for _, header := range []string{"bytes=0-9", "bytes=-7", "bytes=150000-", "bytes=65530-65540", "bytes=200000-"} {
		t.Run(header, func(t *testing.T) {
			a := p.send(request{method: "GET", path: "/" + p.bucket + "/old", header: http.Header{"Range": {header}}})
			status, want, _ := reference(text, header)
			if a.StatusCode != status || status == 206 && !bytes.Equal(a.body, want) {
				t.Errorf("%d with %d bytes, want %d with %d", a.StatusCode, len(a.body), status, len(want))
			}
		})
	}

	if a := p.send(request{method: "HEAD", path: "/" + p.bucket + "/old"}); a.ContentLength != int64(len(text)) {
		t.Errorf("HEAD: %d", a.ContentLength)
	}
	p.put("new", text)
	if body, _ := p.stored("new"); bytes.Contains(body, text[:16]) {
		t.Error("a new object is stored in clear where old ones may be")
	}
}

func TestRevokedKey(t *testing.T) {
	p := newProxy(t)
	text := randomText(1000)
	p.put("k", text)
	if err := os.Rename(p.keyFile, p.keyFile+".away"); err != nil {
		t.Fatal(err)
	}

	if got := p.mustGet("k"); !bytes.Equal(got, text) {
		t.Error("within the window the cached key serves")
	}
	p.keys.PurgeAll()
	mustRefuse(t, p, "revoked", "k", nil, "KMS.NotFoundException")

	_, err := p.client.PutObject(
		t.Context(),
		&s3.PutObjectInput{Bucket: &p.bucket, Key: new("new"), Body: bytes.NewReader(text)},
	)
	if code(err) != "KMS.NotFoundException" || p.isStored("new") {
		t.Errorf("PUT under a revoked key: %v", err)
	}

	if err := os.Rename(p.keyFile+".away", p.keyFile); err != nil {
		t.Fatal(err)
	}
	p.clock.Add(int64(2 * time.Second)) // after the refusal is no longer cached
	if got := p.mustGet("k"); !bytes.Equal(got, text) {
		t.Error("with the key back the object is readable again")
	}
}

// The revocation window also applies to running transfers, in both
// directions.
func TestRevokedInMidTransfer(t *testing.T) {
	p := newProxy(t)
	text := randomText(8 << 20)
	p.put("k", text)
	out, err := p.client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &p.bucket, Key: new("k")})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()

	if _, err := io.ReadFull(out.Body, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(p.keyFile); err != nil {
		t.Fatal(err)
	}
	p.keys.PurgeAll()

	rest, err := io.ReadAll(out.Body)
	if err == nil {
		t.Fatal("the download ends cleanly after its key was taken away")
	}
	if len(rest) > 7<<20 {
		t.Errorf("%d bytes still came", len(rest))
	}
}

func TestUploadUnderARevokedKeyIsNotStored(t *testing.T) {
	p := newProxy(t)
	text := randomText(6 << 20)

	// The key is revoked when the store has received a MiB. The data key is
	// in use by then.
	revoke := &hook{at: 1 << 20, do: func() {
		_ = os.Remove(p.keyFile)
		p.keys.PurgeAll()
	}}

	p.origin.set(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodPut {
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.TeeReader(r.Body, revoke), r.Body}
		}
		return nil, nil
	}, nil)

	a := p.send(request{method: "PUT", path: "/" + p.bucket + "/k", body: text, hash: "UNSIGNED-PAYLOAD"})
	if a.Code != "KMS.NotFoundException" || revoke.do != nil {
		t.Errorf("answered %d %s; revoked: %v", a.StatusCode, a.Code, revoke.do == nil)
	}
	if p.isStored("k") {
		t.Error("stored all the same")
	}
}

// hook calls a function after the given number of bytes.
type hook struct {
	n, at int
	do    func()
}

func (h *hook) Write(b []byte) (int, error) {
	h.n += len(b)
	if h.do != nil && h.n >= h.at {
		h.do()
		h.do = nil
	}
	return len(b), nil
}

// If the body from the store breaks at any byte, the client's connection is
// closed.
func TestStoreBreaksOff(t *testing.T) {
	p := newProxy(t)
	text := randomText(700_000)
	p.put("k", text)

	for _, at := range []int64{0, 1, 39, 40, 65551, 65552, 300_000, 262_208, 262_209, 700_100} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			p.origin.set(nil, func(resp *http.Response) {
				resp.Body = &breaking{ReadCloser: resp.Body, left: at}
			})
			got, _, err := p.get("k")
			if err == nil || !bytes.HasPrefix(text, got) {
				t.Errorf("break at %d: %d bytes, %v", at, len(got), err)
			}
		})
	}

	p.origin.set(nil, nil)
	if !bytes.Equal(p.mustGet("k"), text) {
		t.Error("the object does not recover")
	}
}

type breaking struct {
	io.ReadCloser
	left int64
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errors.New("connection reset by the store")
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// Errors of the store that a client cannot fix are not reported as the
// client's fault.
func TestStoreFaults(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("x"))
	answer := func(status int, body string) func(*http.Request) (*http.Response, error) {
		return func(*http.Request) (*http.Response, error) {
			return &http.Response{
				StatusCode:    status,
				Header:        http.Header{},
				Body:          io.NopCloser(strings.NewReader(body)),
				ContentLength: int64(len(body)),
			}, nil
		}
	}
	for _, row := range []struct {
		name   string
		fault  func(*http.Request) (*http.Response, error)
		status int
		code   string
	}{
		{
			"unreachable", func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") }, 503,
			"ServiceUnavailable",
		},
		{"throttling", answer(503, "<Error><Code>SlowDown</Code></Error>"), 503, "SlowDown"},
		{"bad credentials", answer(403, "<Error><Code>InvalidAccessKeyId</Code></Error>"), 500, "InternalError"},
		{"bad signature", answer(403, "<Error><Code>SignatureDoesNotMatch</Code></Error>"), 500, "InternalError"},
		{"denied", answer(403, "<Error><Code>AccessDenied</Code></Error>"), 403, "AccessDenied"},
		{"redirect", answer(301, "<Error><Code>PermanentRedirect</Code></Error>"), 500, "InternalError"},
		{"no XML", answer(502, "<html>bad gateway"), 503, "ServiceUnavailable"},
		{"no S3", answer(404, "404 page not found\n"), 503, "ServiceUnavailable"},
		{
			"a page for what is missing", answer(404, "<!DOCTYPE html>\n<title>404 Not Found</title>"), 503,
			"ServiceUnavailable",
		},
		{"a page for what is denied", answer(403, "<html><h1>Forbidden</h1></html>"), 503, "ServiceUnavailable"},
		{"missing", answer(404, "<Error><Code>NoSuchKey</Code><Message>m</Message></Error>"), 404, "NoSuchKey"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.origin.set(row.fault, nil)
			a := p.send(request{method: "GET", path: "/" + p.bucket + "/k"})
			if a.StatusCode != row.status || a.Code != row.code {
				t.Errorf("%d %s, want %d %s", a.StatusCode, a.Code, row.status, row.code)
			}
			if a.StatusCode == 503 && a.Header.Get("Retry-After") == "" {
				t.Errorf("no Retry-After")
			}

			for _, secret := range []string{storeAccess, storeSecret, clientSecret} {
				if bytes.Contains(a.body, []byte(secret)) {
					t.Errorf("the answer has a secret in it")
				}
			}
		})
	}
}

func TestSecretsAreNotLogged(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("x"))
	p.mustGet("k")
	p.send(request{method: "GET", path: "/" + p.bucket + "/k?X-Amz-Expires=60", presign: true})
	p.send(request{method: "GET", path: "/" + p.bucket + "/k", secret: "not the secret"})
	log := p.log.String()

	key, err := os.ReadFile(p.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{
		clientSecret, storeSecret, storeAccess, strings.TrimSpace(string(key)), "Credential=",
	} {
		if strings.Contains(log, secret) {
			t.Errorf("the log holds %q", secret)
		}
	}

	if found := regexp.MustCompile("[0-9a-f]{64}").FindString(log); found != "" {
		t.Errorf("the log holds a signature: %s", found)
	}

	for _, want := range []string{
		`"operation":"PutObject"`, `"operation":"GetObject"`, `"bucket":"` + p.bucket, `"key":"k"`, `"client":"app"`,
		`"code":"SignatureDoesNotMatch"`, `"status":403`, `"bytes_in":`, `"total_ms":`, `"kms_ms":`, `"origin_ms":`,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %s", want)
		}
	}
}

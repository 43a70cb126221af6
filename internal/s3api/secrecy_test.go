package s3api_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// remembering is a key that records every data key, and can be made to leak
// one in an error.
type remembering struct {
	kms.Wrapper
	mu   sync.Mutex
	deks [][]byte
	leak func(dek []byte) string // nil for no leak
}

func (r *remembering) remember(dek []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deks = append(r.deks, bytes.Clone(dek))
	if r.leak != nil {
		return &kms.Error{
			Kind:  kms.Internal,
			Op:    "unwrap",
			KeyID: r.KeyID(),
			Err:   errors.New("could not take " + r.leak(dek)),
		}
	}
	return nil
}

func (r *remembering) Wrap(ctx context.Context, dek []byte, ec kms.EncryptionContext) ([]byte, error) {
	if err := r.remember(dek); err != nil {
		return nil, err
	}
	return r.Wrapper.Wrap(ctx, dek, ec)
}

func (r *remembering) Unwrap(ctx context.Context, wrapped []byte, ec kms.EncryptionContext) ([]byte, error) {
	dek, err := r.Wrapper.Unwrap(ctx, wrapped, ec)
	if err == nil {
		err = r.remember(dek)
	}
	return dek, err
}

// forms are the forms in which 32 bytes can appear in a text.
func forms(secret []byte) map[string]string {
	out := map[string]string{
		"raw":     string(secret),
		"hex":     hex.EncodeToString(secret),
		"HEX":     strings.ToUpper(hex.EncodeToString(secret)),
		"decimal": strings.Trim(decimal(secret), "[]"),
		"quoted":  strings.Trim(fmt.Sprintf("%q", secret), `"`),
	}

	for name, encoding := range map[string]*base64.Encoding{
		"base64": base64.RawStdEncoding, "base64 for URLs": base64.RawURLEncoding,
	} {
		for shift := range 3 { // as part of something longer; the characters at the ends depend on that
			text := encoding.EncodeToString(append(make([]byte, shift), secret...))
			text = text[(shift*8+5)/6:]
			out[fmt.Sprintf("%s, shifted by %d", name, shift)] = text[:len(secret)*8/6-1]
		}
	}

	return out
}

func decimal(secret []byte) string { return fmt.Sprintf("%d", secret) }

// leaks returns the forms in which a secret appears in a text.
func leaks(text string, secret []byte) (found []string) {
	for name, form := range forms(secret) {
		if strings.Contains(text, form) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}

func TestLeaksAreFound(t *testing.T) {
	secret := randomText(32)
	for _, text := range []string{
		"a " + string(secret), fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), decimal(secret),
		fmt.Sprintf("%q", secret),
		base64.StdEncoding.EncodeToString(secret), base64.RawStdEncoding.EncodeToString(secret),
		base64.URLEncoding.EncodeToString(secret), base64.RawURLEncoding.EncodeToString(secret),
		base64.StdEncoding.EncodeToString([]byte("a" + string(secret) + "b")),
		base64.URLEncoding.EncodeToString([]byte("ab" + string(secret) + "bc")),
	} {
		if len(leaks(text, secret)) == 0 {
			t.Errorf("not found in %q: %q", text, secret)
		}
	}

	if found := leaks(string(randomText(10_000))+hex.EncodeToString(randomText(10_000)), secret); len(found) != 0 {
		t.Errorf("found where it is not: %v", found)
	}
}

// spoken is everything that a proxy has sent: to its log, its audit log, and
// its clients.
type spoken struct {
	log, audit string
	answers    bytes.Buffer
	requests   bytes.Buffer // headers and URLs
	mu         sync.Mutex
}

// recorder is a client's transport that records traffic.
type recorder struct {
	next http.RoundTripper
	to   *spoken
}

func (r recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	r.to.mu.Lock()
	defer r.to.mu.Unlock()
	fmt.Fprintf(&r.to.requests, "%s %v\n", req.URL, req.Header)
	fmt.Fprintf(&r.to.answers, "%v %s\n", resp.Header, body)
	resp.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), failed{err}))
	return resp, nil
}

// failed is a body that ends with the same error.
type failed struct{ err error }

func (f failed) Read([]byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return 0, io.EOF
}

// useAll makes a proxy use keys in all ways, with and without errors. It
// returns what was sent, and the data keys.
func useAll(t *testing.T, leak func([]byte) string) (*spoken, [][]byte) {
	t.Helper()
	said, log, key := &spoken{}, newAuditLog(t), &remembering{}
	p := newProxy(t, log.option, func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		key.Wrapper = cfg.Keys[0].Wrapper
		cfg.Keys[0].Wrapper = key
	})
	client := p.server.Client()

	client.Transport = recorder{client.Transport, said}
	path := "/" + p.bucket + "/k"
	text := randomText(200_000)

	all := func() {
		p.send(request{method: "PUT", path: path, body: text})
		for _, r := range []request{
			{method: "GET", path: path},
			{method: "HEAD", path: path},
			{method: "GET", path: path, header: http.Header{"Range": {"bytes=70000-70009"}}},
			{method: "GET", path: path + "?X-Amz-Expires=60", presign: true},
			{method: "GET", path: path, secret: "another secret"},
			{method: "GET", path: path + "?X-Amz-Expires=60", presign: true, secret: "another secret"},
			{method: "PUT", path: path, body: text, hash: strings.Repeat("0", 64)},
			{method: "PUT", path: path, body: text, header: http.Header{"Content-Md5": {"AAAAAAAAAAAAAAAAAAAAAA=="}}},
			{method: "GET", path: path + "?uploads=&wrong"},
			{method: "GET", path: path + "-none"},
		} {
			p.send(r)
		}

		if resp, err := client.Get(p.url + path + "?X-Amz-Credential=x&X-Amz-Signature=notasignature"); err == nil {
			resp.Body.Close()
		}
	}

	all()
	p.upload("m", []int{5 * mib, 10})
	p.mustGet("m")
	body, header := p.stored("k")
	body[len(body)/2] ^= 1
	p.store("altered", body, header)
	p.store("k2", body, header)

	if _, _, err := p.get("k2"); err == nil {
		t.Error("an altered object was read")
	}

	for _, take := range []func(){
		func() { key.leak = leak },
		func() { _ = os.Rename(p.keyFile, p.keyFile+".away") },
		func() { key.leak = nil; _ = os.Rename(p.keyFile+".away", p.keyFile); log.full.Store(true) },
	} {
		take()
		p.keys.PurgeAll()
		all()
	}

	if _, err := p.client.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &p.bucket}); err != nil {
		t.Error(err)
	}
	p.server.Close() // nothing more is written after this
	said.log, said.audit = p.log.String(), log.text()
	return said, key.deks
}

var signatureForm = regexp.MustCompile(`Signature=([0-9a-f]{64})`)

// No data key, secret or signature appears in what the proxy sends, in any
// form. The one exception is S3's response to a wrong signature, which
// repeats the signature and its input to the client; it is not in the log.
func TestSecretsAreKept(t *testing.T) {
	said, deks := useAll(t, nil)
	if len(deks) < 10 || len(said.log) < 5000 || len(said.audit) < 5000 || said.answers.Len() < 100_000 {
		t.Fatalf(
			"not much was done: %d DEKs, %d, %d and %d bytes",
			len(deks),
			len(said.log),
			len(said.audit),
			said.answers.Len(),
		)
	}

	answers := said.answers.String()
	places := map[string]string{"log": said.log, "audit log": said.audit, "answers": answers}
	for place, text := range places {
		for _, dek := range deks {
			if found := leaks(text, dek); len(found) > 0 {
				t.Errorf("a DEK is in the %s: %v", place, found)
			}
		}

		for _, secret := range []string{clientSecret, storeSecret, readerSecret, "another secret"} {
			if found := leaks(text, []byte(secret)); len(found) > 0 {
				t.Errorf("the secret %q is in the %s: %v", secret, place, found)
			}
		}
	}

	signatures := signatureForm.FindAllStringSubmatch(said.requests.String(), -1)
	if len(signatures) < 30 {
		t.Fatalf("%d signatures", len(signatures))
	}

	for _, s := range signatures {
		if strings.Contains(said.log, s[1]) || strings.Contains(said.audit, s[1]) {
			t.Errorf("the signature %s is in a log", s[1])
		}
		if strings.Contains(answers, s[1]) && !strings.Contains(answers, "<SignatureProvided>"+s[1]) {
			t.Errorf("the signature %s is in an answer", s[1])
		}
	}

	for _, word := range []string{"notasignature", "X-Amz-Credential", "Credential=", clientAccess + "/"} {
		if strings.Contains(said.log, word) || strings.Contains(said.audit, word) {
			t.Errorf("%s is in a log", word)
		}
	}
}

// A provider that puts a data key into its errors is detected: the test
// above would fail.
func TestALeakyProviderIsFoundOut(t *testing.T) {
	for name, leak := range map[string]func([]byte) string{
		"hex":     hex.EncodeToString,
		"base64":  base64.StdEncoding.EncodeToString,
		"decimal": decimal,
	} {
		t.Run(name, func(t *testing.T) {
			said, deks := useAll(t, leak)
			found := false
			for _, dek := range deks {
				found = found || len(leaks(said.log, dek)) > 0
			}

			if !found {
				t.Errorf("not found")
			}
		})
	}
}

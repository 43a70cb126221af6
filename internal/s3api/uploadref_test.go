package s3api_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// switchedKey is a key that can be disabled.
type switchedKey struct {
	kms.Wrapper
	off *kms.Error
}

func (k *switchedKey) Unwrap(ctx context.Context, wrapped []byte, ec kms.EncryptionContext) ([]byte, error) {
	if k.off != nil {
		return nil, k.off
	}
	return k.Wrapper.Unwrap(ctx, wrapped, ec)
}

// twoReplicas returns two proxies for the same bucket, with two keys: main,
// which the rules use, and second.
func twoReplicas(t *testing.T) (a, b *proxy, second *switchedKey) {
	t.Helper()
	other := secondKey(t)
	second = &switchedKey{Wrapper: other.Wrapper}
	other.Wrapper = second
	a = newProxy(t, func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		cfg.Keys = append(cfg.Keys, other)
		cfg.Rules = []keyring.Rule{
			{Prefixes: []string{"tied/"}, Key: "main", AskedKeys: []string{"main"}},
			{Key: "main", AskedKeys: []string{"*"}},
		}
	})
	return a, a.replica(), second
}

func asking(keyID, context string) func(*s3.CreateMultipartUploadInput) {
	return func(in *s3.CreateMultipartUploadInput) {
		in.ServerSideEncryption = types.ServerSideEncryptionAwsKms
		if keyID != "" {
			in.SSEKMSKeyId = &keyID
		}
		if context != "" {
			in.SSEKMSEncryptionContext = new(base64.StdEncoding.EncodeToString([]byte(context)))
		}
	}
}

// partKeys returns the key ids and encryption contexts of the parts of a
// stored object.
func (p *proxy) partKeys(key string, sizes ...int) (ids []string, contexts []map[string]string) {
	p.t.Helper()
	body, _ := p.stored(key)
	for _, size := range sizes {
		part, err := crypt.ParsePart(body[:crypt.PartPrefixSize])
		if err != nil {
			p.t.Fatal(err)
		}

		wrapped, err := crypt.ParseWrappedKey(part.WrappedDEK)
		if err != nil {
			p.t.Fatal(err)
		}
		ids, contexts, body = append(ids, part.KeyID), append(contexts, wrapped.Context), body[size+crypt.PartOverhead:]
	}

	return ids, contexts
}

// If a client requests a key for an upload, all parts are under that key, on
// any replica.
func TestUploadUnderAnotherKey(t *testing.T) {
	a, b, second := twoReplicas(t)
	m := a.create("k", asking(second.KeyID(), `{"tenant":"acme"}`))
	for i := range 4 {
		m.p = []*proxy{a, b}[i%2]
		out := m.send(int32(i+1), randomText(5*mib))
		if out == nil || *out.SSEKMSKeyId != second.KeyID() {
			t.Fatalf("part %d: %+v", i+1, out)
		}
	}

	parts, err := b.client.ListParts(t.Context(), &s3.ListPartsInput{Bucket: &a.bucket, Key: &m.key, UploadId: &m.id})
	if err != nil || len(parts.Parts) != 4 || *parts.UploadId != m.id {
		t.Errorf("listed: %+v, %v", parts, err)
	}
	if done := m.mustComplete(); *done.SSEKMSKeyId != second.KeyID() {
		t.Errorf("completed under %s", *done.SSEKMSKeyId)
	}

	ids, contexts := a.partKeys("k", 5*mib, 5*mib, 5*mib, 5*mib, 0)
	for i := range ids {
		if ids[i] != second.KeyID() || contexts[i]["tenant"] != "acme" {
			t.Errorf("part %d is under %s, %v", i+1, ids[i], contexts[i])
		}
	}

	head, err := b.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &a.bucket, Key: &m.key})
	if err != nil || *head.SSEKMSKeyId != second.KeyID() || *head.ContentLength != 20*mib {
		t.Errorf("HEAD: %+v, %v", head, err)
	}
	a.cache.PurgeAll()

	if got := a.mustGet("k"); !bytes.Equal(got, m.text()) {
		t.Error("another text")
	}
	second.off = &kms.Error{Kind: kms.Disabled, KeyID: second.KeyID()}
	a.cache.PurgeAll()

	if _, _, err := a.get("k"); code(err) != "KMS.DisabledException" {
		t.Errorf("the key is disabled, and reading: %v", err)
	}
}

// storeID returns the store's id of an upload.
func (m *multipart) storeID() string {
	id, _, _ := strings.Cut(m.id, ".cmek.")
	return id
}

// A context can be used with the rules' own key. If only that key is
// requested, the upload id does not name it.
func TestUploadIDs(t *testing.T) {
	a, b, second := twoReplicas(t)
	own := a.ringKeys[0].Wrapper.KeyID()
	for name, row := range map[string]struct {
		ask    func(*s3.CreateMultipartUploadInput)
		marked bool
		key    string
	}{
		"nothing":                 {func(*s3.CreateMultipartUploadInput) {}, false, own},
		"the rules' key":          {asking(own, ""), false, own},
		"the rules' key, by name": {asking("main", ""), false, own},
		"aws:kms":                 {asking("", ""), false, own},
		"another key":             {asking(second.KeyID(), ""), true, second.KeyID()},
		"another key, by name":    {asking("second", ""), true, second.KeyID()},
		"a context":               {asking("", `{"a":"ä <&> b"}`), true, own},
	} {
		t.Run(name, func(t *testing.T) {
			m := a.create("of "+name, row.ask)
			wish, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(m.id, m.storeID()+".cmek."))
			if asks := strings.Contains(string(wish), `"key"`) || strings.Contains(string(wish), `"context"`); err != nil ||
				asks != row.marked || !strings.Contains(string(wish), `"random"`) {
				t.Errorf("the id is %q", m.id)
			}
			m.p = b
			m.send(1, []byte("text"))
			m.mustComplete()

			if ids, _ := a.partKeys(m.key, 4); ids[0] != row.key {
				t.Errorf("under %s", ids[0])
			}
			if got := a.mustGet(m.key); string(got) != "text" {
				t.Errorf("%q", got)
			}

			gone := a.create("gone", row.ask)
			gone.send(1, []byte("text"))
			uploads, err := b.client.ListMultipartUploads(
				t.Context(),
				&s3.ListMultipartUploadsInput{Bucket: &a.bucket, Prefix: new("gone")},
			)
			if err != nil || len(uploads.Uploads) != 1 || !strings.HasPrefix(gone.id, *uploads.Uploads[0].UploadId) {
				t.Errorf("uploads: %+v, %v", uploads, err)
			}

			if _, err := b.client.AbortMultipartUpload(t.Context(), &s3.AbortMultipartUploadInput{
				Bucket: &a.bucket, Key: &gone.key, UploadId: &gone.id,
			}); err != nil {
				t.Errorf("abort: %v", err)
			}
			if _, err := gone.complete(); code(err) != "NoSuchUpload" {
				t.Errorf("completing what was aborted: %v", err)
			}
		})
	}
}

// The contents of an id are checked like headers, for each part.
func TestForgedUploadIDs(t *testing.T) {
	a, _, second := twoReplicas(t)
	m := a.create("tied/k")
	marked := func(wish string) string {
		return m.storeID() + ".cmek." + base64.RawURLEncoding.EncodeToString([]byte(wish))
	}
	for name, row := range map[string]struct{ id, code string }{
		"a key that the rule does not allow": {marked(`{"key":"` + second.KeyID() + `"}`), "AccessDenied"},
		"a key that nobody has":              {marked(`{"key":"nobody"}`), "KMS.NotFoundException"},
		"a customer's key":                   {marked(`{"key":"` + crypt.CustomerKeyID + `"}`), "KMS.NotFoundException"},
		"a name of the format's in context":  {marked(`{"context":{"bucket":"mine"}}`), "NoSuchUpload"},
		"such a name in capitals":            {marked(`{"context":{"BUCKET":"mine"}}`), "NoSuchUpload"},
		"an unknown wish":                    {marked(`{"plaintext":true}`), "NoSuchUpload"},
		"no JSON":                            {marked(`key`), "NoSuchUpload"},
		"more behind it":                     {marked(`{"key":"main"}{}`), "NoSuchUpload"},
		"no base64":                          {m.storeID() + ".cmek.!", "NoSuchUpload"},
		"nothing":                            {m.storeID() + ".cmek.", "NoSuchUpload"},
		"a customer's data key":              {marked(`{"sealed":"AAAA"}`), "InvalidRequest"}, // without the customer key
		"random bytes that are too short":    {marked(`{"random":"AAAA"}`), "NoSuchUpload"},
		"random bytes that are zero":         {marked(`{"random":"AAAAAAAAAAAAAAAAAAAAAA=="}`), "NoSuchUpload"},
		"sealed metadata without them":       {marked(`{"meta":true}`), "NoSuchUpload"},
		"another upload":                     {"x" + marked(`{"key":"main"}`), "NoSuchUpload"},
	} {
		t.Run(name, func(t *testing.T) {
			path := "/" + a.bucket + "/tied/k?partNumber=1&uploadId=" + url.QueryEscape(row.id)
			if got := a.send(request{method: http.MethodPut, path: path, body: []byte("text")}); got.Code != row.code {
				t.Errorf("%d %s", got.StatusCode, got.Code)
			}
		})
	}

	parts, err := a.client.ListParts(t.Context(), &s3.ListPartsInput{Bucket: &a.bucket, Key: &m.key, UploadId: &m.id})
	if err != nil || len(parts.Parts) != 0 {
		t.Errorf("a part was stored: %+v, %v", parts, err)
	}
}

// If customer keys are denied, an id that says that its upload is under one
// does not circumvent that.
func TestForgedUploadIDWhereCustomerKeysAreOff(t *testing.T) {
	p := newProxy(t, func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		cfg.Rules = []keyring.Rule{{Key: "main", RefuseCustomerKeys: true}}
	})
	m, mine := p.create("k"), newCustomer(1)

	key, err := base64.StdEncoding.DecodeString(
		mine.headers(customerHeader).Get("X-Amz-Server-Side-Encryption-Customer-Key"),
	)
	if err != nil {
		t.Fatal(err)
	}

	wrapped, err := crypt.WrapByCustomer(
		key,
		randomText(crypt.DEKSize),
		crypt.Object{Bucket: p.bucket, Key: "k"},
		rand.Reader,
	)
	if err != nil {
		t.Fatal(err)
	}

	forged := m.storeID() + ".cmek." + base64.RawURLEncoding.EncodeToString(
		[]byte(`{"sealed":"`+base64.StdEncoding.EncodeToString(wrapped)+`"}`),
	)

	a := p.send(
		request{
			method: http.MethodPut,
			path:   "/" + p.bucket + "/k?partNumber=1&uploadId=" + forged,
			header: mine.headers(customerHeader),
			body:   []byte("text"),
		},
	)
	if a.Code != "AccessDenied" {
		t.Errorf("%d %s", a.StatusCode, a.Code)
	}

	parts, err := p.client.ListParts(t.Context(), &s3.ListPartsInput{Bucket: &p.bucket, Key: &m.key, UploadId: &m.id})
	if err != nil || len(parts.Parts) != 0 {
		t.Errorf("a part was stored: %+v, %v", parts, err)
	}
}

// A key that does not fit into part headers is refused before the first
// part.
func TestUploadKeyThatDoesNotFit(t *testing.T) {
	p := newProxy(t, func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		cfg.Keys[0].Wrapper = &longKey{cfg.Keys[0].Wrapper}
	})

	header := http.Header{
		"X-Amz-Server-Side-Encryption": {"aws:kms"},
		"X-Amz-Server-Side-Encryption-Context": {
			base64.StdEncoding.EncodeToString([]byte(`{"a":"` + strings.Repeat("x", 380) + `"}`)),
		},
	}
	if a := p.send(request{
		method: http.MethodPost, path: "/" + p.bucket + "/k?uploads", header: header,
	}); a.Code != "InternalError" ||
		!strings.Contains(string(a.body), "part header") {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}

	uploads, err := p.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &p.bucket})
	if err != nil || len(uploads.Uploads) != 0 {
		t.Errorf("an upload was begun: %+v, %v", uploads, err)
	}
}

// longKey wraps to blobs of 512 bytes, as 4096-bit RSA keys do.
type longKey struct{ kms.Wrapper }

func (k *longKey) Wrap(ctx context.Context, dek []byte, ec kms.EncryptionContext) ([]byte, error) {
	b, err := k.Wrapper.Wrap(ctx, dek, ec)
	return append(b, make([]byte, max(0, 512-len(b)))...), err
}

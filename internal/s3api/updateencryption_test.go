package s3api_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// withAskedKey adds a key that clients may ask for, except under tied/.
func withAskedKey(t *testing.T, change ...func(*keyring.Config)) (option, string) {
	second := secondKey(t)
	return func(_ *proxy, cfg *s3api.Config, ring *keyring.Config) {
		ring.Keys = append(ring.Keys, second)
		ring.Rules = append([]keyring.Rule{{Prefixes: []string{"tied/"}, Key: "main"}}, ring.Rules...)
		cfg.Capabilities = capability.Always(versitygw)
		for _, c := range change {
			c(ring)
		}
	}, second.Wrapper.KeyID()
}

func (p *proxy) updateEncryption(key, keyID string, version *string) error {
	_, err := p.client.UpdateObjectEncryption(p.t.Context(), &s3.UpdateObjectEncryptionInput{
		Bucket: &p.bucket, Key: &key, VersionId: version,
		ObjectEncryption: &types.ObjectEncryptionMemberSSEKMS{Value: types.SSEKMSEncryption{KMSKeyArn: &keyID}},
	})
	return err
}

// updatable are objects of all kinds that can be updated.
func updatable(p *proxy) map[string][]byte {
	objects := map[string][]byte{
		"empty": nil, "small": randomText(10), "many segments": randomText(300_000), "folder/": nil,
	}
	for key, text := range objects {
		p.put(key, text, func(in *s3.PutObjectInput) {
			in.ContentType, in.Metadata, in.Tagging = aws.String("text/x-test"), map[string]string{"mine": "1"}, aws.String("a=b")
			in.ChecksumAlgorithm = types.ChecksumAlgorithmSha256
		})
	}
	return objects
}

func TestUpdateObjectEncryption(t *testing.T) {
	withSecond, second := withAskedKey(t)
	p := newProxy(t, withSecond)
	for key, text := range updatable(p) {
		t.Run(key, func(t *testing.T) {
			bodyBefore, envelopeBefore := p.stored(key)
			_, before, err := p.get(key)
			if err != nil {
				t.Fatal(err)
			}
			tags := p.tags(key)
			if err := p.updateEncryption(key, second, nil); err != nil {
				t.Fatal(err)
			}
			p.cache.PurgeAll()

			body, envelope := p.stored(key)
			if !bytes.Equal(body, bodyBefore) || envelope.Get("X-Amz-Meta-Cmek-Dek") == envelopeBefore.Get("X-Amz-Meta-Cmek-Dek") {
				t.Error("the body has changed, or the envelope has not")
			}
			got, after, err := p.get(key, func(in *s3.GetObjectInput) { in.ChecksumMode = types.ChecksumModeEnabled })
			if err != nil || !bytes.Equal(got, text) || *after.SSEKMSKeyId != second {
				t.Fatalf("%d bytes, %+v, %v", len(got), after, err)
			}
			if *after.ETag != *before.ETag || *after.ContentType != *before.ContentType || after.Metadata["mine"] != "1" ||
				aws.ToString(after.ChecksumSHA256) == "" || p.tags(key) != tags {
				t.Errorf("something else has changed: %s %s %v %s, tags %s", *after.ETag, *after.ContentType,
					after.Metadata, aws.ToString(after.ChecksumSHA256), p.tags(key))
			}
		})
	}
}

// In a bucket with versions, a new version is made, and the old one stays.
func TestUpdateObjectEncryptionOfVersions(t *testing.T) {
	for name, set := range map[string]capability.Answer{"by the proxy": capability.No, "in the store": capability.Yes} {
		t.Run(name, func(t *testing.T) {
			withSecond, second := withAskedKey(t)
			able := versitygw
			able[capability.CopyIfMatch] = set
			p := newProxy(t, withSecond, honoring(able))
			p.versioned()
			older := p.put("k", []byte("older"))
			put := p.put("k", []byte("text"), func(in *s3.PutObjectInput) { in.Tagging = aws.String("a=b") })

			taken := p.record()
			if err := p.updateEncryption("k", second, put.VersionId); err != nil {
				t.Fatal(err)
			}
			copied := slices.ContainsFunc(taken(), func(r *http.Request) bool { return r.Header.Get("X-Amz-Copy-Source") != "" })
			if copied != (set == capability.Yes) {
				t.Errorf("copied in the store: %v", copied)
			}

			text, after, err := p.get("k")
			if err != nil || string(text) != "text" || *after.SSEKMSKeyId != second || p.tags("k") != "a=b" {
				t.Errorf("%q, %+v, %v", text, after, err)
			}
			want := []string{"text", "text", "older"}
			if copied { // versitygw makes no new version
				want = want[1:]
			}
			if texts := p.readVersions("k"); !slices.Equal(texts, want) {
				t.Errorf("versions %q", texts)
			}

			for version, want := range map[string]string{
				*older.VersionId: "NotImplemented", "none": "InvalidArgument", *after.VersionId: "",
			} {
				if err := p.updateEncryption("k", second, &version); (err == nil) != (want == "") || err != nil && code(err) != want {
					t.Errorf("version %s: %v, want %q", version, err, want)
				}
			}
		})
	}
}

func TestUpdateObjectEncryptionIsRefused(t *testing.T) {
	withSecond, second := withAskedKey(t)
	p := newProxy(t, withSecond, withClients(own(access.Write)))
	p.put("k", []byte("text"))
	p.put("tied/k", []byte("text"))
	p.upload("parts", []int{5 << 20})
	p.store("plain", []byte("text"), nil)

	document := func(inner string) []byte {
		return []byte(`<ObjectEncryption xmlns="http://s3.amazonaws.com/doc/2006-03-01/">` + inner + `</ObjectEncryption>`)
	}
	kmsKey := func(more string) []byte {
		return document("<SSE-KMS><KMSKeyArn>" + second + "</KMSKeyArn>" + more + "</SSE-KMS>")
	}
	for name, row := range map[string]struct {
		key  string
		body []byte
		code string
		who  string
	}{
		"no such object":                     {key: "none", code: "NoSuchKey"},
		"a multipart object":                 {key: "parts", code: "NotImplemented"},
		"plaintext":                          {key: "plain", code: "InvalidRequest"},
		"a key that the rule does not allow": {key: "tied/k", code: "AccessDenied"},
		"an unknown key": {
			key: "k", body: document("<SSE-KMS><KMSKeyArn>arn:aws:kms:us-east-1:1:key/x</KMSKeyArn></SSE-KMS>"),
			code: "KMS.NotFoundException",
		},
		"no key":              {key: "k", body: document("<SSE-KMS></SSE-KMS>"), code: "InvalidRequest"},
		"no type":             {key: "k", body: document(""), code: "InvalidRequest"},
		"SSE-S3":              {key: "k", body: document("<SSE-S3/>"), code: "InvalidRequest"},
		"two types":           {key: "k", body: document("<SSE-S3/><SSE-KMS><KMSKeyArn>main</KMSKeyArn></SSE-KMS>"), code: "InvalidRequest"},
		"two keys":            {key: "k", body: kmsKey("<KMSKeyArn>main</KMSKeyArn>"), code: "MalformedXML"},
		"a bad bucket key":    {key: "k", body: kmsKey("<BucketKeyEnabled>yes</BucketKeyEnabled>"), code: "InvalidRequest"},
		"an unknown element":  {key: "k", body: kmsKey("<More/>"), code: "InvalidRequest"},
		"another document":    {key: "k", body: []byte("<Other/>"), code: "MalformedXML"},
		"no document":         {key: "k", body: []byte("{}"), code: "MalformedXML"},
		"no grant to read it": {key: "k", code: "AccessDenied", who: readerAccess},
	} {
		t.Run(name, func(t *testing.T) {
			r := request{method: "PUT", path: "/" + p.bucket + "/" + row.key + "?encryption", body: row.body}
			if row.body == nil {
				r.body = kmsKey("")
			}
			if row.who != "" {
				r.accessKey, r.secret = readerAccess, readerSecret
			}
			taken := p.record()
			if a := p.send(r); a.Code != row.code {
				t.Errorf("%d %s, want %s", a.StatusCode, a.body, row.code)
			}
			for _, sent := range taken() {
				if sent.Method != http.MethodGet && sent.Method != http.MethodHead {
					t.Errorf("%s %s was sent", sent.Method, sent.URL)
				}
			}
		})
	}
	if err := p.updateEncryption("k", second, nil); err != nil {
		t.Errorf("the same request, complete: %v", err)
	}
}

// A locked object is not updated, nor one under a customer's key.
func TestUpdateObjectEncryptionOfProtected(t *testing.T) {
	withSecond, second := withAskedKey(t)
	p := newProxy(t, withSecond)
	p.put("k", []byte("text"))
	in := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
	for name, row := range map[string]struct {
		header map[string]string
		code   string
	}{
		"governance": {map[string]string{"Mode": "GOVERNANCE", "Retain-Until-Date": in(time.Hour)}, "AccessDenied"},
		"compliance": {map[string]string{"Mode": "COMPLIANCE", "Retain-Until-Date": in(time.Hour)}, "AccessDenied"},
		"no date":    {map[string]string{"Mode": "COMPLIANCE"}, "AccessDenied"},
		"legal hold": {map[string]string{"Legal-Hold": "ON"}, "AccessDenied"},
		"event hold": {map[string]string{"Event-Hold": "ON"}, "AccessDenied"},
		"over":       {map[string]string{"Mode": "GOVERNANCE", "Retain-Until-Date": in(-time.Hour), "Legal-Hold": "OFF"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p.origin.set(nil, func(resp *http.Response) {
				for name, value := range row.header {
					resp.Header.Set("X-Amz-Object-Lock-"+name, value)
				}
			})
			defer p.origin.set(nil, nil)
			if err := p.updateEncryption("k", second, nil); (err == nil) != (row.code == "") || err != nil && code(err) != row.code {
				t.Errorf("%v, want %q", err, row.code)
			}
		})
	}
	p.put("customer", []byte("text"), newCustomer(1).put)
	if err := p.updateEncryption("customer", second, nil); code(err) != "InvalidRequest" ||
		!strings.Contains(err.Error(), "SSE-C") {
		t.Errorf("under a customer's key: %v", err)
	}
}

// What another client writes meanwhile is kept, and gets the new key.
func TestUpdateObjectEncryptionRaces(t *testing.T) {
	withSecond, second := withAskedKey(t)
	p := newProxy(t, withSecond)
	p.put("k", randomText(100_000))
	var once sync.Once
	other := p.replica(withSecond)
	p.origin.condition = func(r *http.Request) {
		if r.Method == http.MethodPut {
			once.Do(func() { other.put("k", []byte("theirs")) })
		}
	}
	if err := p.updateEncryption("k", second, nil); err != nil {
		t.Fatal(err)
	}
	p.origin.condition = nil
	text, out, err := p.get("k")
	if err != nil || string(text) != "theirs" || *out.SSEKMSKeyId != second {
		t.Errorf("%q, %+v, %v", text, out, err)
	}
}

// The only envelope of an object is not replaced unless that is safe.
func TestUpdateObjectEncryptionFailsClosed(t *testing.T) {
	for name, row := range map[string]struct {
		able   capability.Set
		damage bool
		broken bool // the new key cannot unwrap
		code   string
	}{
		"conditions are ignored":    {able: capability.Set{capability.PutIfMatch: capability.No}, code: "NotImplemented"},
		"conditions are not known":  {able: capability.Set{}, code: "NotImplemented"},
		"the body is damaged":       {able: versitygw, damage: true, code: "ObjectIntegrityError"},
		"the new key only encrypts": {able: versitygw, broken: true, code: "AccessDenied"},
	} {
		t.Run(name, func(t *testing.T) {
			withSecond, second := withAskedKey(t, func(c *keyring.Config) {
				if row.broken {
					c.Keys[1].Wrapper = onlyWraps{c.Keys[1].Wrapper}
				}
			})
			p := newProxy(t, withSecond, honoring(row.able))
			p.put("k", randomText(200_000))
			if row.damage {
				p.rewriteFile("k", func(body []byte) []byte { body[150_000] ^= 1; return body })
			}
			before, envelope := p.stored("k")
			if err := p.updateEncryption("k", second, nil); code(err) != row.code {
				t.Errorf("%v, want %s", err, row.code)
			}
			after, now := p.stored("k")
			if !bytes.Equal(before, after) || now.Get("X-Amz-Meta-Cmek-Dek") != envelope.Get("X-Amz-Meta-Cmek-Dek") {
				t.Error("the object has changed")
			}
		})
	}
}

// onlyWraps is a key that may encrypt, and not decrypt.
type onlyWraps struct{ kms.Wrapper }

func (k onlyWraps) Unwrap(context.Context, []byte, kms.EncryptionContext) ([]byte, error) {
	return nil, &kms.Error{Kind: kms.Denied, KeyID: k.KeyID()}
}

// The encryption context that a client chose stays.
func TestUpdateObjectEncryptionKeepsTheContext(t *testing.T) {
	withSecond, second := withAskedKey(t)
	p := newProxy(t, withSecond)
	context := base64.StdEncoding.EncodeToString([]byte(`{"tenant":"acme"}`))
	p.put("k", []byte("text"), func(in *s3.PutObjectInput) {
		in.ServerSideEncryption, in.SSEKMSEncryptionContext = types.ServerSideEncryptionAwsKms, &context
	})
	if err := p.updateEncryption("k", second, nil); err != nil {
		t.Fatal(err)
	}
	p.cache.PurgeAll()
	if got := p.mustGet("k"); string(got) != "text" {
		t.Errorf("%q", got)
	}
	_, envelope := p.stored("k")
	wrapped, err := base64.StdEncoding.DecodeString(envelope.Get("X-Amz-Meta-Cmek-Dek"))
	if err != nil || !bytes.Contains(wrapped, []byte("acme")) {
		t.Errorf("%q, %v", wrapped, err)
	}
}

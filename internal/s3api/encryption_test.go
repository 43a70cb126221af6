package s3api_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

func TestBucketEncryption(t *testing.T) {
	p := newProxy(t, func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		cfg.Rules = []keyring.Rule{
			{Buckets: []string{"part-*"}, Prefixes: []string{"a/"}, Key: "main"},
			{Buckets: []string{"test-*"}, Key: "main"},
		}
	})

	out, err := p.client.GetBucketEncryption(t.Context(), &s3.GetBucketEncryptionInput{Bucket: &p.bucket})
	if err != nil {
		t.Fatal(err)
	}

	rules := out.ServerSideEncryptionConfiguration.Rules
	if len(rules) != 1 || rules[0].ApplyServerSideEncryptionByDefault.SSEAlgorithm != "aws:kms" ||
		*rules[0].ApplyServerSideEncryptionByDefault.KMSMasterKeyID != p.ringKeys[0].Wrapper.KeyID() || *rules[0].BucketKeyEnabled {
		t.Errorf("%+v", rules)
	}

	part, missing := p.newBucket("part-"), "missing-bucket"
	for bucket, want := range map[string]string{
		part: "ServerSideEncryptionConfigurationNotFoundError", missing: "NoSuchBucket",
	} {
		t.Run(bucket, func(t *testing.T) {
			_, err := p.client.GetBucketEncryption(t.Context(), &s3.GetBucketEncryptionInput{Bucket: &bucket})
			var answer smithy.APIError
			if !errors.As(err, &answer) || answer.ErrorCode() != want {
				t.Errorf("%v, want %s", err, want)
			}
		})
	}

	for method, body := range map[string][]byte{"PUT": bucketDefault("aws:kms", "main"), "DELETE": nil} {
		t.Run(method, func(t *testing.T) { // without a defaults file
			if a := p.send(request{method: method, path: "/" + p.bucket + "?encryption", body: body}); a.StatusCode != 501 {
				t.Errorf("?encryption: %d %s", a.StatusCode, a.Code)
			}
		})
	}
}

func bucketDefault(algorithm, key string) []byte {
	return []byte(
		`<ServerSideEncryptionConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>` + algorithm +
			`</SSEAlgorithm><KMSMasterKeyID>` + key + `</KMSMasterKeyID></ApplyServerSideEncryptionByDefault><BucketKeyEnabled>true</BucketKeyEnabled></Rule></ServerSideEncryptionConfiguration>`,
	)
}

// The key of a bucket can be changed while the proxy runs. Another replica
// with the same file uses it too.
func TestBucketDefaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "defaults.json")
	second := secondKey(t)
	withFile := func(p *proxy, _ *s3api.Config, cfg *keyring.Config) {
		defaults, err := keyring.OpenDefaults(
			file,
			func() time.Time { return time.Now().Add(time.Duration(p.clock.Load())) },
		)
		if err != nil {
			t.Fatal(err)
		}

		cfg.Keys, cfg.Defaults = append(cfg.Keys, second), defaults
		cfg.Rules = []keyring.Rule{
			{Buckets: []string{"tied-*"}, Key: "main", AskedKeys: []string{"main"}},
			{Key: "main", AskedKeys: []string{"*"}},
		}
	}

	p := newProxy(t, withFile)
	keyOf := func(p *proxy, key string) string {
		t.Helper()
		out, err := p.client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &p.bucket, Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		return *out.SSEKMSKeyId
	}

	main, other := p.ringKeys[0].Wrapper.KeyID(), second.Wrapper.KeyID()
	if got := keyOf(p, "a"); got != main {
		t.Errorf("before: %s", got)
	}

	path := "/" + p.bucket + "?encryption"
	if a := p.send(request{method: "PUT", path: path, body: bucketDefault("aws:kms", other)}); a.StatusCode != 200 {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	if got := keyOf(p, "b"); got != other {
		t.Errorf("chosen, and the object is under %s", got)
	}

	out, err := p.client.GetBucketEncryption(t.Context(), &s3.GetBucketEncryptionInput{Bucket: &p.bucket})
	if err != nil ||
		*out.ServerSideEncryptionConfiguration.Rules[0].ApplyServerSideEncryptionByDefault.KMSMasterKeyID != other {
		t.Errorf("shown: %+v, %v", out, err)
	}
	if got, err := p.keys.KeyID(t.Context(), keyring.Object{Bucket: p.bucket, Key: "k"}, "", "main"); err != nil || got != main {
		t.Errorf("what a client asks for with the object comes first: %s, %v", got, err)
	}

	replica, err := keyring.OpenDefaults(file, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := replica.Key(p.bucket); err != nil || name != second.Name {
		t.Errorf("a replica has %q, %v", name, err)
	}

	for name, row := range map[string]struct {
		body []byte
		code string
	}{
		"an unknown key": {bucketDefault("aws:kms", "nobody"), "KMS.NotFoundException"},
		"AES256":         {bucketDefault("AES256", ""), "InvalidArgument"},
		"no XML":         {[]byte("{}"), "MalformedXML"},
	} {
		t.Run(name, func(t *testing.T) {
			if a := p.send(request{method: "PUT", path: path, body: row.body}); a.Code != row.code {
				t.Errorf("%d %s", a.StatusCode, a.Code)
			}
		})
	}

	tied := p.newBucket("tied-")
	if a := p.send(request{
		method: "PUT", path: "/" + tied + "?encryption", body: bucketDefault("aws:kms", other),
	}); a.Code != "AccessDenied" {
		t.Errorf("a key that the rule does not allow: %d %s", a.StatusCode, a.Code)
	}
	if a := p.send(request{method: "DELETE", path: path}); a.StatusCode != 204 {
		t.Errorf("DELETE: %d %s", a.StatusCode, a.body)
	}

	if got := keyOf(p, "c"); got != main {
		t.Errorf("taken back, and the object is under %s", got)
	}

	// An unreadable file is not treated like a missing one.
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.clock.Add(int64(2 * time.Second))

	if a := p.send(request{method: "PUT", path: "/" + p.bucket + "/d", body: []byte("x")}); a.StatusCode != 503 ||
		p.isStored("d") {
		t.Errorf("with a damaged file: %d %s", a.StatusCode, a.Code)
	}
}

func secondKey(t *testing.T) keyring.Key {
	t.Helper()
	file := filepath.Join(t.TempDir(), "second.key")
	if err := kms.CreateLocalKeyFile(file); err != nil {
		t.Fatal(err)
	}
	w, err := kms.NewLocal(file)
	if err != nil {
		t.Fatal(err)
	}
	return keyring.Key{Name: "second", Wrapper: w}
}

// The client's encryption context is sent to the KMS with every use of the
// data key.
func TestEncryptionContext(t *testing.T) {
	p := newProxy(t)
	header := func(doc string) http.Header {
		return http.Header{
			"X-Amz-Server-Side-Encryption":         {"aws:kms"},
			"X-Amz-Server-Side-Encryption-Context": {base64.StdEncoding.EncodeToString([]byte(doc))},
		}
	}

	path := "/" + p.bucket + "/k"
	a := p.send(
		request{
			method: "PUT",
			path:   path,
			header: header(`{"tenant":"acme","reason":"caf\u00e9"}`),
			body:   []byte("text"),
		},
	)
	if a.StatusCode != 200 || a.Header.Get("X-Amz-Server-Side-Encryption-Context") == "" {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}

	p.cache.PurgeAll()
	if got := p.mustGet("k"); string(got) != "text" {
		t.Errorf("%q", got)
	}

	body, metadata := p.stored("k")
	wrapped, err := base64.StdEncoding.DecodeString(metadata.Get("X-Amz-Meta-Cmek-Dek"))
	if err != nil {
		t.Fatal(err)
	}

	parsed, err := crypt.ParseWrappedKey(wrapped)
	if err != nil || len(parsed.Context) != 2 || parsed.Context["reason"] != "café" {
		t.Fatalf("stored: %+v, %v", parsed, err)
	}
	parsed.Context["tenant"] = "another" // the KMS does not accept another context

	if wrapped, err = parsed.Bytes(); err != nil {
		t.Fatal(err)
	}
	metadata.Set("X-Amz-Meta-Cmek-Dek", base64.StdEncoding.EncodeToString(wrapped))
	p.store("k", body, metadata)

	if a := p.send(request{method: "GET", path: path}); a.Code != "ObjectIntegrityError" {
		t.Errorf("another context in the store: %d %s", a.StatusCode, a.Code)
	}

	for name, h := range map[string]http.Header{
		"no base64":        {"X-Amz-Server-Side-Encryption": {"aws:kms"}, "X-Amz-Server-Side-Encryption-Context": {"{}"}},
		"no JSON":          header("tenant=acme"),
		"numbers":          header(`{"a":1}`),
		"null":             header(`null`),
		"the name bucket":  header(`{"bucket":"mine"}`),
		"the name Bucket":  header(`{"Bucket":"mine"}`),
		"the name KEY":     header(`{"a":"b","KEY":"mine"}`),
		"key with K for k": header(`{"\u212aey":"mine"}`), // the Kelvin sign
		"the name key":     header(`{"key":"mine"}`),
		"an empty name":    header(`{"":"x"}`),
		"too long":         header(`{"a":"` + strings.Repeat("x", 500) + `"}`),
		"without aws:kms": {
			"X-Amz-Server-Side-Encryption-Context": header(`{"a":"b"}`)["X-Amz-Server-Side-Encryption-Context"],
		},
		"a bad bucket hint": {"X-Amz-Server-Side-Encryption-Bucket-Key-Enabled": {"yes"}},
	} {
		t.Run(name, func(t *testing.T) {
			if a := p.send(request{
				method: "PUT", path: "/" + p.bucket + "/bad", header: h, body: []byte("x"),
			}); a.Code != "InvalidArgument" ||
				p.isStored("bad") {
				t.Errorf("%d %s", a.StatusCode, a.Code)
			}
		})
	}
}

// Objects that share a KMS-wrapped key have different data keys. They need
// one KMS call to be written and one to be read.
func TestSharedDataKeys(t *testing.T) {
	counted := &countedKey{}
	p := newProxy(t, func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		counted.Wrapper = cfg.Keys[0].Wrapper
		cfg.Keys[0].Wrapper = counted
		cfg.Rules = []keyring.Rule{
			{Key: "main", Reuse: &keyring.Reuse{MaxAge: time.Hour, MaxObjects: 40, MaxBytes: 1 << 40}},
		}
	})

	const n = 60
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { p.put(fmt.Sprintf("k%d", i), []byte(fmt.Sprintf("text %d", i))) })
	}
	all.Wait()

	if calls := counted.wraps.Load(); calls != 2 { // for 40 and for 20 objects
		t.Errorf("%d objects cost %d wraps", n, calls)
	}
	p.cache.PurgeAll()
	headers := make(map[string]bool)

	for i := range n {
		key := fmt.Sprintf("k%d", i)
		text, out, err := p.get(key)
		if err != nil || string(text) != fmt.Sprintf("text %d", i) || out.BucketKeyEnabled == nil ||
			!*out.BucketKeyEnabled {
			t.Fatalf("%s: %q, %+v, %v", key, text, out, err)
		}

		_, metadata := p.stored(key)
		headers[metadata.Get("X-Amz-Meta-Cmek-Dek")] = true
	}

	if calls := counted.unwraps.Load(); calls != 2 {
		t.Errorf("%d objects cost %d unwraps", n, calls)
	}
	if len(headers) != n {
		t.Errorf("%d objects have %d wrapped keys", n, len(headers))
	}

	// The envelope of one object does not open another one in the same
	// bucket, although the KMS would unwrap it.
	body, metadata := p.stored("k1")
	p.store("k2", body, metadata)
	if a := p.send(request{method: "GET", path: "/" + p.bucket + "/k2"}); a.Code != "ObjectIntegrityError" {
		t.Errorf("k1 in the place of k2: %d %s", a.StatusCode, a.Code)
	}

	// Nor one in another bucket.
	elsewhere := p.newBucket("test-")
	own := p.bucket
	p.bucket = elsewhere
	p.store("k1", body, metadata)

	if a := p.send(request{method: "GET", path: "/" + elsewhere + "/k1"}); a.StatusCode == 200 {
		t.Error("k1 was read in another bucket")
	}
	p.bucket = own
}

// countedKey counts the requests to its KMS.
type countedKey struct {
	kms.Wrapper
	wraps, unwraps atomic.Int64
}

func (k *countedKey) Wrap(ctx context.Context, dek []byte, ec kms.EncryptionContext) ([]byte, error) {
	k.wraps.Add(1)
	return k.Wrapper.Wrap(ctx, dek, ec)
}

func (k *countedKey) Unwrap(ctx context.Context, wrapped []byte, ec kms.EncryptionContext) ([]byte, error) {
	k.unwraps.Add(1)
	return k.Wrapper.Unwrap(ctx, wrapped, ec)
}

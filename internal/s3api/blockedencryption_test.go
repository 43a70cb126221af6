package s3api_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// withBlocking has a rule that refuses customer keys in buckets strict-*, and a
// file for what clients choose, unless file is "".
func withBlocking(t *testing.T, file string) option {
	return func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		cfg.Rules = []keyring.Rule{
			{Buckets: []string{"strict-*"}, Key: "main", RefuseCustomerKeys: true, AskedKeys: []string{"*"}},
			{Key: "main", AskedKeys: []string{"*"}},
		}
		if file == "" {
			return
		}
		defaults, err := keyring.OpenDefaults(file, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Defaults = defaults
	}
}

// block sends PutBucketEncryption as the SDK does, with or without a key.
func (p *proxy) block(bucket string, kind types.EncryptionType, key string) error {
	p.t.Helper()
	rule := types.ServerSideEncryptionRule{}
	if kind != "" {
		rule.BlockedEncryptionTypes = &types.BlockedEncryptionTypes{EncryptionType: []types.EncryptionType{kind}}
	}
	if key != "" {
		rule.ApplyServerSideEncryptionByDefault = &types.ServerSideEncryptionByDefault{
			SSEAlgorithm: types.ServerSideEncryptionAwsKms, KMSMasterKeyID: &key,
		}
	}
	_, err := p.client.PutBucketEncryption(p.t.Context(), &s3.PutBucketEncryptionInput{
		Bucket: &bucket, ServerSideEncryptionConfiguration: &types.ServerSideEncryptionConfiguration{
			Rules: []types.ServerSideEncryptionRule{rule},
		},
	})
	return err
}

// blocked returns what GetBucketEncryption says is blocked.
func (p *proxy) blocked(bucket string) string {
	p.t.Helper()
	out, err := p.client.GetBucketEncryption(p.t.Context(), &s3.GetBucketEncryptionInput{Bucket: &bucket})
	if err != nil {
		p.t.Fatal(err)
	}
	rules := out.ServerSideEncryptionConfiguration.Rules
	if len(rules) != 1 || rules[0].BlockedEncryptionTypes == nil || len(rules[0].BlockedEncryptionTypes.EncryptionType) != 1 {
		p.t.Fatalf("%+v", rules)
	}
	return string(rules[0].BlockedEncryptionTypes.EncryptionType[0])
}

// underCustomerKey stores an object under a customer key.
func (p *proxy) underCustomerKey(bucket string) error {
	in := &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("customer"), Body: strings.NewReader("text")}
	newCustomer(1).put(in)
	_, err := p.client.PutObject(p.t.Context(), in)
	return err
}

// A client can block customer keys in a bucket, and cannot allow what the
// rules refuse.
func TestBlockedEncryptionTypes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "defaults.json")
	p := newProxy(t, withBlocking(t, file))
	free, strict := p.bucket, p.newBucket("strict-")
	other := p.newBucket("other-")

	for _, step := range []struct {
		name   string
		do     func() error
		code   string // of the step; "" for success
		free   string // what is blocked in the bucket afterwards
		strict string
	}{
		{"at first", func() error { return nil }, "", "NONE", "SSE-C"},
		{"allow what is allowed", func() error { return p.block(free, "NONE", "") }, "", "NONE", "SSE-C"},
		{"allow what is refused", func() error { return p.block(strict, "NONE", "") }, "AccessDenied", "NONE", "SSE-C"},
		{"allow it with a key", func() error { return p.block(strict, "NONE", "main") }, "AccessDenied", "NONE", "SSE-C"},
		{"block what is refused", func() error { return p.block(strict, "SSE-C", "") }, "", "NONE", "SSE-C"},
		{"block", func() error { return p.block(free, "SSE-C", "") }, "", "SSE-C", "SSE-C"},
		{"choose a key, and say nothing", func() error { return p.block(free, "", "main") }, "", "SSE-C", "SSE-C"},
		{"another type", func() error { return p.block(free, "SSE-KMS", "") }, "InvalidArgument", "SSE-C", "SSE-C"},
		{"nothing", func() error { return p.block(free, "", "") }, "MalformedXML", "SSE-C", "SSE-C"},
		{"allow again", func() error { return p.block(free, "NONE", "") }, "", "NONE", "SSE-C"},
		{"block with a key", func() error { return p.block(free, "SSE-C", "main") }, "", "SSE-C", "SSE-C"},
		{"delete", func() error {
			_, err := p.client.DeleteBucketEncryption(t.Context(), &s3.DeleteBucketEncryptionInput{Bucket: &free})
			return err
		}, "", "NONE", "SSE-C"},
	} {
		t.Run(step.name, func(t *testing.T) {
			if err := step.do(); (err == nil) != (step.code == "") || err != nil && code(err) != step.code {
				t.Errorf("%v, want %q", err, step.code)
			}
			for bucket, want := range map[string]string{free: step.free, strict: step.strict, other: "NONE"} {
				if got := p.blocked(bucket); got != want {
					t.Errorf("%s: %s is blocked, want %s", bucket, got, want)
				}
				if err := p.underCustomerKey(bucket); (err == nil) != (want == "NONE") || err != nil && code(err) != "AccessDenied" {
					t.Errorf("%s: storing under a customer key: %v", bucket, err)
				}
			}
		})
	}
}

// What is stored under a customer key stays readable, and another replica
// blocks too. An earlier release refuses the file.
func TestBlockedEncryptionTypesOfReplicas(t *testing.T) {
	file := filepath.Join(t.TempDir(), "defaults.json")
	p := newProxy(t, withBlocking(t, file))
	if err := p.underCustomerKey(p.bucket); err != nil {
		t.Fatal(err)
	}
	if err := p.block(p.bucket, "SSE-C", ""); err != nil {
		t.Fatal(err)
	}
	if text, _, err := p.get("customer", newCustomer(1).get); err != nil || string(text) != "text" {
		t.Errorf("%q, %v", text, err)
	}

	other := p.replica(withBlocking(t, file))
	if err := other.underCustomerKey(p.bucket); code(err) != "AccessDenied" {
		t.Errorf("a replica: %v", err)
	}
	data, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(data), `"version": 2`) {
		t.Errorf("%s, %v", data, err)
	}
	if err := p.block(p.bucket, "NONE", ""); err != nil {
		t.Fatal(err)
	}
	if data, err = os.ReadFile(file); err != nil || !strings.Contains(string(data), `"version": 1`) {
		t.Errorf("%s, %v", data, err)
	}

	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := p.replica(func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		defaults, _ := keyring.OpenDefaults(file, time.Now)
		cfg.Defaults = defaults
	})
	if err := broken.underCustomerKey(p.bucket); code(err) != "ServiceUnavailable" {
		t.Errorf("with a damaged file: %v", err)
	}
}

// Without a file, only what the rules say already is accepted.
func TestBlockedEncryptionTypesWithoutAFile(t *testing.T) {
	p := newProxy(t, withBlocking(t, ""))
	strict := p.newBucket("strict-")
	for name, row := range map[string]struct {
		bucket string
		kind   types.EncryptionType
		key    string
		code   string
	}{
		"block what is refused": {strict, "SSE-C", "", ""},
		"allow what is refused": {strict, "NONE", "", "AccessDenied"},
		"allow what is allowed": {p.bucket, "NONE", "", ""},
		"block what is allowed": {p.bucket, "SSE-C", "", "NotImplemented"},
		"with a key":            {strict, "SSE-C", "main", "NotImplemented"},
		"in a missing bucket":   {"missing-bucket", "NONE", "", "NoSuchBucket"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := p.block(row.bucket, row.kind, row.key); (err == nil) != (row.code == "") ||
				err != nil && code(err) != row.code {
				t.Errorf("%v, want %q", err, row.code)
			}
		})
	}
	if err := p.underCustomerKey(p.bucket); err != nil {
		t.Errorf("it is blocked: %v", err)
	}
}

package s3api_test

import (
	"errors"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

func TestBucketEncryption(t *testing.T) {
	p := newProxy(t, func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		cfg.Rules = []keyring.Rule{{Buckets: []string{"part-*"}, Prefixes: []string{"a/"}, Key: "main"}, {Buckets: []string{"test-*"}, Key: "main"}}
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
	for bucket, want := range map[string]string{part: "ServerSideEncryptionConfigurationNotFoundError", missing: "NoSuchBucket"} {
		_, err := p.client.GetBucketEncryption(t.Context(), &s3.GetBucketEncryptionInput{Bucket: &bucket})
		var answer smithy.APIError
		if !errors.As(err, &answer) || answer.ErrorCode() != want {
			t.Errorf("%s: %v, want %s", bucket, err, want)
		}
	}
	for _, method := range []string{"PUT", "DELETE"} { // neither reaches the store, which would weaken nothing but confuse
		if a := p.send(request{method: method, path: "/" + p.bucket + "?encryption"}); a.StatusCode != 501 {
			t.Errorf("%s ?encryption: %d %s", method, a.StatusCode, a.Code)
		}
	}
}

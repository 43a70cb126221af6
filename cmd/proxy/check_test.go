//go:build !nodev

package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// The check's results for a real store, where it leaves nothing behind.
func TestCheckStore(t *testing.T) {
	store := proxytest.ServeStore(t)
	direct, bucket := client(strings.TrimPrefix(store, "http://"), proxytest.AccessKey, proxytest.SecretKey), "bucket"
	if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}

	for setting, want := range map[string]string{
		"region: us-east-1,":                         "ok    store: multipart uploads: ETag",
		"region: us-east-1, etag_part_count: false,": "with origin.etag_part_count: true",
	} {
		var out bytes.Buffer
		config := writeConfig(t, store, "127.0.0.1:0", "127.0.0.1:1", "region: us-east-1,", setting)
		if code := run(t.Context(), []string{"check", "--config", config, "--bucket", bucket}, &out, &out); code != 0 ||
			!strings.Contains(out.String(), want) {
			t.Errorf("%s: exit code %d\n%s", setting, code, out.String())
		}
	}

	for setting, want := range map[string]struct {
		code int
		line string
	}{
		"region: us-east-1,":                {0, "ok    store: keys: taken as paths: set origin.keys to path"},
		"region: us-east-1, keys: path,":    {0, "ok    store: keys: taken as paths\n"},
		"region: us-east-1, keys: literal,": {1, "FAIL  store: keys: the store takes keys as paths"},
	} {
		var out bytes.Buffer
		config := writeConfig(t, store, "127.0.0.1:0", "127.0.0.1:1", "region: us-east-1,", setting)
		code := run(t.Context(), []string{"check", "--config", config, "--bucket", bucket}, &out, &out)
		if code != want.code || !strings.Contains(out.String(), want.line) {
			t.Errorf("%s: exit code %d\n%s", setting, code, out.String())
		}
	}

	left, err := direct.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &bucket})
	if err != nil || len(left.Contents) != 0 {
		t.Errorf("the check leaves %d objects, %v", len(left.Contents), err)
	}
}

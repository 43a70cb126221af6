package e2e

import (
	"bytes"
	"io"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// TestVersions reads every version of a single-PUT object and of a multipart
// object, in a bucket that keeps versions.
func TestVersions(t *testing.T) {
	c := startCluster(t)
	defer progress(t)
	const bucket, key = "versions", "key"
	judge := newGoSDK(c.endpoint)
	if err := judge.createBucket(bucket); err != nil {
		t.Fatal(err)
	}

	// The proxy does not support this operation: send it to the store.
	if _, err := newGoSDK(c.store.store).s3.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{
		Bucket: aws.String(bucket), VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	}); err != nil {
		t.Fatal(err)
	}

	_, text := randomFile(t, 20*mib)
	versions := make(map[string][]byte)
	for i, sizes := range [][]int{{5 * mib, 5 * mib, 100}, {6 * mib, 5 * mib, 5 * mib}, {5 * mib, 5 * mib}, nil} {
		own := text[i*1000:] // different bytes for each version
		if sizes == nil {
			if err := judge.put(bucket, key, own[:100_000]); err != nil {
				t.Fatal(err)
			}
			versions[currentVersion(t, judge, bucket, key)] = own[:100_000]
			continue
		}
		total := putLayout(t, judge, bucket, key, own, sizes, nil)
		versions[currentVersion(t, judge, bucket, key)] = own[:total]
	}

	if len(versions) != 4 {
		t.Fatalf("%d versions", len(versions))
	}
	if err := judge.remove(bucket, key); err != nil {
		t.Fatal(err)
	}

	if _, err := judge.get(bucket, key); err == nil {
		t.Error("the deleted object can be read")
	}
	for range 2 { // what is cached for one version must not be used for another
		for version, want := range versions {
			checkVersion(t, judge, bucket, key, version, want)
		}
	}
}

func currentVersion(t *testing.T, judge *goSDK, bucket, key string) string {
	t.Helper()
	head, err := judge.s3.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key})
	if err != nil || head.VersionId == nil {
		t.Fatal(head, err)
	}
	return *head.VersionId
}

func checkVersion(t *testing.T, judge *goSDK, bucket, key, version string, want []byte) {
	t.Helper()
	head, err := judge.s3.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key, VersionId: &version})
	if err != nil || *head.ContentLength != int64(len(want)) {
		t.Errorf("%s: HEAD: %v", version, err)
	}

	for spec, piece := range map[string][]byte{"": want, "bytes=7-70000": want[7:70_001], "bytes=-50": want[len(want)-50:]} {
		in := &s3.GetObjectInput{Bucket: &bucket, Key: &key, VersionId: &version}
		if spec != "" {
			in.Range = &spec
		}
		out, err := judge.s3.GetObject(t.Context(), in)
		if err != nil {
			t.Errorf("%s %s: %v", version, spec, err)
			continue
		}
		got, err := io.ReadAll(out.Body)
		if err != nil || !bytes.Equal(got, piece) {
			t.Errorf("%s %s: %d of %d bytes, %v", version, spec, len(got), len(piece), err)
		}
	}
}

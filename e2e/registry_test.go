package e2e

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/distribution/distribution/v3/registry/storage/driver"
	registry "github.com/distribution/distribution/v3/registry/storage/driver/s3-aws"
)

// TestRegistry uploads blobs in chunks with the S3 driver of the container
// registry. The driver keeps no state between chunks: for each chunk, a new
// driver finds the upload and its parts by listing them.
func TestRegistry(t *testing.T) {
	table.addColumn("registry replicas")
	table.run(t, "registry replicas", "multipart", writeBlobs)
	for _, row := range []string{"round trip", "sizes", "ranges"} { // of each blob
		table.set(row, "registry replicas", table.result("multipart", "registry replicas"))
	}
}

func writeBlobs(t *testing.T) {
	c := startCluster(t)
	const bucket = "registry"
	if err := newGoSDK(c.endpoint).createBucket(bucket); err != nil {
		t.Fatal(err)
	}

	_, text := randomFile(t, 50*mib)
	for i, chunks := range [][]int{
		{12 * mib, 12 * mib, 3},
		{10 * mib, 17*mib + 5, 10*mib + 1, 11 * mib},
		{1000, 12 * mib, 1},         // starts below the minimum size of a part
		{100, 200, 300},             // the whole blob is below it
		{12*mib + 5, 4 * mib, 6000}, // a short part in the middle, which the driver copies
		{20 * mib},
	} {
		path := fmt.Sprintf("/blobs/%d", i)
		total := 0
		for n, size := range chunks {
			if c.store.proxied && n == 1 { // no replica keeps state either
				r := c.replicas[i%2]
				r.kill(t)
				r.process = r.start()
			}
			writeChunk(t, c, bucket, path, text[total:total+size], n > 0, n == len(chunks)-1)
			total += size
		}
		checkBlob(t, newDriver(t, c, bucket), path, text[:total])
	}
	progress(t)
}

func newDriver(t *testing.T, c *cluster, bucket string) *registry.Driver {
	t.Helper()
	d, err := registry.FromParameters(t.Context(), map[string]any{
		"accesskey": c.endpoint.accessKey, "secretkey": c.endpoint.secret, "region": region, "regionendpoint": c.endpoint.url,
		"forcepathstyle": true, "bucket": bucket, "secure": false,
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func writeChunk(t *testing.T, c *cluster, bucket, path string, text []byte, resume, last bool) {
	t.Helper()
	w, err := newDriver(t, c, bucket).Writer(t.Context(), path, resume)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}

	if _, err := w.Write(text); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if last {
		if err := w.Commit(t.Context()); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func checkBlob(t *testing.T, d driver.StorageDriver, path string, want []byte) {
	t.Helper()
	info, err := d.Stat(t.Context(), path)
	if err != nil || info.Size() != int64(len(want)) {
		t.Errorf("%s: %v, %v", path, info, err)
	}

	for _, offset := range []int{0, 1, len(want) / 2, len(want) - 1} {
		r, err := d.Reader(t.Context(), path, int64(offset))
		if err != nil {
			t.Fatalf("%s from %d: %v", path, offset, err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want[offset:]) {
			t.Errorf("%s from %d: %d of %d bytes, %v", path, offset, len(got), len(want)-offset, err)
		}
		r.Close()
	}
}

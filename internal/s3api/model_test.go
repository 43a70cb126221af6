package s3api_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"go.uber.org/goleak"
)

// Property: after any sequence of puts, overwrites, deletes, reads, ranges
// and listings, the proxy and its store behave like a map in memory.
func TestAgainstAModel(t *testing.T) {
	p := newProxy(t)
	r := rand.New(rand.NewPCG(7, rand.Uint64()))
	model := make(map[string][]byte)
	sizes := []int{0, 1, 100, 65495, 65496, 65497, 131_032, 131_033, 262_104, 262_105, 300_000}

	for step := range 400 {
		key := fmt.Sprintf("dir%d/key %d", r.IntN(3), r.IntN(5))
		text, exists := model[key]
		switch r.IntN(6) {
		case 0, 1:
			model[key] = randomText(sizes[r.IntN(len(sizes))])
			p.put(key, model[key])
		case 2:
			if _, err := p.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &p.bucket, Key: &key}); err != nil {
				t.Fatal(err)
			}
			delete(model, key)
		case 3:
			got, _, err := p.get(key)
			if exists && (err != nil || !bytes.Equal(got, text)) || !exists && code(err) != "NoSuchKey" {
				t.Fatalf(
					"step %d: GET %s: %d bytes, %v; want %d, exists %v",
					step,
					key,
					len(got),
					err,
					len(text),
					exists,
				)
			}
		case 4:
			if exists {
				a, b := r.IntN(len(text)+2), r.IntN(len(text)+2)
				header := fmt.Sprintf("bytes=%d-%d", min(a, b), max(a, b))
				status, want, _ := reference(text, header)

				got, out, err := p.get(key, func(in *s3.GetObjectInput) { in.Range = &header })
				if status == http.StatusPartialContent && (err != nil || !bytes.Equal(got, want)) ||
					status != http.StatusPartialContent && err == nil {
					t.Fatalf("step %d: %s of %d bytes: %d, %+v, %v", step, header, len(text), len(got), out, err)
				}
			}
		case 5:
			checkListing(t, p, model)
		}
	}

	checkListing(t, p, model)
}

func checkListing(t *testing.T, p *proxy, model map[string][]byte) {
	t.Helper()
	seen := 0
	pages := s3.NewListObjectsV2Paginator(p.client, &s3.ListObjectsV2Input{Bucket: &p.bucket, MaxKeys: new(int32(4))})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}

		for _, o := range page.Contents {
			text, ok := model[*o.Key]
			if !ok || *o.Size != int64(len(text)) {
				t.Fatalf("%s is listed with %d bytes; has %d, exists %v", *o.Key, *o.Size, len(text), ok)
			}
			seen++
		}
	}

	if seen != len(model) {
		t.Fatalf("%d of %d objects are listed", seen, len(model))
	}
}

// Readers during an overwrite get the old or the new object, never a mix.
func TestConcurrentOverwrites(t *testing.T) {
	p := newProxy(t)
	texts := [][]byte{randomText(200_000), randomText(300_000)}
	p.put("k", texts[0])

	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 15 {
				if i == 0 {
					p.put("k", texts[n%2])
					continue
				}

				got, _, err := p.get("k")
				if err == nil && !bytes.Equal(got, texts[0]) && !bytes.Equal(got, texts[1]) {
					t.Error("a mix of two objects")
				}
			}
		})
	}

	wg.Wait()
}

// Requests that fail or are canceled leave no goroutines behind.
func TestNoLeaks(t *testing.T) {
	p := newProxy(t)
	p.put("k", randomText(3<<20))
	p.upload("parts", []int{5 * mib, 5 * mib, 100})
	p.server.Client().CloseIdleConnections()
	store.transport.CloseIdleConnections()
	before := goleak.IgnoreCurrent()

	for range 10 {
		resp, err := p.server.Client().Do(p.sign(request{method: "GET", path: "/" + p.bucket + "/k"}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := resp.Body.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}

		resp.Body.Close() // in the middle of a download
		resp, err = p.server.Client().Do(
			p.sign(
				request{
					method: "GET",
					path:   "/" + p.bucket + "/parts",
					header: http.Header{"Range": {"bytes=6000000-"}},
				},
			),
		)
		if err != nil {
			t.Fatal(err)
		}

		resp.Body.Close() // while other requests to the store are running
		fresh := p.replica()
		fresh.origin.set(func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("If-Match") != "" {
				return nil, errors.New("cut") // reading a header fails while the range is being read
			}
			return nil, nil
		}, nil)

		fresh.getRange("parts", "bytes=6000000-6000100")
		fresh.server.Client().CloseIdleConnections()
		fresh.server.Close()
		p.dialPut(100_000).Close()

		p.send(
			request{
				method: "PUT",
				path:   "/" + p.bucket + "/x",
				header: http.Header{"X-Amz-Checksum-Crc32": {"AAAAAA=="}},
				body:   randomText(300_000),
			},
		)
	}

	p.server.Client().CloseIdleConnections()
	p.server.CloseClientConnections()
	store.transport.CloseIdleConnections()

	goleak.VerifyNone(t, before)
}

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"
)

// runLength is how many consecutive bytes of plaintext count as a leak.
// zeroLength is the same for zeros. Shorter runs of zeros occur in the
// padding of a part.
const (
	runLength  = 16
	zeroLength = 9_217
)

// searcher finds runs of plaintext in other data, at any offset in either.
//
// Any run of 16 bytes contains a complete 8-byte block of the plaintext,
// counted from its start. The searcher indexes these blocks, looks up each
// offset of the data, and extends a hit in both directions.
type searcher struct {
	plaintexts [][]byte
	blocks     map[uint64][]position
	filter     []uint64 // one bit for each block's slot: most lookups end here
}

type position struct{ text, offset int }

const (
	blockLength = runLength / 2
	filterBits  = 26
	// A plaintext that repeats itself has the same block at many positions.
	// This many positions are enough to find it.
	maxPositions = 8
)

func newSearcher(plaintexts [][]byte) *searcher {
	s := &searcher{plaintexts: plaintexts, blocks: make(map[uint64][]position), filter: make([]uint64, 1<<(filterBits-6))}
	for text, data := range plaintexts {
		for offset := 0; offset+blockLength <= len(data); offset += blockLength {
			block := binary.LittleEndian.Uint64(data[offset:])
			if block == 0 || len(s.blocks[block]) >= maxPositions {
				continue // find searches for zeros separately
			}
			s.blocks[block] = append(s.blocks[block], position{text, offset})
			s.filter[slot(block)>>6] |= 1 << (slot(block) & 63)
		}
	}
	return s
}

func slot(block uint64) uint64 { return block * 0x9E3779B97F4A7C15 >> (64 - filterBits) }

var zeros = make([]byte, zeroLength)

// find returns the offset in data of a run of plaintext or of zeros.
func (s *searcher) find(data []byte) (offset int, found bool) {
	if i := bytes.Index(data, zeros); i >= 0 {
		return i, true
	}
	for i := 0; i+blockLength <= len(data); i++ {
		block := binary.LittleEndian.Uint64(data[i:])
		if h := slot(block); s.filter[h>>6]&(1<<(h&63)) == 0 {
			continue
		}
		for _, at := range s.blocks[block] {
			if common(data, i, s.plaintexts[at.text], at.offset) >= runLength {
				return i, true
			}
		}
	}
	return 0, false
}

// common returns the length of the longest common run that includes a[i] and
// b[j], without the zeros at its ends: parts are filled with zeros.
func common(a []byte, i int, b []byte, j int) int {
	before, after := 0, 0
	for i-before > 0 && j-before > 0 && a[i-before-1] == b[j-before-1] {
		before++
	}
	for i+after < len(a) && j+after < len(b) && a[i+after] == b[j+after] {
		after++
	}
	return len(bytes.Trim(a[i-before:i+after], "\x00"))
}

// searchStore searches everything that the store has. It returns the number of
// files and bytes, and the files that contain plaintext.
func searchStore(s *stack, find func([]byte) (offset int, found bool)) (files int, size int64, found []string, err error) {
	if storeKind() == "ceph" { // it keeps objects in memory
		return searchObjects(newGoSDK(s.store), find)
	}
	return searchFiles(s.dir, find)
}

// samples returns the beginning of every object, as clients read it, and its
// last bytes.
func samples(c *goSDK) ([][]byte, error) {
	ctx := context.Background()
	buckets, err := c.s3.ListBuckets(ctx, &s3.ListBucketsInput{})
	if err != nil {
		return nil, err
	}

	var all [][]byte
	for _, bucket := range buckets.Buckets {
		sizes, err := c.list(*bucket.Name, "")
		if err != nil {
			return nil, err
		}
		for key, size := range sizes {
			for _, spec := range []string{fmt.Sprintf("0-%d", sampleSize-1), fmt.Sprintf("-%d", sampleSize)} {
				if size == 0 || size <= sampleSize && spec[0] == '-' {
					continue
				}
				data, err := c.getRange(*bucket.Name, key, spec)
				if err != nil {
					return nil, fmt.Errorf("%s/%s: %w", *bucket.Name, key, err)
				}
				all = append(all, data)
			}
		}
	}
	return all, nil
}

// sampleSize is how much samples reads at the beginning and at the end of an
// object.
const sampleSize = 70_000

// searchForObjects searches the store for what clients can read through the
// proxy.
func searchForObjects(t *testing.T, c *cluster) {
	t.Helper()
	plaintexts, err := samples(newGoSDK(c.endpoint))
	if err != nil {
		t.Fatal(err)
	}
	files, size, found, err := searchStore(c.store, newSearcher(plaintexts).find)
	switch {
	case err != nil:
		t.Fatal(err)
	case !c.store.proxied:
		if len(found) == 0 {
			t.Errorf("without a proxy, no plaintext was found in %d files", files)
		}
	case len(found) > 0:
		t.Errorf("plaintext in the store, in %d of %d files: %s", len(found), files, found[:min(20, len(found))])
	default:
		table.note("no plaintext of %d samples in %d files of %d bytes that the tools stored", len(plaintexts), files, size)
	}
}

// searchObjects searches every object, as the store returns it.
func searchObjects(
	c *goSDK,
	find func([]byte) (offset int, found bool),
) (objects int, size int64, found []string, err error) {
	ctx := context.Background()
	buckets, err := c.s3.ListBuckets(ctx, &s3.ListBucketsInput{})
	if err != nil {
		return 0, 0, nil, err
	}
	for _, bucket := range buckets.Buckets {
		pages := s3.NewListObjectsV2Paginator(c.s3, &s3.ListObjectsV2Input{Bucket: bucket.Name})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return objects, size, found, err
			}
			for _, o := range page.Contents {
				data, err := c.get(*bucket.Name, *o.Key)
				if err != nil {
					return objects, size, found, err
				}
				objects++
				size += int64(len(data))
				if offset, ok := find(data); ok {
					found = append(found, fmt.Sprintf("%s/%s at byte %d", *bucket.Name, *o.Key, offset))
				}
			}
		}
	}
	return objects, size, found, nil
}

// searchFiles searches every file below a directory, some at a time.
func searchFiles(dir string, find func([]byte) (offset int, found bool)) (files int, size int64, found []string, err error) {
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	search := func(path string) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		offset, ok := find(data)
		mu.Lock()
		defer mu.Unlock()
		files++
		size += int64(len(data))
		if ok {
			name, _ := filepath.Rel(dir, path)
			found = append(found, fmt.Sprintf("%s at byte %d", name, offset))
		}
		return nil
	}

	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			group.Go(func() error { return search(path) })
		}
		return err
	})
	err = errors.Join(err, group.Wait())
	return files, size, found, err
}

// TestSearcher hides a run in noise, at all alignments, to show that the
// search finds it.
func TestSearcher(t *testing.T) {
	random := rand.NewChaCha8([32]byte{'s'})
	noise, plaintext := make([]byte, 16384), make([]byte, 1000)
	_, _ = random.Read(noise)
	_, _ = random.Read(plaintext)
	s := newSearcher([][]byte{plaintext, make([]byte, 100)})
	if offset, ok := s.find(noise); ok {
		t.Fatalf("found at %d in noise", offset)
	}

	for from := range 40 {
		for to := range 20 {
			data := bytes.Clone(noise)
			copy(data[2000+to:], plaintext[from:from+runLength])
			if _, ok := s.find(data); !ok {
				t.Fatalf("bytes %d to %d of the plaintext are not found at %d", from, from+runLength, 2000+to)
			}
			data = bytes.Clone(noise)
			copy(data[2000+to:], plaintext[from:from+runLength-2])
			if offset, ok := s.find(data); ok {
				t.Fatalf("a run of %d bytes is found at %d", runLength-2, offset)
			}
		}
	}

	data := bytes.Clone(noise)
	clear(data[100 : 100+zeroLength-1])
	if offset, ok := s.find(data); ok {
		t.Errorf("the fill of a part is found at %d", offset)
	}

	// A database's page has many of these, and so does the end of one part in
	// some: the last byte of ciphertext, and the fill.
	small := append([]byte{data[99]}, make([]byte, 100)...)
	if offset, ok := newSearcher([][]byte{small}).find(data); ok {
		t.Errorf("a byte before the fill of a part is found at %d", offset)
	}

	clear(data[100 : 100+zeroLength])
	if _, ok := s.find(data); !ok {
		t.Error("zeros are not found")
	}
}

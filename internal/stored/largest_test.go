package stored_test

import (
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// The largest object of S3: 10,000 parts of 5 GiB, 48.8 TiB.
const (
	storedPart    = int64(5 << 30)
	largestStored = crypt.MaxPartNumber * storedPart
	largest       = crypt.MaxPartNumber * crypt.MaxPartSize
)

func TestLargestSizes(t *testing.T) {
	if size, err := stored.MultipartSize(largestStored, crypt.MaxPartNumber); err != nil || size != largest {
		t.Errorf("%d, %v", size, err)
	}
	for text, want := range map[string][2]int64{
		"bytes=0-0":                             {0, 1},
		"bytes=0-":                              {0, largest},
		"bytes=-1":                              {largest - 1, 1},
		"bytes=-99999999999999":                 {0, largest},
		"bytes=4294967295-4294967296":           {1<<32 - 1, 2},
		fmt.Sprintf("bytes=%d-", largest-1):     {largest - 1, 1},
		fmt.Sprintf("bytes=5-%d", largest*1000): {5, largest - 5},
	} {
		t.Run(text, func(t *testing.T) {
			offset, length, ok := stored.ParseRange(text).Of(largest)
			if !ok || offset != want[0] || length != want[1] {
				t.Errorf("%d bytes from %d, %v", length, offset, ok)
			}
		})
	}
	if _, _, ok := stored.ParseRange(fmt.Sprintf("bytes=%d-", largest)).Of(largest); ok {
		t.Error("a range behind the end")
	}
}

// hugeStore has the largest object, of zeros. It makes the beginning of a part
// when it is read, so only the first segment of a part can be read.
type hugeStore struct {
	key *keyring.DataKey
	obj crypt.Object

	mu    sync.Mutex
	heads map[int][]byte // the beginnings of parts
	reads int64          // bytes read
}

// ServeHTTP answers GET and HEAD.
func (s *hugeStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mark := crypt.Mark{KeyID: s.key.KeyID}
	metadata, err := mark.Metadata()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for name, value := range metadata {
		w.Header().Set(stored.MetaPrefix+name, value)
	}
	w.Header().Set("Etag", fmt.Sprintf(`"%032x-%d"`, 1, crypt.MaxPartNumber))
	http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(s, 0, largestStored))
}

// ReadAt reads from the beginning of a part.
func (s *hugeStore) ReadAt(p []byte, at int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	index, from := int(at/storedPart), at%storedPart
	head, err := s.head(index, int(from)+len(p))
	if err != nil {
		return 0, err
	}
	n := copy(p, head[from:])
	s.reads += int64(n)
	return n, nil
}

// head returns the first n bytes of a part or more.
func (s *hugeStore) head(index, n int) ([]byte, error) {
	if have := s.heads[index]; len(have) >= n {
		return have, nil
	}
	if len(s.heads[index]) > crypt.PartPrefixSize {
		return nil, fmt.Errorf("part %d is read behind its first segment, at %d", index+1, n)
	}
	const firstSegment = crypt.PartHeaderSize + 160<<16 + crypt.TagSize
	p := crypt.Part{
		Number: index + 1, Size: crypt.MaxPartSize, Final: index == crypt.MaxPartNumber-1,
		Upload: crypt.UploadOf(crypt.UploadRandom{1}, "u"), KeyID: s.key.KeyID, WrappedDEK: s.key.Wrapped,
	}
	sealer, err := crypt.NewPartSealer(zeros{}, &p, s.obj, s.key.DEK(), rand.Reader)
	if err != nil {
		return nil, err
	}
	defer sealer.Close()
	head := make([]byte, firstSegment)
	if _, err := io.ReadFull(sealer, head); err != nil {
		return nil, err
	}
	s.heads[index] = head
	return head, nil
}

func TestReadingTheLargestObject(t *testing.T) {
	b := newBench(t)
	obj := crypt.Object{Bucket: "b", Key: "huge"}
	store := &hugeStore{key: b.newKey(t, obj), obj: obj, heads: make(map[int][]byte)}
	server := httptest.NewServer(store)
	t.Cleanup(server.Close)
	var err error
	if b.url, err = url.Parse(server.URL); err != nil {
		t.Fatal(err)
	}

	reader := b.reader()
	o, err := reader.Head(t.Context(), requestFor(obj))
	if err != nil || o.Size != largest {
		t.Fatalf("HEAD: %+v, %v", o, err)
	}

	for name, row := range map[string]struct {
		ask            func(*stored.Request)
		offset, length int64
	}{
		"first bytes":                  {func(q *stored.Request) { q.Range = stored.Bytes(0, 100) }, 0, 100},
		"first bytes of the last part": {func(q *stored.Request) { q.Range = stored.Bytes(9999*crypt.MaxPartSize, 100) }, 9999 * crypt.MaxPartSize, 100},
		"behind 5 TiB": {
			func(q *stored.Request) { q.Range = stored.Bytes(1100*crypt.MaxPartSize+7, 100) }, 1100*crypt.MaxPartSize + 7, 100,
		},
	} {
		t.Run(name, func(t *testing.T) {
			q := requestFor(obj)
			row.ask(&q)
			o, data, err := read(t, reader, q)
			if err != nil {
				t.Fatal(err)
			}
			if o.Offset != row.offset || o.Length != row.length || o.Size != largest || int64(len(data)) != row.length {
				t.Errorf("%d of %d bytes from %d", len(data), o.Length, o.Offset)
			}
		})
	}

	last := requestFor(obj)
	last.Part = crypt.MaxPartNumber
	o, err = reader.Head(t.Context(), last)
	if err != nil || o.Offset != 9999*crypt.MaxPartSize || o.Length != crypt.MaxPartSize || o.Parts != crypt.MaxPartNumber {
		t.Errorf("HEAD of the last part: %+v, %v", o, err)
	}
	if store.reads > 64<<20 {
		t.Errorf("%d bytes were read for a few hundred", store.reads)
	}
}

// zeros has any number of them.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

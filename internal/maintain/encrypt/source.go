package encrypt

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // most stores use MD5 for ETags
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// original is a plaintext object that is to be encrypted.
type original struct {
	obj    crypt.Object
	have   http.Header // the store's headers
	stored string      // the store's ETag
	size   int64
	sums   *sums
}

func newOriginal( //nolint:revive // etagIsMD5 describes the store
	obj crypt.Object,
	seen *stored.Seen,
	etagIsMD5 bool,
) *original {
	o := &original{
		obj:    obj,
		have:   seen.Header,
		stored: seen.ETag,
		size:   seen.Stored,
		sums:   &sums{whole: sha256.New().(hash.Cloner)},
	}

	kind := seen.Header.Get("X-Amz-Checksum-Type")
	if kind == "FULL_OBJECT" || kind == "" && seen.Parts < 0 {
		for _, a := range checksum.All {
			if text := seen.Header.Get(a.Header()); text != "" {
				want, _ := a.Decode(text) // an invalid value matches no object
				o.sums.said = append(o.sums.said, said{a.Name, a.ID, a.New(), want})
			}
		}
	}

	// With SSE-KMS in the store, an ETag is not an MD5.
	sse := seen.Header.Get("X-Amz-Server-Side-Encryption")
	md5OfETag, err := hex.DecodeString(strings.Trim(seen.ETag, `"`))
	if etagIsMD5 && (sse == "" || sse == "AES256") && err == nil && len(md5OfETag) == md5.Size {
		sum := md5.New().(hash.Cloner) //nolint:gosec // S3's ETag
		o.sums.said = append(o.sums.said, said{"ETag", 0, sum, md5OfETag})
	}

	return o
}

// checksum returns the checksum that is stored with a multipart object.
func (o *original) checksum() stored.Checksum {
	out := stored.Checksum{Digests: o.sums.digests()}
	if len(out.Digests) > 0 {
		out.Type = crypt.FullObject
	}
	return out
}

// read requests a range of the object.
func (e *Encrypter) read(ctx context.Context, o *original, offset, length int64) (io.ReadCloser, error) {
	header := http.Header{"If-Match": {o.stored}}
	if length < o.size {
		header.Set("Range", stored.Bytes(offset, length).String())
	}

	resp, err := e.store.Do(inplace.NewRequest(ctx, http.MethodGet, o.obj, "", header, nil))
	if err != nil {
		return nil, err
	}

	partial := resp.StatusCode == http.StatusPartialContent &&
		resp.Header.Get("Content-Range") == stored.ContentRange(offset, length, o.size)
	if resp.Header.Get("Etag") != o.stored || resp.ContentLength != length || length < o.size && !partial {
		_ = resp.Body.Close()
		return nil, inplace.ErrChanged
	}
	return resp.Body, nil
}

// sums are hashes of the bytes that were read.
type sums struct {
	whole hash.Cloner // SHA-256, to compare with what is read back
	said  []said
}

// said is a checksum that the store reports.
type said struct {
	name string
	id   crypt.ChecksumID // 0 for a checksum that clients do not ask for
	hash hash.Cloner
	want []byte
}

func (s *sums) write(p []byte) {
	s.whole.Write(p)
	for _, one := range s.said {
		one.hash.Write(p)
	}
}

func (s *sums) check() error {
	for _, one := range s.said {
		if !bytes.Equal(one.hash.Sum(nil), one.want) {
			return fmt.Errorf("%w (%s)", ErrSource, one.name)
		}
	}
	return nil
}

func (s *sums) digests() map[crypt.ChecksumID][]byte {
	out := make(map[crypt.ChecksumID][]byte)
	for _, one := range s.said {
		if one.id != 0 {
			out[one.id] = one.want
		}
	}
	return out
}

// clone returns a copy of the hashes, so that a part can be read again.
func (s *sums) clone() *sums {
	out := &sums{whole: cloneHash(s.whole)}
	for _, one := range s.said {
		one.hash = cloneHash(one.hash)
		out.said = append(out.said, one)
	}
	return out
}

func cloneHash(h hash.Cloner) hash.Cloner {
	c, err := h.Clone()
	if err != nil {
		panic(err) // only for hashes that embed others
	}
	return c
}

// source is plaintext that is being read. If end is not nil, it is called
// before Read returns io.EOF.
type source struct {
	r    io.Reader
	sums *sums
	end  func() error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sums.write(p[:n])
	if err == io.EOF && s.end != nil { // unwrapped, as readers return it
		if refused := s.end(); refused != nil {
			return n, refused
		}
	}
	return n, err
}

// twin compares the plaintext that is decrypted again with the plaintext
// that was read.
type twin struct {
	src       io.Reader
	unchecked bytes.Buffer // read, but not yet compared: at most what is sealed at a time
}

func (t *twin) Read(p []byte) (int, error) {
	n, err := t.src.Read(p)
	t.unchecked.Write(p[:n])
	return n, err
}

func (t *twin) seen(text []byte) error {
	if !bytes.Equal(t.unchecked.Next(len(text)), text) {
		return errors.New("the sealed bytes decrypt to other bytes than were read")
	}
	return nil
}

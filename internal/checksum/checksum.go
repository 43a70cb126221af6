// Package checksum implements S3's checksum algorithms, those of the
// x-amz-checksum-* headers. See
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html.
//
//	checksum.go  the algorithms and their headers
//	combine.go   CRCs of multipart objects
package checksum

import (
	"crypto/md5"  //nolint:gosec // S3 defines x-amz-checksum-md5
	"crypto/sha1" //nolint:gosec // S3 defines x-amz-checksum-sha1
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"hash"
	"hash/crc32"
	"net/http"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/minio/crc64nvme"
	"github.com/zeebo/xxh3"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// Prefix starts the names of all checksum headers.
const Prefix = "X-Amz-Checksum-"

// Algorithm is a checksum algorithm.
type Algorithm struct {
	ID   crypt.ChecksumID // number in the object format
	Name string           // name in x-amz-checksum-algorithm

	newHash    func() hash.Cloner
	polynomial uint64 // of a CRC, reflected; 0 for other algorithms
	headerName string
}

// All contains all algorithms, sorted by ID.
var All = []*Algorithm{
	newAlgorithm(crypt.CRC32, "CRC32", func() hash.Cloner { return crc32.NewIEEE().(hash.Cloner) }, crc32.IEEE),
	newAlgorithm(crypt.CRC32C, "CRC32C", func() hash.Cloner {
		return crc32.New(crc32.MakeTable(crc32.Castagnoli)).(hash.Cloner)
	}, crc32.Castagnoli),
	newAlgorithm(crypt.CRC64NVME, "CRC64NVME", func() hash.Cloner { return &crc64{} }, 0x9a6c9329ac4bc9b5),
	//nolint:gosec // see the import
	newAlgorithm(crypt.SHA1, "SHA1", func() hash.Cloner { return sha1.New().(hash.Cloner) }, 0),
	newAlgorithm(crypt.SHA256, "SHA256", func() hash.Cloner { return sha256.New().(hash.Cloner) }, 0),
	newAlgorithm(crypt.SHA512, "SHA512", func() hash.Cloner { return sha512.New().(hash.Cloner) }, 0),
	//nolint:gosec // see the import
	newAlgorithm(crypt.MD5, "MD5", func() hash.Cloner { return md5.New().(hash.Cloner) }, 0),
	newAlgorithm(crypt.XXHash64, "XXHASH64", func() hash.Cloner { return xxh64{xxhash.New()} }, 0),
	newAlgorithm(crypt.XXHash3, "XXHASH3", func() hash.Cloner { return xxh3of64{xxh3.New()} }, 0),
	newAlgorithm(crypt.XXHash128, "XXHASH128", func() hash.Cloner { return xxh3of128{xxh3.New()} }, 0),
}

func newAlgorithm(id crypt.ChecksumID, name string, newHash func() hash.Cloner, polynomial uint64) *Algorithm {
	header := Prefix + http.CanonicalHeaderKey(strings.ToLower(name))
	return &Algorithm{ID: id, Name: name, newHash: newHash, polynomial: polynomial, headerName: header}
}

// Named returns the algorithm with that name, ignoring case, or nil.
func Named(name string) *Algorithm {
	for _, a := range All {
		if strings.EqualFold(a.Name, name) {
			return a
		}
	}
	return nil
}

// OfHeader returns the algorithm whose header has that name, ignoring case,
// or nil.
func OfHeader(name string) *Algorithm {
	if len(name) < len(Prefix) || !strings.EqualFold(name[:len(Prefix)], Prefix) {
		return nil
	}
	return Named(name[len(Prefix):])
}

// Header returns the canonical name of the header.
func (a *Algorithm) Header() string { return a.headerName }

// New returns a new hash. Clone it to keep an intermediate state.
func (a *Algorithm) New() hash.Cloner { return a.newHash() }

// Decode decodes a digest from a header. ok is false if it is malformed.
func (a *Algorithm) Decode(text string) (digest []byte, ok bool) {
	digest, err := base64.StdEncoding.DecodeString(text)
	return digest, err == nil && len(digest) == a.ID.Size()
}

// Encode encodes a digest for a header.
func Encode(digest []byte) string { return base64.StdEncoding.EncodeToString(digest) }

// crc64 is CRC64NVME. It uses special instructions on amd64 and arm64.
type crc64 struct{ crc uint64 }

func (h *crc64) Write(p []byte) (int, error) {
	h.crc = crc64nvme.Update(h.crc, p)
	return len(p), nil
}

func (h *crc64) Sum(b []byte) []byte { return appendUint(b, h.crc, h.Size()) }

func (h *crc64) Reset()         { h.crc = 0 }
func (h *crc64) Size() int      { return crypt.CRC64NVME.Size() }
func (h *crc64) BlockSize() int { return 1 }

func (h *crc64) Clone() (hash.Cloner, error) {
	c := *h
	return &c, nil
}

// xxh64 is XXH64. Its state can simply be copied.
type xxh64 struct{ *xxhash.Digest }

func (h xxh64) Clone() (hash.Cloner, error) {
	c := *h.Digest
	return xxh64{&c}, nil
}

// xxh3of64 is XXH3 with 64 bits. Its state can be copied too: it contains a
// pointer only to the key, which does not change with seed 0.
type xxh3of64 struct{ *xxh3.Hasher }

func (h xxh3of64) Clone() (hash.Cloner, error) {
	c := *h.Hasher
	return xxh3of64{&c}, nil
}

// xxh3of128 is XXH3 with 128 bits.
type xxh3of128 struct{ *xxh3.Hasher }

func (h xxh3of128) Size() int { return crypt.XXHash128.Size() }

func (h xxh3of128) Sum(b []byte) []byte {
	sum := h.Sum128().Bytes()
	return append(b, sum[:]...)
}

func (h xxh3of128) Clone() (hash.Cloner, error) {
	c := *h.Hasher
	return xxh3of128{&c}, nil
}

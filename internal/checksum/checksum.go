// Package checksum has S3's checksum algorithms: those of the x-amz-checksum-*
// headers.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
package checksum

import (
	"crypto/md5"  //nolint:gosec // x-amz-checksum-md5 is S3's
	"crypto/sha1" //nolint:gosec // x-amz-checksum-sha1 is S3's
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

// Prefix is what the headers begin with that have a checksum.
const Prefix = "X-Amz-Checksum-"

// Algorithm is one of the algorithms.
type Algorithm struct {
	ID   crypt.ChecksumID // in what is kept with an object
	Name string           // as in x-amz-checksum-algorithm

	newHash    func() hash.Cloner
	polynomial uint64 // of a CRC, reflected; 0 for a hash
}

// All are the algorithms, by ID.
var All = []*Algorithm{
	{crypt.CRC32, "CRC32", func() hash.Cloner { return crc32.NewIEEE().(hash.Cloner) }, crc32.IEEE},
	{crypt.CRC32C, "CRC32C", func() hash.Cloner { return crc32.New(crc32.MakeTable(crc32.Castagnoli)).(hash.Cloner) }, crc32.Castagnoli},
	{crypt.CRC64NVME, "CRC64NVME", func() hash.Cloner { return &crc64{} }, 0x9a6c9329ac4bc9b5},
	{crypt.SHA1, "SHA1", func() hash.Cloner { return sha1.New().(hash.Cloner) }, 0}, //nolint:gosec // as above
	{crypt.SHA256, "SHA256", func() hash.Cloner { return sha256.New().(hash.Cloner) }, 0},
	{crypt.SHA512, "SHA512", func() hash.Cloner { return sha512.New().(hash.Cloner) }, 0},
	{crypt.MD5, "MD5", func() hash.Cloner { return md5.New().(hash.Cloner) }, 0}, //nolint:gosec // as above
	{crypt.XXHash64, "XXHASH64", func() hash.Cloner { return xxh64{xxhash.New()} }, 0},
	{crypt.XXHash3, "XXHASH3", func() hash.Cloner { return xxh3of64{xxh3.New()} }, 0},
	{crypt.XXHash128, "XXHASH128", func() hash.Cloner { return xxh3of128{xxh3.New()} }, 0},
}

// Named returns the algorithm of that name, in any case; nil if there is none.
func Named(name string) *Algorithm {
	for _, a := range All {
		if strings.EqualFold(a.Name, name) {
			return a
		}
	}
	return nil
}

// OfHeader returns the algorithm whose header has that name, in any case; nil
// if there is none.
func OfHeader(name string) *Algorithm {
	if len(name) < len(Prefix) || !strings.EqualFold(name[:len(Prefix)], Prefix) {
		return nil
	}
	return Named(name[len(Prefix):])
}

// Header is the name of the header, in the canonical form.
func (a *Algorithm) Header() string {
	return Prefix + http.CanonicalHeaderKey(strings.ToLower(a.Name))
}

// New begins a checksum. What has been written so far can be kept as a clone
// of it.
func (a *Algorithm) New() hash.Cloner { return a.newHash() }

// Decode reads a digest as S3 writes it. ok is false for what cannot be one.
func (a *Algorithm) Decode(text string) (digest []byte, ok bool) {
	digest, err := base64.StdEncoding.DecodeString(text)
	return digest, err == nil && len(digest) == a.ID.Size()
}

// Encode writes a digest as S3 does.
func Encode(digest []byte) string { return base64.StdEncoding.EncodeToString(digest) }

// crc64 is CRC64NVME, which is computed on amd64 and arm64 by their own
// instructions.
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

// xxh64 can be cloned, as it is nothing but its state.
type xxh64 struct{ *xxhash.Digest }

func (h xxh64) Clone() (hash.Cloner, error) {
	c := *h.Digest
	return xxh64{&c}, nil
}

// xxh3of64 can be cloned too: all that its state points to is the key, which a
// seed of 0 leaves alone.
type xxh3of64 struct{ *xxh3.Hasher }

func (h xxh3of64) Clone() (hash.Cloner, error) {
	c := *h.Hasher
	return xxh3of64{&c}, nil
}

// xxh3of128 is the variant of XXH3 with a digest of 128 bits.
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

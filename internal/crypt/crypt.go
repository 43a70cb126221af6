// Package crypt implements the object format, which docs/format.md
// specifies byte by byte. The names in the code are the names on that page.
//
// A single-PUT object is a body, with its envelope in user metadata:
//
//	body      header 40 | segment 0 + tag 16 | … | last segment + tag 16
//	header    length 1 (40) | salt 32 | nonce prefix 7
//	segment   65,536 bytes of plaintext; 65,496 in segment 0, after the header
//	nonce     prefix 7 | segment index 4 | last flag 1
//	envelope  version, suite, KMS key id, wrapped DEK, header, plaintext size,
//	          sealed checksums, sealed metadata, MAC over all of these and
//	          bucket and key
//
// A multipart object is a sequence of parts, each with its own DEK or a
// shared one:
//
//	part      its header 984 | stream, as a body | fill with zeros
//	          (plaintext + 9,216 bytes in all; the last part may hold a Record)
//
// HKDF-SHA256 derives the stream key, the MAC key, the checksum key and the
// metadata key from the DEK. Segments are AES-256-GCM. A stream is a Tink AES256_GCM_HKDF
// ciphertext, so objects can be read without this code. The package imports
// only the standard library, does no I/O, and takes randomness as an input.
//
//	crypt.go        sizes, errors, and key derivation
//	envelope.go     Envelope: the metadata of a single-PUT object
//	mark.go         Mark: the metadata of a multipart object
//	seal.go         Sealer: plaintext to body
//	open.go         Opener: body to plaintext
//	size.go         which stored bytes hold which plaintext
//	part.go         part headers, and sealing parts
//	upload.go       which parts belong together
//	parts.go        reading multipart objects
//	layout.go       where parts lie, and the Record of them
//	wrappedkey.go   the stored form of a wrapped DEK; bucket keys
//	customerkey.go  keys that clients supply (SSE-C)
//	checksum.go     sealed checksums
//	metadata.go     sealed metadata
//	readfull.go     end of the source, or failure of the source?
//	buffer.go       pools of buffers
//	wipe.go         overwriting keys in memory
package crypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes in bytes. Each segment has one GCM tag. The header takes the first
// bytes of segment 0.
const (
	DEKSize           = 32
	HeaderSize        = 1 + saltSize + prefixSize
	TagSize           = 16
	SegmentSize       = 64 << 10              // plaintext of a full segment
	StoredSegmentSize = SegmentSize + TagSize // with its tag

	saltSize   = 32
	prefixSize = 7
	nonceSize  = 12
)

// HKDF info strings. They keep the keys that are derived from one secret
// apart, and are part of the format.
const (
	infoBody     = "cmekproxy v1 body"
	infoMAC      = "cmekproxy v1 mac"
	infoChecksum = "cmekproxy v1 checksum"
	infoMetadata = "cmekproxy v2 metadata"

	infoBucketKey = "cmekproxy v1 bucket key" // followed by the object's name
	infoCustomer  = "cmekproxy v1 sse-c"      // followed by the object's name
)

var (
	// ErrAuth is returned when a tag or a MAC does not verify: the data or
	// the envelope was altered, truncated, moved or swapped, or the DEK is
	// wrong.
	ErrAuth = errors.New("crypt: authentication failed")
	// ErrTruncated is returned when the stored body ends before its last
	// segment.
	ErrTruncated = errors.New("crypt: body is truncated")
	// ErrTrailing is returned when bytes follow the last segment.
	ErrTrailing = errors.New("crypt: bytes after the last segment")
	// ErrSize is returned for an impossible size: no plaintext has this
	// stored size, or two sizes disagree.
	ErrSize = errors.New("crypt: impossible size")
	// ErrDEK is returned for a DEK that is not 32 bytes long, or is all zeros
	// and therefore was never set.
	ErrDEK = errors.New("crypt: unusable data key")
)

// Header is the first 40 bytes of a body: its own length, the HKDF salt and
// the nonce prefix.
type Header [HeaderSize]byte

func (h *Header) salt() []byte   { return h[1 : 1+saltSize] }
func (h *Header) prefix() []byte { return h[1+saltSize:] }

// check returns ErrAuth if the first byte is not the header's length.
func (h *Header) check() error {
	if h[0] != HeaderSize {
		return fmt.Errorf("%w: header length is %d, not %d", ErrAuth, h[0], HeaderSize)
	}
	return nil
}

// stream seals or opens the segments of one body.
type stream struct {
	aead        cipher.AEAD
	nonce       [nonceSize]byte
	segmentSize segmentBytes
	last        int64 // index of the last segment
}

func newStream(dek []byte, h *Header, plaintext int64, s segmentBytes) (*stream, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	if plaintext < 0 || plaintext > MaxPlaintextSize {
		return nil, fmt.Errorf("%w: %d bytes of plaintext", ErrSize, plaintext)
	}

	aead, err := derivedAEAD(dek, h.salt(), infoBody)
	if err != nil {
		return nil, err
	}

	out := &stream{aead: aead, segmentSize: s, last: s.lastSegment(plaintext)}
	copy(out.nonce[:], h.prefix())
	return out, nil
}

// wipe overwrites the key. Using the stream afterwards panics.
func (s *stream) wipe() {
	Wipe(s.aead)
	s.aead = nil
}

// nonceOf returns the nonce of segment i, which is valid until the next
// call. The last flag in it makes a cut at a segment boundary fail.
func (s *stream) nonceOf(i int64) []byte {
	binary.BigEndian.PutUint32(s.nonce[prefixSize:], uint32(i)) //nolint:gosec // MaxPlaintextSize keeps i below 2^32
	s.nonce[nonceSize-1] = 0
	if i == s.last {
		s.nonce[nonceSize-1] = 1
	}
	return s.nonce[:]
}

func derivedAEAD(dek, salt []byte, info string) (aead cipher.AEAD, err error) {
	guard(func() { aead, err = newDerivedAEAD(dek, salt, info) })
	return aead, err
}

func newDerivedAEAD(dek, salt []byte, info string) (cipher.AEAD, error) {
	key, err := derive(dek, salt, info)
	if err != nil {
		return nil, err
	}
	defer clear(key)

	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("crypt: %w", err)
	}
	defer Wipe(block) // the AEAD has its own copy

	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("crypt: %w", err)
	}

	return aead, nil
}

func derive(dek, salt []byte, info string) (key []byte, err error) {
	guard(func() { key, err = hkdfKey(dek, salt, info) })
	return key, err
}

// hkdfKey returns 32 bytes of HKDF-SHA256, which is one round of
// HKDF-Expand. hkdf.Key is not used because it leaves copies of the key in
// memory.
func hkdfKey(dek, salt []byte, info string) ([]byte, error) {
	if err := CheckDEK(dek); err != nil {
		return nil, err
	}

	var hashes hashWiper
	defer hashes.wipe()

	newHash := hashes.new
	prk, err := hkdf.Extract(newHash, dek, salt)
	if err != nil {
		return nil, fmt.Errorf("crypt: %w", err)
	}
	defer clear(prk)

	expand := hmac.New(newHash, prk)
	defer Wipe(expand)

	expand.Write(append([]byte(info), 1))
	return expand.Sum(make([]byte, 0, DEKSize)), nil
}

// CheckDEK returns ErrDEK unless dek is 32 bytes long and not all zeros.
func CheckDEK(dek []byte) error {
	if len(dek) != DEKSize {
		return fmt.Errorf("%w: %d bytes long", ErrDEK, len(dek))
	}

	var or byte
	for _, b := range dek {
		or |= b
	}

	if or == 0 {
		return fmt.Errorf("%w: all zero", ErrDEK)
	}
	return nil
}

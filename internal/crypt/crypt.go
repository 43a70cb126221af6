// Package crypt is the object format: the body, the envelope, and the
// arithmetic between plaintext and stored sizes.
//
// docs/format.md is its specification, exact to the byte; names here are the
// names there. The body is a Tink AES256_GCM_HKDF stream, so that data can be
// read without this code. The package uses the standard library only, does no
// I/O of its own, and takes randomness as an input.
//
//	crypt.go        sizes, errors, and the keys derived from a data key (DEK)
//	envelope.go     Envelope and Mark: what is stored as metadata
//	seal.go         Sealer: from plaintext to a body
//	open.go         Opener: from a body to plaintext
//	size.go         sizes and ranges: which stored bytes hold which plaintext
//	part.go         parts of multipart objects: header and sealing
//	parts.go        reading multipart objects
//	layout.go       where parts lie, and the record of it
//	wrappedkey.go   what is stored as a wrapped DEK; bucket keys
//	customerkey.go  keys that clients bring (SSE-C)
//	checksum.go     sealed checksums
//	readfull.go     telling an end of the source from its failure
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

// Sizes in bytes. A segment is what one GCM tag protects; segment 0 shares its
// place with the header.
const (
	DEKSize           = 32
	HeaderSize        = 1 + saltSize + prefixSize
	TagSize           = 16
	SegmentSize       = 64 << 10              // plaintext of a full segment
	StoredSegmentSize = SegmentSize + TagSize // the same, stored

	saltSize   = 32
	prefixSize = 7
	nonceSize  = 12
)

// The info strings of HKDF keep the three keys of a DEK apart. Part of the
// format.
const (
	infoBody     = "cmekproxy v1 body"
	infoMAC      = "cmekproxy v1 mac"
	infoChecksum = "cmekproxy v1 checksum"

	infoBucketKey = "cmekproxy v1 bucket key" // of a bucket key, with the object's name behind it
	infoCustomer  = "cmekproxy v1 sse-c"      // of a customer's key, likewise
)

var (
	// ErrAuth says that a tag or MAC did not verify: the data or the envelope
	// was altered, cut, moved or swapped, or the DEK is another one.
	ErrAuth = errors.New("crypt: authentication failed")
	// ErrTruncated says that the stored body ended before its last segment.
	ErrTruncated = errors.New("crypt: body is cut short")
	// ErrTrailing says that bytes follow the last segment.
	ErrTrailing = errors.New("crypt: bytes after the last segment")
	// ErrSize says that a size cannot be: no plaintext gives this stored size,
	// or the two disagree.
	ErrSize = errors.New("crypt: impossible size")
	// ErrDEK says that a DEK is not 32 bytes or is all zero, the mark of a key
	// that was never set.
	ErrDEK = errors.New("crypt: unusable data key")
)

// Header is the first 40 bytes of a body: its own length, the HKDF salt and
// the nonce prefix.
type Header [HeaderSize]byte

func (h *Header) salt() []byte   { return h[1 : 1+saltSize] }
func (h *Header) prefix() []byte { return h[1+saltSize:] }

// check refuses a header whose length byte is not its length.
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

// wipe forgets the key. A use after it panics.
func (s *stream) wipe() {
	Wipe(s.aead)
	s.aead = nil
}

// nonceOf sets the nonce for segment i. The last flag in it is what makes a
// cut at a segment boundary fail.
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
	defer Wipe(block) // the AEAD has a copy

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

// hkdfKey is HKDF-SHA256 for as many bytes as the hash has, which is one round
// of HKDF-Expand. hkdf.Key would leave copies of the key behind.
func hkdfKey(dek, salt []byte, info string) ([]byte, error) {
	if err := CheckDEK(dek); err != nil {
		return nil, err
	}

	var hashes hashWiper
	defer hashes.wipe()

	prk, err := hkdf.Extract(hashes.new, dek, salt)
	if err != nil {
		return nil, fmt.Errorf("crypt: %w", err)
	}
	defer clear(prk)

	expand := hmac.New(hashes.new, prk)
	defer Wipe(expand)

	expand.Write([]byte(info))
	expand.Write([]byte{1})
	return expand.Sum(make([]byte, 0, DEKSize)), nil
}

// CheckDEK refuses what cannot be a data key: another length than 32 bytes, or
// nothing but zeros.
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

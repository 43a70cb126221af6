package crypt

import (
	"crypto/sha256"
	"hash"
)

// scrubber makes hashes whose buffers it overwrites in the end. SHA-256 keeps
// the last bytes that it was given, and HKDF is given the data key.
type scrubber []hash.Hash

// new is a constructor as HMAC and HKDF want it.
func (s *scrubber) new() hash.Hash {
	h := sha256.New()
	*s = append(*s, h)
	return h
}

// scrub overwrites what the hashes hold. They must not be used any more.
func (s *scrubber) scrub() {
	var zeros [sha256.BlockSize - 1]byte // a byte less than what would go past the buffer
	for _, h := range *s {
		h.Reset()
		h.Write(zeros[:])
	}
}

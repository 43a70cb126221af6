package crypt

import (
	"crypto/sha256"
	"hash"
	"reflect"
	"sync"
)

// Wipe overwrites the contents of a cipher or a MAC, including the expanded
// key. The value must not be used afterwards.
//
// The standard library has no such function. Ciphers and MACs are pointers
// to structs, or structs that start with such a pointer; a MAC keeps its
// key in byte slices. Wipe clears these slices and the struct.
func Wipe(keyed any) {
	v := reflect.ValueOf(keyed)
	if v.Kind() == reflect.Struct && v.NumField() > 0 {
		v = v.Field(0)
	}
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return
	}

	v = v.Elem()
	for i := range v.NumField() { //nolint:modernize // v.Fields allocates
		if f := v.Field(i); f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.Uint8 {
			clear(f.Bytes())
		}
	}

	if v.CanSet() {
		v.SetZero()
	}
}

// hashWiper gives hashes, and later overwrites their buffers and gives them
// back. SHA-256 keeps the last bytes of its input, and HKDF's input is the
// data key.
type hashWiper struct {
	hashes []hash.Hash
	array  [8]hash.Hash // of the usual number of hashes: one allocation for all
}

// new is a constructor of the type that HMAC and HKDF take.
func (s *hashWiper) new() hash.Hash {
	if s.hashes == nil {
		s.hashes = s.array[:0]
	}
	h := hashPool.Get().(hash.Hash) //nolint:forcetypeassert // as New makes it
	s.hashes = append(s.hashes, h)
	return h
}

// hashPool has hashes that hold nothing.
var hashPool = sync.Pool{New: func() any { return sha256.New() }}

// zeros are one byte less than a block: a block would be hashed, and not kept.
var zeros [sha256.BlockSize - 1]byte

// wipe overwrites the buffers of the hashes, which must not be used
// afterwards.
func (s *hashWiper) wipe() {
	for _, h := range s.hashes {
		h.Reset()
		h.Write(zeros[:])
		h.Reset()
		hashPool.Put(h)
	}
	s.hashes = nil
}

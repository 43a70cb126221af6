package crypt

import (
	"crypto/sha256"
	"hash"
	"reflect"
)

// Wipe overwrites what a cipher or a MAC holds, the expanded key among it. The
// standard library has no such thing; both are pointers to structures, or a
// structure with such a pointer, and a MAC has its key in slices of bytes. It
// must not be used any more.
func Wipe(keyed any) {
	v := reflect.ValueOf(keyed)
	if v.Kind() == reflect.Struct && v.NumField() > 0 {
		v = v.Field(0)
	}
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return
	}

	v = v.Elem()
	for _, f := range v.Fields() {
		if f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.Uint8 {
			clear(f.Bytes())
		}
	}

	if v.CanSet() {
		v.SetZero()
	}
}

// hashWiper makes hashes whose buffers it overwrites in the end. SHA-256 keeps
// the last bytes that it was given, and HKDF is given the data key.
type hashWiper []hash.Hash

// new is a constructor as HMAC and HKDF want it.
func (s *hashWiper) new() hash.Hash {
	h := sha256.New()
	*s = append(*s, h)
	return h
}

// wipe overwrites what the hashes hold. They must not be used any more.
func (s *hashWiper) wipe() {
	var zeros [sha256.BlockSize - 1]byte // a byte less than what would go past the buffer
	for _, h := range *s {
		h.Reset()
		h.Write(zeros[:])
	}
}

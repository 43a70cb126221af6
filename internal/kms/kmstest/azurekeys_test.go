package kmstest

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// The vector of RFC 3394, section 4.6.
func TestKeyWrap(t *testing.T) {
	decode := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}

	kek := decode("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	key := decode("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f")
	want := decode("28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21")
	got, err := keyWrap(kek, key)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x, %v", got, err)
	}

	back, err := keyUnwrap(kek, want)
	if err != nil || !bytes.Equal(back, key) {
		t.Errorf("%x, %v", back, err)
	}

	want[20] ^= 1
	if _, err := keyUnwrap(kek, want); err == nil {
		t.Error("an altered key unwraps")
	}
}

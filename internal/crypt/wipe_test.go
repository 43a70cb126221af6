package crypt

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"testing"
	"unsafe"
)

// Nothing of a key remains in the memory that held it. The test scans the
// bytes of the values, because the types belong to other packages.
func TestWipe(t *testing.T) {
	key := bytes.Repeat([]byte{0x17, 0x2e, 0x45, 0x5c}, 8)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}

	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}

	random, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}

	for name, keyed := range map[string]any{"GCM": aead, "GCM with random nonces": random, "AES": block} {
		t.Run(name, func(t *testing.T) {
			data := *(*[2]unsafe.Pointer)(unsafe.Pointer(&keyed)) // of the interface: type and pointer
			holds := unsafe.Slice((*byte)(data[1]), 240)
			if !bytes.Contains(holds, key) {
				t.Fatal("the key is not where it was looked for")
			}

			Wipe(keyed)
			if bytes.Contains(holds, key[:8]) {
				t.Error("the key is still there")
			}
		})
	}

	var hashes hashWiper
	h := hmac.New(hashes.new, key)
	h.Write([]byte("text"))
	Wipe(h)
	hashes.wipe()
	Wipe(nil)
	Wipe(sha256.New())

	Wipe(struct{}{})
}

package kms

import (
	"bytes"
	"crypto/rand"
	"testing"
)

// All of a blob is authenticated, whatever the KMS makes of it.
func TestAzureBlobIsAuthenticated(t *testing.T) {
	kek, dek := make([]byte, azureKEKSize), make([]byte, DEKSize)
	rand.Read(kek)
	rand.Read(dek)
	ec := EncryptionContext{"bucket": "b", "key": "k"}
	made := func() *azureBlob {
		return &azureBlob{algorithm: 2, key: azureTag("id"), wrapped: make([]byte, azureKWSize)}
	}
	blob, err := made().seal(kek, dek, ec)
	if err != nil {
		t.Fatal(err)
	}
	parsed, sealed, err := parseAzureBlob(blob)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parsed.open(kek, sealed, ec); err != nil || !bytes.Equal(got, dek) {
		t.Fatalf("as it was: %v", err)
	}
	for name, change := range map[string]func(*azureBlob){
		"algorithm":   func(b *azureBlob) { b.algorithm = 1 },
		"key":         func(b *azureBlob) { b.key[0] ^= 1 },
		"version":     func(b *azureBlob) { b.version[15] ^= 1 },
		"wrapped key": func(b *azureBlob) { b.wrapped[0] ^= 1 },
	} {
		b := made()
		change(b)
		if got, err := b.open(kek, sealed, ec); err == nil || got != nil {
			t.Errorf("another %s: it opens", name)
		}
	}
	kek[0] ^= 1
	if _, err := parsed.open(kek, sealed, ec); err == nil {
		t.Error("another key-encryption key: it opens")
	}
}

package crypt

import "testing"

// SealText encrypts text as if it were metadata, with a fixed nonce.
func SealText(t *testing.T, text, dek []byte) []byte {
	t.Helper()
	aead, err := derivedAEAD(dek, nil, infoMetadata)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, nonceSize)
	return aead.Seal(nonce, nonce, text, nil)
}

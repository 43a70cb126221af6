package kms

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
)

// Every byte of a blob is authenticated, even if the KMS accepts
// everything.
func TestAzureBlobIsAuthenticated(t *testing.T) {
	kek, dek := make([]byte, azureKEKSize), make([]byte, DEKSize)
	rand.Read(kek)
	rand.Read(dek)
	ec := EncryptionContext{"bucket": "b", "key": "k"}

	made := func() *azureBlob {
		return &azureBlob{form: azureBlobForm, algorithm: 2, key: azureTag("id"), wrapped: make([]byte, azureKWSize)}
	}

	blob, err := made().seal(kek, nil, dek, ec)
	if err != nil {
		t.Fatal(err)
	}

	parsed, sealed, err := parseAzureBlob(blob)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parsed.open(kek, nil, sealed, ec); err != nil || !bytes.Equal(got, dek) {
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
		if got, err := b.open(kek, nil, sealed, ec); err == nil || got != nil {
			t.Errorf("another %s: it opens", name)
		}
	}

	kek[0] ^= 1
	if _, err := parsed.open(kek, nil, sealed, ec); err == nil {
		t.Error("another key-encryption key: it opens")
	}
}

// The vectors are part of the format and never change. They were created by
// another implementation of docs/format.md.
func TestAzureVectors(t *testing.T) {
	text, err := os.ReadFile("testdata/azure-vectors.json")
	if err != nil {
		t.Fatal(err)
	}

	var file struct {
		KeyID     string `json:"key_id"`
		BindingID string `json:"binding_id"`
		Secret    string
		Blobs     []struct {
			Name                    string
			Form                    byte
			Context                 EncryptionContext
			KEK, Version, DEK, Blob string
		}
	}
	if err := json.Unmarshal(text, &file); err != nil || len(file.Blobs) < 6 {
		t.Fatal(len(file.Blobs), err)
	}

	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}

	secret := unhex(file.Secret)
	for _, v := range file.Blobs {
		blob, sealed, err := parseAzureBlob(unhex(v.Blob))
		if err != nil || blob.form != v.Form || blob.key != azureTag(file.KeyID) || blob.versionName() != v.Version {
			t.Fatalf("%s: %+v, %v", v.Name, blob, err)
		}
		if v.Form != azureBlobForm && hex.EncodeToString(blob.binding[:]) != file.BindingID {
			t.Errorf("%s: binding %x", v.Name, blob.binding)
		}

		got, err := blob.open(unhex(v.KEK), secret, sealed, v.Context)
		if err != nil || !bytes.Equal(got, unhex(v.DEK)) {
			t.Errorf("%s: %v", v.Name, err)
		}

		wrong := bytes.Clone(secret)
		wrong[0] ^= 1

		if _, err := blob.open(unhex(v.KEK), wrong, sealed, v.Context); (err == nil) != (v.Form != azureBoundForm) {
			t.Errorf("%s, with another secret: %v", v.Name, err)
		}

		for _, form := range []byte{azureBlobForm, azureBoundForm, azureBindingForm} {
			other := *blob
			other.form = form
			if _, err := other.open(unhex(v.KEK), secret, sealed, v.Context); (err == nil) != (form == v.Form) {
				t.Errorf("%s, as form %d: %v", v.Name, form, err)
			}
		}
	}
}

package kmstest

import (
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"testing"
)

// azureKey is a key in a vault.
type azureKey struct {
	kind     string
	versions []*azureVersion // the last one is current
	deleted  bool
	about    AzureAttributes
}

// azureVersion is a version of a key: an RSA key, or a symmetric key of a
// Managed HSM.
type azureVersion struct {
	id        string
	rsa       *rsa.PrivateKey
	symmetric []byte
	disabled  bool
}

var azureKinds = map[string]int{"RSA-2048": 2048, "RSA-3072": 3072, "RSA-4096": 4096, "oct-HSM": 0}

// CreateKey creates a key of kind RSA-2048, RSA-3072, RSA-4096 or oct-HSM.
func (s *AzureServer) CreateKey(t testing.TB, name, kind string) {
	t.Helper()
	k := &azureKey{kind: kind}
	k.rotate(t)
	s.lock.Lock()
	defer s.lock.Unlock()
	s.keys[name] = k
}

// RotateKey adds a version, which becomes the current one.
func (s *AzureServer) RotateKey(t testing.TB, name string) {
	t.Helper()
	s.lock.Lock()
	defer s.lock.Unlock()
	s.keys[name].rotate(t)
}

// SetEnabled enables or disables a version, counted from 1.
func (s *AzureServer) SetEnabled(name string, version int, enabled bool) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.keys[name].versions[version-1].disabled = !enabled
}

// SetDeleted deletes or recovers a key.
func (s *AzureServer) SetDeleted(name string, deleted bool) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.keys[name].deleted = deleted
}

// PublicKey returns the current version of an RSA key and its public half,
// which everyone with permission to read keys has.
func (s *AzureServer) PublicKey(name string) (version string, key *rsa.PublicKey) {
	s.lock.Lock()
	defer s.lock.Unlock()
	v := s.keys[name].find("")
	return v.id, &v.rsa.PublicKey
}

// Decrypt unwraps with the current version of a key, bypassing the API.
func (s *AzureServer) Decrypt(name string, wrapped []byte) ([]byte, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.keys[name].find("").unwrap(wrapped)
}

func (k *azureKey) rotate(t testing.TB) {
	v := &azureVersion{id: hex.EncodeToString(random(16))}
	bits, ok := azureKinds[k.kind]
	switch {
	case !ok:
		t.Fatalf("kmstest: no kind %q", k.kind)
	case bits == 0:
		v.symmetric = random(32)
	default:
		var err error
		if v.rsa, err = rsa.GenerateKey(rand.Reader, bits); err != nil {
			t.Fatal(err)
		}
	}

	k.versions = append(k.versions, v)
}

// find returns a version, or nil. "" means the current version.
func (k *azureKey) find(version string) *azureVersion {
	if k == nil {
		return nil
	}
	if version == "" {
		return k.versions[len(k.versions)-1]
	}

	for _, v := range k.versions {
		if v.id == version {
			return v
		}
	}

	return nil
}

func (v *azureVersion) isRSA() bool { return v.rsa != nil }

func (v *azureVersion) algorithm() string {
	if v.isRSA() {
		return "RSA-OAEP-256"
	}
	return "A256KW"
}

func (v *azureVersion) wrap(key []byte) ([]byte, error) {
	if v.isRSA() {
		return rsa.EncryptOAEP(sha256.New(), rand.Reader, &v.rsa.PublicKey, key, nil)
	}
	return keyWrap(v.symmetric, key)
}

func (v *azureVersion) unwrap(wrapped []byte) ([]byte, error) {
	if !v.isRSA() {
		return keyUnwrap(v.symmetric, wrapped)
	}
	key, err := rsa.DecryptOAEP(sha256.New(), nil, v.rsa, wrapped, nil)
	if err != nil {
		//nolint:revive,staticcheck // Azure's message
		return nil, errors.New("Error occurred while decoding OAEP padding.")
	}
	return key, nil
}

// keyWrapIV is the initial value of RFC 3394, section 2.2.3.1.
const keyWrapIV = "\xa6\xa6\xa6\xa6\xa6\xa6\xa6\xa6"

// keyWrap implements RFC 3394, section 2.2.1.
func keyWrap(kek, key []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil || len(key)%8 != 0 || len(key) < 16 {
		return nil, errors.New("not a key that can be wrapped")
	}

	out := append([]byte(keyWrapIV), key...)
	n := len(key) / 8
	var b [16]byte

	for j := range 6 {
		for i := 1; i <= n; i++ {
			copy(b[:8], out[:8])
			copy(b[8:], out[8*i:8*i+8])
			block.Encrypt(b[:], b[:])
			t := binary.BigEndian.Uint64(b[:8]) ^ uint64(n*j+i)
			binary.BigEndian.PutUint64(out[:8], t)
			copy(out[8*i:], b[8:])
		}
	}

	return out, nil
}

// keyUnwrap implements RFC 3394, section 2.2.2.
func keyUnwrap(kek, wrapped []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil || len(wrapped)%8 != 0 || len(wrapped) < 24 {
		return nil, errors.New("not a key that was wrapped")
	}

	out := append([]byte(nil), wrapped...)
	n := len(wrapped)/8 - 1
	var b [16]byte
	for j := 5; j >= 0; j-- {
		for i := n; i >= 1; i-- {
			t := binary.BigEndian.Uint64(out[:8]) ^ uint64(n*j+i) //nolint:gosec // small
			binary.BigEndian.PutUint64(b[:8], t)
			copy(b[8:], out[8*i:8*i+8])
			block.Decrypt(b[:], b[:])
			copy(out[:8], b[:8])
			copy(out[8*i:], b[8:])
		}
	}

	if subtle.ConstantTimeCompare(out[:8], []byte(keyWrapIV)) != 1 {
		return nil, errors.New("integrity check failed")
	}
	return out[8:], nil
}

package kmstest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"
)

// vaultKey is a key of the transit engine.
type vaultKey struct {
	kind          string
	derived       bool
	softDeleted   bool
	about         VaultAttributes
	minDecryption int
	versions      [][]byte // starting with version 1
}

// CreateKey creates a key of one of Vault's types, or OpenBao's
// xchacha20-poly1305. RSA keys only return errors.
func (s *VaultServer) CreateKey(name, kind string, derived bool) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.keys[name] = &vaultKey{kind: kind, derived: derived, minDecryption: 1, versions: [][]byte{random(32)}}
}

// RotateKey adds a version.
func (s *VaultServer) RotateKey(name string) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.keys[name].versions = append(s.keys[name].versions, random(32))
}

// SetMinDecryptionVersion sets min_decryption_version.
func (s *VaultServer) SetMinDecryptionVersion(name string, version int) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.keys[name].minDecryption = version
}

// DeleteKey deletes a key permanently.
func (s *VaultServer) DeleteKey(name string) {
	s.lock.Lock()
	defer s.lock.Unlock()
	delete(s.keys, name)
}

// SoftDeleteKey soft-deletes or restores a key, as in OpenBao.
func (s *VaultServer) SoftDeleteKey(name string, deleted bool) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.keys[name].softDeleted = deleted
}

type transitIn struct {
	Plaintext      string `json:"plaintext"`
	Ciphertext     string `json:"ciphertext"`
	Context        string `json:"context"`
	AssociatedData string `json:"associated_data"`
}

// transit performs encrypt and decrypt. The caller holds s.lock.
func (s *VaultServer) transit(r *http.Request, verb, name string, token *issuedToken) (map[string]any, error) {
	var in transitIn
	if err := decodeVault(r, &in); err != nil {
		return nil, err
	}

	context, err := base64.StdEncoding.DecodeString(in.Context)
	if err != nil {
		return nil, vaultRefuse(http.StatusBadRequest, "%v", err)
	}

	ad, err := base64.StdEncoding.DecodeString(in.AssociatedData)
	if err != nil {
		return nil, vaultRefuse(http.StatusInternalServerError,
			"unable to get associated_data/additional_data from factory[0]: %v", err)
	}

	k := s.keys[name]
	switch verb {
	case "encrypt":
		if k == nil && !token.CreateKeys {
			// Without the key, this request would create it, which the
			// policy does not allow.
			return nil, vaultRefuse(http.StatusForbidden, "1 error occurred:\n\t* permission denied\n\n")
		}
		if k == nil {
			k = &vaultKey{
				kind: "aes256-gcm96", derived: len(context) > 0, minDecryption: 1, versions: [][]byte{random(32)},
			}
			s.keys[name] = k
		}

		return k.encrypt(in, context, ad)
	case "decrypt":
		if k == nil {
			return nil, vaultRefuse(http.StatusBadRequest, "encryption key not found")
		}
		return k.decrypt(in, context, ad)
	default:
		return nil, vaultRefuse(http.StatusNotFound, "1 error occurred:\n\t* unsupported path\n\n")
	}
}

func (k *vaultKey) encrypt(in transitIn, context, ad []byte) (map[string]any, error) {
	plaintext, err := base64.StdEncoding.DecodeString(in.Plaintext)
	if err != nil || in.Ciphertext != "" {
		return nil, vaultRefuse(http.StatusBadRequest, "illegal base64 data, or a ciphertext to encrypt")
	}

	version := len(k.versions)
	aead, err := k.aead(version, context, ad)
	if err != nil {
		return nil, err
	}

	nonce := random(aead.NonceSize())
	sealed := aead.Seal(nonce, nonce, plaintext, ad)
	return map[string]any{"data": map[string]any{
		"ciphertext":  fmt.Sprintf("vault:v%d:%s", version, base64.StdEncoding.EncodeToString(sealed)),
		"key_version": version,
	}}, nil
}

func (k *vaultKey) decrypt(in transitIn, context, ad []byte) (map[string]any, error) {
	if in.Ciphertext == "" || in.Plaintext != "" {
		return nil, vaultRefuse(http.StatusBadRequest, "missing ciphertext to decrypt")
	}
	if k.softDeleted {
		return nil, vaultRefuse(http.StatusBadRequest, "refusing to use soft-deleted key")
	}

	rest, ok := strings.CutPrefix(in.Ciphertext, "vault:v")
	if !ok {
		return nil, vaultRefuse(http.StatusBadRequest, "invalid ciphertext: no prefix")
	}

	number, encoded, ok := strings.Cut(rest, ":")
	if !ok {
		return nil, vaultRefuse(http.StatusBadRequest, "invalid ciphertext: wrong number of fields")
	}

	version, err := strconv.Atoi(number)
	switch {
	case err != nil:
		return nil, vaultRefuse(http.StatusBadRequest, "invalid ciphertext: version number could not be decoded")
	case version > len(k.versions):
		return nil, vaultRefuse(http.StatusBadRequest, "invalid ciphertext: version is too new")
	case version < k.minDecryption:
		return nil, vaultRefuse(http.StatusBadRequest,
			"ciphertext or signature version is disallowed by policy (too old)")
	}

	sealed, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, vaultRefuse(http.StatusBadRequest, "invalid ciphertext: could not decode base64")
	}

	aead, err := k.aead(version, context, ad)
	if err != nil {
		return nil, err
	}
	if len(sealed) < aead.NonceSize() {
		return nil, vaultRefuse(http.StatusBadRequest, "invalid ciphertext length")
	}

	plaintext, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], ad)
	if err != nil {
		return nil, vaultRefuse(http.StatusBadRequest, "%v", err)
	}

	return map[string]any{"data": map[string]any{"plaintext": base64.StdEncoding.EncodeToString(plaintext)}}, nil
}

// aead returns the AEAD for a version. Derived keys use HKDF-SHA256 with
// the context as info.
func (k *vaultKey) aead(version int, context, ad []byte) (cipher.AEAD, error) {
	if k.softDeleted {
		return nil, vaultRefuse(http.StatusBadRequest, "refusing to use soft-deleted key")
	}
	if strings.HasPrefix(k.kind, "rsa-") && len(ad) > 0 {
		return nil, vaultRefuse(http.StatusBadRequest,
			"'[0].associated_data' provided for non-AEAD cipher suite %s", k.kind)
	}

	key := k.versions[version-1]
	if k.derived {
		if len(context) == 0 {
			return nil, vaultRefuse(http.StatusBadRequest,
				"missing 'context' for key derivation; the key was created using a derived key, "+
					"which means additional, "+
					"per-request information must be included in order to perform operations with the key")
		}

		var err error
		if key, err = hkdf.Key(sha256.New, key, nil, string(context), 32); err != nil {
			return nil, err
		}
	}

	switch k.kind {
	case "aes128-gcm96", "aes256-gcm96":
		if k.kind == "aes128-gcm96" {
			key = key[:16]
		}

		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}

		return cipher.NewGCM(block)
	case "chacha20-poly1305":
		return chacha20poly1305.New(key)
	case "xchacha20-poly1305":
		return chacha20poly1305.NewX(key)
	default:
		return nil, vaultRefuse(http.StatusBadRequest, "message encryption not supported for key type %v", k.kind)
	}
}

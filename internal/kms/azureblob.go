package kms

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// azureBlob is a wrapped DEK:
//
//	1 byte       form: 1, 2 if bound to a secret, 3 if a binding
//	1 byte       algorithm: 1 RSA-OAEP-256, 2 A256KW
//	8 bytes      hash of a label and the key id; identifies blobs of other
//	             keys without asking Azure
//	8 bytes      id of the binding; not in form 1
//	1 byte       length of the next field, 16
//	16 bytes     version of the key; its name in Azure is this in hex
//	2 bytes      length of the next field, big-endian
//	n bytes      the KEK, wrapped by Azure
//	12 bytes     random nonce
//	32+16 bytes  the DEK, under AES-256-GCM; the associated data are a label,
//	             all bytes before the nonce, and the encryption context
//
// The AES-256-GCM key is the KEK in forms 1 and 3. In form 2 it is derived
// from the KEK and the secret of the binding. docs/format.md, section 5, is
// the specification.
type azureBlob struct {
	form      byte
	algorithm byte
	key       [azureTagSize]byte
	binding   [azureBindingID]byte // not in form 1
	version   [azureVersion]byte
	wrapped   []byte
}

const (
	azureBlobForm    = 1
	azureBoundForm   = 2
	azureBindingForm = 3
	azureKEKSize     = 32
	azureSealed      = 12 + DEKSize + 16
	azureKWSize      = azureKEKSize + 8 // RFC 3394
	azureLabelKey    = "cmekproxy azure key v1"
	azureTagSize     = 8
	azureBindingID   = 8
	azureVersion     = 16
	azureFrameSize   = 2 + azureTagSize + 1 + azureVersion + 2 // of form 1, without the wrapped key
)

// azureLabels start the associated data of each form.
var azureLabels = map[byte]string{
	azureBlobForm:    "cmekproxy azure wrap v1",
	azureBoundForm:   "cmekproxy azure wrap v2",
	azureBindingForm: "cmekproxy azure binding v1",
}

var (
	azureAlgorithms = map[azkeys.EncryptionAlgorithm]byte{
		azkeys.EncryptionAlgorithmRSAOAEP256: 1,
		azkeys.EncryptionAlgorithmA256KW:     2,
	}
	azureRSASizes = []int{256, 384, 512} // bytes of a wrapped key, for 2048, 3072 and 4096 bits

	errAzureBlob = errors.New("not a blob of this provider")
)

// azureBlobSize returns the size of a blob of the given form, with a
// wrapped key of the given size.
func azureBlobSize(form byte, wrapped int) int {
	size := azureFrameSize + wrapped + azureSealed
	if form != azureBlobForm {
		size += azureBindingID
	}
	return size
}

// check refuses a wrapped key that wrapKey cannot have returned.
func (b *azureBlob) check() error {
	switch {
	case b.algorithm == 1 && slices.Contains(azureRSASizes, len(b.wrapped)):
		return nil
	case b.algorithm == 2 && len(b.wrapped) == azureKWSize:
		return nil
	default:
		return errAzureBlob
	}
}

// frame returns the bytes of a blob before the nonce.
func (b *azureBlob) frame() []byte {
	out := make([]byte, 0, azureBlobSize(b.form, len(b.wrapped)))
	out = append(out, b.form, b.algorithm)
	out = append(out, b.key[:]...)

	if b.form != azureBlobForm {
		out = append(out, b.binding[:]...)
	}

	out = append(out, azureVersion)
	out = append(out, b.version[:]...)
	out = binary.BigEndian.AppendUint16(out, uint16(len(b.wrapped))) //nolint:gosec // 512 at most
	return append(out, b.wrapped...)
}

func (b *azureBlob) aad(ec EncryptionContext) []byte {
	return append(append([]byte(azureLabels[b.form]), b.frame()...), associatedData(ec)...)
}

// seal encrypts a DEK, or the secret of a binding. secret is the secret of
// the blob's binding in form 2, and nil otherwise.
func (b *azureBlob) seal(kek, secret, dek []byte, ec EncryptionContext) ([]byte, error) {
	aead, err := b.aead(kek, secret)
	if err != nil {
		return nil, err
	}
	defer crypt.Wipe(aead)
	return aead.Seal(b.frame(), nil, dek, b.aad(ec)), nil
}

// open is the inverse of seal.
func (b *azureBlob) open(kek, secret, sealed []byte, ec EncryptionContext) ([]byte, error) {
	aead, err := b.aead(kek, secret)
	if err != nil {
		return nil, err
	}
	defer crypt.Wipe(aead)

	dek, err := aead.Open(nil, nil, sealed, b.aad(ec))
	if err != nil {
		return nil, errors.New("authentication failed")
	}

	return dek, nil
}

func (b *azureBlob) aead(kek, secret []byte) (cipher.AEAD, error) {
	switch {
	case b.form != azureBoundForm:
		return newKEK(kek)
	case len(secret) != azureKEKSize:
		return nil, errors.New("no secret to bind the blob to")
	}

	bound, err := boundKEK(kek, secret)
	if err != nil {
		return nil, err
	}
	defer clear(bound)

	return newKEK(bound)
}

func newKEK(kek []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	defer crypt.Wipe(block) // the AEAD has its own copy
	return cipher.NewGCMWithRandomNonce(block)
}

// parseAzureBlob returns the decoded blob, and the sealed DEK in it.
func parseAzureBlob(b []byte) (_ *azureBlob, sealed []byte, _ error) {
	if len(b) < azureFrameSize || azureLabels[b[0]] == "" {
		return nil, nil, errAzureBlob
	}

	blob := &azureBlob{form: b[0], algorithm: b[1]}
	rest := b[2:]
	rest = rest[copy(blob.key[:], rest):]

	if blob.form != azureBlobForm {
		rest = rest[copy(blob.binding[:], rest):]
	}
	if len(rest) < 1+azureVersion+2 || rest[0] != azureVersion {
		return nil, nil, errAzureBlob
	}

	rest = rest[1:]
	rest = rest[copy(blob.version[:], rest):]
	size := int(binary.BigEndian.Uint16(rest))
	if len(b) != azureBlobSize(blob.form, size) {
		return nil, nil, errAzureBlob
	}

	blob.wrapped = rest[2 : 2+size]
	return blob, rest[2+size:], blob.check()
}

// versionName returns Azure's name for the key version.
func (b *azureBlob) versionName() string { return hex.EncodeToString(b.version[:]) }

// azureVersionOf returns Azure's name for the key version in a blob, or ""
// if it is not a blob of that key.
func azureVersionOf(keyID string, b []byte) string {
	blob, _, err := parseAzureBlob(b)
	if err != nil || blob.form == azureBindingForm || blob.key != azureTag(keyID) {
		return ""
	}
	return blob.versionName()
}

// azureTag returns the hash that identifies a key in its blobs.
func azureTag(keyID string) [azureTagSize]byte {
	sum := sha256.Sum256([]byte(azureLabelKey + keyID))
	return [azureTagSize]byte(sum[:])
}

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
)

// A wrapped DEK of Azure is
//
//	1 byte       version of this form, 1
//	1 byte       algorithm: 1 RSA-OAEP-256, 2 A256KW
//	8 bytes      of the SHA-256 of a label and the key id, so that a blob of another key is known without asking Azure,
//	             which would only say that it has no such version
//	1 byte       length of the next, 16
//	16 bytes     version of the key in Azure, whose name there is these in hexadecimal
//	2 bytes      length of the next, big-endian
//	n bytes      the key-encryption key, wrapped by Azure
//	12 bytes     random nonce
//	32+16 bytes  the DEK under AES-256-GCM with the key-encryption key; associated data are all bytes up to the nonce,
//	             after a label, and then the encryption context
type azureBlob struct {
	algorithm byte
	key       [azureTagSize]byte
	version   [azureVersion]byte
	wrapped   []byte
}

const (
	azureBlobForm  = 1
	azureLabel     = "cmekproxy azure wrap v1"
	azureKEKSize   = 32
	azureSealed    = 12 + DEKSize + 16
	azureKWSize    = azureKEKSize + 8 // RFC 3394
	azureLabelKey  = "cmekproxy azure key v1"
	azureTagSize   = 8
	azureVersion   = 16
	azureVersionAt = 2 + azureTagSize + 1
	azureFrameSize = azureVersionAt + azureVersion + 2
)

var (
	azureAlgorithms = map[azkeys.EncryptionAlgorithm]byte{
		azkeys.EncryptionAlgorithmRSAOAEP256: 1,
		azkeys.EncryptionAlgorithmA256KW:     2,
	}
	azureRSASizes = []int{256, 384, 512} // of a wrapped key, in bytes, for 2048, 3072 and 4096 bits

	errAzureBlob = errors.New("not a blob of this provider")
)

// azureBlobSize is the size of a blob with a wrapped key of that size.
func azureBlobSize(wrapped int) int { return azureFrameSize + wrapped + azureSealed }

// check refuses what wrapKey cannot have answered with.
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

// frame is all of a blob up to the nonce.
func (b *azureBlob) frame() []byte {
	out := make([]byte, 0, azureBlobSize(len(b.wrapped)))
	out = append(out, azureBlobForm, b.algorithm)
	out = append(out, b.key[:]...)
	out = append(out, azureVersion)
	out = append(out, b.version[:]...)
	out = binary.BigEndian.AppendUint16(out, uint16(len(b.wrapped))) //nolint:gosec // 512 at most
	return append(out, b.wrapped...)
}

func (b *azureBlob) aad(ec EncryptionContext) []byte {
	return append(append([]byte(azureLabel), b.frame()...), associatedData(ec)...)
}

func (b *azureBlob) seal(kek, dek []byte, ec EncryptionContext) ([]byte, error) {
	aead, err := newKEK(kek)
	if err != nil {
		return nil, err
	}
	return aead.Seal(b.frame(), nil, dek, b.aad(ec)), nil
}

func (b *azureBlob) open(kek, sealed []byte, ec EncryptionContext) ([]byte, error) {
	aead, err := newKEK(kek)
	if err != nil {
		return nil, err
	}
	dek, err := aead.Open(nil, nil, sealed, b.aad(ec))
	if err != nil {
		return nil, errors.New("authentication failed")
	}
	return dek, nil
}

func newKEK(kek []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// parseAzureBlob returns the blob and the sealed DEK in it.
func parseAzureBlob(b []byte) (_ *azureBlob, sealed []byte, _ error) {
	if len(b) < azureFrameSize || b[0] != azureBlobForm || b[azureVersionAt-1] != azureVersion {
		return nil, nil, errAzureBlob
	}
	wrapped := b[azureFrameSize:]
	size := int(binary.BigEndian.Uint16(b[azureFrameSize-2:]))
	if len(b) != azureBlobSize(size) {
		return nil, nil, errAzureBlob
	}
	blob := &azureBlob{
		algorithm: b[1],
		key:       [azureTagSize]byte(b[2:]),
		version:   [azureVersion]byte(b[azureVersionAt:]),
		wrapped:   wrapped[:size],
	}
	return blob, wrapped[size:], blob.check()
}

// azureVersionOf is Azure's name of the version that a blob names, which must be a blob of that key.
func azureVersionOf(keyID string, b []byte) string {
	blob, _, err := parseAzureBlob(b)
	if err != nil || blob.key != azureTag(keyID) {
		return ""
	}
	return hex.EncodeToString(blob.version[:])
}

// azureTag names a key in its blobs.
func azureTag(keyID string) [azureTagSize]byte {
	sum := sha256.Sum256([]byte(azureLabelKey + keyID))
	return [azureTagSize]byte(sum[:])
}

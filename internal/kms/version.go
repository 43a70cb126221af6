package kms

import "github.com/cmekproxy/cmekproxy/internal/crypt"

// VersionOf is the version of a KMS key that a wrapped DEK names, in the words of the KMS; "" if it names none: the blobs
// of AWS KMS and Google Cloud KMS are opaque, and keys of PKCS #11 have no versions. wrapped may be the blob alone, or what
// an envelope has of it.
//
// The key need not be configured, nor be there any more. No KMS is asked, so that the blob may be forged and its version
// with it.
func VersionOf(keyID string, wrapped []byte) string {
	parsed, err := crypt.ParseWrappedKey(wrapped)
	if err != nil {
		return ""
	}
	for _, versionOf := range []func(keyID string, blob []byte) string{localVersion, vaultVersion, azureVersionOf} {
		if version := versionOf(keyID, parsed.Blob); version != "" {
			return version
		}
	}
	return ""
}

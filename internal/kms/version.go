package kms

import (
	"bytes"
	"encoding/hex"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// VersionOf is the version of a KMS key that a wrapped DEK names, in the words
// of the KMS; "" if it names none: the blobs of AWS KMS and Google Cloud KMS
// are opaque, and keys of PKCS #11 have no versions. wrapped may be the blob
// alone, or what an envelope has of it.
//
// The key need not be configured, nor be there any more. No KMS is asked, so
// that the blob may be forged and its version with it.
func VersionOf(keyID string, wrapped []byte) string {
	parsed, err := crypt.ParseWrappedKey(wrapped)
	if err != nil {
		return ""
	}
	return blobVersion(keyID, parsed.Blob)
}

// WrappingOf is VersionOf, and names the binding too where there is one: what
// it takes to open a wrapped DEK is the same for all of one WrappingOf.
func WrappingOf(keyID string, wrapped []byte) string {
	version := VersionOf(keyID, wrapped)
	parsed, err := crypt.ParseWrappedKey(wrapped)
	if version == "" || err != nil {
		return version
	}
	if blob, _, err := parseAzureBlob(parsed.Blob); err == nil && blob.form == azureBoundForm &&
		blob.key == azureTag(keyID) {
		version += " bound by " + hex.EncodeToString(blob.binding[:])
	}
	return version
}

func blobVersion(keyID string, blob []byte) string {
	for _, of := range []func(keyID string, blob []byte) string{localVersion, vaultVersion, azureVersionOf} {
		if version := of(keyID, blob); version != "" {
			return version
		}
	}
	return ""
}

// gcpPrefix begins the blobs of Google Cloud KMS, and the 4 bytes behind it are
// the same for all blobs of one version of a key. Google does not document
// that: https://cloud.google.com/kms/docs shows it in its examples ("CiQA" in
// base64), as do the blobs that users publish.
var gcpPrefix = []byte{0x0a, 0x24, 0x00}

const (
	gcpVersionTag = 4
	gcpKeyPrefix  = "projects/" // of key ids
)

// Lineage tells the blobs of a key apart that its KMS could refuse apart from
// each other, as different versions of the key have wrapped them: it is the
// same for all blobs of a version. ok is false if a blob does not say. Where
// versions cannot be taken away one by one, as those of AWS KMS and of PKCS
// #11 keys, all blobs of a key have the lineage "".
func Lineage(keyID string, blob []byte) (lineage string, ok bool) {
	if strings.HasPrefix(keyID, gcpKeyPrefix) {
		rest, found := bytes.CutPrefix(blob, gcpPrefix)
		if !found || len(rest) < gcpVersionTag {
			return "", false
		}
		return hex.EncodeToString(rest[:gcpVersionTag]), true
	}
	return blobVersion(keyID, blob), true
}

package kms

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// VersionOf returns the key version in a wrapped DEK, in the KMS's
// notation. It is "" if the blob does not show it: blobs of AWS KMS and
// Google Cloud KMS are opaque, and PKCS #11 keys have no versions. wrapped
// may be a blob, or the wrapped DEK in an envelope.
//
// The key need not be configured or exist. No KMS is asked, so the blob and
// its version may be forged.
func VersionOf(keyID string, wrapped []byte) string {
	parsed, err := crypt.ParseWrappedKey(wrapped)
	if err != nil {
		return ""
	}
	return blobVersion(keyID, parsed.Blob)
}

// WrappingOf is VersionOf, followed by the id of the binding if there is
// one. Wrapped DEKs with the same WrappingOf need the same things to be
// unwrapped.
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
	if isBundle(blob) {
		return bundleVersions(keyID, blob)
	}
	for _, of := range []func(keyID string, blob []byte) string{localVersion, vaultVersion, azureVersionOf} {
		if version := of(keyID, blob); version != "" {
			return version
		}
	}
	return ""
}

// bundleVersions returns the versions of all keys in a bundle. With several
// keys, each is preceded by its id.
func bundleVersions(keyID string, blob []byte) string {
	b, err := parseBundle(blob)
	if err != nil {
		return ""
	}
	if b.scheme == oneWrap {
		return blobVersion(keyID, b.wraps[0].blob)
	}

	var versions []string
	for _, w := range b.wraps {
		if version := blobVersion(w.keyID, w.blob); version != "" {
			versions = append(versions, w.keyID+" "+version)
		}
	}
	return strings.Join(versions, ", ")
}

// gcpPrefix starts the blobs of Google Cloud KMS. The next 4 bytes are the
// same for all blobs of one key version. Google does not document this. It
// can be seen in the examples in https://cloud.google.com/kms/docs ("CiQA"
// in base64), and in blobs that users publish.
var gcpPrefix = []byte{0x0a, 0x24, 0x00}

const (
	gcpVersionTag = 4
	gcpKeyPrefix  = "projects/" // prefix of key ids
)

// Lineage returns a string that is the same for all blobs of one key
// version and different for other versions, so that blobs which the KMS can
// refuse separately are distinguished. ok is false if the blob does not
// show its version. If versions cannot be revoked separately, as with AWS
// KMS and PKCS #11 keys, the lineage is always "".
func Lineage(keyID string, blob []byte) (lineage string, ok bool) {
	if isBundle(blob) {
		return bundleLineage(keyID, blob)
	}
	if strings.HasPrefix(keyID, gcpKeyPrefix) {
		rest, found := bytes.CutPrefix(blob, gcpPrefix)
		if !found || len(rest) < gcpVersionTag {
			return "", false
		}
		return hex.EncodeToString(rest[:gcpVersionTag]), true
	}

	return blobVersion(keyID, blob), true
}

// bundleLineage returns the lineages of all blobs in a bundle.
func bundleLineage(keyID string, blob []byte) (lineage string, ok bool) {
	b, err := parseBundle(blob)
	if err != nil {
		return "", false
	}

	var all []string
	for _, w := range b.wraps {
		one, ok := Lineage(cmp.Or(w.keyID, keyID), w.blob)
		if !ok {
			return "", false
		}
		all = append(all, w.keyID+" "+one)
	}
	if b.scheme == oneWrap {
		return strings.TrimPrefix(all[0], " "), true
	}
	return strings.Join(all, ", "), true
}

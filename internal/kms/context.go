package kms

import (
	"encoding/binary"
	"maps"
	"slices"
)

// contextLabel starts the associated data for a KMS that accepts bytes
// rather than names and values.
const contextLabel = "cmekproxy context v1"

// associatedData encodes a context as bytes, for a KMS or for our own
// encryption. It is part of the format: stored blobs can be unwrapped only
// with this encoding. docs/kms.md describes it for unwrapping by hand.
func associatedData(ec EncryptionContext) []byte {
	return appendContext([]byte(contextLabel), ec)
}

// appendContext encodes a context unambiguously: the number of entries,
// then each string after its length, sorted by name.
func appendContext(b []byte, ec EncryptionContext) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(ec))) //nolint:gosec // a context has few entries
	for _, name := range slices.Sorted(maps.Keys(ec)) {
		b = appendString(b, name)
		b = appendString(b, ec[name])
	}
	return b
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
	return append(b, s...)
}

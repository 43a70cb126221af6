package kms

import (
	"encoding/binary"
	"maps"
	"slices"
)

// contextLabel starts the associated data of providers whose KMS takes bytes,
// and not names and values.
const contextLabel = "cmekproxy context v1"

// associatedData encodes a context for a KMS, or for our own layer of
// encryption, as bytes. It is part of the format: blobs that are stored do not
// unwrap with any other encoding. docs/kms.md tells it to those who unwrap by
// hand.
func associatedData(ec EncryptionContext) []byte {
	return appendContext([]byte(contextLabel), ec)
}

// appendContext encodes a context so that no two of them give the same bytes:
// the number of entries, then every string after its length, names in order.
func appendContext(b []byte, ec EncryptionContext) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(ec))) //nolint:gosec // an object has two entries
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

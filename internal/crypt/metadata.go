package crypt

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

const (
	metaBlock = 64                              // the plaintext of sealed metadata is padded to a multiple
	minMeta   = nonceSize + metaBlock + TagSize // without entries
	maxMeta   = 8192
	metaEnd   = 2                 // bytes of the entry that ends the others
	userMeta  = "x-amz-meta-"     // prefix of user metadata
	ownMeta   = userMeta + Prefix // prefix of the envelope's own entries
)

// noValue are the characters that no value of a header has.
const noValue = "\r\n\x00"

// contentHeaders are the headers that are sealed besides user metadata.
var contentHeaders = []string{
	"cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires",
}

// IsSealable reports whether a header, in lower case, belongs to the
// metadata that can be sealed.
func IsSealable(name string) bool {
	if strings.HasPrefix(name, userMeta) {
		return len(name) > len(userMeta) && !strings.HasPrefix(name, ownMeta) && name == strings.ToLower(name) &&
			isPrintable(name)
	}
	return slices.Contains(contentHeaders, name)
}

// MetadataSize returns how many bytes metadata takes before it is sealed.
func MetadataSize(entries map[string]string) (n int) {
	for name, value := range entries {
		n += 4 + len(name) + len(value)
	}
	return n
}

// LargestMetadata returns the largest MetadataSize whose base64 fits into so
// many bytes. It is negative if none does.
func LargestMetadata(base64 int) int {
	blocks := (base64/4*3 - nonceSize - TagSize) / metaBlock
	return blocks*metaBlock - metaEnd
}

// SealedMetadataSize returns the length in bytes of what SealMetadata
// returns.
func SealedMetadataSize(entries map[string]string) int {
	n := MetadataSize(entries) + metaEnd
	return nonceSize + (n+metaBlock-1)/metaBlock*metaBlock + TagSize
}

// SealMetadata encrypts metadata: headers by name, in lower case. It returns
// ErrEnvelope for headers that OpenMetadata would refuse.
func SealMetadata(entries map[string]string, dek []byte, random io.Reader) ([]byte, error) {
	size := SealedMetadataSize(entries)
	if size > maxMeta {
		return nil, fmt.Errorf("%w: sealed metadata of %d bytes; at most %d fit", ErrEnvelope, size, maxMeta)
	}

	out := make([]byte, nonceSize, size)
	if _, err := io.ReadFull(random, out); err != nil {
		return nil, fmt.Errorf("crypt: drawing a nonce: %w", err)
	}

	text := make([]byte, 0, size-nonceSize-TagSize)
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		if !IsSealable(name) || strings.ContainsAny(entries[name], noValue) {
			return nil, fmt.Errorf("%w: %.60q cannot be sealed", ErrEnvelope, name)
		}
		text = appendString(appendString(text, name), entries[name])
	}

	aead, err := derivedAEAD(dek, nil, infoMetadata)
	if err != nil {
		return nil, err
	}
	defer Wipe(aead)

	return aead.Seal(out, out, text[:cap(text)], nil), nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...) //nolint:gosec // at most maxMeta
}

// OpenMetadata is the inverse of SealMetadata. The MAC that covers sealed
// must have been verified. It returns ErrAuth or ErrEnvelope.
func OpenMetadata(sealed, dek []byte) (map[string]string, error) {
	malformed := fmt.Errorf("%w: the entries of %s", ErrEnvelope, nameMeta)
	if len(sealed) < minMeta || len(sealed) > maxMeta {
		return nil, malformed
	}

	aead, err := derivedAEAD(dek, nil, infoMetadata)
	if err != nil {
		return nil, err
	}
	defer Wipe(aead)

	text, err := aead.Open(nil, sealed[:nonceSize], sealed[nonceSize:], nil)
	if err != nil {
		return nil, fmt.Errorf("%w: the sealed metadata", ErrAuth)
	}

	entries := make(map[string]string)
	for previous := ""; ; {
		name, rest, ok := cutString(text)
		if ok && name == "" {
			break
		}

		value, rest, found := cutString(rest)
		if !ok || !found || name <= previous || !IsSealable(name) || strings.ContainsAny(value, noValue) {
			return nil, malformed
		}
		entries[name], text, previous = value, rest, name
	}

	if !allZero(text) || SealedMetadataSize(entries) != len(sealed) {
		return nil, malformed
	}
	return entries, nil
}

// cutString cuts a string with its length from the beginning of b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 2 {
		return "", nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; len(b) < n {
		return "", nil, false
	}
	return string(b[:n]), b[n:], true
}

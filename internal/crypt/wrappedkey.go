package crypt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// WrappedKey is the decoded form of a stored wrapped DEK. Most often that
// is just the KMS's ciphertext. It is a compound if the KMS wraps a bucket
// key, or if the client has added to the encryption context. See
// docs/format.md, section 9.
type WrappedKey struct {
	// Salt derives the object's DEK from the bucket key; see DeriveDEK. It
	// is nil if the KMS wraps the DEK itself.
	Salt []byte
	// Context is what the client added to the encryption context. No name
	// in it is empty or in reservedContext.
	Context map[string]string
	// Blob is the KMS's ciphertext.
	Blob []byte
}

const (
	wrappedMagic   = "cmekwrap"
	wrappedVersion = 1

	flagBucketKey = 0x01
	flagContext   = 0x02
)

// reservedContext lists the names that the format itself uses.
var reservedContext = []string{"bucket", "key"}

// CheckContext returns ErrEnvelope for an encryption context that a client
// may not add.
func CheckContext(context map[string]string) error {
	for name, value := range context {
		switch {
		case name == "" || !utf8.ValidString(name) || !utf8.ValidString(value) || len(name) > maxWrappedDEK ||
			len(value) > maxWrappedDEK:
			return fmt.Errorf("%w: encryption context: an entry is empty, too long or not UTF-8", ErrEnvelope)
		case slices.Contains(reservedContext, name):
			return fmt.Errorf("%w: encryption context: the name %q is reserved", ErrEnvelope, name)
		}
	}

	return nil
}

// CheckNewContext is CheckContext for an object that is about to be stored.
// It also refuses a name that differs from a reserved one only by case,
// because conditions in AWS policies ignore case. Objects already stored
// may have such names.
func CheckNewContext(context map[string]string) error {
	for name := range context {
		isOurs := func(reserved string) bool { return strings.EqualFold(name, reserved) }
		if slices.ContainsFunc(reservedContext, isOurs) {
			return fmt.Errorf("%w: encryption context: the name %q is reserved, in upper or lower case",
				ErrEnvelope, name)
		}
	}

	return CheckContext(context)
}

// Bytes returns the stored form of the wrapped DEK, or ErrEnvelope.
func (w WrappedKey) Bytes() ([]byte, error) {
	if bytes.HasPrefix(w.Blob, []byte(wrappedMagic)) {
		return nil, fmt.Errorf("%w: the ciphertext of the KMS looks like a compound wrapped DEK", ErrEnvelope)
	}
	if w.Salt == nil && len(w.Context) == 0 {
		return w.Blob, nil
	}

	if err := CheckContext(w.Context); err != nil {
		return nil, err
	}

	b := append([]byte(wrappedMagic), wrappedVersion, w.flags())
	b = append(b, w.Salt...)

	if len(w.Context) > 0 {
		b = binary.BigEndian.AppendUint16(b, uint16(len(w.Context))) //nolint:gosec // bounded by maxWrappedDEK
		for _, name := range slices.Sorted(maps.Keys(w.Context)) {
			b = appendText(appendText(b, name), w.Context[name])
		}
	}

	b = append(b, w.Blob...)
	if len(b) > maxWrappedDEK {
		return nil, fmt.Errorf("%w: the wrapped DEK and its encryption context have %d bytes; at most %d fit",
			ErrEnvelope, len(b), maxWrappedDEK)
	}

	_, err := ParseWrappedKey(b)
	return b, err
}

func (w WrappedKey) flags() (flags byte) {
	if w.Salt != nil {
		flags |= flagBucketKey
	}
	if len(w.Context) > 0 {
		flags |= flagContext
	}
	return flags
}

func appendText(b []byte, text string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(text))) //nolint:gosec // CheckContext bounds it
	return append(b, text...)
}

// ParseWrappedKey decodes a stored wrapped DEK, or returns ErrEnvelope. The
// result shares memory with wrapped.
func ParseWrappedKey(wrapped []byte) (WrappedKey, error) {
	rest, compound := bytes.CutPrefix(wrapped, []byte(wrappedMagic))
	if !compound {
		return WrappedKey{Blob: wrapped}, nil
	}

	malformed := fmt.Errorf("%w: the wrapped DEK", ErrEnvelope)
	if len(rest) < 2 || rest[0] != wrappedVersion || rest[1] == 0 || rest[1]&^(flagBucketKey|flagContext) != 0 {
		return WrappedKey{}, malformed
	}

	flags, rest := rest[1], rest[2:]
	var w WrappedKey

	if flags&flagBucketKey != 0 {
		if len(rest) < saltSize {
			return WrappedKey{}, malformed
		}
		w.Salt, rest = rest[:saltSize:saltSize], rest[saltSize:]
	}

	if flags&flagContext != 0 {
		var ok bool
		if w.Context, rest, ok = cutContext(rest); !ok {
			return WrappedKey{}, malformed
		}
	}

	if len(rest) == 0 || CheckContext(w.Context) != nil {
		return WrappedKey{}, malformed
	}
	w.Blob = rest
	return w, nil
}

// cutContext decodes the entries of a context, which must be sorted by
// name.
func cutContext(b []byte) (context map[string]string, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}

	n, b := int(binary.BigEndian.Uint16(b)), b[2:]
	context = make(map[string]string)
	previous := ""

	for range n {
		name, after, ok1 := cutText(b)
		value, after, ok2 := cutText(after)
		if !ok1 || !ok2 || name <= previous {
			return nil, nil, false
		}
		context[name], previous, b = value, name, after
	}

	return context, b, n > 0
}

func cutText(b []byte) (text string, rest []byte, ok bool) {
	if len(b) < 2 {
		return "", nil, false
	}

	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; len(b) < n {
		return "", nil, false
	}

	return string(b[:n]), b[n:], true
}

// NewSalt reads a salt for DeriveDEK from random.
func NewSalt(random io.Reader) ([]byte, error) {
	salt := make([]byte, saltSize)
	if _, err := io.ReadFull(random, salt); err != nil {
		return nil, fmt.Errorf("crypt: drawing a salt: %w", err)
	}
	return salt, nil
}

// DeriveDEK derives the DEK of an object from a bucket key, which must pass
// CheckDEK. The DEK is bound to the object's name.
func DeriveDEK(bucketKey, salt []byte, obj Object) ([]byte, error) {
	return derive(bucketKey, salt, infoFor(infoBucketKey, obj))
}

// infoFor returns the HKDF info string for one object: the label, then
// bucket and key, each preceded by its length.
func infoFor(label string, obj Object) string {
	b := []byte(label)
	for _, s := range []string{obj.Bucket, obj.Key} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s))) //nolint:gosec // names are short
		b = append(b, s...)
	}
	return string(b)
}

package kms

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// scheme says how the wraps of a bundle give the data key.
type scheme byte

// The schemes.
const (
	oneWrap  scheme = 0 // one wrap, of the data key
	anyWrap  scheme = 1 // each wrap is of the data key
	allWraps scheme = 2 // the data key is the XOR of what the wraps give
)

// bundle is a wrapped data key that consists of several. See docs/format.md,
// section 10.
type bundle struct {
	scheme   scheme
	wraps    []bundleWrap
	recovery []recoveryWrap
}

// bundleWrap is the blob of one KMS key. The id is "" for the scheme oneKey,
// where the envelope names the key.
type bundleWrap struct {
	keyID string
	blob  []byte
}

const (
	bundleMagic   = "cmekkeys"
	bundleVersion = 1

	// maxMembers and maxRecovery limit the wraps of a bundle. More would
	// not fit in an envelope.
	maxMembers  = 4
	maxRecovery = 2
)

var errBundle = errors.New("it is not a valid bundle of wrapped keys")

// isBundle reports whether a blob is a bundle, and not the blob of a KMS.
func isBundle(blob []byte) bool { return bytes.HasPrefix(blob, []byte(bundleMagic)) }

// bytes returns the stored form of a bundle.
func (b *bundle) bytes() ([]byte, error) {
	counts := []byte{bundleVersion, byte(b.scheme), byte(len(b.wraps)), byte(len(b.recovery))} //nolint:gosec // few
	out := append([]byte(bundleMagic), counts...)
	for _, w := range b.wraps {
		out = binary.BigEndian.AppendUint16(out, uint16(len(w.keyID))) //nolint:gosec // at most maxKeyID
		out = append(out, w.keyID...)
		out = binary.BigEndian.AppendUint16(out, uint16(len(w.blob))) //nolint:gosec // parseBundle checks it
		out = append(out, w.blob...)
	}
	for _, r := range b.recovery {
		out = append(append(out, r.key[:]...), r.sealed[:]...)
	}
	_, err := parseBundle(out)
	return out, err
}

// parseBundle decodes a bundle. The result shares memory with blob.
func parseBundle(blob []byte) (*bundle, error) {
	rest, ok := bytes.CutPrefix(blob, []byte(bundleMagic))
	if !ok || len(rest) < 4 || rest[0] != bundleVersion {
		return nil, errBundle
	}
	b, members, recovery := &bundle{scheme: scheme(rest[1])}, int(rest[2]), int(rest[3])
	rest = rest[4:]

	for range members {
		id, after, ok1 := cutField(rest)
		text, after, ok2 := cutField(after)
		if !ok1 || !ok2 {
			return nil, errBundle
		}
		b.wraps = append(b.wraps, bundleWrap{string(id), text})
		rest = after
	}

	for range recovery {
		var r recoveryWrap
		if len(rest) < len(r.key)+len(r.sealed) {
			return nil, errBundle
		}
		rest = rest[copy(r.key[:], rest):]
		rest = rest[copy(r.sealed[:], rest):]
		b.recovery = append(b.recovery, r)
	}

	if len(rest) > 0 || !b.isValid() {
		return nil, errBundle
	}
	return b, nil
}

// isValid reports whether the parts of a bundle fit together.
func (b *bundle) isValid() bool {
	if len(b.recovery) > maxRecovery || len(b.wraps) == 0 || len(b.wraps) > maxMembers {
		return false
	}

	switch b.scheme {
	case oneWrap:
		return len(b.wraps) == 1 && b.wraps[0].keyID == "" && len(b.recovery) > 0 && isInner(b.wraps[0].blob)
	case anyWrap:
	case allWraps:
		if len(b.wraps) < 2 {
			return false
		}
	default:
		return false
	}

	seen := make(map[string]bool)
	for _, w := range b.wraps {
		if checkKeyID(w.keyID, len(w.blob)) != nil || seen[w.keyID] || !isInner(w.blob) {
			return false
		}
		seen[w.keyID] = true
	}
	return true
}

// isInner reports whether a blob may be in a bundle. Bundles do not nest.
func isInner(blob []byte) bool { return len(blob) > 0 && !isBundle(blob) }

// cutField decodes a field that is preceded by its length in 2 bytes.
func cutField(b []byte) (field, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; len(b) < n {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}

// KeysOf returns the ids of the KMS keys that a stored wrapped data key
// names, and of the recovery keys. keyID is the id in the envelope.
func KeysOf(keyID string, wrapped []byte) (keys, recovery []string) {
	parsed, err := crypt.ParseWrappedKey(wrapped)
	if err != nil || !isBundle(parsed.Blob) {
		return []string{keyID}, nil
	}
	b, err := parseBundle(parsed.Blob)
	if err != nil {
		return []string{keyID}, nil
	}

	for _, w := range b.wraps {
		if w.keyID != "" {
			keys = append(keys, w.keyID)
		}
	}
	if b.scheme == oneWrap {
		keys = []string{keyID}
	}
	for _, r := range b.recovery {
		recovery = append(recovery, r.key.String())
	}
	return keys, recovery
}

// RecipientsOf returns what KeysOf will return for new data keys of w. The
// members of w that are not open are missing.
func RecipientsOf(w Wrapper) (keys, recovery []string) {
	switch w := w.(type) {
	case *withRecovery:
		keys, recovery = RecipientsOf(w.w)
		if w.recovery != nil {
			recovery = append(recovery, w.recovery.ID())
		}
		return keys, recovery
	case *members:
		for _, m := range w.cfg.Members {
			if opened, err := m.get("wrap"); err == nil {
				keys = append(keys, opened.KeyID())
			}
		}
		return keys, nil
	default:
		return []string{w.KeyID()}, nil
	}
}

// checkFit refuses a blob that does not fit in a part header.
func checkFit(op, keyID string, blob []byte) error {
	if err := checkKeyID(keyID, len(blob)); err != nil {
		return &Error{Kind: Invalid, Op: op, KeyID: keyID, Err: fmt.Errorf("its wraps are too long together: %w", err)}
	}
	return nil
}

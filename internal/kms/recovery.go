package kms

import (
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// A recovery key opens data keys without the KMS, for the day on which the
// KMS key is lost. Its private half is kept offline by the key owner. The
// proxy has only the public half: it can wrap data keys to it, and not
// unwrap them. So a recovery key does not change what a revocation does to
// the proxy.
//
// The wrap is HPKE (RFC 9180) in base mode with DHKEM(X25519, HKDF-SHA256),
// HKDF-SHA256 and AES-256-GCM. Its associated data is the encryption context,
// as in the other wraps.

const (
	recoveryInfo   = "cmekproxy v2 recovery"
	publicPrefix   = "cmekproxy-recovery-public-v1:"
	privatePrefix  = "cmekproxy-recovery-private-v1:"
	recoveryEnc    = 32 // bytes of the encapsulated key
	recoverySealed = recoveryEnc + crypt.DEKSize + 16
)

// recoveryID identifies a recovery key in a bundle.
type recoveryID [8]byte

func (id recoveryID) String() string { return "recovery:" + hex.EncodeToString(id[:]) }

// recoveryWrap is a data key that is wrapped to a recovery key.
type recoveryWrap struct {
	key    recoveryID
	sealed [recoverySealed]byte // the encapsulated key, and the ciphertext
}

// RecoveryPublicKey wraps data keys.
type RecoveryPublicKey struct {
	key   hpke.PublicKey
	short recoveryID
}

// RecoveryPrivateKey unwraps data keys.
type RecoveryPrivateKey struct {
	key    hpke.PrivateKey
	half   *RecoveryPublicKey
	secret string
}

// GenerateRecoveryKey makes a new recovery key.
func GenerateRecoveryKey() (*RecoveryPrivateKey, error) {
	key, err := hpke.DHKEM(ecdh.X25519()).GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("making a recovery key: %w", err)
	}
	raw, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("making a recovery key: %w", err)
	}
	return ParseRecoveryPrivateKey(privatePrefix + base64.StdEncoding.EncodeToString(raw))
}

// ParseRecoveryPublicKey parses the text form of a public key.
func ParseRecoveryPublicKey(text string) (*RecoveryPublicKey, error) {
	raw, err := keyBytes(text, publicPrefix)
	if err != nil {
		return nil, err
	}
	key, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(raw)
	if err != nil {
		return nil, errors.New("it is not a valid recovery public key")
	}
	return newRecoveryPublicKey(key), nil
}

func newRecoveryPublicKey(key hpke.PublicKey) *RecoveryPublicKey {
	sum := sha256.Sum256(append([]byte("cmekproxy recovery key v1"), key.Bytes()...))
	return &RecoveryPublicKey{key, recoveryID(sum[:8])}
}

// ParseRecoveryPrivateKey parses the text form of a private key.
func ParseRecoveryPrivateKey(text string) (*RecoveryPrivateKey, error) {
	raw, err := keyBytes(text, privatePrefix)
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	key, err := hpke.DHKEM(ecdh.X25519()).NewPrivateKey(raw)
	if err != nil {
		return nil, errors.New("it is not a valid recovery private key")
	}
	return &RecoveryPrivateKey{key, newRecoveryPublicKey(key.PublicKey()), strings.TrimSpace(text)}, nil
}

// keyBytes decodes the text form of a key: a prefix and 32 bytes in base64.
// The error never has the text, which may be a private key.
func keyBytes(text, prefix string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(strings.TrimSpace(text), prefix)
	raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
	switch {
	case strings.HasPrefix(text, privatePrefix) && prefix == publicPrefix:
		return nil, errors.New("it is a recovery private key, which must stay offline: use the public key")
	case !ok:
		return nil, fmt.Errorf("it does not begin with %s", prefix)
	case err != nil || len(raw) != 32:
		return nil, fmt.Errorf("what follows %s is not base64 of 32 bytes", prefix)
	}
	return raw, nil
}

// Text returns the text form of the private key. It is a secret.
func (k *RecoveryPrivateKey) Text() string { return k.secret }

// Public returns the public half.
func (k *RecoveryPrivateKey) Public() *RecoveryPublicKey { return k.half }

// Text returns the text form of the public key.
func (p *RecoveryPublicKey) Text() string {
	return publicPrefix + base64.StdEncoding.EncodeToString(p.key.Bytes())
}

// ID returns the id of the key in envelopes.
func (p *RecoveryPublicKey) ID() string { return p.short.String() }

// wrap wraps a data key.
func (p *RecoveryPublicKey) wrap(dek []byte, ec EncryptionContext) (recoveryWrap, error) {
	out := recoveryWrap{key: p.short}
	enc, sender, err := hpke.NewSender(p.key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(recoveryInfo))
	if err != nil {
		return out, err
	}
	sealed, err := sender.Seal(associatedData(ec), dek)
	if err != nil {
		return out, err
	}
	if len(enc)+len(sealed) != len(out.sealed) {
		return out, fmt.Errorf("wrapping to a recovery key gave %d bytes", len(enc)+len(sealed))
	}
	copy(out.sealed[copy(out.sealed[:], enc):], sealed)
	return out, nil
}

// unwrap unwraps a data key.
func (k *RecoveryPrivateKey) unwrap(w recoveryWrap, ec EncryptionContext) ([]byte, error) {
	enc, sealed := w.sealed[:recoveryEnc], w.sealed[recoveryEnc:]
	recipient, err := hpke.NewRecipient(enc, k.key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(recoveryInfo))
	if err != nil {
		return nil, err
	}
	return recipient.Open(associatedData(ec), sealed)
}

// Recoverable returns w with every data key wrapped to a recovery key as
// well; nil means none. Data keys with or without wraps to any recovery key
// can be unwrapped.
func Recoverable(w Wrapper, recovery *RecoveryPublicKey) Wrapper {
	return &withRecovery{w, recovery}
}

type withRecovery struct {
	w        Wrapper
	recovery *RecoveryPublicKey
}

// KeyID implements Wrapper.
func (r *withRecovery) KeyID() string { return r.w.KeyID() }

// Wrap implements Wrapper.
func (r *withRecovery) Wrap(ctx context.Context, dek []byte, ec EncryptionContext) ([]byte, error) {
	blob, err := Wrap(ctx, r.w, dek, ec)
	if err != nil {
		return nil, err
	}
	return r.add("wrap", blob, dek, ec)
}

// Generate implements Generator.
func (r *withRecovery) Generate(ctx context.Context, ec EncryptionContext) (dek, wrapped []byte, err error) {
	dek, blob, err := Generate(ctx, r.w, ec)
	if err != nil {
		return nil, nil, err
	}
	if wrapped, err = r.add("generate", blob, dek, ec); err != nil {
		clear(dek)
		return nil, nil, err
	}
	return dek, wrapped, nil
}

// add adds the wrap to the recovery key.
func (r *withRecovery) add(op string, blob, dek []byte, ec EncryptionContext) ([]byte, error) {
	if r.recovery == nil {
		return blob, nil
	}
	fault := func(err error) error {
		return &Error{Kind: Internal, Op: op, KeyID: r.KeyID(), Err: fmt.Errorf("recovery key: %w", err)}
	}

	b := &bundle{scheme: oneWrap, wraps: []bundleWrap{{"", blob}}}
	if isBundle(blob) { // of several keys
		var err error
		if b, err = parseBundle(blob); err != nil {
			return nil, fault(err)
		}
	}
	added, err := r.recovery.wrap(dek, ec)
	if err != nil {
		return nil, fault(err)
	}
	b.recovery = append(b.recovery, added)

	out, err := b.bytes()
	if err != nil {
		return nil, fault(err)
	}
	return out, checkFit(op, r.KeyID(), out)
}

// Unwrap implements Wrapper. It ignores wraps to recovery keys.
func (r *withRecovery) Unwrap(ctx context.Context, wrapped []byte, ec EncryptionContext) ([]byte, error) {
	inner, err := r.inner(wrapped)
	if err != nil {
		return nil, &Error{Kind: InvalidCiphertext, Op: "unwrap", KeyID: r.KeyID(), Err: err}
	}
	return Unwrap(ctx, r.w, inner, ec)
}

// inner returns the blob for the inner Wrapper.
func (r *withRecovery) inner(wrapped []byte) ([]byte, error) {
	if !isBundle(wrapped) {
		return wrapped, nil
	}
	b, err := parseBundle(wrapped)
	if err != nil {
		return nil, err
	}
	if b.scheme == oneWrap {
		return b.wraps[0].blob, nil
	}
	return wrapped, nil // of several keys, which find their wraps in it
}

// Unbound implements Unbounder with the inner Wrapper.
func (r *withRecovery) Unbound(wrapped []byte) bool {
	inner, err := r.inner(wrapped)
	return err == nil && Unbound(r.w, inner)
}

// RecoveredKey returns a Wrapper that unwraps the data keys of all KMS keys
// with a recovery key. It cannot wrap.
func RecoveredKey(key *RecoveryPrivateKey) Wrapper { return &recovered{key} }

type recovered struct{ key *RecoveryPrivateKey }

// KeyID implements Wrapper.
func (r *recovered) KeyID() string { return r.key.half.ID() }

// Wrap implements Wrapper.
func (r *recovered) Wrap(context.Context, []byte, EncryptionContext) ([]byte, error) {
	return nil, &Error{Kind: Invalid, Op: "wrap", KeyID: r.KeyID(), Err: errors.New("a recovery key only unwraps")}
}

// Unwrap implements Wrapper.
func (r *recovered) Unwrap(_ context.Context, wrapped []byte, ec EncryptionContext) ([]byte, error) {
	refused := func(err error) error {
		return &Error{Kind: InvalidCiphertext, Op: "unwrap", KeyID: r.KeyID(), Err: err}
	}
	if !isBundle(wrapped) {
		return nil, refused(errors.New("the data key was not wrapped to a recovery key"))
	}
	b, err := parseBundle(wrapped)
	if err != nil {
		return nil, refused(err)
	}

	for _, w := range b.recovery {
		if w.key != r.key.half.short {
			continue
		}
		dek, err := r.key.unwrap(w, ec)
		if err != nil {
			return nil, refused(err)
		}
		return dek, nil
	}
	if len(b.recovery) == 0 {
		return nil, refused(errors.New("the data key was not wrapped to a recovery key"))
	}
	return nil, refused(fmt.Errorf("the data key was wrapped to another recovery key, %s", b.recovery[0].key))
}

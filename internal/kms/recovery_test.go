package kms_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

func recoveryKey(t *testing.T) *kms.RecoveryPrivateKey {
	t.Helper()
	key, err := kms.GenerateRecoveryKey()
	must(t, err)
	return key
}

// recordingKey keeps the DEK that it is to wrap.
type recordingKey struct{ saw []byte }

func (r *recordingKey) KeyID() string { return "recording" }

func (r *recordingKey) Wrap(_ context.Context, dek []byte, _ kms.EncryptionContext) ([]byte, error) {
	r.saw = bytes.Clone(dek)
	return nil, errors.New("only records")
}

func (r *recordingKey) Unwrap(context.Context, []byte, kms.EncryptionContext) ([]byte, error) {
	return nil, errors.New("only records")
}

func TestRecoverableContract(t *testing.T) {
	key := recoveryKey(t).Public()
	kmstest.RunContract(t, func(t *testing.T) kms.Wrapper {
		w, _ := newLocal(t)
		return kms.Recoverable(w, key)
	}, map[string]string{
		"flipped bits": "the envelope's MAC covers the wrap to the recovery key, which only the recovery opens",
	})
}

// The recovery key opens what the KMS key has wrapped, and nothing else.
func TestRecovery(t *testing.T) {
	local, _ := newLocal(t)
	key, other := recoveryKey(t), recoveryKey(t)
	ec, dek := kmstest.Context("b", "k"), kmstest.NewDEK()
	one, two := localMember(t, "one"), localMember(t, "two")

	for name, w := range map[string]kms.Wrapper{
		"one key": local,
		"all of":  kms.AllOf(kms.MembersConfig{ID: "all-of:x", Members: []*kms.Member{one, two}}),
		"any of":  kms.AnyOf(kms.MembersConfig{ID: "any-of:x", Members: []*kms.Member{one, two}}),
	} {
		t.Run(name, func(t *testing.T) {
			blob, err := kms.Recoverable(w, key.Public()).Wrap(t.Context(), dek, ec)
			must(t, err)
			again, err := kms.Recoverable(w, key.Public()).Wrap(t.Context(), dek, ec)
			must(t, err)
			if bytes.Equal(blob, again) {
				t.Error("two wraps are equal")
			}
			if keys, recovery := kms.KeysOf(w.KeyID(), blob); len(keys) == 0 || len(recovery) != 1 ||
				recovery[0] != key.Public().ID() {
				t.Errorf("%q %q", keys, recovery)
			}

			if got, err := kms.RecoveredKey(key).Unwrap(t.Context(), blob, ec); err != nil || !bytes.Equal(got, dek) {
				t.Errorf("the recovery key: %v", err)
			}
			if got, err := kms.Recoverable(w, nil).Unwrap(t.Context(), blob, ec); err != nil || !bytes.Equal(got, dek) {
				t.Errorf("the KMS key: %v", err)
			}

			bare, err := w.Wrap(t.Context(), dek, ec)
			must(t, err)
			flipped := bytes.Clone(blob)
			flipped[len(flipped)-1] ^= 1
			for what, row := range map[string]struct {
				key  *kms.RecoveryPrivateKey
				blob []byte
				ec   kms.EncryptionContext
			}{
				"another key":      {other, blob, ec},
				"another object":   {key, blob, kmstest.Context("b", "other")},
				"another bucket":   {key, blob, kmstest.Context("other", "k")},
				"no recovery":      {key, bare, ec},
				"altered":          {key, flipped, ec},
				"truncated":        {key, blob[:len(blob)-1], ec},
				"with a byte more": {key, append(bytes.Clone(blob), 0), ec},
			} {
				_, err := kms.RecoveredKey(row.key).Unwrap(t.Context(), row.blob, row.ec)
				var failure *kms.Error
				if !errors.As(err, &failure) || failure.Kind != kms.InvalidCiphertext {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}

	if _, err := kms.RecoveredKey(key).Wrap(t.Context(), dek, ec); err == nil {
		t.Error("a recovery key wraps")
	}
}

// What the proxy has of a recovery key is public: another implementation of
// HPKE opens the wrap with the private key.
func TestRecoveryIsHPKE(t *testing.T) {
	local, _ := newLocal(t)
	key := recoveryKey(t)
	dek, ec := kmstest.NewDEK(), kms.EncryptionContext{"bucket": "b", "key": "k"}
	blob, err := kms.Recoverable(local, key.Public()).Wrap(t.Context(), dek, ec)
	must(t, err)

	sealed := blob[len(blob)-80:]
	raw, err := base64.StdEncoding.DecodeString(key.Text()[strings.LastIndexByte(key.Text(), ':')+1:])
	must(t, err)
	private, err := hpke.DHKEM(ecdh.X25519()).NewPrivateKey(raw)
	must(t, err)
	r, err := hpke.NewRecipient(sealed[:32], private, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte("cmekproxy v2 recovery"))
	must(t, err)
	const context = "cmekproxy context v1\x00\x00\x00\x02" +
		"\x00\x00\x00\x00\x00\x00\x00\x06bucket\x00\x00\x00\x00\x00\x00\x00\x01b" +
		"\x00\x00\x00\x00\x00\x00\x00\x03key\x00\x00\x00\x00\x00\x00\x00\x01k"
	if got, err := r.Open([]byte(context), sealed[32:]); err != nil || !bytes.Equal(got, dek) {
		t.Errorf("%v", err)
	}
}

func TestRecoveryKeyTexts(t *testing.T) {
	key := recoveryKey(t)
	again, err := kms.ParseRecoveryPrivateKey(key.Text() + "\n")
	must(t, err)
	public, err := kms.ParseRecoveryPublicKey(key.Public().Text())
	must(t, err)
	if again.Public().ID() != key.Public().ID() || public.ID() != key.Public().ID() || public.Text() != key.Public().Text() {
		t.Error("another key comes back")
	}

	secret := key.Text()[strings.LastIndexByte(key.Text(), ':')+1:]
	for _, text := range []string{
		"", secret, key.Text(), key.Public().Text()[:60], key.Public().Text() + "A", "cmekproxy-recovery-public-v1:",
		"cmekproxy-recovery-public-v2:" + secret, "cmekproxy-recovery-public-v1:" + strings.Repeat("!", 44),
	} {
		if _, err := kms.ParseRecoveryPublicKey(text); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%d bytes: %v", len(text), err)
		}
	}
	if _, err := kms.ParseRecoveryPrivateKey(key.Public().Text()); err == nil {
		t.Error("a public key is accepted as a private one")
	}
}

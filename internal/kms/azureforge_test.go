package kms_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

func TestAzureContractWithBinding(t *testing.T) {
	server := kmstest.StartAzure(t)
	kmstest.RunContract(t, func(t *testing.T) kms.Wrapper {
		w, binding := server.NewBoundKey(t, "RSA-2048", nil)
		name := w.KeyID()[strings.LastIndex(w.KeyID(), "/")+1:]
		return server.OpenKey(t, name, func(c *kms.AzureConfig) { c.Bindings, c.AcceptForm = []string{binding}, 2 })
	}, nil)
}

// forger has the public key of a vault's key, but no access to the vault.
// It creates blobs by docs/format.md, section 5.
type forger struct {
	keyID   string
	version []byte
	public  *rsa.PublicKey
}

func newForger(t *testing.T, server *kmstest.AzureServer, w kms.Wrapper) *forger {
	t.Helper()
	version, public := server.PublicKey(w.KeyID()[strings.LastIndex(w.KeyID(), "/")+1:])
	name, err := hex.DecodeString(version)
	must(t, err)
	return &forger{w.KeyID(), name, public}
}

// blob returns a blob of form 1, or if binding is given, of form 2 with a
// guessed secret.
func (f *forger) blob(t *testing.T, binding, secret, dek []byte, ec kms.EncryptionContext) []byte {
	t.Helper()
	kek := kmstest.NewDEK()
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, f.public, kek, nil)
	must(t, err)
	form, label := byte(1), "cmekproxy azure wrap v1"

	if binding != nil {
		form, label = 2, "cmekproxy azure wrap v2"
		kek, err = hkdf.Key(sha256.New, kek, secret, label, 32)
		must(t, err)
	}

	tag := sha256.Sum256([]byte("cmekproxy azure key v1" + f.keyID))
	frame := slices.Concat([]byte{form, 1}, tag[:8], binding, []byte{16}, f.version,
		[]byte{byte(len(wrapped) >> 8), byte(len(wrapped))}, wrapped)

	block, err := aes.NewCipher(kek)
	must(t, err)
	aead, err := cipher.NewGCMWithRandomNonce(block)
	must(t, err)
	return aead.Seal(frame, nil, dek, slices.Concat([]byte(label), frame, kms.AssociatedData(ec)))
}

// With the public key of an RSA key, blobs of form 1 can be forged, but not
// blobs of form 2.
func TestAzurePublicKeyForgesNothing(t *testing.T) {
	server, ec := kmstest.StartAzure(t), kmstest.Context("b", "k")
	w, binding := server.NewBoundKey(t, "RSA-2048", nil)
	strict := server.OpenKey(t, "key-1", func(c *kms.AzureConfig) { c.Bindings, c.AcceptForm = []string{binding}, 2 })
	f, dek := newForger(t, server, w), kmstest.NewDEK()

	old := f.blob(t, nil, nil, dek, ec)
	wantDEK(t, "form 1, while it is accepted", w, old, ec, dek)

	if !kms.Unbound(w, old) {
		t.Error("a blob of form 1 counts as bound")
	}

	calls := server.Calls()["unwrapkey"]
	_, err := strict.Unwrap(t.Context(), old, ec)
	wantKind(t, "form 1, with accept_form: 2", err, kms.InvalidCiphertext)

	if n := server.Calls()["unwrapkey"]; n != calls {
		t.Error("the vault was asked about a blob that is refused anyway")
	}

	raw, err := base64.StdEncoding.DecodeString(binding)
	must(t, err)
	id := raw[10:18]
	for name, secret := range map[string][]byte{
		"no secret": nil, "zeros": make([]byte, 32), "a guess": kmstest.NewDEK(), "the id": id, "the binding": raw,
	} {
		for _, w := range []*kms.Azure{w, strict} {
			_, err := w.Unwrap(t.Context(), f.blob(t, id, secret, dek, ec), ec)
			wantKind(t, "form 2, "+name, err, kms.InvalidCiphertext)
		}
	}

	_, err = w.Unwrap(t.Context(), f.blob(t, kmstest.NewDEK()[:8], nil, dek, ec), ec)
	wantKind(t, "form 2 of no binding", err, kms.InvalidCiphertext)
	_, err = w.Unwrap(t.Context(), raw, ec)
	wantKind(t, "the binding for a blob", err, kms.InvalidCiphertext)
}

// Someone who can ask the vault to unwrap can create the same blobs as the
// proxy, as docs/format.md describes.
func TestAzureBoundBlobByTheBook(t *testing.T) {
	server, ec := kmstest.StartAzure(t), kmstest.Context("b", "k")
	w, binding := server.NewBoundKey(t, "RSA-2048", nil)
	raw, err := base64.StdEncoding.DecodeString(binding)
	must(t, err)
	frame := raw[:len(raw)-60]
	kek, err := server.Decrypt("key-1", frame[len(frame)-256:])
	must(t, err)
	secret := openAzure(t, kek, raw, "cmekproxy azure binding v1", nil)

	dek := kmstest.NewDEK()
	wantDEK(t, "by the book", w, newForger(t, server, w).blob(t, raw[10:18], secret, dek, ec), ec, dek)

	dek, blob, err := kms.Generate(t.Context(), w, ec)
	must(t, err)
	kek, err = server.Decrypt("key-1", blob[37:len(blob)-60])
	must(t, err)
	bound, err := hkdf.Key(sha256.New, kek, secret, "cmekproxy azure wrap v2", 32)
	must(t, err)

	if got := openAzure(t, bound, blob, "cmekproxy azure wrap v2", ec); !bytes.Equal(got, dek) {
		t.Error("the proxy's blob is not what the book says")
	}
}

func openAzure(t *testing.T, key, blob []byte, label string, ec kms.EncryptionContext) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	must(t, err)
	aead, err := cipher.NewGCMWithRandomNonce(block)
	must(t, err)
	frame, sealed := blob[:len(blob)-60], blob[len(blob)-60:]
	out, err := aead.Open(nil, nil, sealed, slices.Concat([]byte(label), frame, kms.AssociatedData(ec)))
	must(t, err)
	return out
}

// A blob of form 2 opens only with its own binding, key and context.
func TestAzureBoundBlobs(t *testing.T) {
	server, ec := kmstest.StartAzure(t), kmstest.Context("b", "k")
	w, binding := server.NewBoundKey(t, "RSA-2048", nil)
	dek, blob, err := kms.Generate(t.Context(), w, ec)
	must(t, err)

	if len(blob) != 353 || blob[0] != 2 || kms.Unbound(w, blob) {
		t.Errorf("a blob of %d bytes, form %d", len(blob), blob[0])
	}

	wantDEK(t, "as it was made", w, blob, ec, dek)

	_, err = w.Unwrap(t.Context(), blob, kmstest.Context("b", "other"))
	wantKind(t, "another context", err, kms.InvalidCiphertext)
	downgraded := slices.Concat([]byte{1}, blob[1:10], blob[18:])
	_, err = w.Unwrap(t.Context(), downgraded, ec)
	wantKind(t, "downgraded to form 1", err, kms.InvalidCiphertext)
	_, err = w.Unwrap(t.Context(), append([]byte{3}, blob[1:]...), ec)
	wantKind(t, "turned into a binding", err, kms.InvalidCiphertext)

	without := server.OpenKey(t, "key-1", nil)
	_, err = without.Unwrap(t.Context(), blob, ec)
	wantKind(t, "a proxy without the binding", err, kms.InvalidCiphertext)
	first := server.OpenKey(t, "key-1", func(c *kms.AzureConfig) { c.Bindings, c.WriteForm = []string{binding}, 1 })
	wantDEK(t, "a proxy that makes form 1 still", first, blob, ec, dek)
	dek1, blob1, err := kms.Generate(t.Context(), first, ec)
	must(t, err)
	wantDEK(t, "what it makes", without, blob1, ec, dek1)

	if kms.Unbound(first, blob1) {
		t.Error("a key that makes form 1 calls it unbound")
	}

	another, err := w.Bind(t.Context(), "")
	must(t, err)
	other := server.OpenKey(t, "key-1", func(c *kms.AzureConfig) { c.Bindings = []string{another} })
	_, err = other.Unwrap(t.Context(), blob, ec)
	wantKind(t, "a proxy with another binding", err, kms.InvalidCiphertext)
	moved := slices.Clone(blob)
	raw, err := base64.StdEncoding.DecodeString(another)
	must(t, err)
	copy(moved[10:], raw[10:18])
	both := server.OpenKey(t, "key-1", func(c *kms.AzureConfig) { c.Bindings = []string{another, binding} })
	_, err = both.Unwrap(t.Context(), moved, ec)
	wantKind(t, "moved to another binding", err, kms.InvalidCiphertext)
	wantDEK(t, "both bindings", both, blob, ec, dek)
	dek2, blob2, err := kms.Generate(t.Context(), both, ec)
	must(t, err)
	wantDEK(t, "the first one binds", other, blob2, ec, dek2)

	dek3, old, err := generateUnbound(t, w, ec)
	must(t, err)

	if old[0] != 1 || !kms.Unbound(w, old) || kms.Unbound(without, old) {
		t.Errorf("asked for form 1, got %d", old[0])
	}
	wantDEK(t, "form 1 on demand", without, old, ec, dek3)
}

func generateUnbound(t *testing.T, w kms.Wrapper, ec kms.EncryptionContext) (dek, blob []byte, err error) {
	t.Helper()
	return kms.Generate(kms.KeepUnbound(t.Context()), kms.Retry(w, kms.RetryConfig{}), ec)
}

// A new version of the key can take over the binding. If the old version is
// disabled, the old binding fails.
func TestAzureBindingAndVersions(t *testing.T) {
	server, ec := kmstest.StartAzure(t), kmstest.Context("b", "k")
	w, binding := server.NewBoundKey(t, "RSA-2048", nil)
	server.RotateKey(t, "key-1")
	dek, blob, err := kms.Generate(t.Context(), w, ec)
	must(t, err)
	again, err := w.Bind(t.Context(), binding)
	must(t, err)

	if again == binding {
		t.Error("the binding is still under the old version")
	}

	next := server.OpenKey(t, "key-1", func(c *kms.AzureConfig) { c.Bindings = []string{again} })
	if v, n := w.Bound(), next.Bound(); len(v) != 1 || len(n) != 1 || v[0] == n[0] {
		t.Errorf("bound under %q, then under %q", v, n)
	}

	wantDEK(t, "the binding under the new version", next, blob, ec, dek)

	server.SetEnabled("key-1", 1, false)
	fresh := server.OpenKey(t, "key-1", func(c *kms.AzureConfig) { c.Bindings = []string{binding} })
	wantAll(t, "the binding's version disabled", fresh, blob, ec, kms.Disabled)
	wantDEK(t, "the old version disabled, the binding under the new one", next, blob, ec, dek)
	_, err = next.Bind(t.Context(), binding)

	wantKind(t, "a binding under a disabled version", err, kms.Disabled)
}

// The secret of a binding alone opens no data key. Each unwrap still asks
// the vault, and a refusal of any blob wipes the secret.
func TestAzureBindingOutlivesNoRevocation(t *testing.T) {
	server, ec := kmstest.StartAzure(t), kmstest.Context("b", "k")
	w, _ := server.NewBoundKey(t, "RSA-2048", nil)
	dek, blob, err := kms.Generate(t.Context(), w, ec)
	must(t, err)
	before := server.Calls()["unwrapkey"]

	for range 3 {
		wantDEK(t, "with the secret known", w, blob, ec, dek)
	}

	if n := server.Calls()["unwrapkey"] - before; n != 3 {
		t.Errorf("%d unwraps for 3 reads with the secret known, want 3", n)
	}

	server.SetEnabled("key-1", 1, false)
	wantAll(t, "revoked", w, blob, ec, kms.Disabled)
	server.SetEnabled("key-1", 1, true)
	before = server.Calls()["unwrapkey"]
	wantDEK(t, "given back", w, blob, ec, dek)

	if n := server.Calls()["unwrapkey"] - before; n != 2 {
		t.Errorf("%d unwraps after the key was given back, want 2: blob and binding", n)
	}
}

func TestAzureBindingsThatAreRefused(t *testing.T) {
	server := kmstest.StartAzure(t)
	w, good := server.NewBoundKey(t, "RSA-2048", nil)
	_, foreign := server.NewBoundKey(t, "RSA-2048", nil)
	dek, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	clear(dek)
	const id = "https://vault.example/keys/k"

	for name, change := range map[string]func(*kms.AzureConfig){
		"no base64": func(c *kms.AzureConfig) { c.Bindings = []string{"!" + good} },
		"a wrapped DEK": func(c *kms.AzureConfig) {
			c.Bindings = []string{base64.StdEncoding.EncodeToString(blob)}
		},
		"cut":                  func(c *kms.AzureConfig) { c.Bindings = []string{good[:40]} },
		"empty":                func(c *kms.AzureConfig) { c.Bindings = []string{""} },
		"of another key":       func(c *kms.AzureConfig) { c.Bindings = []string{foreign} },
		"twice":                func(c *kms.AzureConfig) { c.Bindings = []string{good, good} },
		"a symmetric key":      func(c *kms.AzureConfig) { c.Bindings, c.Algorithm = []string{good}, kms.AzureA256KW },
		"form 2 and no secret": func(c *kms.AzureConfig) { c.Bindings, c.AcceptForm = nil, 2 },
		"form 2 unread":        func(c *kms.AzureConfig) { c.WriteForm, c.AcceptForm = 1, 2 },
		"form 2 from nothing":  func(c *kms.AzureConfig) { c.Bindings, c.WriteForm = nil, 2 },
		"form 3":               func(c *kms.AzureConfig) { c.AcceptForm = 3 },
		"no room for the id":   func(c *kms.AzureConfig) { c.EnvelopeID = strings.Repeat("x", 287) },
	} {
		cfg := kms.AzureConfig{KeyID: id, EnvelopeID: w.KeyID(), Bindings: []string{good}}
		change(&cfg)
		_, err := kms.NewAzure(cfg)
		wantKind(t, name, err, kms.Invalid)
	}

	if _, err := kms.NewAzure(kms.AzureConfig{KeyID: id, EnvelopeID: w.KeyID(), Bindings: []string{good}}); err != nil {
		t.Errorf("a good one: %v", err)
	}

	// If the vault unwraps a binding to something else, that is not an
	// error of the objects.
	raw, err := base64.StdEncoding.DecodeString(good)
	must(t, err)
	raw[len(raw)-1] ^= 1

	broken := server.OpenKey(t, "key-1",
		func(c *kms.AzureConfig) { c.Bindings = []string{base64.StdEncoding.EncodeToString(raw)} })
	_, err = broken.Unwrap(t.Context(), blob, nil)
	wantKind(t, "an altered binding", err, kms.Invalid)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("gone"))
	_, err = w.Bind(ctx, "")

	wantKind(t, "canceled", err, kms.Canceled)
}

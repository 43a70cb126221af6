package kms

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"
)

// azureBindingLife is how long a secret is kept before the vault has to
// unwrap it again. The secret alone does not open any data key: each one
// still needs an unwrap by the vault.
const azureBindingLife = time.Minute

// Unbounder is a Wrapper whose KMS key has a public half. Anyone who has
// that half can create blobs, unless blobs are also bound to a secret.
type Unbounder interface {
	// Unbound reports whether this blob is not bound to a secret although
	// new blobs of the key are. Such a blob does not prove who created it.
	Unbound(wrapped []byte) bool
}

// Unbound calls w.Unbound. It returns false if w is not an Unbounder.
func Unbound(w Wrapper, wrapped []byte) bool {
	u, ok := w.(Unbounder)
	return ok && u.Unbound(wrapped)
}

type keepUnboundKey struct{}

// KeepUnbound returns a context with which Wrap binds the blob to no
// secret. Use it to copy an object whose own blob is not bound: a bound
// copy would wrongly prove its origin.
func KeepUnbound(ctx context.Context) context.Context {
	return context.WithValue(ctx, keepUnboundKey{}, true)
}

// azureBinding is a secret for blobs of form 2. Only the vault can unwrap
// it, from a blob in the configuration.
type azureBinding struct {
	blob   *azureBlob
	sealed []byte

	turn   chan struct{} // a semaphore that protects the fields below
	secret []byte        // nil if unknown
	since  time.Time     // when the vault was asked for the secret
}

// parseAzureBindings parses AzureConfig.Bindings.
func (a *Azure) parseAzureBindings(texts []string) error {
	if len(texts) > 0 && azureAlgorithms[a.algorithm] != 1 {
		return errors.New("bindings are for RSA keys; symmetric keys do not need them")
	}

	for i, text := range texts {
		b, err := a.parseAzureBinding(text)
		if err != nil {
			return fmt.Errorf("binding %d: %w", i+1, err)
		}
		if a.binding(b.blob.binding) != nil {
			return fmt.Errorf("binding %d has the id of an earlier one: keep one of the two", i+1)
		}

		a.bindings = append(a.bindings, b)
	}

	return nil
}

func (a *Azure) parseAzureBinding(text string) (*azureBinding, error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, errors.New("it is not base64: copy it exactly as printed by cmekproxy keys bind")
	}

	blob, sealed, err := parseAzureBlob(raw)
	switch {
	case err != nil || blob.form != azureBindingForm:
		return nil, errors.New("it is not a binding: copy it exactly as printed by cmekproxy keys bind")
	case blob.key != azureTag(a.id):
		return nil, errors.New("it was made for another key: make one with cmekproxy keys bind")
	case blob.algorithm != azureAlgorithms[a.algorithm]:
		return nil, errors.New("it was made for another algorithm: make one with cmekproxy keys bind")
	}

	return &azureBinding{blob: blob, sealed: sealed, turn: make(chan struct{}, 1)}, nil
}

// binding returns the binding with that id, or nil.
func (a *Azure) binding(id [azureBindingID]byte) *azureBinding {
	i := slices.IndexFunc(a.bindings, func(b *azureBinding) bool { return b.blob.binding == id })
	if i < 0 {
		return nil
	}
	return a.bindings[i]
}

// Bound returns the names of the key versions that have wrapped the
// bindings. If one of these versions is disabled, no blob with its binding
// can be opened.
func (a *Azure) Bound() (versions []string) {
	for _, b := range a.bindings {
		versions = append(versions, b.blob.versionName())
	}
	return versions
}

// TryBindings asks the vault to unwrap each binding.
func (a *Azure) TryBindings(ctx context.Context) error {
	for _, b := range a.bindings {
		secret, err := a.secret(ctx, "unwrap", b)
		if err != nil {
			return err
		}
		clear(secret)
	}

	return nil
}

// IsRSA reports whether the key has a public half.
func (a *Azure) IsRSA() bool { return azureAlgorithms[a.algorithm] == 1 }

// Unbound implements Unbounder.
func (a *Azure) Unbound(wrapped []byte) bool {
	return a.form == azureBoundForm && (len(wrapped) == 0 || wrapped[0] == azureBlobForm)
}

// Bind returns a new binding, after the vault has unwrapped it once. If
// again is one of the key's bindings, the new binding has the same secret,
// wrapped by the current version of the key.
func (a *Azure) Bind(ctx context.Context, again string) (string, error) {
	blob, secret := &azureBlob{form: azureBindingForm}, make([]byte, azureKEKSize)
	defer func() { clear(secret) }()

	rand.Read(secret)
	rand.Read(blob.binding[:])

	if again != "" {
		old, err := a.parseAzureBinding(again)
		if err != nil {
			return "", &Error{Kind: Invalid, Op: "bind", KeyID: a.id, Err: err}
		}
		if secret, err = a.secret(ctx, "bind", old); err != nil {
			return "", err
		}

		a.forget(old)
		blob.binding = old.blob.binding
	}

	kek, err := a.wrapKEK(ctx, "bind", blob)
	if err != nil {
		return "", err
	}
	defer clear(kek)

	sealed, err := blob.seal(kek, nil, secret, nil)
	if err != nil {
		return "", &Error{Kind: Internal, Op: "bind", KeyID: a.id, Err: err}
	}

	return a.proveBinding(ctx, base64.StdEncoding.EncodeToString(sealed), secret)
}

// proveBinding asks the vault to unwrap a new binding.
func (a *Azure) proveBinding(ctx context.Context, text string, secret []byte) (string, error) {
	made, err := a.parseAzureBinding(text)
	if err != nil {
		return "", &Error{Kind: Internal, Op: "bind", KeyID: a.id, Err: err}
	}

	got, err := a.secret(ctx, "bind", made)
	if err != nil {
		return "", err
	}
	defer clear(got)

	a.forget(made)
	if !slices.Equal(got, secret) {
		err := errors.New("the KMS unwrapped a different binding than it had wrapped")
		return "", &Error{Kind: Internal, Op: "bind", KeyID: a.id, Err: err}
	}

	return text, nil
}

// secret returns a copy of the secret of a binding, which the caller must
// wipe. One caller asks the vault while the others wait.
func (a *Azure) secret(ctx context.Context, op string, b *azureBinding) ([]byte, error) {
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, contextError(ctx, op, a.id)
	}
	defer func() { <-b.turn }()

	if b.secret != nil && time.Since(b.since) < azureBindingLife {
		return slices.Clone(b.secret), nil
	}

	clear(b.secret)
	b.secret = nil
	start := time.Now()
	kek, err := a.unwrapKEK(ctx, op, b.blob)
	if err != nil {
		return nil, bindingError(err)
	}
	defer clear(kek)

	secret, err := b.blob.open(kek, nil, b.sealed, nil)
	if err != nil {
		return nil, bindingError(&Error{Kind: InvalidCiphertext, Op: op, KeyID: a.id, Err: err})
	}

	b.secret, b.since = secret, start
	return slices.Clone(secret), nil
}

// bindingError marks an error as one about a binding. A binding that does
// not unwrap is a configuration error and says nothing about an object.
func bindingError(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}

	own := *e
	if own.Kind == InvalidCiphertext {
		own.Kind = Invalid
	}
	if own.Err == nil {
		own.Err = errors.New("unwrapping the key's binding")
	} else {
		own.Err = fmt.Errorf("unwrapping the key's binding: %w", own.Err)
	}

	return &own
}

// forget wipes the secret of a binding, unless it is in use. Then it is
// replaced, or expires after azureBindingLife.
func (a *Azure) forget(b *azureBinding) {
	select {
	case b.turn <- struct{}{}:
		clear(b.secret)
		b.secret = nil
		<-b.turn
	default:
	}
}

// forgetAll forgets all bindings, after the key was revoked.
func (a *Azure) forgetAll() {
	for _, b := range a.bindings {
		a.forget(b)
	}
}

// boundKEK derives the key that seals a blob of form 2. It depends on both
// the vault's answer for the blob and the secret.
func boundKEK(kek, secret []byte) ([]byte, error) {
	return hkdf.Key(sha256.New, kek, secret, azureLabels[azureBoundForm], azureKEKSize)
}

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

// azureBindingLife is how long a secret is kept before the vault has to unwrap
// it again. No data key comes from the secret alone: each one still costs the
// vault an unwrap of its own.
const azureBindingLife = time.Minute

// Unbounder is a Wrapper whose KMS key has a public half. Whoever has that can
// make blobs, unless blobs are bound to a secret as well.
type Unbounder interface {
	// Unbound reports whether new blobs of the key are bound to a secret, and
	// this one is not: so nothing proves who has made it.
	Unbound(wrapped []byte) bool
}

// Unbound is that of w, and false where w needs no binding or has none.
func Unbound(w Wrapper, wrapped []byte) bool {
	u, ok := w.(Unbounder)
	return ok && u.Unbound(wrapped)
}

type keepUnboundKey struct{}

// KeepUnbound returns a context in which Wrap binds a blob to no secret. It is
// for the copy of an object whose own blob is not bound: a bound one would
// vouch for what nobody has proved.
func KeepUnbound(ctx context.Context) context.Context {
	return context.WithValue(ctx, keepUnboundKey{}, true)
}

// azureBinding is a secret that makes blobs of form 2. Only the vault can
// unwrap it, from a blob that the configuration pins.
type azureBinding struct {
	blob   *azureBlob
	sealed []byte

	turn   chan struct{} // holds one token: who has it may use the rest
	secret []byte        // nil while it is not known
	since  time.Time     // when the vault was asked for it
}

// parseAzureBindings reads AzureConfig.Bindings.
func (a *Azure) parseAzureBindings(texts []string) error {
	if len(texts) > 0 && azureAlgorithms[a.algorithm] != 1 {
		return errors.New("bindings are for RSA keys: only the vault can wrap with a symmetric key")
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
		return nil, errors.New("it is not base64: give it as cmekproxy keys bind has printed it")
	}

	blob, sealed, err := parseAzureBlob(raw)
	switch {
	case err != nil || blob.form != azureBindingForm:
		return nil, errors.New("it is not a binding: give it as cmekproxy keys bind has printed it")
	case blob.key != azureTag(a.id):
		return nil, errors.New("it was made for another key: make one with cmekproxy keys bind")
	case blob.algorithm != azureAlgorithms[a.algorithm]:
		return nil, errors.New("it was made for another algorithm: make one with cmekproxy keys bind")
	}

	return &azureBinding{blob: blob, sealed: sealed, turn: make(chan struct{}, 1)}, nil
}

// binding returns the one with that id, or nil.
func (a *Azure) binding(id [azureBindingID]byte) *azureBinding {
	i := slices.IndexFunc(a.bindings, func(b *azureBinding) bool { return b.blob.binding == id })
	if i < 0 {
		return nil
	}
	return a.bindings[i]
}

// Bound returns the versions of the key that have wrapped the bindings, by the
// vault's names. While one of them is disabled, nothing bound by it opens.
func (a *Azure) Bound() (versions []string) {
	for _, b := range a.bindings {
		versions = append(versions, b.blob.versionName())
	}
	return versions
}

// TryBindings has the vault unwrap each binding.
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

// Bind makes a binding: a new secret, or where again is one of the key's
// bindings, the same secret under the present version of the key. The vault
// has unwrapped it once.
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

// proveBinding has the vault unwrap a binding that was just made.
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
		err := errors.New("the KMS unwraps to another binding than it wrapped")
		return "", &Error{Kind: Internal, Op: "bind", KeyID: a.id, Err: err}
	}

	return text, nil
}

// secret returns a copy of the secret of a binding, which the caller wipes.
// One caller asks the vault for all that wait.
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

// bindingError says that an error is about a binding. A binding that does not
// unwrap is a fault of the configuration, and says nothing about an object.
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

// forget wipes the secret of a binding, unless somebody is using it, who
// replaces it or keeps it for less than azureBindingLife.
func (a *Azure) forget(b *azureBinding) {
	select {
	case b.turn <- struct{}{}:
		clear(b.secret)
		b.secret = nil
		<-b.turn
	default:
	}
}

// forgetAll is forget for all bindings, for a key that was taken away.
func (a *Azure) forgetAll() {
	for _, b := range a.bindings {
		a.forget(b)
	}
}

// boundKEK is the key that a blob of form 2 is sealed with. Both the vault's
// answer for the blob and the secret are needed to know it.
func boundKEK(kek, secret []byte) ([]byte, error) {
	return hkdf.Key(sha256.New, kek, secret, azureLabels[azureBoundForm], azureKEKSize)
}

package kms

import "context"

// decorator is a Wrapper that passes every call to another Wrapper through
// run. Limit, Retry and Breaker use it. It caches no DEKs.
type decorator struct {
	w   Wrapper
	run func(ctx context.Context, op string, call func() error) error
}

// KeyID returns the KeyID of the inner Wrapper.
func (a *decorator) KeyID() string { return a.w.KeyID() }

// Wrap implements Wrapper.
func (a *decorator) Wrap(ctx context.Context, dek []byte, ec EncryptionContext) (wrapped []byte, err error) {
	err = a.run(ctx, "wrap", func() (err error) {
		wrapped, err = Wrap(ctx, a.w, dek, ec)
		return err
	})
	if err != nil {
		return nil, err
	}

	return wrapped, nil
}

// Unwrap implements Wrapper.
func (a *decorator) Unwrap(ctx context.Context, wrapped []byte, ec EncryptionContext) (dek []byte, err error) {
	err = a.run(ctx, "unwrap", func() (err error) {
		dek, err = Unwrap(ctx, a.w, wrapped, ec)
		return err
	})
	if err != nil {
		return nil, err
	}

	return dek, nil
}

// Generate implements Generator. If the inner Wrapper is not a Generator,
// it makes one Wrap.
func (a *decorator) Generate(ctx context.Context, ec EncryptionContext) (dek, wrapped []byte, err error) {
	err = a.run(ctx, "generate", func() (err error) {
		dek, wrapped, err = Generate(ctx, a.w, ec)
		return err
	})
	if err != nil {
		return nil, nil, err
	}

	return dek, wrapped, nil
}

// Unbound implements Unbounder with the inner Wrapper.
func (a *decorator) Unbound(wrapped []byte) bool { return Unbound(a.w, wrapped) }

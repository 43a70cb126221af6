package kms

import "context"

// decorator is a Wrapper that makes every call of another one through run:
// what Limit, Retry and Breaker have in common. It remembers no DEK.
type decorator struct {
	w   Wrapper
	run func(ctx context.Context, op string, call func() error) error
}

// KeyID is that of the Wrapper within.
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

// Generate implements Generator, whether the Wrapper within does or not: it
// takes one Wrap where it does not.
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

// Unbound implements Unbounder, by the Wrapper within.
func (a *decorator) Unbound(wrapped []byte) bool { return Unbound(a.w, wrapped) }

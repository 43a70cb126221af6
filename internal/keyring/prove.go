package keyring

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// Prove makes the KMS unwrap a DEK that it has just wrapped, without the
// cache, and checks that the rules let it open the object. Call it before the
// only wrapping of a stored object's DEK is replaced: a key that can wrap, but
// not unwrap, would make the object unreadable. Errors: those of Open, and
// ErrChanged.
func (k *Keyring) Prove(ctx context.Context, d *DataKey) error {
	if err := k.mayRead(d.obj, d.key); err != nil {
		return err
	}

	a := &useTrace{}
	var unwrapped []byte
	err := k.call(ctx, d.key, d.part, OpUnwrap, a, func(ctx context.Context) (err error) {
		unwrapped, err = kms.Unwrap(ctx, d.wrapper(), d.wrapped.Blob, encryptionContext(d.obj, d.wrapped))
		return err
	})
	defer clear(unwrapped)
	if err := k.audit(ctx, d.Lease, ActionOpen, a, err); err != nil {
		return fmt.Errorf("unwrapping a new data key: %w", err)
	}

	dek, err := d.dekOf(unwrapped)
	if err != nil {
		return errors.Join(ErrChanged, err)
	}
	defer clear(dek)
	if subtle.ConstantTimeCompare(dek, d.DEK()) != 1 {
		return ErrChanged
	}
	return nil
}

package keyring

import (
	"context"
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// A recovery key opens data keys without their KMS key. Only commands of an
// operator have one, never the proxy. The lease of such a DEK does not
// expire, because no KMS could be asked again.

// newRecovered returns the keyState that represents the recovery key in
// leases and audit records. Rules cannot name it.
func newRecovered() *keyState {
	k := newKey(Key{Name: recoveredName, Provider: recoveredName})
	k.kms.Store(&service{id: recoveredName})
	return k
}

const recoveredName = "recovery"

// OpenRecovered returns the DEK of an object, unwrapped with a recovery key;
// see kms.RecoveredKey. Rules are not asked: the owner of the recovery key
// may read everything under it. Anyone who has its public half and can write to
// the store can make objects that it opens.
func (k *Keyring) OpenRecovered(ctx context.Context, obj Object, wrapped []byte, recovery kms.Wrapper) (*Lease, error) {
	parsed, err := crypt.ParseWrappedKey(wrapped)
	if err != nil {
		return nil, err
	}

	l := &Lease{keyring: k, key: k.recovered, service: k.recovered.kms.Load(), obj: obj, wrapped: parsed}
	key, err := kms.Unwrap(ctx, recovery, parsed.Blob, encryptionContext(obj, parsed))
	if err == nil {
		l.unwrapped, err = l.dekOf(key)
	}

	if err := k.audit(ctx, l, ActionOpen, customerTrace, err); err != nil {
		l.Release()
		return nil, fmt.Errorf("opening a data key: %w", err)
	}
	return l, nil
}

package keyring

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// A customer's key (SSE-C) arrives with each request. The proxy itself
// wraps the DEK with it and stores it nowhere. The lease of such a DEK does
// not expire; the request releases it.

// newCustomer returns the keyState that represents all customers' keys in
// leases and audit records. Rules cannot name it.
func newCustomer() *keyState {
	k := newKey(Key{Name: crypt.CustomerKeyID, Provider: crypt.CustomerKeyID})
	k.kms.Store(&service{id: crypt.CustomerKeyID})
	return k
}

func (k *Keyring) createForCustomer(
	ctx context.Context, obj Object, client string, customerKey []byte,
) (*DataKey, error) {
	dek := make([]byte, crypt.DEKSize)
	rand.Read(dek) // never fails: it crashes the program instead
	defer clear(dek)
	return k.wrapForCustomer(ctx, obj, client, customerKey, dek)
}

func (k *Keyring) wrapForCustomer(
	ctx context.Context, obj Object, client string, customerKey, dek []byte,
) (*DataKey, error) {
	if err := k.CheckCustomerKeys(obj, client); err != nil {
		return nil, err
	}

	wrapped, err := crypt.WrapByCustomer(customerKey, dek, obj, rand.Reader)
	l := k.customerLease(obj, append([]byte(nil), dek...))
	if err := k.audit(ctx, l, ActionCreate, customerTrace, err); err != nil {
		l.Release()
		return nil, fmt.Errorf("wrapping a data key: %w", err)
	}

	return &DataKey{Lease: l, KeyID: crypt.CustomerKeyID, Wrapped: wrapped}, nil
}

// CheckCustomerKeys returns ErrNotAllowed if the rule for obj and client, or
// what was chosen for the bucket, forbids storing objects under a customer's
// key. Other errors: ErrNoRule, and ErrDefaults.
func (k *Keyring) CheckCustomerKeys(obj Object, client string) error {
	r, err := k.Rule(obj, client)
	if err != nil {
		return err
	}
	if r.RefuseCustomerKeys {
		return fmt.Errorf("%w: a customer key (SSE-C)", ErrNotAllowed)
	}

	blocked, err := k.cfg.Defaults.Blocks(obj.Bucket)
	if blocked {
		err = fmt.Errorf("%w: a customer key (SSE-C): it is blocked for bucket %q", ErrNotAllowed, obj.Bucket)
	}
	return err
}

// OpenForCustomer returns the DEK of an object that is encrypted under a
// customer's key. Errors: crypt.ErrCustomerKey for a wrong key,
// crypt.ErrEnvelope, ErrNoTenant, ErrKeyName and ErrAudit.
func (k *Keyring) OpenForCustomer(ctx context.Context, obj Object, wrapped, customerKey []byte) (*Lease, error) {
	if err := k.CheckTenant(obj); err != nil {
		return nil, err
	}

	dek, err := crypt.UnwrapByCustomer(customerKey, wrapped, obj)
	l := k.customerLease(obj, dek)
	if err := k.audit(ctx, l, ActionOpen, customerTrace, err); err != nil {
		l.Release()
		return nil, fmt.Errorf("opening a data key: %w", err)
	}
	return l, nil
}

func (k *Keyring) customerLease(obj Object, dek []byte) *Lease {
	return &Lease{keyring: k, key: k.customer, service: k.customer.kms.Load(), obj: obj, unwrapped: dek}
}

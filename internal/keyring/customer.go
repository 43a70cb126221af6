package keyring

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// A customer's key (SSE-C) comes with each request and wraps the DEK right
// here. Nothing of it is remembered: the lease of such a DEK is in force until
// it is released, and its request ends before that.

// newCustomer returns what stands for all customers' keys in leases and audit
// records. It is no key that a rule can name.
func newCustomer() *keyState {
	k := newKey(Key{Name: crypt.CustomerKeyID, Provider: crypt.CustomerKeyID})
	k.kms.Store(&service{id: crypt.CustomerKeyID})
	return k
}

func (k *Keyring) createForCustomer(
	ctx context.Context, obj Object, client string, customerKey []byte,
) (*DataKey, error) {
	dek := make([]byte, crypt.DEKSize)
	rand.Read(dek) // never fails: it ends the program instead
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

// CheckCustomerKeys returns ErrNotAllowed where client may store nothing under
// a key that it brings, and ErrNoRule where it may store nothing at all.
func (k *Keyring) CheckCustomerKeys(obj Object, client string) error {
	r, err := k.Rule(obj, client)
	if err != nil {
		return err
	}
	if r.RefuseCustomerKeys {
		return fmt.Errorf("%w: a key that the client brings", ErrNotAllowed)
	}
	return nil
}

// OpenForCustomer returns the DEK of a stored object that is under a
// customer's key. Errors: crypt.ErrCustomerKey for another key,
// crypt.ErrEnvelope and ErrAudit.
func (k *Keyring) OpenForCustomer(ctx context.Context, obj Object, wrapped, customerKey []byte) (*Lease, error) {
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

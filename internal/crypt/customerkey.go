package crypt

import (
	"errors"
	"fmt"
	"io"
)

// CustomerKeyID is the KMS key id in envelopes of objects that are
// encrypted under a customer's key (SSE-C).
const CustomerKeyID = "sse-c"

// ErrCustomerKey is returned if the client's key is not the one that the
// object is encrypted under.
var ErrCustomerKey = errors.New("crypt: wrong customer key")

const (
	customerForm = 1
	customerSize = 1 + saltSize + DEKSize + TagSize
)

// WrapByCustomer wraps the DEK of an object with the customer's key, which
// is 32 bytes long. Each wrapping derives its own AES key from a random
// salt, so one customer key may serve any number of objects.
func WrapByCustomer(customerKey, dek []byte, obj Object, random io.Reader) ([]byte, error) {
	if err := CheckDEK(dek); err != nil {
		return nil, err
	}

	salt, err := NewSalt(random)
	if err != nil {
		return nil, err
	}

	aead, err := derivedAEAD(customerKey, salt, infoFor(infoCustomer, obj))
	if err != nil {
		return nil, err
	}
	defer Wipe(aead)

	b := append([]byte{customerForm}, salt...)
	return aead.Seal(b, make([]byte, nonceSize), dek, nil), nil
}

// UnwrapByCustomer is the inverse of WrapByCustomer. It returns
// ErrCustomerKey for a wrong key, and ErrEnvelope if wrapped is malformed.
func UnwrapByCustomer(customerKey, wrapped []byte, obj Object) ([]byte, error) {
	if len(wrapped) != customerSize || wrapped[0] != customerForm {
		return nil, fmt.Errorf("%w: a data key of %d bytes wrapped by a customer key", ErrEnvelope, len(wrapped))
	}

	aead, err := derivedAEAD(customerKey, wrapped[1:1+saltSize], infoFor(infoCustomer, obj))
	if err != nil {
		return nil, err
	}
	defer Wipe(aead)

	dek, err := aead.Open(nil, make([]byte, nonceSize), wrapped[1+saltSize:], nil)
	if err != nil {
		return nil, ErrCustomerKey
	}

	return dek, nil
}

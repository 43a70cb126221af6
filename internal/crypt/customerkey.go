package crypt

import (
	"errors"
	"fmt"
	"io"
)

// CustomerKeyID is the KMS key id of what is under a key that the client
// brings with each request (SSE-C).
const CustomerKeyID = "sse-c"

// ErrCustomerKey says that a customer's key is not the one that an object is
// under.
var ErrCustomerKey = errors.New("crypt: another customer key")

const (
	customerForm = 1
	customerSize = 1 + saltSize + DEKSize + TagSize
)

// WrapByCustomer wraps the DEK of an object with the customer's key, 32 bytes.
// Each wrapping has an AES key of its own, so that there is no bound on how
// many objects one customer key may have.
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
// ErrCustomerKey, or ErrEnvelope for what is no such wrapping.
func UnwrapByCustomer(customerKey, wrapped []byte, obj Object) ([]byte, error) {
	if len(wrapped) != customerSize || wrapped[0] != customerForm {
		return nil, fmt.Errorf("%w: a data key under a customer's key, of %d bytes", ErrEnvelope, len(wrapped))
	}

	aead, err := derivedAEAD(customerKey, wrapped[1:1+saltSize], infoFor(infoCustomer, obj))
	if err != nil {
		return nil, err
	}
	defer Wipe(aead)

	dek, err := aead.Open(nil, make([]byte, nonceSize), wrapped[1+saltSize:], nil)
	if err != nil {
		return nil, ErrCustomerKey // what is behind it tells nothing
	}

	return dek, nil
}

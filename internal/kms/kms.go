// Package kms wraps data keys (DEKs) with a key that lives in a key management
// service.
//
// A Wrapper is one such key; there is one file per provider. Every provider
// binds what it wraps to an EncryptionContext, refuses a DEK that cannot be
// one, and answers with a typed *Error, so that callers can tell "the key was
// taken away" from "the KMS cannot be reached". Package kmstest holds the
// contract all providers pass.
//
// Neither an error nor a key id ever holds key material.
//
//	kms.go            Wrapper, and what all providers have in common
//	errors.go         Error and its kinds
//	decorator.go      what retry.go, breaker.go and limit.go have in common
//	local*.go         the provider "local": a key in a file
//	aws*.go           AWS KMS
//	gcp*.go           Google Cloud KMS
//	azure*.go         Azure Key Vault and Managed HSM
//	vault*.go         the transit engine of HashiCorp Vault and OpenBao
//	pkcs11*.go        hardware security modules, with the build tag pkcs11
//	login.go          logins and tokens, apart from the calls that need them
//	loginfile.go      files with credentials that are read again
//	connections.go    giving up dead connections
//	authorities.go    certificate authorities of a KMS
//	keyid.go          comparing key ids
//	version.go        which version of a key has wrapped a blob
//	context.go        the encryption context as bytes
//	trace.go          the KMS's name for a request
package kms

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// DEKSize is the size of every DEK in bytes.
const DEKSize = crypt.DEKSize

// EncryptionContext is what a wrapped DEK is bound to: a DEK wrapped with one
// context does not unwrap with another. It is authenticated, not secret: a KMS
// may write it to its logs in clear (AWS CloudTrail does, see
// https://docs.aws.amazon.com/kms/latest/developerguide/encrypt_context.html).
// Names and values are UTF-8, names are not empty.
type EncryptionContext map[string]string

// Wrapper is one key of a KMS. Implementations are safe for concurrent use.
// All errors are of type *Error.
type Wrapper interface {
	// KeyID names the key, as stored in each object's envelope: printable
	// ASCII, stable for the life of the key, and no secret.
	KeyID() string
	// Wrap encrypts a DEK. The result is opaque, holds at least the DEK's size
	// in bytes, and differs at every call.
	Wrap(ctx context.Context, dek []byte, ec EncryptionContext) (wrapped []byte, err error)
	// Unwrap decrypts what Wrap or Generate returned, for the same key and the
	// same context only. It asks the KMS each time: a provider never remembers
	// DEKs.
	Unwrap(ctx context.Context, wrapped []byte, ec EncryptionContext) (dek []byte, err error)
}

// Generator is a Wrapper whose KMS makes data keys itself, such as AWS
// GenerateDataKey.
type Generator interface {
	// Generate returns a new 32-byte DEK, and the same DEK wrapped as Wrap
	// would have.
	Generate(ctx context.Context, ec EncryptionContext) (dek, wrapped []byte, err error)
}

// Generate makes a new 32-byte DEK under w: by the KMS where it can, else from
// the system's random source followed by a Wrap. It refuses the answer of a
// KMS whose DEK is not 32 bytes or is all zero.
func Generate(ctx context.Context, w Wrapper, ec EncryptionContext) (dek, wrapped []byte, err error) {
	if g, ok := w.(Generator); ok {
		dek, wrapped, err = g.Generate(ctx, ec)
	} else {
		dek = make([]byte, DEKSize)
		rand.Read(dek) // never fails: it ends the program instead
		wrapped, err = Wrap(ctx, w, dek, ec)
	}

	if err == nil {
		err = checkAnswer(w, "generate", dek, wrapped)
	}
	if err != nil {
		clear(dek)
		return nil, nil, err
	}

	return dek, wrapped, nil
}

// Wrap is w.Wrap, and refuses an empty answer: what is sealed with a DEK that
// nobody can unwrap is lost.
func Wrap(ctx context.Context, w Wrapper, dek []byte, ec EncryptionContext) (wrapped []byte, err error) {
	wrapped, err = w.Wrap(ctx, dek, ec)
	if err != nil {
		return nil, err
	}
	return wrapped, checkAnswer(w, "wrap", dek, wrapped)
}

// Unwrap is w.Unwrap, and refuses an answer that is not 32 bytes or is all
// zero, whatever the provider.
func Unwrap(ctx context.Context, w Wrapper, wrapped []byte, ec EncryptionContext) (dek []byte, err error) {
	dek, err = w.Unwrap(ctx, wrapped, ec)
	if err == nil {
		err = checkAnswer(w, "unwrap", dek, wrapped)
	}
	if err != nil {
		clear(dek)
		return nil, err
	}
	return dek, nil
}

// RoundTrip makes a DEK, unwraps it, and makes sure that it does not unwrap
// with another context. It returns the wrapped DEK, whose plaintext nobody has
// any more, and its context.
func RoundTrip(ctx context.Context, w Wrapper) (wrapped []byte, ec EncryptionContext, err error) {
	fault := func(text string) error {
		return &Error{Kind: Internal, Op: "round trip", KeyID: w.KeyID(), Err: errors.New(text)}
	}

	ec = EncryptionContext{"bucket": "cmekproxy-check", "key": "object"}
	dek, wrapped, err := Generate(ctx, w, ec)
	if err != nil {
		return nil, nil, err
	}
	defer clear(dek)

	again, err := Unwrap(ctx, w, wrapped, ec)
	if err != nil {
		return nil, nil, err
	}
	defer clear(again)

	if subtle.ConstantTimeCompare(dek, again) != 1 {
		return nil, nil, fault("the KMS unwrapped another data key than it had wrapped")
	}

	other, err := Unwrap(ctx, w, wrapped, EncryptionContext{"bucket": "cmekproxy-check", "key": "another object"})
	clear(other)

	if err == nil {
		return nil, nil, fault("the KMS ignores the encryption context: a data key unwraps for any object")
	}
	return wrapped, ec, nil
}

func checkAnswer(w Wrapper, op string, dek, wrapped []byte) error {
	if err := crypt.CheckDEK(dek); err != nil {
		return &Error{Kind: Internal, Op: op, KeyID: w.KeyID(), Err: fmt.Errorf("the KMS answered with %w", err)}
	}
	if len(wrapped) == 0 {
		return &Error{Kind: Internal, Op: op, KeyID: w.KeyID(), Err: errors.New("the KMS answered with an empty blob")}
	}
	return nil
}

// checkContext refuses what has no unambiguous form on the wire: JSON turns
// every invalid UTF-8 sequence into the same replacement character, which
// would make two contexts one.
func checkContext(ec EncryptionContext) error {
	for name, value := range ec {
		if name == "" || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return errors.New("an encryption context that is not UTF-8, or has an empty name")
		}
	}
	return nil
}

// checkWrap is what every provider checks before it asks its KMS to wrap.
func checkWrap(ctx context.Context, keyID string, dek []byte, ec EncryptionContext) error {
	if err := crypt.CheckDEK(dek); err != nil {
		return &Error{Kind: Invalid, Op: "wrap", KeyID: keyID, Err: err}
	}
	return checkCall(ctx, "wrap", keyID, ec)
}

// checkCall is what every provider checks before any call.
func checkCall(ctx context.Context, op, keyID string, ec EncryptionContext) error {
	if err := checkContext(ec); err != nil {
		return &Error{Kind: Invalid, Op: op, KeyID: keyID, Err: err}
	}
	if ctx.Err() != nil {
		return contextError(ctx, op, keyID)
	}
	return nil
}

// Limits of the format on a key id, and on key id and blob together: what a
// part header has room for, which is less than an envelope has.
// docs/format.md, sections 3 and 8.
const (
	maxKeyID  = 512
	maxFields = 888
)

// checkKeyID refuses an id that envelopes cannot hold, alone or with a blob of
// blobSize bytes.
func checkKeyID(id string, blobSize int) error {
	for _, c := range []byte(id) {
		if c <= ' ' || c > '~' {
			return errors.New("the key id is not printable ASCII")
		}
	}

	switch {
	case id == "":
		return errors.New("no key id")
	case len(id) > maxKeyID, len(id)+blobSize > maxFields:
		return fmt.Errorf("a key id of %d bytes, with wrapped keys of up to %d bytes, is more than an envelope holds (%d)",
			len(id), blobSize, maxFields)
	}

	return nil
}

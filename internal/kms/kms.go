// Package kms wraps data keys (DEKs) with a key in a key management service
// (KMS).
//
// A Wrapper is one such key. Every provider binds a wrapped DEK to an
// EncryptionContext, refuses unusable DEKs, and returns errors of type
// *Error. Its Kind distinguishes a key that was revoked from a KMS that
// cannot be reached. Package kmstest contains the contract tests that all
// providers pass.
//
// Errors and key ids never contain key material.
//
//	kms.go            Wrapper, and what all providers share
//	errors.go         Error and its kinds
//	decorator.go      what retry.go, breaker.go and limit.go share
//	local*.go         provider "local": a key in a file
//	aws*.go           AWS KMS; awsapi.go makes the calls
//	gcp*.go           Google Cloud KMS
//	azure*.go         Azure Key Vault and Managed HSM
//	vault*.go         the transit engine of HashiCorp Vault and OpenBao
//	pkcs11*.go        hardware security modules, with build tag pkcs11
//	members.go        several keys that must all agree, or of which any is enough
//	recovery.go       recovery keys, which open data keys without the KMS
//	bundle.go         encoding the wraps of several keys
//	login.go          logins and tokens, separate from calls
//	loginfile.go      reloading files with credentials
//	connections.go    closing dead connections
//	authorities.go    certificate authorities for a KMS
//	describe*.go      what a KMS says about a key, without changing it
//	keyid.go          comparing key ids
//	version.go        which version of a key has wrapped a blob
//	context.go        encoding the encryption context
//	trace.go          the KMS's request id
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

// DEKSize is the size of a DEK in bytes.
const DEKSize = crypt.DEKSize

// EncryptionContext binds a wrapped DEK: it can be unwrapped only with the
// same context. The context is authenticated but not secret, and a KMS may
// log it in plaintext, as AWS CloudTrail does
// (https://docs.aws.amazon.com/kms/latest/developerguide/encrypt_context.html).
// Names and values are UTF-8; names are not empty.
type EncryptionContext map[string]string

// Wrapper is one key of a KMS. Implementations are safe for concurrent use.
// All errors are of type *Error.
type Wrapper interface {
	// KeyID identifies the key in the envelopes of objects. It is printable
	// ASCII, never changes, and is not secret.
	KeyID() string
	// Wrap encrypts a DEK. The result is opaque, is at least as long as the
	// DEK, and is different for each call.
	Wrap(ctx context.Context, dek []byte, ec EncryptionContext) (wrapped []byte, err error)
	// Unwrap decrypts a DEK wrapped by Wrap or Generate with the same key
	// and context. It asks the KMS every time: providers do not cache DEKs.
	Unwrap(ctx context.Context, wrapped []byte, ec EncryptionContext) (dek []byte, err error)
}

// Generator is a Wrapper whose KMS can generate data keys, as AWS KMS does
// with GenerateDataKey.
type Generator interface {
	// Generate returns a new DEK of 32 bytes, and the same DEK wrapped.
	Generate(ctx context.Context, ec EncryptionContext) (dek, wrapped []byte, err error)
}

// Generate returns a new DEK of 32 bytes and its wrapped form. If w is a
// Generator, the KMS generates the DEK; otherwise it comes from
// crypto/rand. A DEK from the KMS must have 32 bytes and must not be all
// zeros.
func Generate(ctx context.Context, w Wrapper, ec EncryptionContext) (dek, wrapped []byte, err error) {
	if g, ok := w.(Generator); ok {
		dek, wrapped, err = g.Generate(ctx, ec)
	} else {
		dek = make([]byte, DEKSize)
		rand.Read(dek) // never fails: it crashes the program instead
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

// Wrap calls w.Wrap, and refuses an empty result: data encrypted under a
// DEK that cannot be unwrapped is lost.
func Wrap(ctx context.Context, w Wrapper, dek []byte, ec EncryptionContext) (wrapped []byte, err error) {
	wrapped, err = w.Wrap(ctx, dek, ec)
	if err != nil {
		return nil, err
	}
	return wrapped, checkAnswer(w, "wrap", dek, wrapped)
}

// Unwrap calls w.Unwrap, and refuses a DEK that does not have 32 bytes or
// is all zeros.
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

// TrialBucket is the bucket in the encryption context of RoundTrip, which
// concerns no object. A KMS policy that allows only some encryption contexts
// must allow TrialContext too.
const TrialBucket = "cmekproxy-check"

// TrialContext returns the encryption context of RoundTrip.
func TrialContext() EncryptionContext {
	return EncryptionContext{"bucket": TrialBucket, "key": "object"}
}

// RoundTrip generates a DEK, unwraps it, and checks that it does not unwrap
// with another context. It returns the wrapped DEK and its context. The
// plaintext DEK is wiped.
func RoundTrip(ctx context.Context, w Wrapper) (wrapped []byte, ec EncryptionContext, err error) {
	fault := func(text string) error {
		return &Error{Kind: Internal, Op: "round trip", KeyID: w.KeyID(), Err: errors.New(text)}
	}

	ec = TrialContext()
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
		return nil, nil, fault("the KMS unwrapped a different data key than it had wrapped")
	}

	other, err := Unwrap(ctx, w, wrapped, EncryptionContext{"bucket": TrialBucket, "key": "another object"})
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

// checkContext refuses contexts without an unambiguous encoding. JSON
// replaces every invalid UTF-8 sequence by the same character, so two
// contexts could become one.
func checkContext(ec EncryptionContext) error {
	for name, value := range ec {
		if name == "" || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return errors.New("the encryption context is not UTF-8, or has an empty name")
		}
	}
	return nil
}

// checkWrap makes the checks of all providers before a wrap.
func checkWrap(ctx context.Context, keyID string, dek []byte, ec EncryptionContext) error {
	if err := crypt.CheckDEK(dek); err != nil {
		return &Error{Kind: Invalid, Op: "wrap", KeyID: keyID, Err: err}
	}
	return checkCall(ctx, "wrap", keyID, ec)
}

// checkCall makes the checks of all providers before any call.
func checkCall(ctx context.Context, op, keyID string, ec EncryptionContext) error {
	if err := checkContext(ec); err != nil {
		return &Error{Kind: Invalid, Op: op, KeyID: keyID, Err: err}
	}
	if ctx.Err() != nil {
		return contextError(ctx, op, keyID)
	}
	return nil
}

// The format's limits, in bytes, on a key id, and on key id and blob
// together. The second is the space in a part header, which is less than in
// an envelope. See docs/format.md, sections 3 and 8.
const (
	maxKeyID  = 512
	maxFields = 888
)

// checkKeyID refuses an id that does not fit in envelopes, alone or
// together with a blob of blobSize bytes.
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
		return fmt.Errorf("the key id (%d bytes) and a wrapped key (up to %d bytes) "+
			"do not fit in an envelope (%d bytes)",
			len(id), blobSize, maxFields)
	}

	return nil
}

// Package kmstest provides what tests of key management need: a contract
// test that every provider of package kms must pass, and strict servers
// that implement the APIs of AWS KMS, Azure Key Vault, Google Cloud KMS and
// Vault.
//
// There is no example: it is for tests, which show its use.
package kmstest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// RunContract runs the tests that every provider must pass. Each call of
// newKey must return a Wrapper for a new key, and the keys must exist side
// by side. Cases in except are skipped because the peer is known to fail
// them; the values say why.
func RunContract(t *testing.T, newKey func(t *testing.T) kms.Wrapper, except map[string]string) {
	t.Helper()
	for _, c := range []struct {
		name string
		run  func(*testing.T, func(*testing.T) kms.Wrapper)
	}{
		{"key ids", testKeyIDs},
		{"round trip", testRoundTrip},
		{"generate", testGenerate},
		{"empty context", testEmptyContext},
		{"two wraps differ", testWrapsDiffer},
		{"wrong context", testWrongContext},
		{"wrong key", testWrongKey},
		{"flipped bits", testFlippedBits},
		{"truncated", testTruncated},
		{"trailing byte", testTrailing},
		{"foreign blobs", testForeignBlobs},
		{"unusable DEKs", testUnusableDEKs},
		{"invalid context", testInvalidContext},
		{"canceled", testCanceled},
		{"concurrent", testConcurrent},
		{"inputs are kept", testInputsKept},
	} {
		t.Run(c.name, func(t *testing.T) {
			if why, ok := except[c.name]; ok {
				t.Skip(why)
			}
			c.run(t, newKey)
		})
	}
}

// Context returns the encryption context of an object, as package keyring
// builds it.
func Context(bucket, key string) kms.EncryptionContext {
	return kms.EncryptionContext{"bucket": bucket, "key": key}
}

// NewDEK returns 32 random bytes.
func NewDEK() []byte {
	dek := make([]byte, kms.DEKSize)
	rand.Read(dek)
	return dek
}

var contractContext = Context("bucket", "a//b/../ü %2F+\"\\\u2028.txt")

func testKeyIDs(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	a, b := newKey(t), newKey(t)
	if a.KeyID() == b.KeyID() {
		t.Errorf("two keys have one id %q", a.KeyID())
	}
	if id := a.KeyID(); id == "" || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		t.Errorf("key id %q is empty or not printable ASCII", id)
	}
}

func testRoundTrip(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w, dek := newKey(t), NewDEK()
	got := unwrap(t, w, wrap(t, w, dek, contractContext), contractContext)
	if !bytes.Equal(got, dek) {
		t.Error("the DEK came back changed")
	}
}

func testGenerate(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w := newKey(t)
	dek, blob, err := kms.Generate(t.Context(), w, contractContext)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(unwrap(t, w, blob, contractContext), dek) {
		t.Error("the blob contains another DEK")
	}

	other, _, err := kms.Generate(t.Context(), w, contractContext)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(other, dek) {
		t.Error("two DEKs are one")
	}
}

func testEmptyContext(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w, dek := newKey(t), NewDEK()
	blob := wrap(t, w, dek, nil)
	if !bytes.Equal(unwrap(t, w, blob, kms.EncryptionContext{}), dek) {
		t.Error("no context and an empty one are not the same")
	}
	mustFail(t, w, blob, contractContext)
}

func testWrapsDiffer(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w, dek := newKey(t), NewDEK()
	a, b := wrap(t, w, dek, contractContext), wrap(t, w, dek, contractContext)
	if bytes.Equal(a, b) {
		t.Error("two wraps of one DEK are equal")
	}
	if bytes.Contains(a, dek) {
		t.Error("the blob contains the plaintext DEK")
	}
}

func testWrongContext(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w := newKey(t)
	blob := wrap(t, w, NewDEK(), Context("bu", "cket"))

	for name, ec := range map[string]kms.EncryptionContext{
		"none":            nil,
		"other key":       Context("bu", "cket2"),
		"other bucket":    Context("bu2", "cket"),
		"other case":      Context("bu", "Cket"),
		"moved boundary":  Context("buc", "ket"),
		"swapped values":  Context("cket", "bu"),
		"missing name":    {"bucket": "bu"},
		"additional name": {"bucket": "bu", "key": "cket", "x": ""},
		"other names":     {"Bucket": "bu", "Key": "cket"},
		"joined":          {"bucket": "bu,key=cket"},
	} {
		if err := mustFail(t, w, blob, ec); err != nil && err.Kind != kms.InvalidCiphertext {
			t.Errorf("%s: kind %v, want invalid ciphertext", name, err.Kind)
		}
	}
}

func testWrongKey(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	a, b := newKey(t), newKey(t)
	blob := wrap(t, a, NewDEK(), contractContext)
	if err := mustFail(t, b, blob, contractContext); err != nil && err.Kind != kms.InvalidCiphertext {
		t.Errorf("kind %v, want invalid ciphertext: %v", err.Kind, err)
	}
}

func testFlippedBits(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w := newKey(t)
	blob := wrap(t, w, NewDEK(), contractContext)
	for i := range blob {
		flipped := slices.Clone(blob)
		flipped[i] ^= 1 << (i % 8)
		mustFail(t, w, flipped, contractContext)
		if t.Failed() {
			t.Fatalf("byte %d of %d, bit %d", i, len(blob), i%8)
		}
	}
}

func testTruncated(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w := newKey(t)
	blob := wrap(t, w, NewDEK(), contractContext)
	for n := range blob {
		mustFail(t, w, blob[:n], contractContext)
		if t.Failed() {
			t.Fatalf("cut to %d of %d bytes", n, len(blob))
		}
	}
}

func testTrailing(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w := newKey(t)
	blob := wrap(t, w, NewDEK(), contractContext)
	mustFail(t, w, append(blob, 0), contractContext)
}

func testForeignBlobs(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w := newKey(t)
	for _, blob := range [][]byte{nil, {}, {0}, make([]byte, 61), make([]byte, 184), bytes.Repeat([]byte{1}, 7000)} {
		if err := mustFail(t, w, blob, contractContext); err != nil && (err.Revoked() || kms.IsUnreachable(err)) {
			t.Errorf("%d foreign bytes pass for a statement on the key: %v", len(blob), err)
		}
	}
}

func testUnusableDEKs(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w := newKey(t)
	for _, dek := range [][]byte{nil, make([]byte, 32), {1}, bytes.Repeat([]byte{7}, 31), bytes.Repeat([]byte{7}, 33)} {
		_, err := w.Wrap(t.Context(), dek, contractContext)
		if e := kmsError(t, err); e != nil && e.Kind != kms.Invalid {
			t.Errorf("%d bytes: %v, want invalid request", len(dek), err)
		}
	}
}

func testInvalidContext(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w := newKey(t)
	for _, ec := range []kms.EncryptionContext{{"": "x"}, Context("b", "\xff"), {"\xff": "x"}} {
		_, err := w.Wrap(t.Context(), NewDEK(), ec)
		if e := kmsError(t, err); e != nil && e.Kind != kms.Invalid {
			t.Errorf("%q: %v, want invalid request", ec, err)
		}
	}
}

func testCanceled(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w := newKey(t)
	blob := wrap(t, w, NewDEK(), contractContext)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, wrapErr := w.Wrap(ctx, NewDEK(), contractContext)
	_, unwrapErr := w.Unwrap(ctx, blob, contractContext)
	_, _, generateErr := kms.Generate(ctx, w, contractContext)
	for _, err := range []error{wrapErr, unwrapErr, generateErr} {
		if e := kmsError(t, err); e != nil && (e.Kind != kms.Canceled || !errors.Is(err, context.Canceled)) {
			t.Errorf("%v, want canceled", err)
		}
	}
}

func testConcurrent(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w := newKey(t)
	var wg sync.WaitGroup

	for range 16 {
		wg.Go(func() {
			for range 8 {
				dek := NewDEK()
				blob, err := w.Wrap(t.Context(), dek, contractContext)
				if err != nil {
					t.Error(err)
					return
				}

				got, err := w.Unwrap(t.Context(), blob, contractContext)
				if err != nil || !bytes.Equal(got, dek) {
					t.Errorf("wrong DEK, or %v", err)
					return
				}
			}
		})
	}

	wg.Wait()
}

func testInputsKept(t *testing.T, newKey func(*testing.T) kms.Wrapper) {
	w, dek := newKey(t), NewDEK()
	dekBefore := slices.Clone(dek)
	blob := wrap(t, w, dek, contractContext)
	blobBefore := slices.Clone(blob)
	got := unwrap(t, w, blob, contractContext)
	clear(got) // a caller wipes its result

	if !bytes.Equal(dek, dekBefore) || !bytes.Equal(blob, blobBefore) {
		t.Error("an argument was changed, or shares memory with a result")
	}
	if !bytes.Equal(unwrap(t, w, blob, contractContext), dek) {
		t.Error("wiping a result changed the next one")
	}
}

func wrap(t *testing.T, w kms.Wrapper, dek []byte, ec kms.EncryptionContext) []byte {
	t.Helper()
	blob, err := w.Wrap(t.Context(), dek, ec)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

func unwrap(t *testing.T, w kms.Wrapper, blob []byte, ec kms.EncryptionContext) []byte {
	t.Helper()
	dek, err := kms.Unwrap(t.Context(), w, blob, ec)
	if err != nil {
		t.Fatal(err)
	}
	return dek
}

func mustFail(t *testing.T, w kms.Wrapper, blob []byte, ec kms.EncryptionContext) *kms.Error {
	t.Helper()
	dek, err := w.Unwrap(t.Context(), blob, ec)
	if dek != nil {
		t.Error("a DEK came with the error")
	}
	return kmsError(t, err)
}

func kmsError(t *testing.T, err error) *kms.Error {
	t.Helper()
	if err == nil {
		t.Error("no error")
		return nil
	}
	e, ok := errors.AsType[*kms.Error](err)
	if !ok {
		t.Errorf("error of type %T: %v", err, err)
	}
	return e
}

package kms_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// badKMS returns fixed results.
type badKMS struct{ dek, wrapped []byte }

func (b badKMS) KeyID() string { return "bad" }

func (b badKMS) Wrap(context.Context, []byte, kms.EncryptionContext) ([]byte, error) {
	return b.wrapped, nil
}

func (b badKMS) Unwrap(context.Context, []byte, kms.EncryptionContext) ([]byte, error) {
	return bytes.Clone(b.dek), nil
}

type badGenerator struct{ badKMS }

func (b badGenerator) Generate(context.Context, kms.EncryptionContext) (dek, wrapped []byte, err error) {
	return bytes.Clone(b.dek), b.wrapped, nil
}

func TestAnswersOfABrokenKMSAreRefused(t *testing.T) {
	good, blob := bytes.Repeat([]byte{1}, 32), []byte("blob")
	for name, b := range map[string]badKMS{
		"no DEK":       {nil, blob},
		"short DEK":    {good[:31], blob},
		"long DEK":     {append(bytes.Clone(good), 1), blob},
		"DEK of zeros": {make([]byte, 32), blob},
	} {
		if dek, _, err := kms.Generate(t.Context(), badGenerator{b}, nil); err == nil || dek != nil {
			t.Errorf("generate: %s was taken", name)
		}
		if dek, err := kms.Unwrap(t.Context(), b, blob, nil); err == nil || dek != nil {
			t.Errorf("unwrap: %s was taken", name)
		}
	}

	for name, w := range map[string]kms.Wrapper{
		"wrap":     badKMS{good, nil},
		"generate": badGenerator{badKMS{good, nil}},
	} {
		if _, _, err := kms.Generate(t.Context(), w, nil); err == nil {
			t.Errorf("%s: an empty blob was taken", name)
		}
	}

	if _, _, err := kms.Generate(t.Context(), badGenerator{badKMS{good, blob}}, nil); err != nil {
		t.Errorf("a good answer was refused: %v", err)
	}
}

func TestErrorKinds(t *testing.T) {
	revoked := map[kms.Kind]bool{kms.Disabled: true, kms.Denied: true, kms.PendingDeletion: true, kms.NotFound: true}
	for kind := kms.Internal; kind <= kms.Unreachable; kind++ {
		err := fmt.Errorf("outer: %w", &kms.Error{Kind: kind, Op: "unwrap", KeyID: "k", Err: context.DeadlineExceeded})
		if kms.IsRevoked(err) != revoked[kind] {
			t.Errorf("%v: IsRevoked is %v", kind, kms.IsRevoked(err))
		}
		if kms.IsThrottled(err) != (kind == kms.Throttled) || kms.IsUnreachable(err) != (kind == kms.Unreachable) {
			t.Errorf("%v is taken for another kind", kind)
		}

		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v hides its cause", kind)
		}
	}

	if kms.IsRevoked(nil) || kms.IsRevoked(errors.New("x")) || kms.IsUnreachable(nil) {
		t.Error("errors of others have a kind")
	}

	err := &kms.Error{Kind: kms.Disabled, Op: "unwrap", KeyID: "k", Reason: "DisabledException", Err: errors.New("why")}
	if got, want := err.Error(), "kms: unwrap with k: key disabled (DisabledException): why"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

package kms_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// decorators contains each decorator alone, and all of them in the proxy's
// order.
var decorators = map[string]func(kms.Wrapper) kms.Wrapper{
	"limit":   withLimit,
	"retry":   withRetry,
	"breaker": withBreaker,
	"all":     func(w kms.Wrapper) kms.Wrapper { return withRetry(withBreaker(withLimit(w))) },
}

func withLimit(w kms.Wrapper) kms.Wrapper {
	return kms.Limit(w, kms.LimitConfig{MaxConcurrent: 3, PerSecond: 10000})
}
func withRetry(w kms.Wrapper) kms.Wrapper   { return kms.Retry(w, kms.RetryConfig{MaxAttempts: 3}) }
func withBreaker(w kms.Wrapper) kms.Wrapper { return kms.Breaker(w, kms.BreakerConfig{}) }

func TestContractAroundALocalKey(t *testing.T) {
	for name, wrap := range decorators {
		t.Run(name, func(t *testing.T) {
			kmstest.RunContract(t, func(t *testing.T) kms.Wrapper {
				w, _ := newLocal(t)
				return wrap(w)
			}, nil)
		})
	}
}

func TestContractAroundAnAWSKey(t *testing.T) {
	for name, wrap := range decorators {
		t.Run(name, func(t *testing.T) {
			server := kmstest.StartTest(t)
			kmstest.RunContract(t, func(t *testing.T) kms.Wrapper { return wrap(server.NewKey(t, nil)) }, nil)
			w := wrap(server.NewKey(t, nil))
			before := server.Calls()
			_, _, err := kms.Generate(t.Context(), w, nil)
			must(t, err)
			after := server.Calls()
			if after["GenerateDataKey"] != before["GenerateDataKey"]+1 || after["Encrypt"] != before["Encrypt"] {
				t.Errorf("Generate did not use the KMS's own: %v, then %v", before, after)
			}
		})
	}
}

func TestKeyIDPassesThrough(t *testing.T) {
	inner, _ := newLocal(t)
	for name, wrap := range decorators {
		if got := wrap(inner).KeyID(); got != inner.KeyID() {
			t.Errorf("%s: key id %q, want %q", name, got, inner.KeyID())
		}
	}
}

// Each call must reach the KMS: a cached DEK in a decorator would outlive
// the key.
func TestNoDecoratorRemembersADEK(t *testing.T) {
	for name, wrap := range decorators {
		server := kmstest.StartTest(t)
		w := wrap(server.NewKey(t, nil))
		dek, blob, err := kms.Generate(t.Context(), w, nil)
		must(t, err)

		if got, err := kms.Unwrap(t.Context(), w, blob, nil); err != nil || !bytes.Equal(got, dek) {
			t.Errorf("%s: %v", name, err)
		}

		must(t, server.DisableKey(w.KeyID()))
		if got, err := kms.Unwrap(t.Context(), w, blob, nil); got != nil || !kms.IsRevoked(err) {
			t.Errorf("%s: after the key was disabled: %v, want revoked", name, err)
		}
	}
}

// fakeKMS returns answer(n) for call n, counted from 1; nil means success.
type fakeKMS struct {
	calls  atomic.Int64
	answer func(ctx context.Context, n int64) error
}

var fakeDEK = bytes.Repeat([]byte{7}, kms.DEKSize)

func (f *fakeKMS) KeyID() string { return "fake" }

func (f *fakeKMS) next(ctx context.Context) error {
	n := f.calls.Add(1)
	if f.answer == nil {
		return nil
	}
	return f.answer(ctx, n)
}

func (f *fakeKMS) Wrap(ctx context.Context, _ []byte, _ kms.EncryptionContext) ([]byte, error) {
	if err := f.next(ctx); err != nil {
		return nil, err
	}
	return []byte("blob"), nil
}

func (f *fakeKMS) Unwrap(ctx context.Context, _ []byte, _ kms.EncryptionContext) ([]byte, error) {
	if err := f.next(ctx); err != nil {
		return nil, err
	}
	return bytes.Clone(fakeDEK), nil
}

// always returns a KMS with a constant result.
func always(kind kms.Kind) *fakeKMS {
	return &fakeKMS{answer: func(context.Context, int64) error { return failure(kind) }}
}

// failure returns an error of a KMS, with an error name.
func failure(kind kms.Kind) error {
	return &kms.Error{Kind: kind, Op: "unwrap", KeyID: "fake", Reason: fmt.Sprintf("Kind%d", kind)}
}

func unwrapOnce(ctx context.Context, w kms.Wrapper) error {
	_, err := w.Unwrap(ctx, []byte("blob"), nil)
	return err
}

// wantError checks kind, reason and cause; cause may be nil.
func wantError(t *testing.T, err error, kind kms.Kind, reason string, cause error) {
	t.Helper()
	e, ok := errors.AsType[*kms.Error](err)
	if !ok || e.Kind != kind || e.Reason != reason || cause != nil && !errors.Is(err, cause) {
		t.Errorf("got %v, want %v (%s): %v", err, kind, reason, cause)
	}
}

package kms_test

import (
	"context"
	"regexp"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

var traced = kmstest.Context("b", "k")

// Each KMS that names its requests has the name of the last one in the trace, of refused ones too where it tells, and
// nobody else's request is in it.
func TestTrace(t *testing.T) {
	aws, azure := kmstest.StartTest(t), kmstest.StartAzure(t)
	name := regexp.MustCompile(`^[0-9a-f]{32}$`)
	for _, row := range []struct {
		provider string
		w        kms.Wrapper
		refuse   func()
	}{
		{"aws", aws.NewKey(t, nil), func() { aws.SetFaults(kmstest.Faults{Deny: true}) }},
		{"azure", azure.NewKey(t, "RSA-2048", nil), func() { azure.SetTrouble(kmstest.Trouble{Deny: true}) }},
		{"vault", kmstest.StartVault(t).NewKey(t, nil), nil}, // which does not name the requests that it refuses
	} {
		w := kms.Retry(kms.Breaker(kms.Limit(row.w, kms.LimitConfig{}), kms.BreakerConfig{}), kms.RetryConfig{})
		seen := map[string]bool{}
		call := func(op string, run func(context.Context) error) {
			t.Helper()
			trace := &kms.Trace{}
			_ = run(kms.WithTrace(t.Context(), trace))
			if id := trace.RequestID(); !name.MatchString(id) || seen[id] {
				t.Errorf("%s %s: request id %q, before it %v", row.provider, op, id, seen)
			}
			seen[trace.RequestID()] = true
		}
		var wrapped []byte
		call("generate", func(ctx context.Context) (err error) {
			_, wrapped, err = kms.Generate(ctx, w, traced)
			return err
		})
		call("wrap", func(ctx context.Context) error {
			_, err := w.Wrap(ctx, kmstest.NewDEK(), traced)
			return err
		})
		unwrap := func(ctx context.Context) error {
			_, err := w.Unwrap(ctx, wrapped, traced)
			return err
		}
		call("unwrap", unwrap)
		if row.refuse != nil {
			row.refuse()
			call("refused unwrap", unwrap)
		}
	}
	untold := &kms.Trace{}
	local, _ := newLocal(t)
	if _, _, err := kms.Generate(kms.WithTrace(t.Context(), untold), local, traced); err != nil || untold.RequestID() != "" {
		t.Errorf("a local key: request id %q, %v", untold.RequestID(), err)
	}
}

func TestKeyVersion(t *testing.T) {
	version := func(w kms.Wrapper) string {
		t.Helper()
		_, wrapped, err := kms.Generate(t.Context(), w, traced)
		if err != nil {
			t.Fatal(err)
		}
		around := kms.Retry(w, kms.RetryConfig{})
		if got, cut := kms.KeyVersion(around, wrapped), kms.KeyVersion(around, wrapped[:20]); got != kms.KeyVersion(w, wrapped) || cut != "" {
			t.Errorf("%T: %q through a decorator, %q of a blob that was cut", w, got, cut)
		}
		return kms.KeyVersion(w, wrapped)
	}
	vault := kmstest.StartVault(t)
	key := vault.NewKey(t, nil)
	if got := version(key); got != "1" {
		t.Errorf("vault: %q", got)
	}
	vault.RotateKey("key-1")
	if got := version(key); got != "2" {
		t.Errorf("vault after a rotation: %q", got)
	}
	local, path := newLocal(t)
	if got := version(local); got != "1" {
		t.Errorf("local: %q", got)
	}
	rotate(t, path)
	if got := version(local); got != "2" {
		t.Errorf("local after a rotation: %q", got)
	}
	if got := version(kmstest.StartAzure(t).NewKey(t, "oct-HSM", nil)); len(got) != 32 || strings.Trim(got, "0123456789abcdef") != "" {
		t.Errorf("azure: %q", got)
	}
	if got := version(kmstest.StartTest(t).NewKey(t, nil)); got != "" {
		t.Errorf("aws, whose blobs name no version: %q", got)
	}
}

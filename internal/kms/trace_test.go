package kms_test

import (
	"context"
	"regexp"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

var traced = kmstest.Context("b", "k")

// If a KMS has request ids, the trace contains the last one, also after a
// refusal if the KMS reports it, and never that of another call.
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
		{"vault", kmstest.StartVault(t).NewKey(t, nil), nil}, // sends no request id with errors
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
	if _, _, err := kms.Generate(kms.WithTrace(t.Context(), untold), local, traced); err != nil ||
		untold.RequestID() != "" {
		t.Errorf("a local key: request id %q, %v", untold.RequestID(), err)
	}
}

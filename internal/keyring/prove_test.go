package keyring_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// A key that wraps, but does not unwrap, is found out although its data key
// is in the cache.
func TestProve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := newLocal(t)
		s := &slow{Wrapper: w}
		k := newRing(t, s, time.Minute, nil)
		source := create(t, k)
		defer source.Release()
		fresh, err := k.Rewrap(t.Context(), source.Lease, obj, "app", keyring.Choice{})
		must(t, err)
		defer fresh.Release()

		must(t, k.Prove(t.Context(), fresh))
		s.wantUnwraps(t, 1)

		s.swap.Store(true)
		if err := k.Prove(t.Context(), fresh); !errors.Is(err, keyring.ErrChanged) {
			t.Errorf("another data key: %v", err)
		}
		s.fail.Store(&kms.Error{Kind: kms.Denied})
		if err := k.Prove(t.Context(), fresh); !kms.IsRevoked(err) {
			t.Errorf("a refusal: %v", err)
		}
		must(t, k.SetRules([]keyring.Rule{{Buckets: []string{"other"}, Key: "k"}}))
		if err := k.Prove(t.Context(), fresh); !errors.Is(err, keyring.ErrNotRead) {
			t.Errorf("no rule names the key: %v", err)
		}
	})
}

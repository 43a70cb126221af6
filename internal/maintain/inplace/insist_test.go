package inplace_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// TestInsistWaitsForTheKMS: an unreachable KMS is not a fault of the object,
// however long it lasts.
func TestInsistWaitsForTheKMS(t *testing.T) {
	for _, kind := range []kms.Kind{kms.Unreachable, kms.Throttled} {
		synctest.Test(t, func(t *testing.T) {
			back := time.Now().Add(6 * time.Hour)
			told, attempts := 0, 0
			r := inplace.Insist(
				t.Context(),
				stored.Entry{Key: "k"},
				func(error) { told++ },
				func(context.Context) (walk.Result, error) {
					attempts++
					if time.Now().Before(back) {
						return walk.Result{}, fmt.Errorf("opening: %w", &kms.Error{Kind: kind})
					}
					return walk.Result{Outcome: walk.Done}, nil
				},
			)
			if r.Err != nil || r.Outcome != walk.Done || told != attempts-1 {
				t.Errorf("%v: %+v after %d attempts, %d reports", kind, r, attempts, told)
			}

			if attempts > 6*3600/25 {
				t.Errorf("%v: %d attempts in six hours", kind, attempts)
			}
		})
	}
}

// TestInsistGivesUp: permanent errors and a canceled context end the
// attempts.
func TestInsistGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts := 0
		r := inplace.Insist(t.Context(), stored.Entry{Key: "k"}, nil, func(context.Context) (walk.Result, error) {
			attempts++
			return walk.Result{}, &kms.Error{Kind: kms.Disabled}
		})
		if r.Outcome != walk.Failed || !kms.IsRevoked(r.Err) || attempts != 1 {
			t.Errorf("a key that is disabled: %+v after %d attempts", r, attempts)
		}

		attempts = 0
		r = inplace.Insist(t.Context(), stored.Entry{Key: "k"}, nil, func(context.Context) (walk.Result, error) {
			attempts++
			return walk.Result{}, inplace.ErrUnanswered
		})
		if r.Outcome != walk.Failed || !errors.Is(r.Err, inplace.ErrUnanswered) || attempts != 4 {
			t.Errorf("a store that is away: %+v after %d attempts", r, attempts)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r = inplace.Insist(ctx, stored.Entry{Key: "k"}, nil, func(context.Context) (walk.Result, error) {
			return walk.Result{}, &kms.Error{Kind: kms.Unreachable}
		})
		if r.Outcome != walk.Failed || ctx.Err() == nil {
			t.Errorf("when ctx is canceled: %+v", r)
		}
	})
}

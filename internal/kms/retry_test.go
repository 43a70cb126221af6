package kms_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// longest is a jitter function that always returns the limit, so that times
// are predictable.
func longest(limit time.Duration) time.Duration { return limit }

func TestRetryBacksOff(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		for _, kind := range []kms.Kind{kms.Throttled, kms.Unreachable} {
			var at []time.Duration
			start := time.Now()
			inner := &fakeKMS{answer: func(_ context.Context, n int64) error {
				at = append(at, time.Since(start)/time.Millisecond)
				if n == 7 {
					return nil
				}
				return failure(kind)
			}}

			w := kms.Retry(inner, kms.RetryConfig{Max: 500 * time.Millisecond, Jitter: longest})
			if err := unwrapOnce(t.Context(), w); err != nil {
				t.Errorf("%v: %v", kind, err)
			}
			if want := []time.Duration{0, 50, 150, 350, 750, 1250, 1750}; !slices.Equal(at, want) {
				t.Errorf("%v: attempts at %v ms, want %v", kind, at, want)
			}
		}
	})
}

func TestRetryLeavesOtherAnswersAlone(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		for kind := kms.Internal; kind <= kms.Unreachable; kind++ {
			if kind == kms.Throttled || kind == kms.Unreachable {
				continue
			}

			inner := always(kind)
			_, _, err := kms.Generate(t.Context(), kms.Retry(inner, kms.RetryConfig{}), nil)
			if e, ok := errors.AsType[*kms.Error](err); !ok || e.Kind != kind || inner.calls.Load() != 1 {
				t.Errorf("%v: %d attempts and %v", kind, inner.calls.Load(), err)
			}
		}
	})
}

func TestRetryEndsBeforeTheDeadline(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		answers := []error{failure(kms.Unreachable), failure(kms.Unreachable), failure(kms.Throttled)}
		inner := &fakeKMS{answer: func(_ context.Context, n int64) error { return answers[n-1] }}
		w, start := kms.Retry(inner, kms.RetryConfig{Base: 100 * time.Millisecond, Jitter: longest}), time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond) // where the third wait would end
		defer cancel()

		if err := unwrapOnce(ctx, w); !errors.Is(err, answers[2]) {
			t.Errorf("%v, want the last answer of the KMS, %v", err, answers[2])
		}
		if took := time.Since(start); took != 300*time.Millisecond {
			t.Errorf("answered after %v, want at once after the last attempt, at 300 ms", took)
		}
	})
}

func TestRetryMaxAttempts(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		for attempts := 1; attempts <= 4; attempts++ {
			inner := always(kms.Throttled)
			err := unwrapOnce(t.Context(), kms.Retry(inner, kms.RetryConfig{MaxAttempts: attempts}))
			if n := inner.calls.Load(); n != int64(attempts) || !kms.IsThrottled(err) {
				t.Errorf("%d attempts, want %d: %v", n, attempts, err)
			}
		}
	})
}

func TestRetryCanceled(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		inner := always(kms.Unreachable)
		w, start := kms.Retry(inner, kms.RetryConfig{Base: time.Minute, Max: time.Minute, Jitter: longest}), time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		wantError(t, unwrapOnce(ctx, w), kms.Canceled, "", context.Canceled)
		if took := time.Since(start); took != time.Second || inner.calls.Load() != 1 {
			t.Errorf("%d attempts in %v, want one, and an end at the cancel", inner.calls.Load(), took)
		}
	})
}

// Errors of Breaker and Limit are not retried, and do not hide the last
// error of the KMS.
func TestRetryOfWhatWasNotAsked(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		open := &kms.Error{Kind: kms.Unreachable, Op: "unwrap", KeyID: "fake", Reason: "circuit open", Err: kms.ErrOpen}
		late := &kms.Error{Kind: kms.Throttled, Op: "unwrap", KeyID: "fake", Reason: "local limit", Err: kms.ErrLimit}
		for _, local := range []error{open, late} {
			first := failure(kms.Throttled)
			for _, answers := range [][]error{{local}, {first, local}} {
				inner := &fakeKMS{answer: func(_ context.Context, n int64) error {
					if n > int64(len(answers)) {
						return nil
					}
					return answers[n-1]
				}}

				err := unwrapOnce(t.Context(), kms.Retry(inner, kms.RetryConfig{}))
				if n := int(inner.calls.Load()); err != answers[0] || n != len(answers) { //nolint:errorlint // same
					t.Errorf("%d calls and %v; want %d and %v", n, err, len(answers), answers[0])
				}
			}
		}
	})
}

// TestRetryBudget: a KMS that throttles must not get several times as many
// calls.
func TestRetryBudget(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		const calls = 300
		throttling := true
		inner := &fakeKMS{answer: func(context.Context, int64) error {
			if throttling {
				return failure(kms.Throttled)
			}
			return nil
		}}

		w := kms.Retry(inner, kms.RetryConfig{})
		each := func(n int) (attempts int64) {
			before := inner.calls.Load()
			for range n {
				ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
				_ = unwrapOnce(ctx, w)
				cancel()
			}

			return inner.calls.Load() - before
		}

		if n := each(calls); n > calls+2*kms.DefaultRetryBudget { // some seconds pass as well
			t.Errorf("%d attempts for %d calls while the KMS throttles", n, calls)
		}

		throttling = false
		if n := each(50); n != 50 {
			t.Errorf("%d attempts for 50 calls that succeed", n)
		}

		throttling = true
		if n := each(1); n < 3 {
			t.Errorf("%d attempts for a call after 50 that have succeeded", n)
		}
		if n := each(calls); n > calls+2*10 {
			t.Errorf("%d attempts for %d calls, with what 50 that succeeded are worth", n, calls)
		}

		time.Sleep(10 * time.Second)
		if n := each(1); n < 3 {
			t.Errorf("%d attempts for a call after ten quiet seconds", n)
		}
	})
}

func TestRetryJitter(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		const draws, limit = 400, time.Second
		w := kms.Retry(always(kms.Throttled), kms.RetryConfig{Base: limit, MaxAttempts: 2, Budget: draws})
		var quarters [4]int

		for range draws {
			start := time.Now()
			_ = unwrapOnce(t.Context(), w)
			took := time.Since(start)
			if took < 0 || took >= limit {
				t.Fatalf("a wait of %v, want from 0 to %v", took, limit)
			}

			quarters[4*took/limit]++
		}

		for i, n := range quarters { // 100 are expected, with a standard deviation of 9
			if n < 40 {
				t.Errorf("%d of %d waits in quarter %d: not full jitter", n, draws, i+1)
			}
		}
	})
}

func TestRetryOverTheWire(t *testing.T) {
	for name, c := range map[string]struct {
		faults kmstest.Faults
		calls  int
		want   kms.Kind // kind of the error; Internal: no error
	}{
		"throttled, then served": {kmstest.Faults{ThrottleNext: 3}, 4, kms.Internal},
		"failed, then served":    {kmstest.Faults{Fail: "KMSInternalException", FailNext: 2}, 3, kms.Internal},
		"hangs":                  {kmstest.Faults{Hang: true}, 4, kms.Unreachable},
		"drops":                  {kmstest.Faults{Drop: true}, 4, kms.Unreachable},
		"throttles":              {kmstest.Faults{ThrottleNext: 100}, 4, kms.Throttled},
		"denies":                 {kmstest.Faults{Deny: true}, 1, kms.Denied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := kmstest.StartTest(t)
			key := server.NewKey(t, func(c *kms.AWSConfig) { c.Timeout = time.Second })

			if !c.faults.Hang {
				key = server.OpenKey(t, key.KeyID(), nil)
			}

			server.SetFaults(c.faults)
			w := kms.Retry(key, kms.RetryConfig{Base: time.Millisecond, MaxAttempts: 4})
			_, _, err := kms.Generate(t.Context(), w, nil)
			e, failed := errors.AsType[*kms.Error](err)
			if failed != (c.want != kms.Internal) || failed && e.Kind != c.want {
				t.Errorf("%v, want %v", err, c.want)
			}

			if n := server.Calls()["GenerateDataKey"]; n != c.calls {
				t.Errorf("%d attempts, want %d", n, c.calls)
			}
		})
	}
}

func TestRetryAroundBreakerAndLimit(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		inner := always(kms.Unreachable)
		limited := kms.Limit(inner, kms.LimitConfig{PerSecond: 1, Burst: 100})
		w := kms.Retry(kms.Breaker(limited, kms.BreakerConfig{}), kms.RetryConfig{})
		err := unwrapOnce(t.Context(), w)
		wantError(t, err, kms.Unreachable, "Kind9", nil) // the KMS's error

		if n := inner.calls.Load(); n != kms.DefaultBreakerFailures {
			t.Errorf("%d attempts, want %d: then the breaker is open", n, kms.DefaultBreakerFailures)
		}
		wantError(t, unwrapOnce(t.Context(), w), kms.Unreachable, "circuit open", kms.ErrOpen)
	})
}

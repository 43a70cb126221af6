package kms

import (
	"context"
	"errors"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/backoff"
)

// Defaults of RetryConfig.
const (
	DefaultRetryBase   = 50 * time.Millisecond
	DefaultRetryMax    = 2 * time.Second
	DefaultRetryBudget = 20
)

// RetryConfig configures Retry. The zero value retries until the deadline.
type RetryConfig struct {
	// Base is the maximum pause before the second attempt. It doubles for
	// each further attempt. 0 means DefaultRetryBase.
	Base time.Duration
	// Max limits the maximum pause. 0 means DefaultRetryMax.
	Max time.Duration
	// MaxAttempts limits the attempts of one call, including the first. 0
	// means that only the deadline limits them; without a deadline, a call
	// is retried until it is canceled.
	MaxAttempts int
	// Budget is the number of retries available at the start. A retry costs
	// one, and returns it if it succeeds. Five calls that succeed at once,
	// or one second, add one. With an empty budget, calls are not retried,
	// so that a KMS that throttles does not get several times as many
	// calls. 0 means DefaultRetryBudget.
	Budget uint
	// Jitter chooses a pause from 0 to limit. Nil means a uniformly random
	// one.
	Jitter func(limit time.Duration) time.Duration
}

// Retry returns w with retries if the KMS returns Throttled or Unreachable.
// All other errors are returned unchanged. Errors of Breaker and Limit are
// not retried, because the KMS was not asked. Put Retry around these, so
// that they see every attempt.
//
// The pauses use exponential backoff and full jitter
// (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
// If a pause would last beyond the deadline, the call ends at once with the
// last error from the KMS. If the context is canceled, the call ends at
// once with Canceled.
//
// Providers must not retry themselves, or the attempts multiply: where their
// configuration has MaxAttempts, set it to 1. The provider's Timeout then
// limits one attempt. It should be only a part of the caller's deadline, so
// that a KMS that hangs does not use all of it in one attempt.
func Retry(w Wrapper, cfg RetryConfig) Wrapper {
	if cfg.Base <= 0 {
		cfg.Base = DefaultRetryBase
	}
	if cfg.Max <= 0 {
		cfg.Max = DefaultRetryMax
	}

	if cfg.Jitter == nil {
		cfg.Jitter = backoff.Jitter
	}
	if cfg.Budget == 0 {
		cfg.Budget = DefaultRetryBudget
	}

	r := &retrier{keyID: w.KeyID(), cfg: cfg, budget: backoff.NewBudget(cfg.Budget)}

	return &decorator{w, r.run}
}

// retrier implements Retry. It does not use github.com/cenkalti/backoff,
// which returns the context's error instead of the KMS's, starts pauses
// that exceed the deadline, and applies jitter around the interval instead
// of from zero.
type retrier struct {
	keyID  string
	cfg    RetryConfig
	budget *backoff.Budget
}

func (r *retrier) run(ctx context.Context, op string, call func() error) error {
	var last error // last error from the KMS
	limit := min(r.cfg.Base, r.cfg.Max)
	for attempt := 1; ; attempt++ {
		err := call()
		if err == nil {
			r.budget.Succeeded(attempt)
		}

		if notAsked(err) && last != nil {
			return last
		}
		if !IsThrottled(err) && !IsUnreachable(err) || notAsked(err) || attempt == r.cfg.MaxAttempts {
			return err
		}

		last = err
		if ctx.Err() == nil && !r.budget.Take() {
			return last
		}
		if !backoff.Wait(ctx, r.cfg.Jitter(limit)) {
			if errors.Is(ctx.Err(), context.Canceled) {
				return contextError(ctx, op, r.keyID)
			}
			return last
		}

		limit = min(2*limit, r.cfg.Max)
	}
}

// AttemptsPerCall is the number of full attempts that a call should have
// time for: the timeout of a call is this many times that of an attempt.
const AttemptsPerCall = 3

package kms

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
)

// Defaults of RetryConfig.
const (
	DefaultRetryBase   = 50 * time.Millisecond
	DefaultRetryMax    = 2 * time.Second
	DefaultRetryBudget = 20
)

// retryCost is how many successful calls pay for one retry.
const retryCost = 5

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
// Providers must not retry themselves, or the attempts multiply: set
// AWSConfig.MaxAttempts to 1. The provider's Timeout then limits one
// attempt. It should be only a part of the caller's deadline, so that a KMS
// that hangs does not use all of it in one attempt.
func Retry(w Wrapper, cfg RetryConfig) Wrapper {
	if cfg.Base <= 0 {
		cfg.Base = DefaultRetryBase
	}
	if cfg.Max <= 0 {
		cfg.Max = DefaultRetryMax
	}

	if cfg.Jitter == nil {
		cfg.Jitter = fullJitter
	}
	if cfg.Budget == 0 {
		cfg.Budget = DefaultRetryBudget
	}

	r := &retrier{
		keyID: w.KeyID(), cfg: cfg, budget: ratelimit.NewTokenRateLimit(cfg.Budget * retryCost), filled: time.Now(),
	}

	return &decorator{w, r.run}
}

// retrier implements Retry. It does not use github.com/cenkalti/backoff,
// which returns the context's error instead of the KMS's, starts pauses
// that exceed the deadline, and applies jitter around the interval instead
// of from zero.
type retrier struct {
	keyID  string
	cfg    RetryConfig
	budget *ratelimit.TokenRateLimit

	mu     sync.Mutex
	filled time.Time // until when the budget has been credited for time
}

func (r *retrier) run(ctx context.Context, op string, call func() error) error {
	var last error // last error from the KMS
	limit := min(r.cfg.Base, r.cfg.Max)
	for attempt := 1; ; attempt++ {
		err := call()
		r.creditSuccess(err, attempt)

		if notAsked(err) && last != nil {
			return last
		}
		if !IsThrottled(err) && !IsUnreachable(err) || notAsked(err) || attempt == r.cfg.MaxAttempts {
			return err
		}

		last = err
		r.creditTime()

		if _, empty := r.budget.GetToken(ctx, retryCost); empty != nil && ctx.Err() == nil {
			return last
		}
		if !r.wait(ctx, r.cfg.Jitter(limit)) {
			if errors.Is(ctx.Err(), context.Canceled) {
				return contextError(ctx, op, r.keyID)
			}
			return last
		}

		limit = min(2*limit, r.cfg.Max)
	}
}

// creditSuccess adds the credit for a successful attempt to the budget.
func (r *retrier) creditSuccess(err error, attempt int) {
	switch {
	case err != nil:
	case attempt > 1:
		_ = r.budget.AddTokens(retryCost) // never fails
	default:
		_ = r.budget.AddTokens(1)
	}
}

// creditTime adds one retry to the budget for each second that has passed.
func (r *retrier) creditTime() {
	r.mu.Lock()
	defer r.mu.Unlock()
	const second = time.Second / retryCost // for one token
	tokens := uint(max(0, time.Since(r.filled)) / second)
	r.filled = r.filled.Add(time.Duration(tokens) * second) //nolint:gosec // bounded by the time that has passed
	_ = r.budget.AddTokens(tokens)
}

// wait waits for d, and reports whether ctx is still valid. If the deadline
// is earlier, it returns false at once.
func (r *retrier) wait(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return false
	}

	timer := time.NewTimer(d)
	defer timer.Stop()

	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

func fullJitter(limit time.Duration) time.Duration {
	var b [8]byte
	rand.Read(b[:])
	fraction := float64(binary.BigEndian.Uint64(b[:])>>11) / (1 << 53)
	return time.Duration(fraction * float64(limit))
}

// AttemptsPerCall is the number of full attempts that a call should have
// time for: the timeout of a call is this many times that of an attempt.
const AttemptsPerCall = 3

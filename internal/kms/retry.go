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

// retryCost is how many calls that succeed pay for a retry.
const retryCost = 5

// RetryConfig configures Retry. The zero value retries until the deadline.
type RetryConfig struct {
	// Base is the longest wait before the second attempt; it doubles with each
	// further one. 0: DefaultRetryBase.
	Base time.Duration
	// Max bounds what Base grows to. 0: DefaultRetryMax.
	Max time.Duration
	// MaxAttempts bounds the attempts of one call, the first included. 0: the
	// deadline alone does, and a context without one is retried until it is
	// canceled.
	MaxAttempts int
	// Budget is how many retries there may be at the expense of calls that
	// have not succeeded yet: a retry takes one of it, and gives it back if it
	// succeeds; so do five calls that succeed at once, and a second that
	// passes. With none left, calls are not retried: a KMS that throttles is
	// not to be asked several times as often. 0: DefaultRetryBudget.
	Budget uint
	// Jitter chooses a wait from 0 to limit. Nil: at random, all alike likely.
	Jitter func(limit time.Duration) time.Duration
}

// Retry returns w with further attempts at what a KMS answers with Throttled
// or Unreachable, and at nothing else: all other answers stay what they are.
// Nor does it retry what never reached the KMS, which is an error of Breaker
// or of Limit; put it around those, so that it is every attempt that counts
// there.
//
// The waits between attempts have exponential backoff and full jitter
// (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
// A wait that would go past the deadline is not begun: the call then ends at
// once, with the last error that came from the KMS itself. A cancel ends it at
// once with Canceled.
//
// A provider must not retry on its own, or the attempts multiply: set
// AWSConfig.MaxAttempts to 1. Its Timeout is then that of an attempt, and
// should be a part of the caller's deadline only, or a hanging KMS uses it up
// in one attempt.
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

// retrier is not github.com/cenkalti/backoff: that answers with the context's
// error in place of the KMS's, begins waits that the deadline is going to cut,
// and its jitter is around the interval, not from zero.
type retrier struct {
	keyID  string
	cfg    RetryConfig
	budget *ratelimit.TokenRateLimit

	mu     sync.Mutex
	filled time.Time // when the budget last got what time is worth
}

func (r *retrier) run(ctx context.Context, op string, call func() error) error {
	var last error // from the KMS
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

// creditSuccess adds to the budget what an attempt that succeeded is worth.
func (r *retrier) creditSuccess(err error, attempt int) {
	switch {
	case err != nil:
	case attempt > 1:
		_ = r.budget.AddTokens(retryCost) // it never fails
	default:
		_ = r.budget.AddTokens(1)
	}
}

// creditTime adds a retry to the budget for each second that has passed.
func (r *retrier) creditTime() {
	r.mu.Lock()
	defer r.mu.Unlock()
	const second = time.Second / retryCost // of one token
	tokens := uint(max(0, time.Since(r.filled)) / second)
	r.filled = r.filled.Add(time.Duration(tokens) * second) //nolint:gosec // as long as time has passed
	_ = r.budget.AddTokens(tokens)
}

// wait reports whether ctx goes on after d.
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

// AttemptsPerCall is how many attempts of full length a call should have time
// for: its timeout is that many times the one of an attempt.
const AttemptsPerCall = 3

package kms

import (
	"context"
	"errors"
	"math"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

// ErrLimit is the cause of an error of Limit: the KMS was not asked.
var ErrLimit = errors.New("no turn before the deadline")

// LimitConfig configures Limit. The zero value limits nothing.
type LimitConfig struct {
	// MaxConcurrent bounds the calls under way. 0: no bound.
	MaxConcurrent int
	// PerSecond is the rate of calls that is kept up. 0: no bound, and Burst
	// means nothing.
	PerSecond float64
	// Burst is how many calls may come at once after a quiet time. 0: as many
	// as PerSecond gives in a second, and at least one.
	Burst int
}

// Limit returns w with bounds on what one process asks of its KMS, so that a
// busy proxy does not use up the quota that others share: AWS counts all
// symmetric operations of an account and region together
// (https://docs.aws.amazon.com/kms/latest/developerguide/requests-per-second.html).
// The bounds are of this Wrapper, and so of one key; a call that fails has
// cost as much as any other.
//
// Calls over the bounds wait for their turn in the order they came. A caller
// whose turn does not come before its deadline gets Throttled, by the reason
// "local limit" and the cause ErrLimit: as soon as the rate shows that it
// would be late, at the latest at the deadline. One without a deadline waits
// until it is canceled.
func Limit(w Wrapper, cfg LimitConfig) Wrapper {
	l := &limiter{keyID: w.KeyID()}
	if cfg.MaxConcurrent > 0 {
		l.slots = semaphore.NewWeighted(int64(cfg.MaxConcurrent))
	}
	if cfg.PerSecond > 0 {
		burst := cfg.Burst
		if burst <= 0 {
			burst = int(math.Ceil(min(cfg.PerSecond, math.MaxInt32)))
		}
		l.tokens = rate.NewLimiter(rate.Limit(cfg.PerSecond), burst)
	}

	return &decorator{w, l.run}
}

// limiter is the state of one Limit. What is nil is not limited.
type limiter struct {
	keyID  string
	slots  *semaphore.Weighted
	tokens *rate.Limiter
}

// run takes the slot first and the token last, so that a token is never spent
// long before its call: callers that had theirs and then waited for a slot
// would go on at a faster rate than was agreed.
func (l *limiter) run(ctx context.Context, op string, call func() error) error {
	if l.slots != nil {
		if l.slots.Acquire(ctx, 1) != nil {
			return l.noTurnError(ctx, op)
		}
		defer l.slots.Release(1)
	}
	if l.tokens != nil && l.tokens.Wait(ctx) != nil {
		return l.noTurnError(ctx, op)
	}
	return call()
}

// noTurnError is the error of a caller that had no turn. It is never
// Unreachable: the KMS was not asked.
func (l *limiter) noTurnError(ctx context.Context, op string) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return contextError(ctx, op, l.keyID)
	}
	return &Error{Kind: Throttled, Op: op, KeyID: l.keyID, Reason: "local limit", Err: ErrLimit}
}

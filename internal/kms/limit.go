package kms

import (
	"context"
	"errors"
	"math"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

// ErrLimit is the cause of errors of Limit. The KMS was not asked.
var ErrLimit = errors.New("the local rate limit left no time before the deadline")

// LimitConfig configures Limit. The zero value limits nothing.
type LimitConfig struct {
	// MaxConcurrent limits concurrent calls. 0 means no limit.
	MaxConcurrent int
	// PerSecond limits the sustained rate of calls. 0 means no limit, and
	// Burst is ignored.
	PerSecond float64
	// Burst is the number of calls allowed at once after an idle period. 0
	// means the calls of one second at PerSecond, and at least one.
	Burst int
	// OnWait is called when a call that had to wait has its turn, or gives
	// up. It may be nil.
	OnWait func(waited time.Duration)
}

// Limit returns w with limits on the calls of this process, so that a busy
// proxy does not exhaust a quota that others share. AWS, for example,
// counts all symmetric operations of an account and region together
// (https://docs.aws.amazon.com/kms/latest/developerguide/requests-per-second.html).
// The limits apply to this Wrapper, and therefore to one key. Failed calls
// count too.
//
// Calls over the limits wait in order of arrival. If a caller's turn does
// not come before its deadline, it gets Throttled with the reason "local
// limit" and the cause ErrLimit: at once if the rate already shows that it
// would be too late, otherwise at the deadline. A caller without a deadline
// waits until it is canceled.
func Limit(w Wrapper, cfg LimitConfig) Wrapper {
	l := &limiter{keyID: w.KeyID(), onWait: cfg.OnWait}
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

// limiter is the state of a Limit. A nil field means no limit.
type limiter struct {
	keyID  string
	slots  *semaphore.Weighted
	tokens *rate.Limiter
	onWait func(waited time.Duration)
}

// run makes a call when it is its turn.
func (l *limiter) run(ctx context.Context, op string, call func() error) error {
	release, err := l.wait(ctx)
	if err != nil {
		return l.noTurnError(ctx, op)
	}
	defer release()
	return call()
}

// wait takes the slot first and the token last, so that a token is used
// right before its call. Otherwise callers could collect tokens while they
// wait for slots, and then exceed the rate. release returns the slot.
func (l *limiter) wait(ctx context.Context) (release func(), err error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}

	start, waits := clock(), false
	defer func() {
		if waits && l.onWait != nil {
			l.onWait(clock() - start)
		}
	}()

	release = func() {}
	if l.slots != nil {
		if !l.slots.TryAcquire(1) {
			waits = true
			if err := l.slots.Acquire(ctx, 1); err != nil {
				return nil, err
			}
		}
		release = func() { l.slots.Release(1) }
	}

	if l.tokens != nil && !l.tokens.Allow() {
		waits = true
		if err := l.tokens.Wait(ctx); err != nil {
			release()
			return nil, err
		}
	}
	return release, nil
}

// noTurnError returns the error of a call that was not made. It is never
// Unreachable, because the KMS was not asked.
func (l *limiter) noTurnError(ctx context.Context, op string) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return contextError(ctx, op, l.keyID)
	}
	return &Error{Kind: Throttled, Op: op, KeyID: l.keyID, Reason: "local limit", Err: ErrLimit}
}

package kms

import (
	"context"
	"errors"
	"time"

	"github.com/sony/gobreaker/v2"
)

// ErrOpen is the cause of an error when the breaker is open and the KMS was
// not asked.
var ErrOpen = errors.New("the KMS was not asked, because earlier calls got no answer")

// Defaults of BreakerConfig.
const (
	DefaultBreakerFailures = 8
	DefaultBreakerOpenFor  = 2 * time.Second
)

// BreakerConfig configures Breaker.
type BreakerConfig struct {
	// Failures is the number of consecutive Unreachable errors that open
	// the breaker. 0 means DefaultBreakerFailures.
	Failures int
	// OpenFor is how long the breaker stays open before a trial call. 0
	// means DefaultBreakerOpenFor.
	OpenFor time.Duration
	// OnChange is called when the breaker opens and when it closes, in that
	// order. A failed trial does not count as a change. It must not block
	// or call the Wrapper. It may be nil.
	OnChange func(open bool)
}

// Breaker returns w with a circuit breaker. If the KMS does not answer,
// calls fail at once instead of waiting for their deadlines. After
// cfg.Failures consecutive Unreachable errors the breaker opens: all calls
// return Unreachable, with the reason "circuit open" and the cause ErrOpen.
// After cfg.OpenFor, it lets one trial call through. Any answer of the KMS
// closes the breaker; another Unreachable keeps it open for another
// OpenFor.
//
// Only Unreachable counts as a failure. Throttled, a revoked key or an
// invalid ciphertext are answers of a working KMS. Errors that say nothing
// about the KMS do not count either way: Canceled, errors of Limit, and
// Invalid or Internal errors without an error name from the KMS, such as an
// unusable DEK. If a caller's deadline ends during a call, the error is
// Unreachable; so callers with too short deadlines can open the breaker,
// too.
//
// The breaker caches no DEKs. While it is open, no key can be unwrapped.
func Breaker(w Wrapper, cfg BreakerConfig) Wrapper {
	if cfg.Failures <= 0 {
		cfg.Failures = DefaultBreakerFailures
	}
	if cfg.OpenFor <= 0 {
		cfg.OpenFor = DefaultBreakerOpenFor
	}

	b := &circuitBreaker{keyID: w.KeyID()}
	b.circuit = gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests:  1,
		Timeout:      cfg.OpenFor,
		ReadyToTrip:  func(c gobreaker.Counts) bool { return int(c.ConsecutiveFailures) >= cfg.Failures },
		IsSuccessful: func(err error) bool { return !IsUnreachable(err) },
		IsExcluded:   notAboutKMS,
		OnStateChange: func(_ string, from, to gobreaker.State) {
			switch {
			case cfg.OnChange == nil:
			case from == gobreaker.StateClosed:
				cfg.OnChange(true)
			case to == gobreaker.StateClosed:
				cfg.OnChange(false)
			}
		},
	})

	return &decorator{w, b.run}
}

type circuitBreaker struct {
	keyID   string
	circuit *gobreaker.CircuitBreaker[struct{}]
}

func (b *circuitBreaker) run(ctx context.Context, op string, call func() error) error {
	if ctx.Err() != nil { // the provider would return Unreachable, which counts
		return contextError(ctx, op, b.keyID)
	}

	_, err := b.circuit.Execute(func() (struct{}, error) { return struct{}{}, call() })
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return &Error{Kind: Unreachable, Op: op, KeyID: b.keyID, Reason: "circuit open", Err: ErrOpen}
	}

	return err
}

// notAboutKMS reports whether err is neither an answer of the KMS nor a
// missing answer.
func notAboutKMS(err error) bool {
	if err == nil {
		return false
	}

	var e *Error
	if !errors.As(err, &e) || notAsked(err) {
		return true
	}

	switch e.Kind {
	case Canceled:
		return true
	case Invalid, Internal:
		return e.Reason == "" // otherwise the reason is a name from the KMS
	default:
		return false
	}
}

// notAsked reports whether an error comes from Breaker or Limit, so that
// the KMS was not asked.
func notAsked(err error) bool { return errors.Is(err, ErrOpen) || errors.Is(err, ErrLimit) }

package kms

import (
	"context"
	"errors"
	"time"

	"github.com/sony/gobreaker/v2"
)

// ErrOpen is the cause of an error of Breaker that is open: the KMS was not
// asked.
var ErrOpen = errors.New("not asked, as it gave no answer before")

// Defaults of BreakerConfig.
const (
	DefaultBreakerFailures = 8
	DefaultBreakerOpenFor  = 2 * time.Second
)

// BreakerConfig configures Breaker.
type BreakerConfig struct {
	// Failures is how many calls in a row must end with Unreachable to open
	// the breaker. 0: DefaultBreakerFailures.
	Failures int
	// OpenFor is how long it stays open before a trial. 0:
	// DefaultBreakerOpenFor.
	OpenFor time.Duration
	// OnChange, if not nil, is told when the breaker opens and when it closes,
	// in that order. A trial that fails is no change. It must not block, and
	// must not call the Wrapper.
	OnChange func(open bool)
}

// Breaker returns w, but stops to ask a KMS that does not answer: calls that
// would hang until their deadline then fail at once and hold nothing up. After
// so many Unreachable in a row it is open, and answers every call with
// Unreachable, by the reason "circuit open" and the cause ErrOpen. After
// OpenFor it lets one call through as a trial: any answer of the KMS to that
// one closes it, another Unreachable begins OpenFor anew.
//
// Only Unreachable counts. Throttled, a revoked key or an invalid ciphertext
// are answers of a KMS that works. Errors that say nothing of the KMS count
// neither way: Canceled, what Limit refused, and what has no name of the KMS's
// own among Invalid and Internal, such as a DEK that was not worth sending. A
// caller's deadline that ends in the middle of a call is Unreachable, so a
// caller that allows a KMS less time than it takes opens the breaker as well.
//
// It remembers no DEK: open, it can serve nothing.
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
	if ctx.Err() != nil { // by a provider it would be Unreachable, and count
		return contextError(ctx, op, b.keyID)
	}
	_, err := b.circuit.Execute(func() (struct{}, error) { return struct{}{}, call() })
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return &Error{Kind: Unreachable, Op: op, KeyID: b.keyID, Reason: "circuit open", Err: ErrOpen}
	}
	return err
}

// notAboutKMS reports whether err is none of the KMS and no lack of an answer
// either.
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
		return e.Reason == "" // else it is by a name that the KMS gave
	default:
		return false
	}
}

// notAsked reports whether an error is of Breaker or Limit, so that the KMS
// was not asked.
func notAsked(err error) bool { return errors.Is(err, ErrOpen) || errors.Is(err, ErrLimit) }

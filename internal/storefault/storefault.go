// Package storefault tells apart the reasons for which a store does not do
// what a request asks although neither the request nor the client is at
// fault: it throttles, it refuses the proxy's own credentials, it is away,
// or something else answers in its place.
//
//	storefault.go  Error, and the kinds of faults
//	refusal.go     the fault in an answer of the store
//
// Faults of connections are made by package origin, which knows the address.
//
// There is no example: the tests show each kind of fault.
package storefault

import (
	"errors"
	"time"
)

// Kind is the kind of a fault. It is a label of a metric.
type Kind string

// The kinds of faults.
const (
	Unreachable Kind = "unreachable" // no connection: refused, no route, no such host
	TLS         Kind = "tls"         // the TLS handshake failed
	Timeout     Kind = "timeout"     // the store did not connect, answer or continue in time
	Broken      Kind = "broken"      // the connection ended before the answer was complete
	Throttled   Kind = "throttled"   // the store limits the rate of requests
	Unavailable Kind = "unavailable" // the store failed, or its load balancer did not reach it
	Credentials Kind = "credentials" // the store refuses the proxy's own credentials
	Clock       Kind = "clock"       // the clocks of the proxy and the store differ
	Redirect    Kind = "redirect"    // another region or endpoint has the bucket
	Foreign     Kind = "foreign"     // something other than the store answered
)

// Kinds returns all kinds of faults.
func Kinds() []Kind {
	return []Kind{
		Unreachable, TLS, Timeout, Broken, Throttled, Unavailable, Credentials, Clock, Redirect, Foreign,
	}
}

// Error is one fault. For people it says what happened and what to check.
type Error struct {
	Kind Kind
	// What happened, without secrets. For an answer it is a predicate, whose
	// subject is the store: "answered 403".
	What string
	// Hint is what to check, with the names of settings; "" for none.
	Hint string
	// RetryAfter is how long the store asks to wait; 0 if it does not.
	RetryAfter time.Duration
	// Temporary means that the same request may succeed later, although
	// nobody changes a setting.
	Temporary bool
	// NotDone means that the store has certainly not done what the request
	// asked for.
	NotDone bool
	// Cause is the error that the fault was recognized from; nil for an
	// answer.
	Cause error
}

func (f *Error) Error() string {
	if f.Hint == "" {
		return f.What
	}
	return f.What + "; " + f.Hint
}

func (f *Error) Unwrap() error { return f.Cause }

// Of returns the fault that err wraps, or nil.
func Of(err error) *Error {
	fault, _ := errors.AsType[*Error](err)
	return fault
}

package kms

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// Kind classifies errors for callers, independently of the provider.
type Kind int

const (
	// Internal is any other error: a malformed answer, bad credentials, a
	// bug. It says nothing about the key.
	Internal Kind = iota
	// Invalid is a request that was not sent, or that the KMS does not
	// accept: an unusable DEK, a context that is not UTF-8, or parameters
	// unknown to the KMS.
	Invalid
	// Canceled means that the caller canceled the call. It says nothing
	// about the KMS.
	Canceled
	// InvalidCiphertext means that the blob cannot be unwrapped: it belongs
	// to another context or key, or was altered or truncated.
	InvalidCiphertext
	// Disabled means that the key is disabled, or that its material was
	// removed from the KMS.
	Disabled
	// Denied means that the KMS refuses this caller: by key policy, grant
	// or role, or because the caller no longer exists.
	Denied
	// PendingDeletion means that the key is scheduled for deletion.
	PendingDeletion
	// NotFound means that the key does not exist, or no longer exists.
	NotFound
	// Throttled means that the KMS asks for fewer requests. Retry later.
	Throttled
	// Unreachable means that the KMS gave no answer in time, or cannot
	// answer now. Retry later.
	Unreachable
)

var kindNames = [...]string{
	Internal:          "internal error",
	Invalid:           "invalid request",
	Canceled:          "canceled",
	InvalidCiphertext: "invalid ciphertext",
	Disabled:          "key disabled",
	Denied:            "access denied",
	PendingDeletion:   "key pending deletion",
	NotFound:          "key not found",
	Throttled:         "throttled",
	Unreachable:       "unreachable",
}

// String returns a description of the kind.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return "unknown kind"
	}
	return kindNames[k]
}

// Error is the error type of all providers. It never contains key material,
// nor any text from a KMS that might contain some.
type Error struct {
	Kind   Kind
	Op     string // wrap, unwrap, generate, open
	KeyID  string // see Wrapper.KeyID; as configured if not yet known
	Reason string // the KMS's error name, such as DisabledException; may be ""
	Err    error  // the cause; may be nil
}

// Error returns text like "kms: unwrap with KEY: key disabled
// (DisabledException): cause".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("kms: " + e.Op + " with " + e.KeyID + ": " + e.Kind.String())

	if e.Reason != "" {
		b.WriteString(" (" + e.Reason + ")")
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}

	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Revoked reports whether the KMS has answered that this caller may not use
// the key.
//
// For a blob that may be forged, this says nothing about the key: AWS and
// others give the same answer if a blob was altered to name a key that does
// not exist. Someone who can write to the store must not be able to make a
// key look revoked.
func (e *Error) Revoked() bool {
	switch e.Kind {
	case Disabled, Denied, PendingDeletion, NotFound:
		return true
	default:
		return false
	}
}

// IsRevoked reports whether err contains an *Error that is Revoked.
func IsRevoked(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Revoked()
}

// IsThrottled reports whether err contains an *Error of kind Throttled.
func IsThrottled(err error) bool { return hasKind(err, Throttled) }

// IsUnreachable reports whether err contains an *Error of kind Unreachable.
func IsUnreachable(err error) bool { return hasKind(err, Unreachable) }

func hasKind(err error, k Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == k
}

// contextError returns the error of a call whose context has ended. An
// expired deadline counts against the KMS, a cancellation does not.
func contextError(ctx context.Context, op, keyID string) *Error {
	e := &Error{Kind: Canceled, Op: op, KeyID: keyID, Err: ctx.Err()}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		e.Kind = Unreachable
	}
	return e
}

// errConnectionLost is the cause if the connection ended before a response.
var errConnectionLost = errors.New("the connection was lost")

// errUnreadable is the cause if a response is malformed, or lacks a field
// that the KMS always sends. Then it was damaged, or the KMS did not send
// it.
var errUnreadable = errors.New("the answer cannot be read")

// networkError returns the network error in err that may be kept, or nil if
// there is none. A client's own error may quote a response; errors of
// package net contain only addresses.
func networkError(err error) error {
	var (
		op   *net.OpError
		dns  *net.DNSError
		cert *tls.CertificateVerificationError
	)

	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case errors.As(err, &dns):
		return dns
	case errors.As(err, &op):
		return op
	case errors.As(err, &cert):
		return cert
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errConnectionLost
	default:
		return nil
	}
}

// intermediaryError is the cause if the response did not come from the KMS
// but from an intermediary, such as a load balancer, a firewall, a captive
// portal or an ingress. Such a response says nothing about the key,
// whatever its status, so the KMS counts as unreachable. Each provider
// checks for evidence that the KMS itself sent a response.
type intermediaryError struct{ status int }

func (e *intermediaryError) Error() string {
	if e.status == 0 {
		return "the answer is not from the KMS"
	}
	return fmt.Sprintf("the answer (HTTP %d) is not from the KMS, "+
		"but from an intermediary such as a proxy or load balancer", e.status)
}

// maxErrorAnswer limits how many bytes of an error response are read.
const maxErrorAnswer = 64 << 10

// messageError is an error text from a KMS or a client.
type messageError string

func (m messageError) Error() string { return string(m) }

// printable makes text from outside safe for a log line.
func printable(s string, limit int) string {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return clean[:min(len(clean), limit)]
}

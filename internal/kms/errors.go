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

// Kind says what an error means for the caller, whatever the provider.
type Kind int

const (
	// Internal is anything that has no kind of its own: a broken answer, bad
	// credentials, a bug. It says nothing about the key.
	Internal Kind = iota
	// Invalid is a request that was never sent or that the KMS will not take:
	// a DEK that cannot be one, a context that is not UTF-8, parameters the
	// KMS does not know.
	Invalid
	// Canceled is a call whose caller gave up. It says nothing about the KMS.
	Canceled
	// InvalidCiphertext is a blob that does not unwrap: another context,
	// another key, altered or cut.
	InvalidCiphertext
	// Disabled is a key that is switched off, or whose material was taken out
	// of the KMS.
	Disabled
	// Denied is a KMS that refuses this caller: by key policy, grant, role, or
	// because the caller no longer exists.
	Denied
	// PendingDeletion is a key that is scheduled for deletion.
	PendingDeletion
	// NotFound is a key that is not there, or no longer.
	NotFound
	// Throttled is a KMS that asks for fewer requests. Retry later.
	Throttled
	// Unreachable is a KMS that gave no answer in time, or says that it cannot
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

// String returns the kind in plain words.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return "unknown kind"
	}
	return kindNames[k]
}

// Error is the error of every provider. It holds no key material, and no text
// of a KMS that could hold some.
type Error struct {
	Kind   Kind
	Op     string // wrap, unwrap, generate, open
	KeyID  string // as Wrapper.KeyID, or as configured where that is not known yet
	Reason string // the KMS's own name for it, such as DisabledException; "" where there is none
	Err    error  // the cause; may be nil
}

// Error reads "kms: unwrap with KEY: key disabled (DisabledException): cause".
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

// Revoked reports whether the KMS has answered, and the answer is that this
// key is not to be used by this caller.
//
// It speaks of the key only if the blob is known to be genuine: AWS and others
// answer the same to a blob that was altered to name a key that does not
// exist. Whoever can write to the store must not be able to make a key look
// revoked.
func (e *Error) Revoked() bool {
	switch e.Kind {
	case Disabled, Denied, PendingDeletion, NotFound:
		return true
	default:
		return false
	}
}

// IsRevoked reports whether err holds an *Error that is Revoked.
func IsRevoked(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Revoked()
}

// IsThrottled reports whether err holds an *Error of kind Throttled.
func IsThrottled(err error) bool { return hasKind(err, Throttled) }

// IsUnreachable reports whether err holds an *Error of kind Unreachable.
func IsUnreachable(err error) bool { return hasKind(err, Unreachable) }

func hasKind(err error, k Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == k
}

// contextError is the error of a call whose context has ended: a deadline is
// the KMS's fault, a cancel the caller's.
func contextError(ctx context.Context, op, keyID string) *Error {
	e := &Error{Kind: Canceled, Op: op, KeyID: keyID, Err: ctx.Err()}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		e.Kind = Unreachable
	}
	return e
}

// errConnectionLost is the cause of a call whose connection ended before an
// answer.
var errConnectionLost = errors.New("the connection was lost")

// errUnreadable is the cause of an answer that does not parse, or lacks what
// the KMS always sends. It is not the KMS's own then, or was damaged.
var errUnreadable = errors.New("the answer cannot be read")

// networkError returns what may be kept of an error of the network, or nil if
// err is none. Errors of a client are not kept whole, as they can quote an
// answer: those of package net hold addresses only.
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

// intermediaryError says that an answer came from something on the way to the
// KMS, such as a balancer, a firewall, a portal or an ingress, and not from
// the KMS. Such an answer says nothing about the key, whatever its status: the
// key is unreachable. Each provider has its own test of what the KMS itself
// sends.
type intermediaryError struct{ status int }

func (e *intermediaryError) Error() string {
	if e.status == 0 {
		return "the answer is not the KMS's own"
	}
	return fmt.Sprintf("the answer (HTTP %d) is not the KMS's own; look at what stands between", e.status)
}

// maxErrorAnswer bounds what is read of an error answer, in bytes.
const maxErrorAnswer = 64 << 10

// messageError is foreign text.
type messageError string

func (m messageError) Error() string { return string(m) }

// printable makes foreign text fit for a log line.
func printable(s string, limit int) string {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return clean[:min(len(clean), limit)]
}

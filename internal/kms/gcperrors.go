package kms

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"cloud.google.com/go/auth"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// gcpKinds maps the codes of gRPC as Google uses them, https://cloud.google.com/apis/design/errors, but for those that
// need a closer look.
var gcpKinds = map[codes.Code]Kind{
	codes.NotFound:         NotFound,
	codes.PermissionDenied: Denied, // no role on the key, no such key for this caller, or the API was switched off

	codes.ResourceExhausted: Throttled,

	codes.Unavailable:      Unreachable,
	codes.DeadlineExceeded: Unreachable,
	codes.Canceled:         Unreachable, // by the server: where it was the caller, nobody looks here
	codes.Aborted:          Unreachable,
	codes.Internal:         Unreachable,
	codes.DataLoss:         Unreachable,

	codes.InvalidArgument: Invalid,
	codes.OutOfRange:      Invalid,
	codes.Unimplemented:   Invalid,
}

// gcpStates maps the types of violations in a PreconditionFailure, which say in what state the version of the key is
// (https://cloud.google.com/kms/docs/key-states).
var gcpStates = map[string]Kind{
	"KEY_DISABLED":          Disabled,
	"KEY_DESTROY_SCHEDULED": PendingDeletion,
	"KEY_DESTROYED":         NotFound,
}

// fail turns an error of the client into an *Error. The client's error is not kept: it can hold what a server has sent.
// ctx is the caller's, without our timeout.
func (g *GCP) fail(ctx context.Context, op string, err error) *Error {
	e := &Error{Op: op, KeyID: g.name}
	s, ok := status.FromError(err)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Kind, e.Err = Canceled, context.Canceled
	case errors.Is(err, errGCPDamaged):
		e.Kind, e.Err = Unreachable, errGCPDamaged // one cannot talk to the KMS
	case errors.Is(err, errGCPOtherKey):
		e.Kind, e.Err = Internal, errGCPOtherKey
	case errors.Is(err, context.DeadlineExceeded), ok && s.Code() == codes.DeadlineExceeded:
		e.Kind, e.Err = Unreachable, context.DeadlineExceeded
	case !ok:
		e.Err = errors.New("the request was not sent, or its answer cannot be read")
	default:
		g.failStatus(ctx, e, s)
	}
	return e
}

func (g *GCP) failStatus(ctx context.Context, e *Error, s *status.Status) {
	e.Kind, e.Reason = gcpKinds[s.Code()], s.Code().String()
	if e.Op != "wrap" { // the one request with a DEK in it, which a broken KMS might quote
		e.Err = messageError(printable(s.Message(), 300))
	}
	switch s.Code() {
	case codes.InvalidArgument:
		if e.Op == "unwrap" {
			e.Kind = InvalidCiphertext
		}
	case codes.FailedPrecondition:
		e.Kind = gcpState(e, s)
	case codes.Unauthenticated:
		e.Kind, e.Err = g.credentialsKind(ctx)
	default:
	}
}

// gcpState reads the state of the key out of an error. Where there is none, the answer stands as what it most often is:
// better dark than late. A violation that is not about the key, such as one of an external key manager, is none.
func gcpState(e *Error, s *status.Status) Kind {
	kind := Disabled
	for _, detail := range s.Details() {
		failure, ok := detail.(*errdetails.PreconditionFailure)
		if !ok {
			continue
		}
		for _, v := range failure.GetViolations() {
			e.Reason = printable(v.GetType(), 64)
			if known, ok := gcpStates[v.GetType()]; ok {
				return known
			}
			if !strings.HasPrefix(v.GetType(), "KEY_") {
				kind = Unreachable
			}
		}
	}
	return kind
}

// credentialsKind asks the credentials themselves what the matter is: a token that cannot be had is UNAUTHENTICATED to
// the client, whether the account is gone or the network is.
func (g *GCP) credentialsKind(ctx context.Context) (Kind, error) {
	if g.creds == nil {
		return Internal, errors.New("the credentials were refused")
	}
	call, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	_, err := g.creds.Token(call)
	var answer *auth.Error
	switch {
	case err == nil:
		// A token that was got and is refused: the account was deleted or disabled since.
		return Denied, errors.New("the KMS refused the credentials")
	case errors.As(err, &answer) && answer.Response != nil:
		if code := answer.Response.StatusCode; code >= 500 || code == http.StatusTooManyRequests {
			return Unreachable, errors.New("no token: " + http.StatusText(code))
		}
		return Denied, errors.New("no token: the credentials were refused")
	}
	if cause := networkError(err); cause != nil {
		return Unreachable, cause
	}
	return Internal, errors.New("no token can be had")
}

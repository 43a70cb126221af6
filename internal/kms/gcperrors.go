package kms

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"cloud.google.com/go/auth"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// gcpKinds classifies gRPC codes as Google uses them
// (https://cloud.google.com/apis/design/errors). Codes that need more
// context are handled in failStatus; all others count as Unreachable.
var gcpKinds = map[codes.Code]Kind{
	codes.NotFound:         NotFound,
	codes.PermissionDenied: Denied, // no role on the key, no such key, or the API is disabled

	codes.ResourceExhausted: Throttled,

	codes.Unavailable:      Unreachable,
	codes.DeadlineExceeded: Unreachable,
	codes.Canceled:         Unreachable, // by the server; for the caller's cancellation see fail
	codes.Aborted:          Unreachable,
	codes.Internal:         Unreachable,
	codes.DataLoss:         Unreachable,
	codes.Unknown:          Unreachable,

	codes.InvalidArgument: Invalid,
	codes.OutOfRange:      Invalid,
	codes.Unimplemented:   Invalid,
}

// gcpNeedsEvidence are codes that count only if Google itself sent them,
// because they are about the key, the caller or the configuration. Others
// send them too: grpc-go derives them from the HTTP status of any response
// (https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md),
// and Envoy uses them for its own refusals.
var gcpNeedsEvidence = []codes.Code{
	codes.NotFound, codes.PermissionDenied, codes.FailedPrecondition, codes.Unimplemented,
}

// gcpFabricated are prefixes of grpc-go's messages for responses that are
// not gRPC (internal/transport/http2_client.go).
var gcpFabricated = []string{"unexpected HTTP status code received from server", "malformed header: missing HTTP"}

// isGCPError reports whether Google itself sent the error. Such an error
// has details of the types that Google's APIs share, such as ErrorInfo
// (https://google.aip.dev/193), or it names the key or an unimplemented
// service.
func (g *GCP) isGCPError(s *status.Status) bool {
	for _, text := range gcpFabricated {
		if strings.HasPrefix(s.Message(), text) {
			return false
		}
	}

	for _, detail := range s.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			return strings.HasSuffix("."+d.GetDomain(), ".googleapis.com")
		case *errdetails.PreconditionFailure, *errdetails.ResourceInfo, *errdetails.Help:
			return true
		}
	}

	_, key, _ := strings.Cut(g.name, "/locations/") // a project has a name and a number
	service := s.Code() == codes.Unimplemented && strings.Contains(s.Message(), "KeyManagementService")
	return service || strings.Contains(s.Message(), key)
}

// gcpStates classifies the violations in a PreconditionFailure by the state
// of the key version (https://cloud.google.com/kms/docs/key-states).
var gcpStates = map[string]Kind{
	"KEY_DISABLED":          Disabled,
	"KEY_DESTROY_SCHEDULED": PendingDeletion,
	"KEY_DESTROYED":         NotFound,
}

// fail converts an error of the client to an *Error. It drops the client's
// error, which can contain what a server sent. ctx is the caller's context,
// without our timeout.
func (g *GCP) fail(ctx context.Context, op string, err error) *Error {
	e := &Error{Op: op, KeyID: g.name}
	s, ok := status.FromError(err)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Kind, e.Err = Canceled, context.Canceled
	case errors.Is(err, errGCPDamaged):
		e.Kind, e.Err = Unreachable, errGCPDamaged // there is no reliable connection to the KMS
	case errors.Is(err, errGCPOtherKey):
		e.Kind, e.Err = Internal, errGCPOtherKey
	case errors.Is(err, context.DeadlineExceeded), ok && s.Code() == codes.DeadlineExceeded:
		e.Kind, e.Err = Unreachable, context.DeadlineExceeded
	case !ok:
		e.Kind, e.Err = Unreachable, errors.New("the request was not sent, or its answer cannot be read")
	default:
		g.failStatus(ctx, e, s)
	}

	return e
}

func (g *GCP) failStatus(ctx context.Context, e *Error, s *status.Status) {
	if slices.Contains(gcpNeedsEvidence, s.Code()) && !g.isGCPError(s) {
		e.Kind, e.Err = Unreachable, &intermediaryError{}
		return
	}

	e.Reason, e.Kind = s.Code().String(), Unreachable
	if kind, ok := gcpKinds[s.Code()]; ok {
		e.Kind = kind
	}
	if e.Op != "wrap" { // a wrap request contains a DEK, which a broken KMS might quote
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
		e.Kind, e.Err = g.credentialsKind(ctx, s)
	default:
	}
}

// gcpState reads the state of the key from an error. Without a known state,
// it returns Disabled, which is most likely and is the safe choice. A
// violation that is not about the key, for example one of an external key
// manager, is Unreachable.
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

// gcpReasons classifies Google's reasons for refusing a token
// (https://cloud.google.com/dotnet/docs/reference/Google.Api.CommonProtos/latest/Google.Api.ErrorReason).
var gcpReasons = map[string]Kind{
	"ACCESS_TOKEN_EXPIRED":            Unreachable, // or a wrong clock
	"ACCOUNT_STATE_INVALID":           Denied,
	"ACCESS_TOKEN_SCOPE_INSUFFICIENT": Internal,
	"ACCESS_TOKEN_TYPE_UNSUPPORTED":   Internal,
	"CREDENTIALS_MISSING":             Internal,
	"SESSION_COOKIE_INVALID":          Internal,
	"SYSTEM_PARAMETER_UNSUPPORTED":    Internal,
	"SECURITY_POLICY_VIOLATED":        Denied,
	"USER_BLOCKED_BY_ADMIN":           Denied,
	"ORG_RESTRICTION_VIOLATION":       Denied,
}

// credentialsKind classifies UNAUTHENTICATED. The client also returns this
// code if it cannot get a token, because either the account was deleted or
// the network failed. So credentialsKind asks the credentials for a token
// to find out.
func (g *GCP) credentialsKind(ctx context.Context, s *status.Status) (Kind, error) {
	for _, detail := range s.Details() {
		info, ok := detail.(*errdetails.ErrorInfo)
		if kind, known := gcpReasons[info.GetReason()]; ok && known {
			return kind, errors.New("the KMS refused the credentials: " + info.GetReason())
		}
	}

	switch {
	case g.creds == nil && g.isGCPError(s):
		return Internal, errors.New("the credentials were refused")
	case g.creds == nil:
		return Unreachable, &intermediaryError{}
	}

	call, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()

	_, err := g.creds.Token(call)
	switch {
	case err == nil && g.isGCPError(s):
		// A new token is refused: the account was deleted or disabled.
		return Denied, errors.New("the KMS refused the credentials")
	case err == nil:
		return Unreachable, &intermediaryError{}
	default:
		return gcpTokenKind(err)
	}
}

// gcpTokenKind classifies a failure to get a token.
func gcpTokenKind(err error) (Kind, error) {
	var (
		answer *auth.Error
		body   []byte
	)
	if errors.As(err, &answer) {
		body = answer.Body
	} else if _, text, ok := strings.Cut(err.Error(), "status code "); ok {
		// Some sources of credentials have no error type for a response,
		// but append it to their error text.
		_, text, _ = strings.Cut(text, ": ")
		body = []byte(text)
	}

	cause := networkError(err)
	switch {
	case isGCPRefusal(body):
		return Denied, errors.New("no token: the credentials were refused")
	case cause != nil:
		return Unreachable, cause
	case errors.Is(err, fs.ErrNotExist):
		return Internal, errors.New("no token: a file of the credentials is missing")
	default:
		return Unreachable, errors.New("no token is available now")
	}
}

// isGCPRefusal reports whether Google itself refused a token: with an OAuth
// error (https://www.rfc-editor.org/rfc/rfc6749#section-5.2), or with the
// status of the API for service account tokens. A 404 of the metadata
// server has neither and is not a refusal.
func isGCPRefusal(body []byte) bool {
	var oauth struct{ Error string }
	if json.Unmarshal(body, &oauth) == nil {
		return slices.Contains([]string{"invalid_grant", "invalid_client", "unauthorized_client", "access_denied"},
			oauth.Error)
	}

	var api struct{ Error struct{ Status string } }
	return json.Unmarshal(body, &api) == nil &&
		slices.Contains([]string{"PERMISSION_DENIED", "NOT_FOUND"}, api.Error.Status)
}

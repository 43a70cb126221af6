package kms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// azureKinds maps the names of errors that say more than the HTTP status. They stand in "innererror", below a code that
// is often no more than "Forbidden". Sources: https://learn.microsoft.com/en-us/azure/key-vault/general/rest-error-codes
// and https://learn.microsoft.com/en-us/azure/key-vault/general/common-error-codes.
var azureKinds = map[string]Kind{
	"KeyDisabled": Disabled,

	"KeyNotFound": NotFound, // a key that was deleted and can still be recovered is not found either

	"AccessDenied":          Denied,
	"ForbiddenByPolicy":     Denied,
	"ForbiddenByRbac":       Denied,
	"ForbiddenByFirewall":   Denied,
	"ForbiddenByConnection": Denied,
	"KeyOperationForbidden": Denied, // taken out of the key's list of operations

	"ObjectIsBeingDeleted":          PendingDeletion,
	"ObjectIsDeletedButRecoverable": PendingDeletion,
	"ObjectIsBeingRecovered":        Unreachable,

	"Throttled": Throttled,
}

// fail turns an error of the SDK into an *Error. The SDK's error is not kept: it prints the whole answer. ctx is the
// caller's, without our timeout.
func (a *Azure) fail(ctx context.Context, op string, err error) *Error {
	e := &Error{Op: op, KeyID: a.keyID}
	var (
		resp *azcore.ResponseError
		auth *azidentity.AuthenticationFailedError
	)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Kind, e.Err = Canceled, context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		e.Kind, e.Err = Unreachable, context.DeadlineExceeded
	case errors.As(err, &auth):
		e.Kind, e.Err = azureLoginKind(auth)
	case errors.As(err, &resp):
		a.failResponse(e, resp)
	default:
		e.Kind, e.Err = azureTransportKind(err)
	}
	return e
}

func (a *Azure) failResponse(e *Error, resp *azcore.ResponseError) {
	code, inner, message := azureCodes(resp)
	if code == "" {
		code = resp.ErrorCode
	}
	e.Kind = azureStatusKind(e.Op, resp.StatusCode)
	for _, name := range []string{code, inner} { // the inner one says more
		if kind, ok := azureKinds[name]; ok {
			e.Kind = kind
		}
	}
	switch {
	case inner != "":
		e.Reason = printable(inner, 64)
	case code != "":
		e.Reason = printable(code, 64)
	default:
		e.Reason = fmt.Sprintf("HTTP %d", resp.StatusCode)
	}
	if e.Op != "wrap" { // the one request with a key in it, which a broken KMS might quote
		e.Err = messageError(printable(message, 300))
	}
}

// azureCodes reads the body of an error, which the SDK has kept.
func azureCodes(resp *azcore.ResponseError) (code, inner, message string) {
	if resp.RawResponse == nil {
		return "", "", ""
	}
	body, err := runtime.Payload(resp.RawResponse)
	if err != nil {
		return "", "", ""
	}
	var out struct {
		Error struct {
			Code       string
			Message    string
			InnerError struct{ Code string }
		}
	}
	if json.Unmarshal(body, &out) != nil {
		return "", "", ""
	}
	return out.Error.Code, out.Error.InnerError.Code, out.Error.Message
}

func azureStatusKind(op string, status int) Kind {
	switch {
	case status == http.StatusBadRequest && op == "unwrap":
		return InvalidCiphertext // BadParameter: the padding of another version or key, or of an altered blob
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return Denied
	case status == http.StatusNotFound:
		return NotFound
	case status == http.StatusConflict:
		return PendingDeletion
	case status == http.StatusTooManyRequests:
		return Throttled
	case status == http.StatusRequestTimeout, status >= 500:
		return Unreachable
	case status >= 400:
		return Invalid
	default:
		return Internal
	}
}

// azureLoginKind is for a token that could not be got. Microsoft Entra answers 400 or 401 to an application that was
// deleted, disabled, or whose secret has run out (https://learn.microsoft.com/en-us/entra/identity-platform/reference-error-codes).
func azureLoginKind(err *azidentity.AuthenticationFailedError) (Kind, error) {
	if err.RawResponse == nil {
		return Unreachable, errors.New("no token: no answer to the login")
	}
	switch status := err.RawResponse.StatusCode; {
	case status >= 500, status == http.StatusTooManyRequests:
		return Unreachable, errors.New("no token: " + http.StatusText(status))
	default:
		return Denied, errors.New("no token: the login was refused")
	}
}

// azureTransportKind is for a call that got no answer, or none that can be read.
func azureTransportKind(err error) (Kind, error) {
	if cause := networkError(err); cause != nil {
		return Unreachable, cause
	}
	var (
		send    *url.Error
		missing interface{ NonRetriable() }
	)
	switch {
	case errors.As(err, &send):
		return Unreachable, errLost
	case errors.As(err, &missing):
		return Internal, errors.New("no credentials, or a challenge of another resource than this vault")
	default:
		return Internal, errors.New("the answer cannot be read")
	}
}

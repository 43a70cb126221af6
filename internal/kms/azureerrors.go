package kms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// azureKinds maps the names of errors that say more than the HTTP status. They
// stand in "innererror", below a code that is often no more than "Forbidden".
// Sources:
// https://learn.microsoft.com/en-us/azure/key-vault/general/rest-error-codes
// and
// https://learn.microsoft.com/en-us/azure/key-vault/general/common-error-codes.
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

// fail turns an error of the SDK into an *Error. The SDK's error is not kept:
// it prints the whole answer. ctx is the caller's, without our timeout.
func (a *Azure) fail(ctx context.Context, op string, err error) *Error {
	e := &Error{Op: op, KeyID: a.id}
	var (
		resp     *azcore.ResponseError
		auth     *azidentity.AuthenticationFailedError
		stranger *intermediaryError
	)

	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Kind, e.Err = Canceled, context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		e.Kind, e.Err = Unreachable, context.DeadlineExceeded
	case errors.As(err, &stranger):
		e.Kind, e.Err = Unreachable, stranger
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

	if e.Op != "wrap" && e.Op != "bind" { // requests with a key in them, which a broken KMS might quote
		e.Err = messageError(printable(message, 300))
	}
}

// isAzureError reports whether Key Vault itself sent an error. It sends its
// request id, and JSON with a code
// (https://learn.microsoft.com/en-us/azure/key-vault/general/common-parameters-and-headers);
// with 401 the challenge by which clients find out where to log in, and there
// a Managed HSM sends no JSON.
func isAzureError(resp *http.Response) bool {
	if resp.Header.Get("X-Ms-Request-Id") == "" {
		return false
	}
	if resp.StatusCode == http.StatusUnauthorized {
		challenge := resp.Header.Get("Www-Authenticate")
		return strings.HasPrefix(challenge, "Bearer ") && strings.Contains(challenge, "authorization=")
	}
	code, _, _ := azureCodes(&azcore.ResponseError{RawResponse: resp})
	return code != ""
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
	switch status {
	case http.StatusBadRequest:
		if op == "unwrap" {
			return InvalidCiphertext // BadParameter: the padding of another version or key, or of an altered blob
		}
		return Invalid
	case http.StatusUnauthorized, http.StatusForbidden:
		return Denied
	case http.StatusNotFound:
		return NotFound
	case http.StatusConflict:
		return PendingDeletion
	case http.StatusTooManyRequests:
		return Throttled
	case http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType:
		return Invalid
	default:
		return Unreachable
	}
}

// azureRefusals are the errors of a token endpoint by which Microsoft Entra
// says that this caller gets no token: the application was deleted or
// disabled, or its secret has run out
// (https://learn.microsoft.com/en-us/entra/identity-platform/reference-error-codes#handling-error-codes-in-your-application).
var azureRefusals = []string{"invalid_client", "invalid_grant", "unauthorized_client", "access_denied"}

// azureTransient holds the numbers of Entra's errors that come with one of
// azureRefusals but pass: "a transient error has occurred", and a federated
// token that is not within its time, which a wrong clock or a late rotation
// leads to.
var azureTransient = []int{90033, 700024}

// azureLoginKind is for a token that could not be got. Only Entra's own words
// are a refusal. What the endpoints for managed identities say, on a virtual
// machine or in an App Service, is about that machine and never about the key:
// they answer 404 and 410 while they start or move
// (https://learn.microsoft.com/en-us/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#error-handling).
func azureLoginKind(err *azidentity.AuthenticationFailedError) (Kind, error) {
	if err.RawResponse == nil {
		return Unreachable, errors.New("no token: no answer to the login")
	}
	if isEntraRefusal(err.RawResponse) {
		return Denied, errors.New("no token: the login was refused")
	}
	return Unreachable, fmt.Errorf("no token: HTTP %d", err.RawResponse.StatusCode)
}

// isEntraRefusal reads the body of an answer to a login. IMDS and App Service
// send neither of the last two fields.
func isEntraRefusal(resp *http.Response) bool {
	var doc struct {
		Error   string `json:"error"`
		Codes   []int  `json:"error_codes"`
		TraceID string `json:"trace_id"`
	}

	body, err := runtime.Payload(resp)
	if err != nil || json.Unmarshal(body, &doc) != nil || len(doc.Codes) == 0 || doc.TraceID == "" {
		return false
	}

	passes := slices.ContainsFunc(doc.Codes, func(code int) bool { return slices.Contains(azureTransient, code) })
	return slices.Contains(azureRefusals, doc.Error) && !passes
}

// azureTransportKind is for a call that got no answer, or none that can be
// read.
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
		return Unreachable, errConnectionLost
	case errors.As(err, &missing) && isIMDSMissing(err):
		return Unreachable, errors.New("no token: the machine's identity endpoint does not give any now")
	case errors.As(err, &missing):
		return Internal, errors.New("no credentials, or a challenge of another resource than this vault")
	default:
		return Unreachable, errUnreadable
	}
}

// isIMDSMissing reports whether a credential gave up because the instance
// metadata service was silent or answered with an error. The SDK has the same
// type of error for that and for no credential at all, so the text decides.
func isIMDSMissing(err error) bool {
	text := err.Error()
	return strings.Contains(text, "managed identity timed out") || strings.Contains(text, "The endpoint responded with")
}

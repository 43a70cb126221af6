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

// azureKinds classifies error names, which say more than the HTTP status.
// They are in "innererror", below a code that is often only "Forbidden".
// Sources:
// https://learn.microsoft.com/en-us/azure/key-vault/general/rest-error-codes
// and
// https://learn.microsoft.com/en-us/azure/key-vault/general/common-error-codes.
var azureKinds = map[string]Kind{
	"KeyDisabled": Disabled,

	"KeyNotFound": NotFound, // also for a deleted key that can still be recovered

	"AccessDenied":          Denied,
	"ForbiddenByPolicy":     Denied,
	"ForbiddenByRbac":       Denied,
	"ForbiddenByFirewall":   Denied,
	"ForbiddenByConnection": Denied,
	"KeyOperationForbidden": Denied, // removed from the key's list of operations

	"ObjectIsBeingDeleted":          PendingDeletion,
	"ObjectIsDeletedButRecoverable": PendingDeletion,
	"ObjectIsBeingRecovered":        Unreachable,

	"Throttled": Throttled,
}

// fail converts an error of the SDK to an *Error. It drops the SDK's error,
// which contains the whole response. ctx is the caller's context, without
// our timeout.
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
	for _, name := range []string{code, inner} { // the inner code is more specific
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

	if e.Op != "wrap" && e.Op != "bind" { // these requests contain a key, which a broken KMS might quote
		e.Err = messageError(printable(message, 300))
	}
}

// isAzureError reports whether Key Vault itself sent the error. Key Vault
// sends its request id, and JSON with a code
// (https://learn.microsoft.com/en-us/azure/key-vault/general/common-parameters-and-headers).
// With 401 it sends the challenge that says where to log in, and a Managed
// HSM then sends no JSON.
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

// azureCodes parses the body of an error, which the SDK has kept.
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
			return InvalidCiphertext // BadParameter: padding of another version or key, or an altered blob
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

// azureRefusals are the errors with which Microsoft Entra refuses a token
// to this caller: the application was deleted or disabled, or its secret
// has expired
// (https://learn.microsoft.com/en-us/entra/identity-platform/reference-error-codes).
var azureRefusals = []string{"invalid_client", "invalid_grant", "unauthorized_client", "access_denied"}

// azureTransient are numbers of Entra errors that are temporary although
// their name is in azureRefusals: "a transient error has occurred", and a
// federated token outside its validity, because of a wrong clock or a late
// rotation.
var azureTransient = []int{90033, 700024}

// azureLoginKind classifies a failure to get a token. Only Entra can
// refuse. The endpoints for managed identities, on a virtual machine or in
// App Service, report the state of the machine and never that of the key:
// they return 404 and 410 while they start or move
// (https://learn.microsoft.com/en-us/entra/identity/managed-identities-azure-resources/how-to-use-vm-token).
func azureLoginKind(err *azidentity.AuthenticationFailedError) (Kind, error) {
	if err.RawResponse == nil {
		return Unreachable, errors.New("no token: no answer to the login")
	}
	if isEntraRefusal(err.RawResponse) {
		return Denied, errors.New("no token: the login was refused")
	}
	return Unreachable, fmt.Errorf("no token: HTTP %d", err.RawResponse.StatusCode)
}

// isEntraRefusal reports whether the response to a login is a refusal by
// Entra. IMDS and App Service send neither error_codes nor trace_id.
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

// azureTransportKind classifies a call that got no response or a malformed
// one.
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
		return Unreachable, errors.New("no token: the machine's identity endpoint is not available now")
	case errors.As(err, &missing):
		return Internal, errors.New("no credentials, or the challenge is for a different resource than this vault")
	default:
		return Unreachable, errUnreadable
	}
}

// isIMDSMissing reports whether a credential failed because the instance
// metadata service did not answer or returned an error. The SDK uses the
// same error type if there is no credential at all, so the text decides.
func isIMDSMissing(err error) bool {
	text := err.Error()
	return strings.Contains(text, "managed identity timed out") || strings.Contains(text, "The endpoint responded with")
}

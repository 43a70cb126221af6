package kms

import (
	"context"
	"errors"
	"net/http"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
)

// awsInvalidState stands for many states; see (*AWS).stateKind.
const awsInvalidState = "KMSInvalidStateException"

// awsKinds maps the error names of AWS KMS, and of AWS STS where a role is assumed. Names, not HTTP codes: AWS answers
// 400 to nearly all of them. Sources: the errors of each operation in
// https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html and
// https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html.
var awsKinds = map[string]Kind{
	"DisabledException": Disabled,
	"NotFoundException": NotFound,

	// The caller's rights were taken away, by key policy or with the caller itself.
	"AccessDeniedException":       Denied,
	"AccessDenied":                Denied, // STS
	"NotAuthorized":               Denied,
	"UnrecognizedClientException": Denied, // the access key is gone
	"InvalidClientTokenId":        Denied, // the same, from STS
	"OptInRequired":               Denied,

	"InvalidCiphertextException": InvalidCiphertext,
	"IncorrectKeyException":      InvalidCiphertext,

	"ThrottlingException":      Throttled,
	"Throttling":               Throttled,
	"LimitExceededException":   Throttled,
	"TooManyRequestsException": Throttled,
	"RequestLimitExceeded":     Throttled,

	// AWS documents each of these as one that can be retried.
	"KeyUnavailableException":    Unreachable,
	"DependencyTimeoutException": Unreachable,
	"KMSInternalException":       Unreachable,
	"InternalFailure":            Unreachable,
	"ServiceUnavailable":         Unreachable,
	"RequestTimeout":             Unreachable,
	"RequestTimeoutException":    Unreachable,

	"ValidationException":           Invalid,
	"SerializationException":        Invalid,
	"InvalidArnException":           Invalid,
	"InvalidKeyUsageException":      Invalid,
	"UnsupportedOperationException": Invalid,
	"UnknownOperationException":     Invalid,
}

// fail turns an error of the SDK into an *Error. The SDK's error is not kept: it can hold the answer's bytes, and the
// answer to GenerateDataKey holds a DEK. ctx is the caller's, without our timeout.
func (a *AWS) fail(ctx context.Context, op string, err error) *Error {
	e := &Error{Op: op, KeyID: a.keyARN}
	var api smithy.APIError
	if resp := (*awshttp.ResponseError)(nil); errors.As(err, &resp) {
		traceRequest(ctx, resp.ServiceRequestID())
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Kind, e.Err = Canceled, context.Canceled
	case errors.As(err, &api):
		e.Reason = printable(api.ErrorCode(), 64)
		if op != "wrap" { // the one request with a DEK in it, which a broken KMS might quote
			e.Err = messageError(printable(api.ErrorMessage(), 300))
		}
		e.Kind = awsKind(e.Reason, err)
		if e.Reason == awsInvalidState && op != "describe" {
			e.Kind = a.stateKind(ctx)
		}
	default:
		e.Kind, e.Err = a.transportKind(ctx, err)
	}
	return e
}

func awsKind(code string, err error) Kind {
	if kind, ok := awsKinds[code]; ok {
		return kind
	}
	var resp *awshttp.ResponseError
	if !errors.As(err, &resp) {
		return Internal
	}
	switch status := resp.HTTPStatusCode(); {
	case status == http.StatusTooManyRequests:
		return Throttled
	case status >= 500:
		return Unreachable
	default:
		return Internal
	}
}

// stateKind asks for the key's state, because KMSInvalidStateException does not say which state was wrong, except in
// its text (https://docs.aws.amazon.com/kms/latest/developerguide/key-state.html). If the state cannot be had, the
// answer stands as what it most often is: a key on its way out. Better dark than late.
func (a *AWS) stateKind(ctx context.Context) Kind {
	call, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	key, err := a.describe(call, "describe", a.keyARN)
	if err != nil {
		return PendingDeletion
	}
	return awsStateKind(key.KeyState)
}

func awsStateKind(state types.KeyState) Kind {
	switch state {
	case types.KeyStatePendingImport, types.KeyStateUnavailable, types.KeyStateDisabled:
		// The customer took out the imported material, or disconnected the key store.
		return Disabled
	case types.KeyStateEnabled, types.KeyStateCreating, types.KeyStateUpdating:
		// Either it passed, or the key store behind the key has a trouble of its own.
		return Unreachable
	default:
		return PendingDeletion
	}
}

// transportKind is for a call that got no answer, or none that can be read.
func (a *AWS) transportKind(ctx context.Context, err error) (Kind, error) {
	var (
		decode *smithy.DeserializationError
		send   interface{ ConnectionError() bool }
	)
	if cause := networkError(err); cause != nil {
		return Unreachable, cause
	}
	switch {
	case errors.As(err, &send):
		return Unreachable, errLost
	case errors.As(err, &decode):
		return Internal, errors.New("the answer cannot be read")
	}
	if _, err := a.client.Options().Credentials.Retrieve(ctx); err != nil {
		return Internal, messageError("no credentials: " + printable(err.Error(), 300))
	}
	return Internal, errors.New("the request was not sent")
}

package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"strings"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// awsInvalidState stands for many states; see (*AWS).stateKind.
const awsInvalidState = "KMSInvalidStateException"

// awsKinds maps the error names of AWS KMS, and of AWS STS where a role is
// assumed. Names, not HTTP codes: AWS answers 400 to nearly all of them.
// Sources: the errors of each operation in
// https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html and
// https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html, and
// of
// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html.
// What is not here is Unreachable: a name that nobody knows is no evidence of
// anything.
var awsKinds = map[string]Kind{
	"DisabledException": Disabled,
	"NotFoundException": NotFound,

	// The caller's rights were taken away, by key policy or with the caller
	// itself.
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

	// Session credentials that ran out before they were replaced, or a clock
	// that is wrong. Both pass.
	"ExpiredToken":          Unreachable, // STS
	"ExpiredTokenException": Unreachable,
	"RequestExpired":        Unreachable,
	"RequestTimeTooSkewed":  Unreachable,
	"RequestInTheFuture":    Unreachable,

	// The identity provider behind the role. IDPRejectedClaim is also what an
	// expired token gets, and InvalidIdentityToken what AWS says while it
	// cannot fetch the provider's keys: neither is evidence of a no.
	"IDPCommunicationError": Unreachable,
	"IDPRejectedClaim":      Unreachable,
	"InvalidIdentityToken":  Unreachable,

	"ValidationException":           Invalid,
	"SerializationException":        Invalid,
	"InvalidArnException":           Invalid,
	"InvalidKeyUsageException":      Invalid,
	"UnsupportedOperationException": Invalid,
	"UnknownOperationException":     Invalid,
	"MalformedPolicyDocument":       Invalid, // STS, as the next two
	"PackedPolicyTooLarge":          Invalid,
	"RegionDisabledException":       Invalid,

	// A secret access key that does not belong to its id, or a proxy that
	// rewrites requests.
	"IncompleteSignature":                 Internal,
	"IncompleteSignatureException":        Internal,
	"MissingAuthenticationToken":          Internal,
	"MissingAuthenticationTokenException": Internal,
	awsBadSignature:                       Internal, // but see awsKind
	"SignatureDoesNotMatch":               Internal,
}

// awsBadSignature stands for a wrong secret and for a wrong clock; see awsKind.
const awsBadSignature = "InvalidSignatureException"

// awsSkews begin the messages of AWS about a signature whose date is too far
// from its own clock.
var awsSkews = []string{"Signature expired", "Signature not yet current"}

// fail turns an error of the SDK into an *Error. The SDK's error is not kept:
// it can hold the answer's bytes, and the answer to GenerateDataKey holds a
// DEK. ctx is the caller's, without our timeout.
func (a *AWS) fail(ctx context.Context, op string, err error) *Error {
	e := &Error{Op: op, KeyID: a.keyARN}
	var (
		api      smithy.APIError
		stranger *intermediaryError
	)

	if resp := (*awshttp.ResponseError)(nil); errors.As(err, &resp) {
		traceRequest(ctx, resp.ServiceRequestID())
	}

	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Kind, e.Err = Canceled, context.Canceled
	case errors.As(err, &stranger):
		e.Kind, e.Err = Unreachable, stranger
	case isAWSCredentials(err):
		e.Kind, e.Err = Unreachable, errors.New("the source of the credentials does not give any now")
	case errors.As(err, &api):
		e.Reason = printable(api.ErrorCode(), 64)
		if op != "wrap" { // the one request with a DEK in it, which a broken KMS might quote
			e.Err = messageError(printable(api.ErrorMessage(), 300))
		}

		e.Kind = awsKind(api)
		if e.Reason == awsInvalidState && op != "describe" {
			e.Kind = a.stateKind(ctx)
		}
	default:
		e.Kind, e.Err = a.transportKind(ctx, err)
	}

	return e
}

func awsKind(api smithy.APIError) Kind {
	for _, skew := range awsSkews {
		if strings.HasPrefix(api.ErrorMessage(), skew) {
			// The SDK has learned the difference from this answer: the next
			// attempt is signed by the clock of AWS.
			return Unreachable
		}
	}

	if kind, ok := awsKinds[api.ErrorCode()]; ok {
		return kind
	}
	return Unreachable
}

// awsEvidence is a step in each call to KMS and STS that lets no error pass
// which AWS did not send. KMS sends JSON that names the error in __type
// (https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html), STS sends
// XML, and both send their request id. The SDK itself also takes the name from
// a header, by which an API gateway's 403 would pass.
type awsEvidence struct{}

// ID implements middleware.DeserializeMiddleware.
func (awsEvidence) ID() string { return "cmekproxyEvidence" }

// HandleDeserialize implements middleware.DeserializeMiddleware.
func (awsEvidence) HandleDeserialize(ctx context.Context, in middleware.DeserializeInput,
	next middleware.DeserializeHandler) (
	out middleware.DeserializeOutput, metadata middleware.Metadata, err error,
) {
	out, metadata, err = next.HandleDeserialize(ctx, in)
	resp, ok := out.RawResponse.(*smithyhttp.Response)
	service := awsmiddleware.GetServiceID(ctx)
	if err != nil || !ok || resp.StatusCode >= 200 && resp.StatusCode < 300 && service != sts.ServiceID {
		return out, metadata, err
	}

	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorAnswer)) //nolint:forbidigo // bounded
	if err != nil {
		return out, metadata, err
	}
	if !isAWSAnswer(service, resp.Header, body) {
		return out, metadata, &intermediaryError{resp.StatusCode}
	}

	resp.Body = struct {
		io.Reader
		io.Closer
	}{bytes.NewReader(body), resp.Body}

	return out, metadata, nil
}

// isAWSAnswer reports whether body is an error of KMS, or any answer of STS,
// from which the SDK would take a page of HTML for an answer without
// credentials.
func isAWSAnswer(service string, header http.Header, body []byte) bool {
	id := header.Get("X-Amzn-Requestid") + header.Get("X-Amz-Requestid")
	switch service {
	case awskms.ServiceID:
		var doc struct {
			Type string `json:"__type"`
		}
		return json.Unmarshal(body, &doc) == nil && doc.Type != "" && id != ""
	case sts.ServiceID:
		var doc struct {
			XMLName xml.Name
			ErrorID string `xml:"RequestId"`
			ID      string `xml:"ResponseMetadata>RequestId"`
		}

		return xml.Unmarshal(body, &doc) == nil && strings.HasSuffix(doc.XMLName.Local, "Response") &&
			doc.ErrorID+doc.ID+id != ""
	default: // a source of credentials, which no refusal of a key comes from
		return true
	}
}

// addAWSEvidence puts awsEvidence between the connection and whatever reads the
// answer.
func addAWSEvidence(stack *middleware.Stack) error {
	return stack.Deserialize.Add(awsEvidence{}, middleware.After)
}

// stateKind asks for the key's state, because KMSInvalidStateException does
// not say which state was wrong, except in its text
// (https://docs.aws.amazon.com/kms/latest/developerguide/key-state.html). If
// the state may not be asked for, the answer stands as what it most often is:
// a key on its way out. If it cannot be had just now, nothing is known yet:
// the trouble may be that of a key store, and the next call asks again.
func (a *AWS) stateKind(ctx context.Context) Kind {
	call, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	key, err := a.describe(call, "describe", a.keyARN)
	switch {
	case IsUnreachable(err), IsThrottled(err):
		return Unreachable
	case err != nil:
		return PendingDeletion
	}
	return awsStateKind(key.KeyState)
}

func awsStateKind(state types.KeyState) Kind {
	switch state {
	case types.KeyStatePendingImport, types.KeyStateUnavailable, types.KeyStateDisabled:
		// The customer took out the imported material, or disconnected the key
		// store.
		return Disabled
	case types.KeyStateEnabled, types.KeyStateCreating, types.KeyStateUpdating:
		// Either it passed, or the key store behind the key has a trouble of
		// its own.
		return Unreachable
	default:
		return PendingDeletion
	}
}

// isAWSCredentials reports whether err is an answer of the endpoint that gives
// containers their credentials. It is an API error by any name that the
// endpoint likes, but no KMS sent it; its type is not exported.
func isAWSCredentials(err error) bool {
	var endpoint interface {
		smithy.APIError
		HTTPStatusCode() int
	}
	return errors.As(err, &endpoint)
}

// transportKind is for a call that got no answer, or none that can be read.
func (a *AWS) transportKind(ctx context.Context, err error) (Kind, error) {
	var (
		decode *smithy.DeserializationError
		answer *smithyhttp.ResponseError
		send   interface{ ConnectionError() bool }
	)

	if cause := networkError(err); cause != nil {
		return Unreachable, cause
	}

	switch {
	case errors.As(err, &send):
		return Unreachable, errConnectionLost
	case errors.As(err, &decode):
		return Unreachable, errUnreadable
	case errors.As(err, &answer): // such as the instance metadata service's
		return Unreachable, &intermediaryError{answer.HTTPStatusCode()}
	}

	if _, err := a.client.Options().Credentials.Retrieve(ctx); err != nil {
		return Internal, messageError("no credentials: " + printable(err.Error(), 300))
	}
	return Internal, errors.New("the request was not sent")
}

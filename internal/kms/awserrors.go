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

// awsInvalidState is returned for several key states; see (*AWS).stateKind.
const awsInvalidState = "KMSInvalidStateException"

// awsKinds classifies the error names of AWS KMS, and of AWS STS when a
// role is assumed. The HTTP status is of no use: it is 400 for nearly all
// errors. Sources: the errors of each operation, as in
// https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html,
// https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html and
// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html.
// Other names count as Unreachable, because they are no evidence of a
// revocation.
var awsKinds = map[string]Kind{
	"DisabledException": Disabled,
	"NotFoundException": NotFound,

	// The caller lost its permissions through the key policy, or the caller
	// itself was removed.
	"AccessDeniedException":       Denied,
	"AccessDenied":                Denied, // STS
	"NotAuthorized":               Denied,
	"UnrecognizedClientException": Denied, // the access key was deleted
	"InvalidClientTokenId":        Denied, // the same, from STS
	"OptInRequired":               Denied,

	"InvalidCiphertextException": InvalidCiphertext,
	"IncorrectKeyException":      InvalidCiphertext,

	"ThrottlingException":      Throttled,
	"Throttling":               Throttled,
	"LimitExceededException":   Throttled,
	"TooManyRequestsException": Throttled,
	"RequestLimitExceeded":     Throttled,

	// AWS documents that these can be retried.
	"KeyUnavailableException":    Unreachable,
	"DependencyTimeoutException": Unreachable,
	"KMSInternalException":       Unreachable,
	"InternalFailure":            Unreachable,
	"ServiceUnavailable":         Unreachable,
	"RequestTimeout":             Unreachable,
	"RequestTimeoutException":    Unreachable,

	// Session credentials that expired before they were replaced, or a
	// wrong clock. Both are temporary.
	"ExpiredToken":          Unreachable, // STS
	"ExpiredTokenException": Unreachable,
	"RequestExpired":        Unreachable,
	"RequestTimeTooSkewed":  Unreachable,
	"RequestInTheFuture":    Unreachable,

	// The identity provider of the role. An expired token also gets
	// IDPRejectedClaim. InvalidIdentityToken is also returned while AWS
	// cannot fetch the provider's keys. Neither is evidence of a refusal.
	"IDPCommunicationError": Unreachable,
	"IDPRejectedClaim":      Unreachable,
	"InvalidIdentityToken":  Unreachable,

	"ValidationException":           Invalid,
	"SerializationException":        Invalid,
	"InvalidArnException":           Invalid,
	"InvalidKeyUsageException":      Invalid,
	"UnsupportedOperationException": Invalid,
	"UnknownOperationException":     Invalid,
	"MalformedPolicyDocument":       Invalid, // STS, like the next two
	"PackedPolicyTooLarge":          Invalid,
	"RegionDisabledException":       Invalid,

	// The secret access key does not match its id, or a proxy has changed
	// the request.
	"IncompleteSignature":                 Internal,
	"IncompleteSignatureException":        Internal,
	"MissingAuthenticationToken":          Internal,
	"MissingAuthenticationTokenException": Internal,
	awsBadSignature:                       Internal, // see awsKind for exceptions
	"SignatureDoesNotMatch":               Internal,
}

// awsBadSignature is returned for a wrong secret and for a wrong clock; see
// awsKind.
const awsBadSignature = "InvalidSignatureException"

// awsSkews are the prefixes of AWS's messages if the date of a signature is
// too far from AWS's clock.
var awsSkews = []string{"Signature expired", "Signature not yet current"}

// fail converts an error of the SDK to an *Error. It drops the SDK's error,
// which can contain the response, and a GenerateDataKey response contains a
// DEK. ctx is the caller's context, without our timeout.
func (a *AWS) fail(ctx context.Context, op string, err error) *Error {
	e := &Error{Op: op, KeyID: a.keyARN}
	var (
		api      smithy.APIError
		stranger *intermediaryError
	)

	if resp := (*awshttp.ResponseError)(nil); errors.As(err, &resp) { // from STS
		traceRequest(ctx, resp.ServiceRequestID())
	}

	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Kind, e.Err = Canceled, context.Canceled
	case errors.As(err, &stranger):
		e.Kind, e.Err = Unreachable, stranger
	case isAWSCredentials(err):
		e.Kind, e.Err = Unreachable, errors.New("the source of the credentials is not available now")
	case errors.As(err, &api):
		e.Reason = printable(api.ErrorCode(), 64)
		if op != "wrap" { // a wrap request contains a DEK, which a broken KMS might quote
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
			// The SDK learns the clock difference from this response and
			// corrects the next attempt.
			return Unreachable
		}
	}

	if kind, ok := awsKinds[api.ErrorCode()]; ok {
		return kind
	}
	return Unreachable
}

// awsEvidence is a middleware step in each of the SDK's own calls: those to
// STS, and to the sources of credentials.
type awsEvidence struct{}

// ID implements middleware.DeserializeMiddleware.
func (awsEvidence) ID() string { return "cmekproxyEvidence" }

// HandleDeserialize implements middleware.DeserializeMiddleware.
func (awsEvidence) HandleDeserialize(
	ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler,
) (
	out middleware.DeserializeOutput, metadata middleware.Metadata, err error,
) {
	out, metadata, err = next.HandleDeserialize(ctx, in)
	if resp, ok := out.RawResponse.(*smithyhttp.Response); ok && err == nil {
		err = checkAWSAnswer(awsmiddleware.GetServiceID(ctx), resp.Response)
	}
	return out, metadata, err
}

// checkAWSAnswer rejects errors that AWS did not send. KMS sends JSON with the
// error name in __type
// (https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html), STS sends
// XML, and both send their request id. The SDK alone also accepts the name
// from a header, so it would accept a 403 from an API gateway.
func checkAWSAnswer(service string, resp *http.Response) error {
	if resp.StatusCode >= 200 && resp.StatusCode < 300 && service != sts.ServiceID {
		return nil
	}

	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorAnswer)) //nolint:forbidigo // bounded
	if err != nil {
		return err
	}
	if !isAWSAnswer(service, resp.Header, body) {
		return &intermediaryError{resp.StatusCode}
	}

	resp.Body = struct {
		io.Reader
		io.Closer
	}{bytes.NewReader(body), resp.Body}
	return nil
}

// isAWSAnswer reports whether body is an error of KMS or any response of
// STS. Successful STS responses are checked too, because the SDK would take
// an HTML page for a response without credentials.
func isAWSAnswer(service string, header http.Header, body []byte) bool {
	id := awsRequestID(header)
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
	default: // a source of credentials, which cannot refuse a key
		return true
	}
}

// addAWSEvidence inserts awsEvidence directly after the connection.
func addAWSEvidence(stack *middleware.Stack) error {
	return stack.Deserialize.Add(awsEvidence{}, middleware.After)
}

// stateKind asks for the state of the key, because KMSInvalidStateException
// reports it only in its text
// (https://docs.aws.amazon.com/kms/latest/developerguide/key-state.html).
// If DescribeKey is refused, stateKind assumes the most likely state: the
// key is being deleted. If KMS cannot be reached, the state is unknown, and
// the next call asks again. The request id of the failed call stays in the
// Trace.
func (a *AWS) stateKind(ctx context.Context) Kind {
	call, cancel := context.WithTimeout(WithTrace(ctx, new(Trace)), a.timeout)
	defer cancel()

	key, err := a.metadata(call, "describe", a.keyARN)
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
		// The customer removed the imported material, or disconnected the
		// key store.
		return Disabled
	case types.KeyStateEnabled, types.KeyStateCreating, types.KeyStateUpdating:
		// The state has changed since, or the key store behind the key has
		// a problem.
		return Unreachable
	default:
		return PendingDeletion
	}
}

// isAWSCredentials reports whether err comes from the endpoint that gives
// containers their credentials. Such an error is an API error with any
// name, but KMS did not send it. Its type is not exported.
func isAWSCredentials(err error) bool {
	var endpoint interface {
		smithy.APIError
		HTTPStatusCode() int
	}
	return errors.As(err, &endpoint)
}

// transportKind classifies a call that got no response or a malformed one.
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
	case errors.As(err, &answer): // for example, from the instance metadata service
		return Unreachable, &intermediaryError{answer.HTTPStatusCode()}
	}

	if _, err := a.creds.Retrieve(ctx); err != nil {
		return Internal, messageError("no credentials: " + printable(err.Error(), 300))
	}
	return Internal, errors.New("the request was not sent")
}

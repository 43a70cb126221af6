package s3api

import (
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

// Error is an S3 error response. Clients get Code, Message and Details; only
// the log has the cause.
//
// Codes are those of
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html, and
// three of the proxy's own: ObjectIntegrityError, PlaintextObject, and
// ClientClosedRequest, which only the log shows.
type Error struct {
	Code       string
	Message    string
	Details    [][2]string // further elements: name, text
	Header     http.Header // further response headers
	RetryAfter int         // seconds; 0 for none

	httpStatus int // replaces the status of Code; 0: the status of Code
	cause      error
}

func (e *Error) Error() string {
	if e.cause != nil {
		return e.Code + ": " + e.Message + ": " + e.cause.Error()
	}
	return e.Code + ": " + e.Message
}

func (e *Error) Unwrap() error { return e.cause }

// statuses maps the S3 error codes that the proxy itself returns to HTTP
// status codes.
var statuses = map[string]int{
	"AccessControlListNotSupported":       http.StatusBadRequest,
	"AccessDenied":                        http.StatusForbidden,
	"AccessForbidden":                     http.StatusForbidden,
	"AuthorizationHeaderMalformed":        http.StatusBadRequest,
	"AuthorizationQueryParametersError":   http.StatusBadRequest,
	"BadDigest":                           http.StatusBadRequest,
	"BadRequest":                          http.StatusBadRequest,
	"ClientClosedRequest":                 499, // as in nginx: for the log, the client does not read it
	"EntityTooLarge":                      http.StatusBadRequest,
	"EntityTooSmall":                      http.StatusBadRequest,
	"ExpiredToken":                        http.StatusBadRequest,
	"IdempotencyParameterMismatch":        http.StatusBadRequest,
	"IncompleteBody":                      http.StatusBadRequest,
	"InternalError":                       http.StatusInternalServerError,
	"InvalidAccessKeyId":                  http.StatusForbidden,
	"InvalidArgument":                     http.StatusBadRequest,
	"InvalidBucketAclWithObjectOwnership": http.StatusBadRequest,
	"InvalidBucketName":                   http.StatusBadRequest,
	"InvalidChunkSizeError":               http.StatusBadRequest,
	"InvalidDigest":                       http.StatusBadRequest,
	"InvalidEncryptionAlgorithmError":     http.StatusBadRequest,
	"InvalidPart":                         http.StatusBadRequest,
	"InvalidPartNumber":                   http.StatusRequestedRangeNotSatisfiable,
	"InvalidPartOrder":                    http.StatusBadRequest,
	"InvalidPolicyDocument":               http.StatusBadRequest,
	"InvalidRange":                        http.StatusRequestedRangeNotSatisfiable,
	"InvalidRequest":                      http.StatusBadRequest,
	"InvalidTag":                          http.StatusBadRequest,
	"InvalidToken":                        http.StatusBadRequest,
	"InvalidURI":                          http.StatusBadRequest,
	"KeyTooLongError":                     http.StatusBadRequest,
	"KMS.DisabledException":               http.StatusBadRequest,
	"KMS.KMSInvalidStateException":        http.StatusBadRequest,
	"KMS.NotFoundException":               http.StatusBadRequest,
	"MalformedACLError":                   http.StatusBadRequest,
	"MalformedPOSTRequest":                http.StatusBadRequest,
	"MalformedTrailerError":               http.StatusBadRequest,
	"MalformedXML":                        http.StatusBadRequest,
	"MaxMessageLengthExceeded":            http.StatusBadRequest,
	"MaxPostPreDataLengthExceeded":        http.StatusBadRequest,
	"MetadataTooLarge":                    http.StatusBadRequest,
	"MethodNotAllowed":                    http.StatusMethodNotAllowed,
	"MissingContentLength":                http.StatusLengthRequired,
	"MissingSecurityHeader":               http.StatusBadRequest,
	"NoSuchBucket":                        http.StatusNotFound,
	"NoSuchKey":                           http.StatusNotFound,
	"NoSuchUpload":                        http.StatusNotFound,
	"NotFound":                            http.StatusNotFound,
	"NotImplemented":                      http.StatusNotImplemented,
	"OperationAborted":                    http.StatusConflict,
	"ObjectIntegrityError":                http.StatusUnprocessableEntity,
	"PlaintextObject":                     http.StatusForbidden,
	"PreconditionFailed":                  http.StatusPreconditionFailed,
	"RequestHeaderSectionTooLarge":        http.StatusBadRequest,
	"RequestTimeout":                      http.StatusBadRequest,
	"RequestTimeTooSkewed":                http.StatusForbidden,
	"ServerSideEncryptionConfigurationNotFoundError": http.StatusNotFound,
	"ServiceUnavailable":                             http.StatusServiceUnavailable,
	"SignatureDoesNotMatch":                          http.StatusForbidden,
	"SlowDown":                                       http.StatusServiceUnavailable,
	"UnexpectedContent":                              http.StatusBadRequest,
	"UserKeyMustBeSpecified":                         http.StatusBadRequest,
	"XAmzContentSHA256Mismatch":                      http.StatusBadRequest,
}

// storeCodes are other codes of S3 and similar stores. Codes in neither list
// are counted as otherCode: a metric label must have few values, and the
// store must not be able to add some.
var storeCodes = setOf(
	"AccountProblem AllAccessDisabled BucketAlreadyExists BucketAlreadyOwnedByYou BucketNotEmpty",
	"ConditionalRequestConflict CORSConfigurationNotFoundError InsufficientStorage InvalidBucketState",
	"InvalidLocationConstraint IllegalLocationConstraintException InvalidObjectState InvalidStorageClass",
	"InvalidTagError MalformedPolicy MissingRequestBodyError NoSuchBucketPolicy",
	"NoSuchConfiguration NoSuchCORSConfiguration NoSuchLifecycleConfiguration",
	"NoSuchObjectLockConfiguration NoSuchPublicAccessBlockConfiguration NoSuchTagSet NoSuchTagSetError",
	"NoSuchVersion NoSuchWebsiteConfiguration ObjectLockConfigurationNotFoundError",
	"ObjectNotInActiveTierError OwnershipControlsNotFoundError",
	"ReplicationConfigurationNotFoundError RestoreAlreadyInProgress TooManyBuckets",
)

const otherCode = "Other"

// countedCode returns the metric label for an error code; "" for no error.
func countedCode(code string) string {
	_, own := statuses[code]
	if code == "" || own || storeCodes.has(code) || transferFaults[code] {
		return code
	}
	return otherCode
}

// codeForm matches S3 error codes.
var codeForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// hasCode reports whether err is an S3 error with one of the codes.
func hasCode(err error, codes ...string) bool {
	var answer *Error
	return errors.As(err, &answer) && slices.Contains(codes, answer.Code)
}

// Status returns the HTTP status code of the answer.
func (e *Error) Status() int {
	if e.httpStatus != 0 {
		return e.httpStatus
	}
	if status, ok := statuses[e.Code]; ok {
		return status
	}
	return http.StatusBadRequest // sigv4 has codes that are not in the table; all are client errors
}

// retryAfter is how long a client should wait, in seconds, before it retries
// after a transient error.
const retryAfter = 1

// errIdle is the cause when a client was idle for too long.
var errIdle = errors.New("the client sent no byte within limits.idle_timeout")

func badRequest(code, message string) *Error { return &Error{Code: code, Message: message} }

func malformedXML(cause error) *Error {
	return &Error{
		Code:    "MalformedXML",
		Message: "The XML you provided was not well-formed or did not validate against our published schema.",
		cause:   cause,
	}
}

// invalidArgument refuses the value of a parameter, a header or an element.
func invalidArgument(message, name, value string) *Error {
	return &Error{
		Code:    "InvalidArgument",
		Message: message,
		Details: [][2]string{{"ArgumentName", name}, {"ArgumentValue", value}},
	}
}

// notImplemented refuses a feature that S3 may have. what is the subject of
// the message, and why is the reason.
func notImplemented(what, why string) *Error {
	return &Error{Code: "NotImplemented", Message: what + " is not implemented by this proxy: " + why + "."}
}

// changesMeaning is the reason for refusing an unknown name.
const changesMeaning = "it could change what the request means"

// asError turns the error of a handler into the response for the client.
func asError(ctx context.Context, err error) *Error {
	var own *Error
	var signature *sigv4.Error
	var key *kms.Error
	var tooLong *http.MaxBytesError
	if answer, ok := readError(err); ok {
		return answer
	}

	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &signature):
		return &Error{Code: signature.Code, Message: signature.Message, Details: signature.Details(), cause: err}
	case errors.Is(err, keyring.ErrRetired):
		return &Error{
			Code:       "ServiceUnavailable",
			Message:    "The KMS key of this request has just been changed or removed. Please try again.",
			RetryAfter: retryAfter,
			cause:      err,
		}
	case errors.Is(err, keyring.ErrNotOpen): // the proxy keeps trying to open it
		return &Error{
			Code:       "ServiceUnavailable",
			Message:    "A KMS key of the proxy could not be opened yet. Please try again.",
			RetryAfter: retryAfter,
			cause:      err,
		}
	case errors.As(err, &key):
		return kmsError(key, err)
	case errors.Is(err, keyring.ErrAudit):
		return &Error{
			Code:       "ServiceUnavailable",
			Message:    "The proxy cannot write its audit log, and does not use keys without it. Please try again.",
			RetryAfter: retryAfter,
			cause:      err,
		}
	case errors.Is(err, keyring.ErrNoRule):
		return &Error{
			Code:    "AccessDenied",
			Message: "No encryption rule of the proxy covers this object, so it cannot be stored or read.",
			cause:   err,
		}
	case errors.Is(err, keyring.ErrNoTenant):
		return &Error{
			Code: "AccessDenied",
			Message: "No tenant of the proxy has this object, so it cannot be stored or read. " +
				"The proxy's operator can add it to the file of a tenant.",
			cause: err,
		}
	case errors.Is(err, keyring.ErrNotRead):
		return &Error{
			Code:    "AccessDenied",
			Message: "No encryption rule for this object names the KMS key that encrypts it, so it cannot be read.",
			cause:   err,
		}
	case errors.Is(err, keyring.ErrTenant):
		return &Error{Code: "InvalidArgument", Message: tenantMessage(err), cause: err}
	case errors.Is(err, keyring.ErrKeyName):
		return &Error{
			Code:    "InvalidArgument",
			Message: "The key has a path segment . or .., which the proxy's rules for prefixes do not allow.",
			cause:   err,
		}
	case errors.Is(err, keyring.ErrNotAllowed):
		return &Error{
			Code:    "AccessDenied",
			Message: "The proxy's encryption rule for this object does not allow the requested key.",
			cause:   err,
		}
	case errors.Is(err, keyring.ErrUnbound):
		return &Error{
			Code: "InvalidRequest",
			Message: "The data key of the copy source is wrapped in form 1, which does not prove who made the " +
				"object, and a copy would vouch for it. The proxy's operator must rewrap the object first.",
			cause: err,
		}
	case errors.Is(err, crypt.ErrCustomerKey):
		return &Error{Code: "AccessDenied", Message: "Access Denied", cause: err} // in S3's words
	case errors.Is(err, keyring.ErrDefaults):
		return &Error{
			Code:       "ServiceUnavailable",
			Message:    "The proxy cannot read or write the default keys of buckets. Please try again.",
			RetryAfter: retryAfter,
			cause:      err,
		}
	case errors.Is(err, keyring.ErrUnknownKey):
		return &Error{
			Code:    "KMS.NotFoundException",
			Message: "The KMS key is not configured in the proxy.",
			cause:   err,
		}
	case errors.Is(err, stored.ErrIntegrity),
		errors.Is(err, crypt.ErrAuth),
		errors.Is(err, crypt.ErrTruncated),
		errors.Is(err, crypt.ErrTrailing),
		errors.Is(err, crypt.ErrEnvelope),
		errors.Is(err, crypt.ErrVersion),
		errors.Is(err, crypt.ErrSize),
		errors.Is(err, crypt.ErrDEK):
		return &Error{
			Code: "ObjectIntegrityError",
			Message: "The stored object or its envelope was altered, truncated or moved, so it cannot be read. " +
				"Restore it from a copy; the proxy's log has the cause.",
			cause: err,
		}
	case errors.Is(err, errIdle), isTimeout(err) && !errors.Is(err, errOrigin):
		return &Error{
			Code:    "RequestTimeout",
			Message: "Your socket connection to the server was not read from or written to within the timeout period.",
			cause:   err,
		}
	case errors.Is(err, errClient), errors.Is(context.Cause(ctx), context.Canceled):
		return &Error{Code: "ClientClosedRequest", Message: "The client closed the connection.", cause: err}
	case errors.As(err, &tooLong):
		return &Error{Code: "MaxMessageLengthExceeded", Message: "Your request was too big.", cause: err}
	case errors.Is(err, errOrigin), errors.Is(err, stored.ErrStore):
		return &Error{
			Code:       "ServiceUnavailable",
			Message:    "The store behind the proxy cannot be reached. Please try again.",
			RetryAfter: retryAfter,
			cause:      err,
		}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &Error{
			Code:    "IncompleteBody",
			Message: "You did not provide the number of bytes specified by the Content-Length HTTP header",
			cause:   err,
		}
	default:
		return &Error{Code: "InternalError", Message: "We encountered an internal error. Please try again.", cause: err}
	}
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// faultError returns the error for a fault in the store's answer. It returns
// nil if the store's code and message say enough. code and status are those
// of the answer.
//
// Refusals of the proxy's own credentials, clock or region never look like
// errors of the client. Only the log has what to check.
func faultError(fault *storefault.Error, code string, status int) *Error {
	if fault == nil {
		return nil
	}

	e := &Error{
		Code:       "ServiceUnavailable",
		Message:    "The store behind the proxy cannot be reached. Please try again.",
		RetryAfter: max(retryAfter, int(fault.RetryAfter.Seconds())),
		cause:      fmt.Errorf("%w %w", errOrigin, fault),
	}
	switch {
	case fault.Kind == storefault.Throttled:
		e.Code, e.Message = "SlowDown", "The store is throttling. Please reduce your request rate."
	case fault.Kind == storefault.Foreign:
		e.Message = foreignMessage
	case fault.Kind == storefault.Unavailable && (code != "" || status == http.StatusInternalServerError):
		return nil
	case fault.Kind == storefault.Unavailable, fault.Kind == storefault.Redirect && fault.Temporary:
	default:
		e.Code, e.RetryAfter = "InternalError", 0
		e.Message = "The store refused the proxy's own request. Please tell the proxy's operator."
	}
	return e
}

// kmsError returns the errors that S3 returns for SSE-KMS. A revoked key is
// a 4xx, which SDKs do not retry. An unreachable KMS is a 503, which they
// do.
func kmsError(key *kms.Error, err error) *Error {
	switch {
	case key.Kind == kms.Disabled:
		return &Error{Code: "KMS.DisabledException", Message: "The KMS key " + key.KeyID + " is disabled.", cause: err}
	case key.Kind == kms.PendingDeletion:
		return &Error{
			Code:    "KMS.KMSInvalidStateException",
			Message: "The KMS key " + key.KeyID + " is pending deletion.",
			cause:   err,
		}
	case key.Kind == kms.NotFound:
		return &Error{
			Code:    "KMS.NotFoundException",
			Message: "The KMS key " + key.KeyID + " does not exist.",
			cause:   err,
		}
	case key.Revoked():
		return &Error{Code: "AccessDenied", Message: "The proxy may not use the KMS key " + key.KeyID + ".", cause: err}
	case key.Kind == kms.InvalidCiphertext:
		return &Error{
			Code: "ObjectIntegrityError",
			Message: "The KMS key " + key.KeyID + " does not decrypt the object's data key: " +
				"the envelope was altered or belongs to another object.",
			cause: err,
		}
	case kms.IsThrottled(err):
		return &Error{
			Code:       "SlowDown",
			Message:    "The KMS is throttling. Please reduce your request rate.",
			RetryAfter: retryAfter,
			cause:      err,
		}
	case kms.IsUnreachable(err):
		return &Error{
			Code:       "ServiceUnavailable",
			Message:    "The KMS cannot be reached. Please try again.",
			RetryAfter: retryAfter,
			cause:      err,
		}
	default:
		return &Error{
			Code:    "InternalError",
			Message: "The KMS failed. Please tell the operator of the proxy.",
			cause:   err,
		}
	}
}

// write sends the error as S3's XML. The response to a HEAD has no body.
func (e *Error) write(w http.ResponseWriter, r *http.Request, resource, requestID string) {
	h := w.Header()
	maps.Copy(h, e.Header)
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(e.RetryAfter))
	}
	h.Set("Content-Type", "application/xml")
	body := e.xml(resource, requestID)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(e.Status())
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

// xml returns the document. Some stores send no message; aws-cli 1 fails
// without one.
func (e *Error) xml(resource, requestID string) []byte {
	doc := struct {
		XMLName   xml.Name `xml:"Error"`
		Code      string
		Message   string
		Details   []xmlText
		Resource  string
		RequestID string `xml:"RequestId"`
	}{Code: e.Code, Message: cmp.Or(e.Message, http.StatusText(e.Status())), Resource: resource, RequestID: requestID}

	for _, detail := range e.Details {
		doc.Details = append(doc.Details, xmlText{xml.Name{Local: detail[0]}, detail[1]})
	}
	body, err := encodeXML(doc)
	if err != nil {
		return []byte(xml.Header + "<Error><Code>InternalError</Code></Error>")
	}

	return body
}

// tenantMessage says why the name of an object names no tenant.
func tenantMessage(err error) string {
	var reason *keyring.TenantError
	if !errors.As(err, &reason) {
		return "The name of the object does not name a KMS key of the proxy."
	}
	return "The proxy chooses the KMS key by the name of the object: " + reason.Error() + "."
}

package s3api

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

// errTransfer is the error for a request that the store refused because of
// the connection to the proxy: it was cut or half-closed, or altered the
// request. It is not the client's fault.
var errTransfer = errors.New("the connection to the store is at fault")

// ErrKeepsTruncated is returned for uploads to a store that would keep them
// if they were cut short.
var ErrKeepsTruncated error = &Error{
	Code: "NotImplemented",
	Message: "The store behind the proxy keeps a body that was cut short, and does not take the checksum trailers " +
		"that would prevent it, so an upload that fails could replace a good object. The proxy refuses uploads. " +
		"Its operator can accept this (origin.truncated_uploads).",
}

// transferFaults are the store's codes for such errors. The proxy has
// already verified the length and the checksums of the client's body. The
// store's codes are about what the proxy sent.
var transferFaults = map[string]bool{
	"BadDigest":                   true,
	"ClientDisconnected":          true, // of MinIO
	"IncompleteBody":              true,
	"IncompleteBodyError":         true,
	"InvalidChunkSizeError":       true,
	"InvalidDigest":               true,
	"MalformedTrailerError":       true,
	"MissingContentLength":        true,
	"RequestTimeout":              true,
	"XAmzContentChecksumMismatch": true,
	"XAmzContentSHA256Mismatch":   true,
}

// transferFault returns an error if a refusal was caused by the connection
// to the store. The store's code says so, or the answer comes from something
// between the proxy and the store and has no code. fault is the fault that
// the answer shows, or nil.
func transferFault(r *http.Request, status int, code string, fault *storefault.Error) *Error {
	message := "The connection between the proxy and its store broke. Please try again."
	var why error
	switch {
	case transferFaults[code] && status < http.StatusInternalServerError:
		why = fmt.Errorf("%w answered %d: %s", errOrigin, status, code)
	case code != "" || status < 400 || status >= http.StatusInternalServerError:
		return nil
	case fault != nil && fault.Kind == storefault.Foreign:
		message = foreignMessage
		why = fmt.Errorf("%w %w", errOrigin, fault)
	case r.Method != http.MethodHead && (status == http.StatusBadRequest || status == http.StatusRequestTimeout):
		why = fmt.Errorf("%w answered %d without an S3 error code", errOrigin, status)
	default:
		return nil
	}

	return &Error{
		Code:       "ServiceUnavailable",
		Message:    message,
		RetryAfter: retryAfter,
		cause:      fmt.Errorf("%w: %w", errTransfer, why),
	}
}

// foreignMessage is the message if something other than the store answered.
const foreignMessage = "The store behind the proxy sent an answer that is not S3's. Please try again."

// CheckRefusal returns an error if a refusal was not the store's own
// decision, but caused by the connection to it. code is the code of the
// document in the answer, "" if there is none.
func CheckRefusal(r *http.Request, status int, code string, body []byte) error {
	fault := storefault.OfAnswer(storefault.Answer{Method: r.Method, Status: status, Body: body})
	if refusal := transferFault(r, status, code, fault); refusal != nil {
		return refusal
	}
	return nil
}

// rewind prepares a request to be sent again. It reports whether that is
// possible: most bodies can be read only once.
func rewind(r *http.Request) bool {
	if r.Body == nil || r.Body == http.NoBody {
		return true
	}
	if r.GetBody == nil {
		return false
	}
	body, err := r.GetBody()
	r.Body = body
	return err == nil
}

// stallTime is how long the proxy must have waited for the client before a
// timeout of the store is the client's fault. Stores wait much longer.
const stallTime = 2 * time.Second

// clientTimeout replaces a transfer error if the store timed out while the
// proxy waited for the client.
func (u *upload) clientTimeout(err error) error {
	began := u.waiting.Load()
	if began == nil || u.c.route.flags&readsSource != 0 || time.Since(*began) < stallTime ||
		!errors.Is(err, errTransfer) {
		return err
	}
	return errors.Join(errIdle, errors.New(err.Error())) // as text only, because errTransfer would take precedence
}

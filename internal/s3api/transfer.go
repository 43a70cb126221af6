package s3api

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// errTransfer says that the store has refused a request for the way in which it
// came to the store: the connection between the two was cut or half-closed, or
// altered what passed. The client has no part in it.
var errTransfer = errors.New("the way to the store is at fault")

// transferFaults are the store's codes that say so. The proxy has verified
// length and checksums of the client's body by itself, and those that the
// store speaks of are of what the proxy sent.
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

// transferFault returns an error if a refusal has its cause between the proxy
// and the store: by the store's code, or as what stands in between has refused
// the request and not the store. That is told by an answer without a code.
func transferFault(r *http.Request, status int, code string, body []byte) *Error {
	var why string
	switch {
	case transferFaults[code] && status < http.StatusInternalServerError:
		why = code
	case code != "" || r.Method == http.MethodHead || status < 400 || status >= http.StatusInternalServerError:
		return nil
	case status == http.StatusBadRequest, status == http.StatusRequestTimeout:
		why = fmt.Sprintf("%.100q", body)
	case isPage(body):
		why = fmt.Sprintf("a page: %.100q", body)
	default:
		return nil
	}

	return &Error{
		Code: "ServiceUnavailable", Message: "The connection between the proxy and its store broke. Please try again.", RetryAfter: retryAfter,
		cause: fmt.Errorf("%w: %w answered %d: %s", errTransfer, errOrigin, status, why),
	}
}

// CheckRefusal returns an error if a refusal of the store is none, as its cause
// lies between the proxy and the store. code is that of the document in the
// answer, "" if there is none.
func CheckRefusal(r *http.Request, status int, code string, body []byte) error {
	if fault := transferFault(r, status, code, body); fault != nil {
		return fault
	}
	return nil
}

// isPage reports whether an answer is HTML, which no store sends.
func isPage(body []byte) bool {
	start := bytes.ToLower(bytes.TrimSpace(body[:min(len(body), 512)]))
	return bytes.HasPrefix(start, []byte("<!doctype html")) || bytes.HasPrefix(start, []byte("<html"))
}

// rewind makes a request ready to be sent again. It reports whether it could:
// the body of most requests is gone with the first time.
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

// stallTime is how long the store must have waited for the next bytes of an
// upload, for a timeout of its own to be the fault of the one who sends them.
// Stores wait for much longer.
const stallTime = 2 * time.Second

// clientTimeout returns the client's fault in place of a transfer fault, if the
// store has lost patience with an upload for which the proxy waits itself.
func (u *upload) clientTimeout(err error) error {
	began := u.waiting.Load()
	if began == nil || u.c.route.flags&readsSource != 0 || time.Since(*began) < stallTime ||
		!errors.Is(err, errTransfer) {
		return err
	}
	return errors.Join(errIdle, errors.New(err.Error())) // no longer the store's, which comes first
}

package s3api

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

// originQuery returns the query for the store: without the signature and
// without parameters that S3 ignores.
func (c *call) originQuery() url.Values {
	if len(c.query) == 0 {
		return nil
	}
	query := make(url.Values)
	for name, values := range c.query {
		if c.route.allowsQuery(name) && !signatureNames.has(name) && (len(name) < 2 || name[:2] != "x-") {
			query[name] = values
		}
	}
	return query
}

// originRequest returns a request to the store with the client's query and
// without a body. A body of length bytes can be added; see replayable.
func (c *call) originRequest(method string, header http.Header, length int64) *http.Request {
	return c.originRequestTo(method, c.originQuery(), header, nil, length)
}

// originRequestTo returns a request to the store. length is the length of
// body in bytes.
func (c *call) originRequestTo(
	method string,
	query url.Values,
	header http.Header,
	body io.ReadCloser,
	length int64,
) *http.Request {
	r := c.requestAt(method, c.objectURL(query), header)
	r.Body, r.ContentLength = body, length
	if length == 0 && body != nil {
		r.Body = http.NoBody
	}
	return r
}

// requestAt returns a request without a body, for any object.
func (c *call) requestAt(method string, at *url.URL, header http.Header) *http.Request {
	r := &http.Request{Method: method, URL: at, Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	return r.WithContext(c.Context())
}

// send returns the store's answer if it is a success or 304 Not Modified,
// and an error otherwise. If the store refuses the request as damaged in
// transfer, send repeats it once, unless the body cannot be read again.
func (s *Server) send(c *call, r *http.Request) (*http.Response, error) {
	resp, err := s.sendOnce(c, r)
	if errors.Is(err, errTransfer) && rewind(r) {
		return s.sendOnce(c, r)
	}
	return resp, err
}

func (s *Server) sendOnce(c *call, r *http.Request) (*http.Response, error) {
	c.addGuards(r)
	start := s.Now()
	resp, err := s.Origin.RoundTrip(c.traced(r))
	took := s.Now().Sub(start)
	c.originTime.Add(int64(took))

	if err != nil {
		s.Metrics.Origin(c.op, 0, took)
		s.countFault(storefault.Of(err), nil)
		return nil, fmt.Errorf("%w: %w", errOrigin, err)
	}
	s.Metrics.Origin(c.op, resp.StatusCode, took)

	if id := resp.Header.Get("X-Amz-Request-Id"); id != "" {
		c.originID.Store(&id)
	}
	if resp.StatusCode < http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%w answered with the status %d", errOrigin, resp.StatusCode)
	}

	c.rememberCORS(r, resp)
	if resp.StatusCode < 300 || resp.StatusCode == http.StatusNotModified {
		resp.Body = &storeBody{resp.Body}
		if resp.StatusCode == http.StatusNotModified {
			s.Metrics.OriginUp(true)
			return resp, nil
		}

		if err := s.check(r, resp); err != nil {
			_ = resp.Body.Close()
			s.countFault(storefault.Of(err), resp)
			return nil, err
		}
		s.trusted.note(s.Now())
		s.Metrics.OriginUp(true)
		return resp, nil
	}
	defer closeBody(resp)

	failure, fault := c.originError(r, resp)
	if r.Method == http.MethodHead && fault == nil && s.isAmbiguous(resp) {
		return nil, s.repeatAsGet(c, r, failure)
	}
	if fault != nil && fault.Kind == storefault.Credentials {
		s.trusted.forget()
	}
	s.countFault(fault, resp)
	if fault == nil && acceptsCredentials(resp.StatusCode) {
		s.Metrics.OriginUp(true)
	}
	return nil, failure
}

const (
	ownerHeader       = "X-Amz-Expected-Bucket-Owner"
	sourceOwnerHeader = "X-Amz-Source-Expected-Bucket-Owner"
	payerHeader       = "X-Amz-Request-Payer"
)

// addGuards adds the headers that the client's request sets for all requests
// of its operation: who must own the bucket, and that the client pays. A
// bucket that has changed hands must not get a part, nor the parts' list.
func (c *call) addGuards(r *http.Request) {
	owner := ""
	if isIn(r, c.bucket) {
		owner = c.Header.Get(ownerHeader)
	}
	if owner == "" && isIn(r, c.sourceBucket) {
		owner = c.Header.Get(sourceOwnerHeader)
	}

	addHeader(r, ownerHeader, owner)
	addHeader(r, payerHeader, c.Header.Get(payerHeader))
}

// isIn reports whether a request to the store is about this bucket or an
// object in it.
func isIn(r *http.Request, bucket string) bool {
	rest, ok := strings.CutPrefix(r.URL.Path, "/"+bucket)
	return ok && bucket != "" && (rest == "" || rest[0] == '/')
}

// addHeader adds a header that r does not have. r.Header may be shared with
// other requests, so it is not changed.
func addHeader(r *http.Request, name, value string) {
	if value == "" || r.Header.Get(name) != "" {
		return
	}
	h := r.Header.Clone()
	if h == nil {
		h = make(http.Header)
	}
	h.Set(name, value)
	r.Header = h
}

// versitygw is the header Server of a store that answers 404 for an unknown
// access key. Others answer 403.
const versitygw = "VERSITYGW"

// isAmbiguous reports whether a refusal of a HEAD may be one of the proxy's
// own credentials. It is costly to ask about each 404. So, unless the store is
// known to refuse credentials with it, a 404 counts only while the store does
// not accept the credentials for other requests.
func (s *Server) isAmbiguous(refusal *http.Response) bool {
	switch refusal.StatusCode {
	case http.StatusBadRequest, http.StatusForbidden:
		return true
	case http.StatusNotFound:
		return refusal.Header.Get("Server") == versitygw || !s.trusted.isRecent(s.Now())
	default:
		return false
	}
}

// trust is when the store last accepted the proxy's credentials. It is safe
// for concurrent use.
type trust struct{ at atomic.Int64 } // in Unix nanoseconds; 0 for never

// trustTime is how long an accepted request speaks for the credentials.
const trustTime = time.Minute

func (t *trust) note(now time.Time) {
	if !t.isRecent(now.Add(trustTime / 2)) { // seldom, because all cores share it
		t.at.Store(now.UnixNano())
	}
}

// forget is called when the store refuses the credentials.
func (t *trust) forget() { t.at.Store(0) }

func (t *trust) isRecent(now time.Time) bool {
	at := t.at.Load()
	since := now.Sub(time.Unix(0, at))
	return at != 0 && since >= 0 && since < trustTime
}

// countFault counts a fault of the store; nil is none. resp is the answer that
// shows it, or nil if there was none.
func (s *Server) countFault(fault *storefault.Error, resp *http.Response) {
	if fault == nil {
		return
	}
	s.Metrics.OriginFault(string(fault.Kind))
	if isOutage(fault.Kind, resp) {
		s.Metrics.OriginUp(false)
	}
}

// isOutage reports whether a fault is one of the store itself, or of the proxy's
// credentials, whatever the client has asked for. A store that throttles works;
// a bucket that the client names may be in another region; a gateway may refuse
// a request with a page because of its path or length; and the store itself,
// which gives each request an id, may have an object without an ETag.
func isOutage(kind storefault.Kind, resp *http.Response) bool {
	switch {
	case kind == storefault.Throttled, kind == storefault.Redirect:
		return false
	case kind != storefault.Foreign, resp == nil:
		return true
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusProxyAuthRequired:
		return true
	case resp.StatusCode < 300:
		return resp.Header.Get("X-Amz-Request-Id") == ""
	default:
		return resp.StatusCode < 400 || resp.StatusCode >= 500
	}
}

// acceptsCredentials reports whether a refusal, which is no fault, proves that
// the store has accepted the proxy's credentials. Stores may answer 400 before
// they look at them.
func acceptsCredentials(status int) bool { return status > 400 && status < 500 }

// repeatAsGet returns the reason why the store refused a HEAD. An answer to
// HEAD has no body, so repeatAsGet sends a GET. Without it, the client could
// take a refusal of the proxy's own credentials for one of its own request.
func (s *Server) repeatAsGet(c *call, head *http.Request, failure *Error) error {
	r := head.Clone(head.Context())
	r.Method = http.MethodGet
	if _, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); key == "" {
		r.URL.RawQuery = "list-type=2&max-keys=0" // HeadBucket needs the permission to list
	} else {
		r.Header.Set("Range", "bytes=0-0")
	}
	resp, err := s.send(c, r)
	if err != nil {
		return err
	}
	closeBody(resp)
	return failure
}

// lastStatus is the highest HTTP status code.
const lastStatus = 599

// maxErrorBody limits what is read of the store's error answers, in bytes.
const maxErrorBody = 64 << 10

// originError converts the store's error answer, and returns the fault that
// it shows, or nil. It keeps the code and the message, but no details that
// describe ciphertext.
func (c *call) originError(r *http.Request, resp *http.Response) (*Error, *storefault.Error) {
	var doc refusalDocument

	// The fields stay empty if the body is not XML, as after a HEAD.
	var body bytes.Buffer
	_, _ = body.ReadFrom(io.LimitReader(resp.Body, maxErrorBody))
	_ = xml.Unmarshal(body.Bytes(), &doc)

	fault := storefault.OfAnswer(storefault.Answer{
		Method: r.Method, Status: resp.StatusCode, Header: resp.Header, Body: body.Bytes(),
	})
	if e := transferFault(r, resp.StatusCode, doc.Code, fault); e != nil {
		return e, fault
	}
	if e := faultError(fault, doc.Code, resp.StatusCode); e != nil {
		return e, fault
	}

	e := &Error{
		Code:       doc.Code,
		Message:    doc.Message,
		Header:     make(http.Header),
		httpStatus: resp.StatusCode,
		cause:      fmt.Errorf("%w answered %d %s: %s", errOrigin, resp.StatusCode, doc.Code, doc.Message),
	}
	if e.httpStatus > lastStatus {
		e.httpStatus = http.StatusInternalServerError
	}

	if !codeForm.MatchString(e.Code) {
		e.Code = codeOfStatus(resp.StatusCode)
		e.Message = messages[e.Code]
	}

	c.addDetails(e, &doc)
	for _, name := range []string{
		"X-Amz-Delete-Marker", "X-Amz-Version-Id", "X-Amz-Bucket-Region", "Allow", "Retry-After",
	} {
		if values := resp.Header.Values(name); len(values) > 0 {
			e.Header[name] = values
		}
	}

	if resp.StatusCode == http.StatusServiceUnavailable && e.Header.Get("Retry-After") == "" {
		e.RetryAfter = retryAfter
	}
	return e, fault
}

// refusalDocument has the elements of S3's error documents that the proxy
// uses.
type refusalDocument struct {
	Code, Message, BucketName, Condition, Method, ResourceType, ArgumentName, ArgumentValue string
}

// addDetails adds the details that describe the client's request.
func (c *call) addDetails(e *Error, doc *refusalDocument) {
	for _, detail := range [][2]string{
		{"BucketName", doc.BucketName},
		{"Condition", doc.Condition},
		{"Method", doc.Method},
		{"ResourceType", doc.ResourceType},
	} {
		if detail[1] != "" {
			e.Details = append(e.Details, detail)
		}
	}

	if c.isOwnArgument(doc.ArgumentName, doc.ArgumentValue) {
		e.Details = append(
			e.Details,
			[2]string{"ArgumentName", doc.ArgumentName},
			[2]string{"ArgumentValue", doc.ArgumentValue},
		)
	}
}

// isOwnArgument reports whether an argument comes from the client, and not
// from the proxy.
func (c *call) isOwnArgument(name, value string) bool {
	return value != "" && (c.Header.Get(name) == value || c.query.Get(name) == value)
}

// notFound is the code for a 404 to HEAD, which does not say whether the key
// or the bucket is missing.
const notFound = "NotFound"

// codeOfStatus returns the S3 error code for a status whose response has no
// body.
func codeOfStatus(status int) string {
	switch status {
	case http.StatusBadRequest:
		return "InvalidRequest"
	case http.StatusForbidden:
		return "AccessDenied"
	case http.StatusNotFound:
		return notFound
	case http.StatusMethodNotAllowed:
		return "MethodNotAllowed"
	case http.StatusPreconditionFailed:
		return "PreconditionFailed"
	case http.StatusRequestedRangeNotSatisfiable:
		return "InvalidRange"
	case http.StatusServiceUnavailable:
		return "ServiceUnavailable"
	default:
		return "InternalError"
	}
}

// messages are the messages for the codes of codeOfStatus.
var messages = map[string]string{
	"InvalidRequest":     "The store refused the request.",
	"AccessDenied":       "Access Denied.",
	"MethodNotAllowed":   "The specified method is not allowed against this resource.",
	"PreconditionFailed": "At least one of the pre-conditions you specified did not hold.",
	"InvalidRange":       "The requested range is not satisfiable",
	"ServiceUnavailable": "Please reduce your request rate.",
	"InternalError":      "We encountered an internal error. Please try again.",
}

// storeBody is the body of the store's answer. It wraps read errors in
// errOrigin.
type storeBody struct{ io.ReadCloser }

func (b *storeBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // Read must return io.EOF unwrapped
		err = fmt.Errorf("%w: reading: %w", errOrigin, err)
	}
	return n, err
}

// closeBody closes a response. It reads the rest of a short body, so that
// the connection can be reused.
func closeBody(resp *http.Response) {
	const worthReading = 16 << 10
	_, _ = io.CopyN(io.Discard, resp.Body, worthReading)
	_ = resp.Body.Close()
}

var errOrigin = errors.New("the store")

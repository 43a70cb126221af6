package s3api

import (
	"net/http"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/tracing"
)

// exemplar returns the id of the trace for metrics, which is of use only if
// the request is recorded; "" for none.
func (c *call) exemplar() string {
	if !c.trace.IsRecorded() {
		return ""
	}
	return c.trace.TraceID()
}

// endTrace ends the span of the request. code is that of the error, as it is
// counted; "" for a success.
func (c *call) endTrace(code string) {
	if !c.trace.IsRecorded() {
		return
	}
	c.trace.End(&tracing.Served{
		Request:   c.Request,
		Operation: c.op,
		Bucket:    c.bucket,
		Key:       c.key,
		Client:    c.clientName(),
		Remote:    c.remote,
		Secure:    c.secure,
		RequestID: c.id,
		Status:    c.w.status,
		Code:      code,
		In:        c.in.Load(),
		Out:       c.w.bytes,
		Cut:       c.aborted || isCut(code),
	})
}

// isCut reports whether a code means that the client did not send all of its
// request.
func isCut(code string) bool { return code == "RequestTimeout" || code == "ClientClosedRequest" }

// traced returns a request to the store with what it is for, if it is
// recorded.
func (c *call) traced(r *http.Request) *http.Request {
	if !c.trace.IsRecorded() {
		return r
	}

	var call tracing.StoreCall
	if row := c.server.sentAs(r); row != nil {
		call.Operation = row.op
	}
	call.Bucket, call.Key, _ = strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	return tracing.WithStoreCall(r, call)
}

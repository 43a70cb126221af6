package kms

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
)

// Trace collects information about a KMS call for the audit log. The zero
// value is ready for use. It is safe for concurrent use, because a call can
// continue after its caller has left.
type Trace struct{ lastRequestID atomic.Pointer[string] }

// RequestID returns the KMS's id of the last request, which is also in the
// KMS's own log. It is "" if the KMS provides none. For a key that consists of
// several, it has the id of each member's request after the member's name, as
// in "customer=1 vendor=2".
func (t *Trace) RequestID() string {
	if id := t.lastRequestID.Load(); id != nil {
		return *id
	}
	return ""
}

type traceKey struct{}

// WithTrace returns a context whose calls are recorded in t.
func WithTrace(ctx context.Context, t *Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// maxRequestID limits the length of a request id in bytes. Real ones have
// 36.
const maxRequestID = 128

// traceRequest records the KMS's id of a request in the Trace of ctx, if
// there is one.
func traceRequest(ctx context.Context, id string) {
	if t, ok := ctx.Value(traceKey{}).(*Trace); ok && id != "" {
		clean := printable(id, maxRequestID)
		t.lastRequestID.Store(&clean)
	}
}

// traceRequests records the ids of requests to several KMSs, each after the
// name of its key. "" means none.
func traceRequests(ctx context.Context, ids []string) {
	ids = slices.DeleteFunc(ids, func(id string) bool { return id == "" })
	if t, ok := ctx.Value(traceKey{}).(*Trace); ok && len(ids) > 0 {
		all := strings.Join(ids, " ")
		t.lastRequestID.Store(&all)
	}
}

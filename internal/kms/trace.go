package kms

import (
	"context"
	"sync/atomic"
)

// Trace collects what a KMS says of a call beside its answer, for an audit
// log. The zero value is ready for use. It is safe for concurrent use: a call
// can go on after its caller has gone.
type Trace struct{ lastRequestID atomic.Pointer[string] }

// RequestID is the name that the KMS gave the last request, by which its own
// log knows it; "" where it gives none.
func (t *Trace) RequestID() string {
	if id := t.lastRequestID.Load(); id != nil {
		return *id
	}
	return ""
}

type traceKey struct{}

// WithTrace has the calls made with the context it returns reported to t.
func WithTrace(ctx context.Context, t *Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// maxRequestID bounds what is kept of a request's name, in bytes. Real ones
// have 36.
const maxRequestID = 128

// traceRequest reports the name that a KMS gave a request, to whoever wants to
// know.
func traceRequest(ctx context.Context, id string) {
	if t, ok := ctx.Value(traceKey{}).(*Trace); ok && id != "" {
		clean := printable(id, maxRequestID)
		t.lastRequestID.Store(&clean)
	}
}

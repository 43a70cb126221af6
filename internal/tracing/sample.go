package tracing

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"net/http"
	"sync"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// sampler decides which requests are recorded.
//
// A request without a parent is recorded with the probability ratio. A
// request whose parent is not sampled is not recorded. A request whose
// parent is sampled is recorded while such requests are at most ratio of all
// requests with a parent, and a few more after a quiet time. Otherwise any
// client could make the proxy record all of its requests. The trace id does
// not decide, because the client chooses it.
type sampler struct {
	ratio float64

	mu     sync.Mutex
	credit float64 // requests with a sampled parent that may be recorded now
}

// maxCredit is how many requests with a sampled parent may be recorded after
// a quiet time. It lets clients that sample with the same ratio have almost
// all of their traces, although these come at random.
const maxCredit = 100

func newSampler(ratio float64) *sampler { return &sampler{ratio: ratio, credit: maxCredit} }

// records decides about one request.
func (s *sampler) records(parent trace.SpanContext) bool {
	if !parent.IsValid() {
		return s.ratio >= 1 || random() < s.ratio
	}
	if s.ratio >= 1 {
		return parent.IsSampled()
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.credit = min(maxCredit, s.credit+s.ratio)
	if !parent.IsSampled() || s.credit < 1 {
		return false
	}
	s.credit--
	return true
}

// random returns a number from 0 up to 1.
func random() float64 {
	var b [8]byte
	rand.Read(b[:])
	return float64(binary.LittleEndian.Uint64(b[:])>>11) / (1 << 53)
}

// parentOf returns the span that the client names in the header traceparent
// (https://www.w3.org/TR/trace-context/). It is not valid if there is none,
// more than one, or a malformed one. The client's tracestate and baggage are
// text for others, and are not passed on.
func parentOf(h http.Header) trace.SpanContext {
	if len(h["Traceparent"]) != 1 {
		return trace.SpanContext{}
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), carrier(h["Traceparent"][0]))
	return trace.SpanContextFromContext(ctx)
}

// carrier is a propagation.TextMapCarrier with only the header traceparent.
type carrier string

// Get implements propagation.TextMapCarrier.
func (t carrier) Get(name string) string {
	if name == "traceparent" {
		return string(t)
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (carrier) Set(string, string) {}

// Keys implements propagation.TextMapCarrier.
func (carrier) Keys() []string { return []string{"traceparent"} }

// Traceparent returns the value of the header traceparent for a request
// below the span of ctx, or "" for none.
func Traceparent(ctx context.Context) string {
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return ""
	}
	flags := "-00"
	if sc.IsSampled() {
		flags = "-01"
	}
	return "00-" + sc.TraceID().String() + "-" + sc.SpanID().String() + flags
}

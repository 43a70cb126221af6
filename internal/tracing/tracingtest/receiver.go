// Package tracingtest has a receiver of spans for tests.
//
// There is no example: the tests of package tracing show its use.
package tracingtest

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Receiver is a receiver of OTLP over HTTP.
type Receiver struct {
	URL    string
	server *httptest.Server

	mu     sync.Mutex
	reply  http.HandlerFunc // nil to accept everything
	got    []Span
	bodies bytes.Buffer
	seen   []*http.Request
}

// Span is a span as it was received.
type Span struct {
	*tracepb.Span

	Resource map[string]string
}

// Start starts a receiver, which ends with the test.
func Start(t testing.TB) *Receiver {
	r := &Receiver{}
	r.server = httptest.NewServer(http.HandlerFunc(r.serve))
	r.URL = r.server.URL
	t.Cleanup(r.server.Close)
	return r
}

// Answer makes the receiver answer with h, which keeps nothing. nil makes it
// accept spans again.
func (r *Receiver) Answer(h http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reply = h
}

func (r *Receiver) serve(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	answer := r.reply
	r.seen = append(r.seen, req)
	r.mu.Unlock()
	if answer != nil {
		answer(w, req)
		return
	}

	if err := r.take(req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf") // of an empty ExportTraceServiceResponse
}

func (r *Receiver) take(req *http.Request) error {
	if req.Method != http.MethodPost || req.Header.Get("Content-Type") != "application/x-protobuf" {
		return fmt.Errorf("%s with %s", req.Method, req.Header.Get("Content-Type"))
	}
	var body bytes.Buffer
	if _, err := body.ReadFrom(req.Body); err != nil && err != io.EOF { //nolint:errorlint // of a body
		return err
	}
	var in coltracepb.ExportTraceServiceRequest
	if err := proto.Unmarshal(body.Bytes(), &in); err != nil {
		return err
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	r.bodies.Write(body.Bytes())
	for _, group := range in.GetResourceSpans() {
		resource := attributes(group.GetResource().GetAttributes())
		for _, scope := range group.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				r.got = append(r.got, Span{s, resource})
			}
		}
	}
	return nil
}

// Spans returns the spans that were received.
func (r *Receiver) Spans() []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Span(nil), r.got...)
}

// Raw returns the bodies of all requests with spans.
func (r *Receiver) Raw() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.bodies.Bytes())
}

// Requests returns all requests. Their bodies are closed.
func (r *Receiver) Requests() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*http.Request(nil), r.seen...)
}

// Attributes returns the attributes as text.
func (s Span) Attributes() map[string]string { return attributes(s.GetAttributes()) }

// TraceID returns the id of the trace in hexadecimal.
func (s Span) TraceID() string { return hex.EncodeToString(s.GetTraceId()) }

// ID returns the id of the span in hexadecimal.
func (s Span) ID() string { return hex.EncodeToString(s.GetSpanId()) }

// Parent returns the id of the span above in hexadecimal; "" for none.
func (s Span) Parent() string { return hex.EncodeToString(s.GetParentSpanId()) }

// IsError reports whether the status of the span is an error.
func (s Span) IsError() bool { return s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR }

// IsServer reports whether it is a server span. All others are client spans.
func (s Span) IsServer() bool { return s.GetKind() == tracepb.Span_SPAN_KIND_SERVER }

// Events returns the attributes of the events as text.
func (s Span) Events() (events []map[string]string) {
	for _, e := range s.GetEvents() {
		events = append(events, attributes(e.GetAttributes()))
	}
	return events
}

func attributes(list []*commonpb.KeyValue) map[string]string {
	out := make(map[string]string)
	for _, a := range list {
		switch v := a.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			out[a.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			out[a.GetKey()] = fmt.Sprint(v.IntValue)
		default:
			out[a.GetKey()] = a.GetValue().String()
		}
	}
	return out
}

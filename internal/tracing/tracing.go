// Package tracing records S3 requests as spans of OpenTelemetry and sends
// them to a receiver with OTLP over HTTP.
//
// A request that is recorded has a server span. Requests to the store and
// calls of the KMS that it causes are client spans below it. Nothing else
// starts a span. Code below the server finds the span in the context, so it
// needs no settings and costs almost nothing while tracing is off.
//
// No setting comes from the environment, and nothing in this package is
// global to the process. docs/tracing.md describes the spans.
//
//	tracing.go  Tracer: starting and ending
//	sample.go   which requests are recorded, and what is accepted from clients
//	server.go   the span of an S3 request
//	client.go   the spans of requests to the store and of calls of the KMS
//	export.go   sending spans and counting them
//	try.go      asking the receiver whether it accepts them
//
// There is no example: it needs a receiver. The tests show its use.
package tracing

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// Config configures a Tracer. Fields are required unless a comment says what
// zero means.
type Config struct {
	// Endpoint is the base URL of the receiver. Spans are sent to the path
	// /v1/traces below it.
	Endpoint string
	// Header is sent to the receiver, for example a token. May be nil.
	Header http.Header
	// Transport sends requests to the receiver.
	Transport http.RoundTripper
	// Ratio is the part of the requests that is recorded, above 0 and at
	// most 1.
	Ratio float64
	// Service, Version and Instance identify this process in the spans.
	Service, Version, Instance string
	// ObjectKeys puts object keys into spans. They may be confidential.
	ObjectKeys bool
	// Report is called when sending spans fails after it worked, with the
	// reason, and when it works again, with nil and the number of spans
	// that were lost meanwhile. It may be nil.
	Report func(err error, lost uint64)
}

const (
	// tracesPath is the path of the receiver below its base URL
	// (https://opentelemetry.io/docs/specs/otlp/#otlphttp-request).
	tracesPath = "/v1/traces"
	// scope names the code that makes the spans.
	scope = "github.com/cmekproxy/cmekproxy"

	queueSize     = 2048 // spans that wait to be sent; more are dropped
	batchSize     = 512
	batchInterval = 5 * time.Second
	exportTimeout = 10 * time.Second // of a batch, with all attempts
	firstRetry    = 500 * time.Millisecond
	lastRetry     = 5 * time.Second
)

// Limits of a span. Clients determine some of the values.
const (
	maxAttributes = 64
	maxEvents     = 64
	maxValue      = 1024 // bytes
)

// Tracer starts the spans of S3 requests. It is safe for concurrent use. A
// nil Tracer records nothing.
type Tracer struct {
	sampler  *sampler
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	exporter *exporter
	receiver *receiver
	url      string // of the receiver, for spans
	keys     bool
}

// New returns a Tracer. It does not connect to the receiver.
func New(ctx context.Context, cfg Config) (*Tracer, error) {
	receiver := &receiver{next: cfg.Transport}
	receiver.header.Store(&cfg.Header)

	// Every option that the environment could set is set here, so that the
	// configuration alone decides.
	url := strings.TrimSuffix(cfg.Endpoint, "/") + tracesPath
	client, err := otlptracehttp.New(
		ctx,
		otlptracehttp.WithEndpointURL(url),
		otlptracehttp.WithHTTPClient(receiver.client()),
		otlptracehttp.WithHeaders(map[string]string{}), // receiver sets them
		otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf),
		otlptracehttp.WithCompression(otlptracehttp.NoCompression),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
			Enabled: true, InitialInterval: firstRetry, MaxInterval: lastRetry, MaxElapsedTime: exportTimeout,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}

	e := &exporter{next: client, receiver: receiver, report: cfg.Report, identity: resource.NewWithAttributes(
		semconv.SchemaURL,
		semconv.ServiceName(cfg.Service),
		semconv.ServiceVersion(cfg.Version),
		semconv.ServiceInstanceID(cfg.Instance),
	)}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.AlwaysSample()), // sampler decides, before a span is started
		sdktrace.WithRawSpanLimits(sdktrace.SpanLimits{
			AttributeValueLengthLimit:   maxValue,
			AttributeCountLimit:         maxAttributes,
			EventCountLimit:             maxEvents,
			LinkCountLimit:              1,
			AttributePerEventCountLimit: maxAttributes,
			AttributePerLinkCountLimit:  1,
		}),
		sdktrace.WithSpanProcessor(newProcessor(e)),
	)
	return &Tracer{
		sampler: newSampler(cfg.Ratio), provider: provider, tracer: provider.Tracer(scope),
		exporter: e, receiver: receiver, url: url, keys: cfg.ObjectKeys,
	}, nil
}

// SetHeader replaces Config.Header for later requests to the receiver.
func (t *Tracer) SetHeader(h http.Header) {
	if t != nil {
		t.receiver.header.Store(&h)
	}
}

// Exported returns how many spans the receiver has accepted.
func (t *Tracer) Exported() uint64 { return t.exporter.exported.Load() }

// Dropped returns how many spans were lost: the receiver did not answer or
// rejected them, or too many were waiting.
func (t *Tracer) Dropped() uint64 { return t.exporter.dropped.Load() }

// Shutdown sends the spans that wait. It returns when ctx ends, at the
// latest; what was not sent until then is lost. No span may be started
// afterwards.
func (t *Tracer) Shutdown(ctx context.Context) error {
	if t == nil {
		return nil
	}
	err := t.provider.Shutdown(ctx)
	t.exporter.abandon()
	t.receiver.client().CloseIdleConnections()
	if err != nil {
		return fmt.Errorf("tracing: sending the last spans: %w", err)
	}
	return nil
}

// receiver is the transport to the receiver.
type receiver struct {
	next     http.RoundTripper
	header   atomic.Pointer[http.Header]
	rejected atomic.Int64 // spans that the last answer rejected
	reason   atomic.Pointer[string]
}

func (r *receiver) client() *http.Client {
	return &http.Client{
		Transport:     r,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// RoundTrip adds the header, which may be secret. So redirects are not
// followed.
func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	maps.Copy(out.Header, *r.header.Load())
	resp, err := r.next.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	if err := r.takeRejected(resp); err != nil {
		return nil, err
	}
	return resp, nil
}

// CloseIdleConnections is called by http.Client.
func (r *receiver) CloseIdleConnections() {
	if t, ok := r.next.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

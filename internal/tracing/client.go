package tracing

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

// startBelow starts a client span below the span of ctx, with the name
// service+operation. It returns nil if that is not recorded.
func startBelow(ctx context.Context, service, operation string) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, nil
	}
	return parent.TracerProvider().Tracer(scope).Start(
		ctx, service+operation, trace.WithSpanKind(trace.SpanKindClient))
}

// StoreCall is what a request to the store is for.
type StoreCall struct{ Operation, Bucket, Key string }

type (
	storeCallKey struct{}
	resendKey    struct{}
)

// WithStoreCall returns r with what it is for.
func WithStoreCall(r *http.Request, call StoreCall) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), storeCallKey{}, call))
}

// WithResend returns r to be sent again for the nth time.
func WithResend(r *http.Request, n int) *http.Request {
	if !trace.SpanFromContext(r.Context()).IsRecording() {
		return r
	}
	return r.WithContext(context.WithValue(r.Context(), resendKey{}, n))
}

// StoreTransport is an http.RoundTripper with a span for each request that
// Next sends to the store, up to the end of the response. The store gets no
// header about it: the headers are signed, and the store is not trusted.
type StoreTransport struct {
	Next       http.RoundTripper
	ObjectKeys bool // as in Config
	// KindOf returns the kind of an error while the body of a response is
	// read, which Next does not wrap in a storefault.Error; "" for an error
	// that it does not know. May be nil.
	KindOf func(error) storefault.Kind
}

// RoundTrip implements http.RoundTripper.
func (t *StoreTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	call, _ := r.Context().Value(storeCallKey{}).(StoreCall)
	service, operation := "S3.", call.Operation
	if operation == "" {
		service, operation = "", r.Method // as in the conventions for HTTP
	}
	_, span := startBelow(r.Context(), service, operation)
	if span == nil {
		return t.Next.RoundTrip(r)
	}

	span.SetAttributes(t.attributes(r, call)...)
	resp, err := t.Next.RoundTrip(r)
	if err != nil {
		endWithError(span, cmp.Or(kindOf(err), "_OTHER")) // of the conventions
		return nil, err
	}

	span.SetAttributes(
		semconv.HTTPResponseStatusCode(resp.StatusCode),
		semconv.NetworkProtocolVersion(strconv.Itoa(resp.ProtoMajor)+"."+strconv.Itoa(resp.ProtoMinor)),
	)
	if id := resp.Header.Get("X-Amz-Request-Id"); id != "" {
		span.SetAttributes(semconv.AWSRequestID(clean(id, maxValue)))
	}
	if resp.StatusCode >= http.StatusBadRequest {
		setError(span, strconv.Itoa(resp.StatusCode))
	}

	if resp.Body == nil || resp.Body == http.NoBody {
		span.End()
		return resp, nil
	}
	resp.Body = &tracedBody{ReadCloser: resp.Body, span: span, kindOf: t.KindOf}
	return resp, nil
}

func (t *StoreTransport) attributes(r *http.Request, call StoreCall) []attribute.KeyValue {
	host, port := splitHost(r.URL.Host)
	if port == 0 {
		port = map[string]int{"http": 80, "https": 443}[r.URL.Scheme]
	}

	list := append(
		make([]attribute.KeyValue, 0, 12),
		semconv.ServerAddress(host), semconv.ServerPort(port), semconv.URLFull(clean(t.urlOf(r, call), maxValue)),
	)
	list = appendMethod(list, r.Method)
	if call.Operation != "" {
		list = append(
			list,
			semconv.RPCSystemNameKey.String(awsAPI), rpcServiceKey.String("S3"), semconv.RPCMethod(call.Operation),
		)
	}
	if call.Bucket != "" {
		list = append(list, semconv.AWSS3Bucket(clean(call.Bucket, maxValue)))
	}
	if call.Key != "" && t.ObjectKeys {
		list = append(list, semconv.AWSS3Key(clean(call.Key, maxValue)))
	}
	if n, ok := r.Context().Value(resendKey{}).(int); ok {
		list = append(list, semconv.HTTPRequestResendCount(n))
	}
	return list
}

// urlOf returns the URL without the query, which has prefixes of keys, and
// without the object key unless it may be exported.
func (t *StoreTransport) urlOf(r *http.Request, call StoreCall) string {
	base := r.URL.Scheme + "://" + r.URL.Host
	switch path := r.URL.EscapedPath(); {
	case t.ObjectKeys, call.Operation != "" && call.Key == "":
		return base + path
	case call.Bucket != "" && strings.HasPrefix(path, "/"+call.Bucket+"/"):
		return base + "/" + call.Bucket + "/REDACTED"
	default:
		return base + "/REDACTED"
	}
}

// tracedBody ends the span of a request with the body of its response.
type tracedBody struct {
	io.ReadCloser

	span   trace.Span
	kindOf func(error) storefault.Kind // may be nil
	bytes  atomic.Int64
	ended  atomic.Bool
}

func (b *tracedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.bytes.Add(int64(n))
	if err == io.EOF {
		b.end("")
	} else if err != nil {
		b.end(b.failure(err))
	}
	return n, err
}

func (b *tracedBody) failure(err error) string {
	kind := kindOf(err)
	if kind == "" && b.kindOf != nil {
		kind = string(b.kindOf(err))
	}
	return cmp.Or(kind, string(storefault.Broken))
}

func (b *tracedBody) Close() error {
	b.end("")
	return b.ReadCloser.Close()
}

// end ends the span once. failure is a kind of error; "" for none.
func (b *tracedBody) end(failure string) {
	if b.ended.Swap(true) {
		return
	}
	b.span.SetAttributes(semconv.HTTPResponseBodySize(int(b.bytes.Load())))
	if failure != "" {
		setError(b.span, failure)
	}
	b.span.End()
}

// setError marks a span as failed. The text of errors is not exported: it may
// contain names.
func setError(span trace.Span, kind string) {
	span.SetAttributes(semconv.ErrorTypeKey.String(kind))
	span.SetStatus(codes.Error, "")
}

func endWithError(span trace.Span, kind string) {
	setError(span, kind)
	span.End()
}

// kindOf returns the kind of an error of the store, as one of a few texts;
// "" if it is not known.
func kindOf(err error) string {
	switch fault := storefault.Of(err); {
	case fault != nil && fault.Kind != "":
		return string(fault.Kind)
	case errors.Is(err, context.DeadlineExceeded):
		return string(storefault.Timeout)
	case errors.Is(err, context.Canceled):
		return "canceled"
	default:
		return ""
	}
}

// KMSCall is a call of a KMS.
type KMSCall struct {
	Key       string // name of the key in the configuration
	Provider  string // "" if it is not known
	Operation string
}

// KMSSpan is the span of a call of a KMS. nil is not recorded.
type KMSSpan struct {
	span     trace.Span
	provider string
}

// StartKMS begins the span of a call. The call must use the context that it
// returns.
func StartKMS(ctx context.Context, call KMSCall) (context.Context, *KMSSpan) {
	ctx, span := startBelow(ctx, "KMS.", call.Operation)
	if span == nil {
		return ctx, nil
	}
	span.SetAttributes(kmsKeyKey.String(clean(call.Key, maxValue)), kmsOpKey.String(call.Operation))
	if call.Provider != "" {
		span.SetAttributes(kmsProviderKey.String(call.Provider))
	}
	return ctx, &KMSSpan{span, call.Provider}
}

// End ends the span. failure is the kind of the error; "" for a success.
// requestID is the KMS's id of the request; "" for none.
func (s *KMSSpan) End(failure, requestID string) {
	if s == nil {
		return
	}

	if requestID != "" {
		key := kmsRequestKey
		if s.provider == "aws-kms" {
			key = semconv.AWSRequestIDKey
		}
		s.span.SetAttributes(key.String(clean(requestID, maxValue)))
	}
	if failure != "" {
		s.span.SetAttributes(kmsResultKey.String(failure))
		endWithError(s.span, failure)
		return
	}
	s.span.SetAttributes(kmsResultKey.String("ok"))
	s.span.End()
}

// DataKeyUsed adds the use of a data key to the span of ctx: what it was used
// for, the name of the KMS key, and where it came from, such as the cache.
func DataKeyUsed(ctx context.Context, use, key, source string) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	span.AddEvent(dataKeyEvent, trace.WithAttributes(
		dekUseKey.String(use), kmsKeyKey.String(clean(key, maxValue)), dekSourceKey.String(source),
	))
}

package tracing

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// Attributes without a semantic convention.
const (
	clientKey      = attribute.Key("cmekproxy.client")
	errorCodeKey   = attribute.Key("cmekproxy.s3.error_code")
	kmsKeyKey      = attribute.Key("cmekproxy.kms.key")
	kmsProviderKey = attribute.Key("cmekproxy.kms.provider")
	kmsOpKey       = attribute.Key("cmekproxy.kms.operation")
	kmsResultKey   = attribute.Key("cmekproxy.kms.result")
	kmsRequestKey  = attribute.Key("cmekproxy.kms.request_id")
	dekUseKey      = attribute.Key("cmekproxy.data_key.use")
	dekSourceKey   = attribute.Key("cmekproxy.data_key.source")
	rpcServiceKey  = attribute.Key("rpc.service") // of the conventions for the AWS SDK
	dataKeyEvent   = "cmekproxy.data_key"
)

// awsAPI is the value of rpc.system.name in the conventions for the AWS SDK.
const awsAPI = "aws-api"

// ServerSpan is the span of an S3 request, or only its place in the client's
// trace if it is not recorded. nil is neither.
type ServerSpan struct {
	span trace.Span // nil if it is not recorded
	id   string     // of the trace
	keys bool
}

// Start begins the span of a request. The context that it returns is for all
// that is done for the request.
func (t *Tracer) Start(ctx context.Context, r *http.Request) (context.Context, *ServerSpan) {
	if t == nil {
		return ctx, nil
	}

	parent := parentOf(r.Header)
	records := t.sampler.records(parent)
	if !records && !parent.IsValid() {
		return ctx, nil
	}

	if parent.IsValid() {
		if !records {
			parent = parent.WithTraceFlags(0)
		}
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	}
	if !records {
		return ctx, &ServerSpan{id: parent.TraceID().String()}
	}

	ctx, span := t.tracer.Start(ctx, "S3", trace.WithSpanKind(trace.SpanKindServer))
	return ctx, &ServerSpan{span: span, id: span.SpanContext().TraceID().String(), keys: t.keys}
}

// TraceID returns the id of the trace in hexadecimal; "" if there is none.
func (s *ServerSpan) TraceID() string {
	if s == nil {
		return ""
	}
	return s.id
}

// IsRecorded reports whether the receiver will get the span.
func (s *ServerSpan) IsRecorded() bool { return s != nil && s.span != nil }

// Served is a request that was served.
type Served struct {
	Request   *http.Request // as the client has sent it
	Operation string        // S3's name of it
	Bucket    string
	Key       string // of the object; not exported without Config.ObjectKeys
	Client    string // its name in the configuration
	Remote    string // its address and port
	Secure    bool   // it came over TLS
	RequestID string
	Status    int
	Code      string // S3 error code; "" for a success
	In, Out   int64  // bytes of the bodies
	Cut       bool   // the transfer did not end as it should
}

// End ends the span of a request after its response.
func (s *ServerSpan) End(r *Served) {
	if !s.IsRecorded() {
		return
	}

	s.span.SetName("S3." + r.Operation)
	s.span.SetAttributes(s.attributes(r)...)
	if r.Cut || r.Status >= http.StatusInternalServerError {
		s.span.SetAttributes(semconv.ErrorTypeKey.String(cmp.Or(r.Code, strconv.Itoa(r.Status))))
		s.span.SetStatus(codes.Error, "") // the reason is in the log: it may contain names
	}
	s.span.End()
}

func (s *ServerSpan) attributes(r *Served) []attribute.KeyValue {
	host, port := splitHost(r.Request.Host)
	from, _ := splitHost(r.Remote)
	scheme := "http"
	if r.Secure {
		scheme = "https"
	}

	list := append(
		make([]attribute.KeyValue, 0, 28),
		semconv.RPCSystemNameKey.String(awsAPI), rpcServiceKey.String("S3"), semconv.RPCMethod(r.Operation),
		semconv.AWSRequestID(r.RequestID),
		semconv.URLScheme(scheme),
		semconv.NetworkProtocolVersion(strings.TrimPrefix(r.Request.Proto, "HTTP/")),
		semconv.ServerAddress(clean(host, maxValue)),
		semconv.ClientAddress(from),
		semconv.HTTPResponseStatusCode(r.Status),
		semconv.HTTPRequestBodySize(int(r.In)), semconv.HTTPResponseBodySize(int(r.Out)),
		semconv.HTTPRoute(routeOf(r.Bucket, r.Key)),
	)
	list = appendMethod(list, r.Request.Method)
	if port > 0 {
		list = append(list, semconv.ServerPort(port))
	}

	for _, a := range []struct {
		key   attribute.Key
		value string
		leave bool
	}{
		{semconv.UserAgentOriginalKey, r.Request.UserAgent(), false},
		{clientKey, r.Client, false},
		{semconv.AWSS3BucketKey, r.Bucket, false},
		{semconv.AWSS3KeyKey, r.Key, !s.keys},
		{semconv.URLPathKey, r.Request.URL.EscapedPath(), !s.keys},
		{errorCodeKey, r.Code, false},
	} {
		if a.value != "" && !a.leave {
			list = append(list, a.key.String(clean(a.value, maxValue)))
		}
	}
	return list
}

// routeOf returns the form of the request's path. S3's operations share
// these, so the name of the span is that of the operation.
func routeOf(bucket, key string) string {
	switch {
	case key != "":
		return "/{bucket}/{key}"
	case bucket != "":
		return "/{bucket}"
	default:
		return "/"
	}
}

// appendMethod adds the method of HTTP. The conventions have one value for
// all unknown ones, so that a client cannot make up thousands.
func appendMethod(list []attribute.KeyValue, method string) []attribute.KeyValue {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodOptions,
		http.MethodPatch, http.MethodConnect, http.MethodTrace:
		return append(list, semconv.HTTPRequestMethodKey.String(method))
	default:
		return append(
			list,
			semconv.HTTPRequestMethodKey.String("_OTHER"),
			semconv.HTTPRequestMethodOriginal(clean(method, maxValue)),
		)
	}
}

// splitHost splits host and port. The port is 0 if there is none.
func splitHost(hostPort string) (host string, port int) {
	host, text, err := net.SplitHostPort(hostPort)
	if err != nil {
		return hostPort, 0
	}
	port, err = strconv.Atoi(text)
	if err != nil {
		return host, 0
	}
	return host, port
}

// clean makes text from others valid UTF-8 of limited length in bytes.
// Protobuf refuses a whole batch if one of its texts is not UTF-8.
func clean(text string, limit int) string {
	if len(text) > limit {
		text = text[:limit]
	}
	if utf8.ValidString(text) {
		return text
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

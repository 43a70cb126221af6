package tracing_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/cmekproxy/cmekproxy/internal/storefault"
	"github.com/cmekproxy/cmekproxy/internal/tracing"
	"github.com/cmekproxy/cmekproxy/internal/tracing/tracingtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// traced is a Tracer with its receiver.
type traced struct {
	*tracing.Tracer
	*tracingtest.Receiver

	t  *testing.T
	mu sync.Mutex
	// reports are what Config.Report got.
	reports []string
}

func newTracer(t *testing.T, change func(*tracing.Config)) *traced {
	t.Helper()
	s := &traced{t: t, Receiver: tracingtest.Start(t)}
	cfg := tracing.Config{
		Endpoint: s.URL, Transport: http.DefaultTransport.(*http.Transport).Clone(), Ratio: 1,
		Service: "cmekproxy", Version: "1.2.3", Instance: "host",
		Report: func(err error, lost uint64) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.reports = append(s.reports, fmt.Sprint(err, " ", lost))
		},
	}
	if change != nil {
		change(&cfg)
	}

	var err error
	if s.Tracer, err = tracing.New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Shutdown(context.Background()) })
	return s
}

// serve records a request with these headers.
func (s *traced) serve(header http.Header, done *tracing.Served) *tracing.ServerSpan {
	r := httptest.NewRequest(http.MethodGet, "/bucket/secret-name?prefix=secret-prefix", nil)
	r.Header = header
	_, span := s.Start(context.Background(), r)
	done.Request = r
	span.End(done)
	return span
}

// spans sends what waits, and returns all spans.
func (s *traced) spans() []tracingtest.Span {
	s.t.Helper()
	if err := s.Flush(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return s.Spans()
}

func ended(op string) *tracing.Served {
	return &tracing.Served{Operation: op, Bucket: "bucket", Key: "secret-name", Remote: "192.0.2.1:4711", Status: 200}
}

func TestServerSpan(t *testing.T) {
	for _, row := range []struct {
		name    string
		served  tracing.Served
		isError bool
		want    map[string]string
	}{
		{
			"success",
			tracing.Served{Operation: "GetObject", Status: 200, RequestID: "id", In: 1, Out: 2, Client: "app"},
			false,
			map[string]string{
				"rpc.system.name": "aws-api", "rpc.service": "S3", "rpc.method": "GetObject", "http.request.method": "GET",
				"http.response.status_code": "200", "aws.request_id": "id", "cmekproxy.client": "app", "url.scheme": "http",
				"http.request.body.size": "1", "http.response.body.size": "2", "server.address": "example.com", "error.type": "",
			},
		},
		{
			"the client's mistake",
			tracing.Served{Operation: "GetObject", Status: 404, Code: "NoSuchKey"},
			false,
			map[string]string{"http.response.status_code": "404", "cmekproxy.s3.error_code": "NoSuchKey", "error.type": ""},
		},
		{
			"the proxy's fault",
			tracing.Served{Operation: "GetObject", Status: 503, Code: "ServiceUnavailable"},
			true,
			map[string]string{"http.response.status_code": "503", "error.type": "ServiceUnavailable"},
		},
		{
			"a transfer that was cut",
			tracing.Served{Operation: "GetObject", Status: 200, Cut: true},
			true,
			map[string]string{"http.response.status_code": "200", "error.type": "200"},
		},
		{
			"over TLS, for an object",
			tracing.Served{Operation: "GetObject", Status: 200, Bucket: "b", Key: "k", Secure: true},
			false,
			map[string]string{
				"url.scheme": "https", "http.route": "/{bucket}/{key}", "aws.s3.bucket": "b", "aws.s3.key": "", "url.path": "",
			},
		},
		{
			"not UTF-8",
			tracing.Served{Operation: "GetObject", Status: 200, Bucket: "b\xff"},
			false,
			map[string]string{"aws.s3.bucket": "b\uFFFD", "http.route": "/{bucket}"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newTracer(t, nil)
			s.serve(nil, &row.served)
			spans := s.spans()
			if len(spans) != 1 || spans[0].GetName() != "S3.GetObject" || !spans[0].IsServer() || spans[0].Parent() != "" {
				t.Fatalf("%v", spans)
			}
			if spans[0].IsError() != row.isError || spans[0].GetStatus().GetMessage() != "" {
				t.Errorf("status %v", spans[0].GetStatus())
			}
			got := spans[0].Attributes()
			for name, want := range row.want {
				if got[name] != want {
					t.Errorf("%s is %q, want %q", name, got[name], want)
				}
			}
			if strings.Contains(string(s.Raw()), "secret-") {
				t.Error("the object key is in the span")
			}
			if r := spans[0].Resource; r["service.name"] != "cmekproxy" || r["service.version"] != "1.2.3" || r["service.instance.id"] != "host" {
				t.Errorf("resource %v", r)
			}
		})
	}
}

// The key is in the spans only with ObjectKeys, and the query never.
func TestObjectKeys(t *testing.T) {
	s := newTracer(t, func(c *tracing.Config) { c.ObjectKeys = true })
	s.serve(nil, ended("GetObject"))
	got := s.spans()[0].Attributes()
	if got["aws.s3.key"] != "secret-name" || got["url.path"] != "/bucket/secret-name" {
		t.Errorf("%v", got)
	}
	if strings.Contains(string(s.Raw()), "secret-prefix") {
		t.Error("the query is in the span")
	}
}

const parentID, parentSpan = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

func TestParent(t *testing.T) {
	valid := "00-" + parentID + "-" + parentSpan
	for _, row := range []struct {
		name     string
		header   http.Header
		recorded bool
		id       bool // the trace is the client's
	}{
		{"none", nil, true, false},
		{"sampled", http.Header{"Traceparent": {valid + "-01"}}, true, true},
		{"not sampled", http.Header{"Traceparent": {valid + "-00"}}, false, true},
		{"two", http.Header{"Traceparent": {valid + "-00", valid + "-00"}}, true, false},
		{"zeros", http.Header{"Traceparent": {"00-00000000000000000000000000000000-" + parentSpan + "-00"}}, true, false},
		{"upper case", http.Header{"Traceparent": {strings.ToUpper(valid) + "-00"}}, true, false},
		{"short", http.Header{"Traceparent": {valid}}, true, false},
		{"version ff", http.Header{"Traceparent": {"ff" + valid[2:] + "-00"}}, true, false},
		{"text", http.Header{"Traceparent": {"a secret\n"}}, true, false},
		{"long", http.Header{"Traceparent": {valid + "-00" + strings.Repeat("0", 1000)}}, true, false},
		{
			"state and baggage",
			http.Header{"Traceparent": {valid + "-01"}, "Tracestate": {"a=secret"}, "Baggage": {"b=secret"}},
			true, true,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newTracer(t, nil)
			span := s.serve(row.header, ended("GetObject"))
			if span.IsRecorded() != row.recorded || (span.TraceID() == parentID) != row.id {
				t.Errorf("recorded %v in the trace %s", span.IsRecorded(), span.TraceID())
			}

			spans := s.spans()
			if (len(spans) == 1) != row.recorded {
				t.Fatalf("%d spans", len(spans))
			}
			if row.recorded && ((spans[0].Parent() == parentSpan) != row.id || spans[0].TraceID() != span.TraceID()) {
				t.Errorf("trace %s, parent %q", spans[0].TraceID(), spans[0].Parent())
			}
			if strings.Contains(string(s.Raw()), "secret") {
				t.Error("text of the client is in the span")
			}
		})
	}
}

// A client that samples all of its requests, with trace ids of its choice,
// has no more of them recorded than others.
func TestClientCannotRaiseTheRatio(t *testing.T) {
	const requests, ratio = 20_000, 0.01
	for _, row := range []struct {
		name   string
		header func(i int) http.Header
		least  int
		most   int
	}{
		{"no parents", func(int) http.Header { return nil }, 100, 320},
		{"all sampled", func(i int) http.Header {
			return http.Header{"Traceparent": {fmt.Sprintf("00-%032x-%016x-01", i+1, i+1)}}
		}, 250, 301},
		{"none sampled", func(i int) http.Header {
			return http.Header{"Traceparent": {fmt.Sprintf("00-%032x-%016x-00", i+1, i+1)}}
		}, 0, 0},
		{"one in a hundred sampled", func(i int) http.Header {
			flag := "00"
			if i%100 == 0 {
				flag = "01"
			}
			return http.Header{"Traceparent": {fmt.Sprintf("00-%032x-%016x-%s", i+1, i+1, flag)}}
		}, 199, 200},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newTracer(t, func(c *tracing.Config) { c.Ratio = ratio })
			recorded := 0
			for i := range requests {
				r := &http.Request{Header: row.header(i)}
				if _, span := s.Start(context.Background(), r); span.IsRecorded() {
					recorded++
				}
			}
			if recorded < row.least || recorded > row.most {
				t.Errorf("%d of %d are recorded, want %d to %d", recorded, requests, row.least, row.most)
			}
		})
	}
}

// Variables of OpenTelemetry's own configuration change nothing.
func TestEnvironmentHasNoEffect(t *testing.T) {
	for name, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/x",
		"OTEL_EXPORTER_OTLP_HEADERS": "evil=1", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
		"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
		"OTEL_RESOURCE_ATTRIBUTES": "evil=1,service.version=9", "OTEL_SERVICE_NAME": "evil",
		"OTEL_TRACES_SAMPLER": "always_off", "OTEL_SDK_DISABLED": "true", "OTEL_BSP_MAX_QUEUE_SIZE": "1",
		"OTEL_BSP_EXPORT_TIMEOUT": "1", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "1", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "1",
	} {
		t.Setenv(name, value)
	}

	s := newTracer(t, nil)
	s.serve(nil, ended("GetObject"))
	spans := s.spans()
	if len(spans) != 1 || len(spans[0].Attributes()) < 10 || spans[0].Attributes()["aws.s3.bucket"] != "bucket" {
		t.Fatalf("%v", spans)
	}
	if r := spans[0].Resource; r["evil"] != "" || r["service.name"] != "cmekproxy" || r["service.version"] != "1.2.3" {
		t.Errorf("resource %v", r)
	}
	if r := s.Requests()[0]; r.Header.Get("Evil") != "" || r.Header.Get("Content-Encoding") != "" || r.URL.Path != "/v1/traces" {
		t.Errorf("%s %v", r.URL.Path, r.Header)
	}
}

// The header is sent to the receiver, also a later one, and to nothing that
// the receiver names.
func TestHeader(t *testing.T) {
	var elsewhere http.Header
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { elsewhere = r.Header }))
	defer other.Close()

	s := newTracer(t, func(c *tracing.Config) { c.Header = http.Header{"Authorization": {"Bearer one"}} })
	s.serve(nil, ended("GetObject"))
	s.spans()
	s.SetHeader(http.Header{"Authorization": {"Bearer two"}})
	s.serve(nil, ended("GetObject"))
	s.spans()
	s.Answer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect).ServeHTTP)
	s.serve(nil, ended("GetObject"))
	s.spans()

	for i, want := range []string{"Bearer one", "Bearer two", "Bearer two"} {
		if got := s.Requests()[i].Header.Get("Authorization"); got != want {
			t.Errorf("request %d has %q, want %q", i, got, want)
		}
	}
	if elsewhere != nil || s.Dropped() != 1 || s.Exported() != 2 {
		t.Errorf("the redirect led to %v; %d exported, %d dropped", elsewhere, s.Exported(), s.Dropped())
	}
}

// While the receiver fails, spans are counted as dropped, and only the
// beginning and the end of the outage are reported.
func TestOutage(t *testing.T) {
	rejects := func(n int64, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			answer, _ := proto.Marshal(&coltracepb.ExportTraceServiceResponse{
				PartialSuccess: &coltracepb.ExportTracePartialSuccess{RejectedSpans: n, ErrorMessage: text},
			})
			w.Header().Set("Content-Type", "application/x-protobuf")
			_, _ = w.Write(answer)
		}
	}

	for _, row := range []struct {
		name    string
		answer  http.HandlerFunc
		dropped uint64
		report  string
	}{
		{"refuses", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }, 4, "403 Forbidden"},
		{"cuts", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 4, "EOF"},
		{"is not OTLP", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/x-protobuf")
			_, _ = io.WriteString(w, "<html>")
		}, 4, "is not OTLP"},
		{"rejects one", rejects(1, "too old"), 2, `rejected 1 spans: "too old"`},
		{"rejects more than there are", rejects(1_000_000, "evil"), 4, "rejected 2 spans"},
		{"rejects less than none", rejects(-5, "evil"), 0, ""},
		{"warns", rejects(0, "soon full"), 0, ""},
		{"answers with much", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
		}, 4, "403 Forbidden"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newTracer(t, nil)
			s.Answer(row.answer)
			for range 2 {
				s.serve(nil, ended("GetObject"))
				s.serve(nil, ended("GetObject"))
				s.spans()
			}
			if s.Dropped() != row.dropped || s.Exported() != 4-row.dropped {
				t.Errorf("%d exported, %d dropped, want %d dropped", s.Exported(), s.Dropped(), row.dropped)
			}

			s.Answer(nil)
			s.serve(nil, ended("GetObject"))
			s.spans()
			switch {
			case row.report == "" && len(s.reports) == 0:
			case row.report == "" || len(s.reports) != 2:
				t.Errorf("reports %q", s.reports)
			case !strings.Contains(s.reports[0], row.report) || len(s.reports[0]) > 500:
				t.Errorf("the outage is reported as %.600q", s.reports[0])
			case s.reports[1] != fmt.Sprintf("<nil> %d", row.dropped):
				t.Errorf("the end is reported as %q", s.reports[1])
			}
		})
	}
}

// Requests do not wait for a receiver that hangs: what is too much is
// dropped. The end does not wait for it either.
func TestReceiverThatHangs(t *testing.T) {
	s := newTracer(t, nil)
	release := make(chan struct{})
	defer close(release)
	s.Answer(func(http.ResponseWriter, *http.Request) { <-release })

	const more = 500
	for range tracing.QueueSize + more {
		s.serve(nil, ended("GetObject"))
	}
	if s.Dropped() != more || s.Exported() != 0 {
		t.Errorf("%d exported, %d dropped, want %d dropped", s.Exported(), s.Dropped(), more)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the end: %v", err)
	}
	if s.Dropped() != tracing.QueueSize+more {
		t.Errorf("%d dropped, want all %d", s.Dropped(), tracing.QueueSize+more)
	}
}

// The spans that wait are sent at the end.
func TestShutdownSends(t *testing.T) {
	s := newTracer(t, nil)
	s.serve(nil, ended("GetObject"))
	if err := s.Shutdown(t.Context()); err != nil || len(s.Spans()) != 1 || s.Exported() != 1 {
		t.Errorf("%v, %d spans", err, len(s.Spans()))
	}
}

// A nil Tracer, as when tracing is off, does nothing and allocates nothing.
func TestOff(t *testing.T) {
	var off *tracing.Tracer
	r := &http.Request{Header: http.Header{"Traceparent": {"00-" + parentID + "-" + parentSpan + "-01"}}}
	ctx := context.Background()
	use := func() {
		ctx, span := off.Start(ctx, r)
		ctx, call := tracing.StartKMS(ctx, tracing.KMSCall{Key: "k", Operation: "unwrap"})
		call.End("", "")
		tracing.DataKeyUsed(ctx, "open", "k", "cache")
		if tracing.WithResend(r, 1) != r || tracing.Traceparent(ctx) != "" || span.TraceID() != "" || span.IsRecorded() {
			t.Error("something is recorded")
		}
	}

	// What other tests have left running allocates too, for a moment.
	for attempt := 1; testing.AllocsPerRun(100, use) != 0; attempt++ {
		if attempt == 100 {
			t.Fatal("it allocates")
		}
		time.Sleep(10 * time.Millisecond)
	}
	off.SetHeader(nil)
	if err := off.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// transport answers requests to the store.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// failingBody is a body that breaks.
type failingBody struct{ io.Reader }

func (f failingBody) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err == io.EOF {
		err = &storefault.Error{Kind: storefault.Broken}
	}
	return n, err
}

func (failingBody) Close() error { return nil }

func TestStoreSpan(t *testing.T) {
	answers := func(status int, body io.ReadCloser) transport {
		return func(r *http.Request) (*http.Response, error) {
			for name := range r.Header {
				if name != "Own" {
					t.Errorf("the store gets the header %s", name)
				}
			}
			return &http.Response{
				StatusCode: status, Body: body, Header: http.Header{"X-Amz-Request-Id": {"of-the-store\xff"}}, ProtoMajor: 1, ProtoMinor: 1,
			}, nil
		}
	}
	object := tracing.StoreCall{Operation: "GetObject", Bucket: "b", Key: "secret-name"}
	const inPath, inHost = "http://store:9000/b/secret-name?prefix=secret-prefix", "https://b.store/secret-name"

	for _, row := range []struct {
		name, url string
		keys      bool
		call      tracing.StoreCall
		next      transport
		want      map[string]string // error.type "" for no error
	}{
		{"a success", inPath, false, object, answers(200, io.NopCloser(strings.NewReader("abc"))), map[string]string{
			"name": "S3.GetObject", "server.address": "store", "server.port": "9000", "url.full": "http://store:9000/b/REDACTED",
			"http.response.body.size": "3", "aws.request_id": "of-the-store\uFFFD", "http.request.resend_count": "2",
			"network.protocol.version": "1.1", "aws.s3.bucket": "b", "rpc.method": "GetObject",
		}},
		{"the bucket in the host", inHost, false, object, answers(200, nil), map[string]string{
			"url.full": "https://b.store/REDACTED", "server.address": "b.store", "server.port": "443",
		}},
		{"with keys", inPath, true, object, answers(200, http.NoBody), map[string]string{
			"url.full": "http://store:9000/b/secret-name", "aws.s3.key": "secret-name",
		}},
		{"for a bucket", "http://store/b?prefix=secret-prefix", false, tracing.StoreCall{Operation: "ListObjectsV2", Bucket: "b"}, answers(200, nil), map[string]string{
			"name": "S3.ListObjectsV2", "url.full": "http://store/b", "server.port": "80",
		}},
		{"of no operation", inPath, false, tracing.StoreCall{}, answers(200, nil), map[string]string{
			"name": "GET", "url.full": "http://store:9000/REDACTED",
		}},
		{"not found", inPath, false, object, answers(404, nil), map[string]string{"error.type": "404"}},
		{"an error", inPath, false, object, answers(500, nil), map[string]string{"error.type": "500"}},
		{"no answer", inPath, false, object, func(*http.Request) (*http.Response, error) {
			return nil, &storefault.Error{Kind: storefault.Unreachable, What: "secret-name"}
		}, map[string]string{"error.type": "unreachable"}},
		{"a client that leaves", inPath, false, object, func(*http.Request) (*http.Response, error) {
			return nil, context.Canceled
		}, map[string]string{"error.type": "canceled"}},
		{"a body that breaks", inPath, false, object, answers(200, failingBody{strings.NewReader("ab")}), map[string]string{
			"error.type": "broken", "http.response.body.size": "2", "http.response.status_code": "200",
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newTracer(t, nil)
			ctx, server := s.Start(t.Context(), &http.Request{})
			r := &http.Request{Method: http.MethodGet, Header: http.Header{"Own": {"1"}}}
			var err error
			if r.URL, err = url.Parse(row.url); err != nil {
				t.Fatal(err)
			}
			r = tracing.WithResend(r.WithContext(ctx), 2)
			if row.call != (tracing.StoreCall{}) {
				r = tracing.WithStoreCall(r, row.call)
			}

			store := &tracing.StoreTransport{Next: row.next, ObjectKeys: row.keys}
			if resp, err := store.RoundTrip(r); err == nil && resp.Body != nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
			server.End(&tracing.Served{Request: &http.Request{URL: &url.URL{}}, Operation: "GetObject"})

			spans := s.spans()
			if len(spans) != 2 || spans[0].Parent() != spans[1].ID() || spans[0].IsServer() || spans[0].TraceID() != spans[1].TraceID() {
				t.Fatalf("%v", spans)
			}
			got := spans[0].Attributes()
			got["name"] = spans[0].GetName()
			for name, want := range row.want {
				if got[name] != want {
					t.Errorf("%s is %q, want %q", name, got[name], want)
				}
			}
			if spans[0].IsError() != (row.want["error.type"] != "") || got["error.type"] != row.want["error.type"] {
				t.Errorf("error %v, %q", spans[0].IsError(), got["error.type"])
			}
			if raw := string(s.Raw()); strings.Contains(raw, "secret-prefix") || !row.keys && strings.Contains(raw, "secret-") {
				t.Error("names are in the span")
			}
		})
	}
}

func TestKMSSpan(t *testing.T) {
	for _, row := range []struct {
		name, provider, failure string
		want                    map[string]string
	}{
		{"ok", "aws-kms", "", map[string]string{"cmekproxy.kms.result": "ok", "aws.request_id": "id", "cmekproxy.kms.key": "main"}},
		{"denied", "vault-transit", "denied", map[string]string{
			"cmekproxy.kms.result": "denied", "error.type": "denied", "cmekproxy.kms.request_id": "id",
			"cmekproxy.kms.provider": "vault-transit",
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newTracer(t, nil)
			ctx, server := s.Start(t.Context(), &http.Request{})
			below, call := tracing.StartKMS(ctx, tracing.KMSCall{Key: "main", Provider: row.provider, Operation: "unwrap"})
			sent := tracing.Traceparent(below)
			call.End(row.failure, "id")
			tracing.DataKeyUsed(ctx, "open", "main", "kms")
			server.End(&tracing.Served{Request: &http.Request{URL: &url.URL{}}, Operation: "GetObject"})

			spans := s.spans()
			if len(spans) != 2 || spans[0].GetName() != "KMS.unwrap" || spans[0].Parent() != spans[1].ID() {
				t.Fatalf("%v", spans)
			}
			if want := "00-" + spans[0].TraceID() + "-" + spans[0].ID() + "-01"; sent != want {
				t.Errorf("the KMS gets %q, want %q", sent, want)
			}
			if spans[0].IsError() != (row.failure != "") {
				t.Errorf("error %v", spans[0].IsError())
			}
			for name, want := range row.want {
				if got := spans[0].Attributes()[name]; got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			if events := spans[1].Events(); len(events) != 1 || events[0]["cmekproxy.data_key.source"] != "kms" ||
				events[0]["cmekproxy.data_key.use"] != "open" {
				t.Errorf("events %v", events)
			}
		})
	}
}

// A request that is not recorded still passes the client's trace to the KMS,
// as not sampled.
func TestTraceparentOfAnUnrecordedRequest(t *testing.T) {
	s := newTracer(t, func(c *tracing.Config) { c.Ratio = 0.000001 })
	for _, flag := range []string{"00", "01"} {
		sent := ""
		for range 200 { // until the credit of sampled parents is used up
			r := &http.Request{Header: http.Header{"Traceparent": {"00-" + parentID + "-" + parentSpan + "-" + flag}}}
			ctx, _ := s.Start(t.Context(), r)
			sent = tracing.Traceparent(ctx)
		}
		if want := "00-" + parentID + "-" + parentSpan + "-00"; sent != want {
			t.Errorf("the KMS gets %q, want %q", sent, want)
		}
	}
}

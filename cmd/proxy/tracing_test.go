package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/tracing/tracingtest"
)

// The trace of a client, as in the recommendation of the W3C.
const (
	clientTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	clientSpan  = "00f067aa0ba902b7"
)

// tracedProxy is a proxy with tracing, whose store and KMS record what they
// get.
type tracedProxy struct {
	log  output // in JSON
	stop func() // ends the proxy

	t              *testing.T
	client         *s3.Client
	admin, audit   string
	vault          *kmstest.VaultServer
	secrets        []string // that must not be in a span
	mu             sync.Mutex
	toStore        []http.Header
	toKMS          []http.Header
	object         []byte
	header         http.Header
	refuse, breaks bool
	hangs          bool // instead of a break
}

func startTraced(t *testing.T, endpoint, more string, replace ...string) *tracedProxy {
	t.Helper()
	p := &tracedProxy{t: t, vault: kmstest.StartVault(t), audit: filepath.Join(t.TempDir(), "audit.log")}
	p.vault.CreateKey("key", "aes256-gcm96", true)
	token := p.vault.NewToken(kmstest.VaultToken{})
	store := httptest.NewServer(http.HandlerFunc(p.serveStore))
	t.Cleanup(store.Close)

	listen, admin := freePort(t), freePort(t)
	p.admin = "http://" + admin
	p.secrets = []string{
		token, "appsecretappsecret", "storesecretstoresecret", "Signature=", "X-Amz-Signature", "otlp-secret",
		"a confidential text",
	}
	config := writeConfig(t, store.URL, listen, admin, append(
		replace,
		"key: main", "key: vault",
		"keys: [", fmt.Sprintf("keys: [{name: vault, provider: vault-transit, address: %q, key_id: key, login: {token: %q}}, ",
			p.kms(t), token),
		"limits:", fmt.Sprintf("audit: {file: %s}\ntracing: {endpoint: %q, sampling_ratio: 1, "+
			"headers: [{name: Authorization, value: otlp-secret}]%s}\nlimits:", p.audit, endpoint, more),
	)...)
	p.serve(config)
	p.client = client(listen, "appkey", "appsecretappsecret")
	return p
}

// serve runs the proxy until stop.
func (p *tracedProxy) serve(path string) {
	p.t.Helper()
	file, err := readConfig(path)
	if err != nil {
		p.t.Fatal(err)
	}
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	log := zap.New(zapcore.NewCore(encoder, zapcore.AddSync(&p.log), zap.InfoLevel))
	s, err := newServer(p.t.Context(), file.Config, log, "")
	if err != nil {
		p.t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		err := s.serve(ctx, func(net.Addr) { close(ready) })
		s.close()
		ended <- err
	}()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			p.t.Error(err)
		}
	})
	p.t.Cleanup(p.stop)

	select {
	case <-ready:
	case err := <-ended:
		p.t.Fatal(err)
	}
}

// kms returns the URL of the Vault server behind a proxy that records the
// headers.
func (p *tracedProxy) kms(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.toKMS = append(p.toKMS, r.Header.Clone())
		p.mu.Unlock()
		out, _ := http.NewRequestWithContext(r.Context(), r.Method, p.vault.URL()+r.URL.RequestURI(), r.Body)
		out.Header = r.Header.Clone()
		resp, err := http.DefaultTransport.RoundTrip(out)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// serveStore keeps one object.
func (p *tracedProxy) serveStore(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.toStore = append(p.toStore, r.Header.Clone())
	w.Header().Set("X-Amz-Request-Id", "of-the-store")
	if p.refuse { // once
		p.refuse = false
		http.Error(w, "<Error><Code>SlowDown</Code></Error>", http.StatusServiceUnavailable)
		return
	}

	w.Header().Set("Etag", `"00112233445566778899aabbccddeeff"`)
	if r.Method == http.MethodPut {
		p.header = r.Header.Clone()
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		p.object = unframed(body.Bytes())
		return
	}

	for name, values := range p.header {
		if strings.HasPrefix(name, "X-Amz-Meta-") {
			w.Header()[name] = values
		}
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(p.object)))
	body := p.object
	if p.breaks {
		body = body[:len(body)/2]
	}
	_, _ = w.Write(body)
	if p.breaks && p.hangs {
		_ = http.NewResponseController(w).Flush()
		p.mu.Unlock()
		<-r.Context().Done()
		p.mu.Lock()
	}
	if p.breaks {
		panic(http.ErrAbortHandler)
	}
}

// unframed returns what is in aws-chunked framing.
func unframed(body []byte) (text []byte) {
	for {
		head, rest, _ := bytes.Cut(body, []byte("\r\n"))
		size, err := strconv.ParseInt(string(head), 16, 64)
		if err != nil || size == 0 {
			return text
		}
		text, body = append(text, rest[:size]...), rest[size+2:]
	}
}

// inTrace makes requests part of the client's trace.
func inTrace(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
		return stack.Build.Add(middleware.BuildMiddlewareFunc("trace", func(
			ctx context.Context, in middleware.BuildInput, next middleware.BuildHandler,
		) (middleware.BuildOutput, middleware.Metadata, error) {
			h := in.Request.(*smithyhttp.Request).Header
			h.Set("Traceparent", "00-"+clientTrace+"-"+clientSpan+"-01")
			h.Set("Tracestate", "vendor=of-the-client")
			h.Set("Baggage", "user=of-the-client")
			return next.HandleBuild(ctx, in)
		}), middleware.After)
	})
}

func (p *tracedProxy) put() error {
	_, err := p.client.PutObject(p.t.Context(), &s3.PutObjectInput{
		Bucket: aws.String("demo"), Key: aws.String("private/name"), Body: strings.NewReader("a confidential text"),
	}, inTrace)
	return err
}

func (p *tracedProxy) get() error {
	out, err := p.client.GetObject(
		p.t.Context(), &s3.GetObjectInput{Bucket: aws.String("demo"), Key: aws.String("private/name")}, inTrace)
	if err != nil {
		return err
	}
	defer out.Body.Close()
	_, err = io.Copy(io.Discard, out.Body)
	return err
}

// childrenOf returns the spans below a span, by name.
func childrenOf(spans []tracingtest.Span, parent tracingtest.Span) map[string][]tracingtest.Span {
	children := make(map[string][]tracingtest.Span)
	for _, s := range spans {
		if s.Parent() == parent.ID() {
			children[s.GetName()] = append(children[s.GetName()], s)
		}
	}
	return children
}

func serverSpan(t *testing.T, spans []tracingtest.Span, name string) tracingtest.Span {
	t.Helper()
	for _, s := range spans {
		if s.IsServer() && s.GetName() == name {
			return s
		}
	}
	t.Fatalf("no server span %s in %v", name, spans)
	return tracingtest.Span{}
}

// TestTracing follows a PUT and two GETs from the client's trace to the store
// and the KMS, the log, the audit log and the metrics.
func TestTracing(t *testing.T) {
	t.Parallel()
	receiver := tracingtest.Start(t)
	p := startTraced(t, receiver.URL, "")
	if err := p.put(); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	p.refuse = true
	p.mu.Unlock()
	if err := p.get(); err != nil {
		t.Fatal(err)
	}
	metrics := openMetrics(t, p.admin)
	p.stop()

	spans := receiver.Spans()
	put := serverSpan(t, spans, "S3.PutObject")
	if put.TraceID() != clientTrace || put.Parent() != clientSpan || put.IsError() {
		t.Errorf("%v", put)
	}
	if a := put.Attributes(); a["aws.s3.bucket"] != "demo" || a["cmekproxy.client"] != "app" ||
		a["http.response.status_code"] != "200" || a["http.request.body.size"] == "0" {
		t.Errorf("%v", a)
	}

	children := childrenOf(spans, put)
	if len(children["KMS.generate"])+len(children["KMS.wrap"]) != 1 || len(children["S3.PutObject"]) != 1 {
		t.Fatalf("below the PUT: %v", children)
	}
	kms := children["KMS.generate"][0]
	if a := kms.Attributes(); a["cmekproxy.kms.key"] != "vault" || a["cmekproxy.kms.result"] != "ok" ||
		a["cmekproxy.kms.provider"] != "vault-transit" {
		t.Errorf("%v", a)
	}
	if a := children["S3.PutObject"][0].Attributes(); a["aws.request_id"] != "of-the-store" {
		t.Errorf("%v", a)
	}
	p.checkHeaders(kms)

	get := serverSpan(t, spans, "S3.GetObject")
	children = childrenOf(spans, get)
	if len(children) != 1 || len(children["S3.GetObject"]) != 2 { // an attempt that was refused, and no KMS call
		t.Fatalf("below the GET: %v", children)
	}
	first, second := children["S3.GetObject"][0], children["S3.GetObject"][1]
	if first.Attributes()["http.response.status_code"] != "503" || !first.IsError() || second.IsError() ||
		second.Attributes()["http.request.resend_count"] != "1" {
		t.Errorf("attempts: %v and %v", first, second)
	}
	if events := get.Events(); len(events) == 0 || events[0]["cmekproxy.data_key.source"] != "cache" {
		t.Errorf("events of the GET: %v", events)
	}

	p.checkIDs()
	p.checkSecrecy(receiver, false)
	if !strings.Contains(metrics, `# {trace_id="`+clientTrace+`"}`) {
		t.Errorf("no exemplar in the metrics: %s", metrics)
	}
}

// checkHeaders checks that the KMS got its place in the trace, and that the
// store got nothing.
func (p *tracedProxy) checkHeaders(kms tracingtest.Span) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	found := false
	for _, h := range p.toKMS {
		found = found || h.Get("Traceparent") == "00-"+clientTrace+"-"+kms.ID()+"-01"
	}
	if !found {
		p.t.Errorf("the KMS did not get its place in the trace: %v", p.toKMS)
	}

	for _, h := range append(p.toStore, p.toKMS...) {
		if h.Get("Tracestate") != "" || h.Get("Baggage") != "" {
			p.t.Errorf("text of the client is passed on: %v", h)
		}
	}
	for _, h := range p.toStore {
		if h.Get("Traceparent") != "" {
			p.t.Errorf("the store gets %v", h)
		}
	}
}

// checkIDs checks that the log and the audit log have the id of the trace.
func (p *tracedProxy) checkIDs() {
	p.t.Helper()
	requests := 0
	for line := range strings.Lines(p.log.String()) {
		if strings.Contains(line, `"msg":"request"`) && strings.Contains(line, `"operation":"`) {
			requests++
			if !strings.Contains(line, `"trace_id":"`+clientTrace+`"`) {
				p.t.Errorf("no trace in the log: %s", line)
			}
		}
	}
	records := auditRecords(p.t, p.audit)
	for _, r := range records {
		if r.RequestID != "" && r.TraceID != clientTrace {
			p.t.Errorf("no trace in the audit log: %+v", r)
		}
	}
	if requests < 2 || len(records) < 2 {
		p.t.Errorf("%d requests in the log, %d records", requests, len(records))
	}
}

// checkSecrecy looks for secrets and object keys in all that was exported.
func (p *tracedProxy) checkSecrecy(receiver *tracingtest.Receiver, keys bool) {
	p.t.Helper()
	raw := receiver.Raw()
	if len(raw) == 0 {
		p.t.Error("nothing was exported")
	}
	for _, secret := range p.secrets {
		if bytes.Contains(raw, []byte(secret)) {
			p.t.Errorf("%q is exported", secret)
		}
	}
	if bytes.Contains(raw, []byte("private/name")) != keys {
		p.t.Errorf("the object key is exported: %v, want %v", !keys, keys)
	}
	for _, r := range receiver.Requests() {
		if r.Header.Get("Authorization") != "otlp-secret" {
			p.t.Errorf("the receiver gets %v", r.Header)
		}
	}
}

func openMetrics(t *testing.T, admin string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, admin+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// With object_keys the keys are exported, and secrets still are not: those of
// a presigned URL, and of SSE-C.
func TestTracingOfSecrets(t *testing.T) {
	t.Parallel()
	receiver := tracingtest.Start(t)
	p := startTraced(t, receiver.URL, ", object_keys: true")
	key := strings.Repeat("K", 32)
	sum := md5.Sum([]byte(key))
	_, err := p.client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String("demo"), Key: aws.String("private/name"), Body: strings.NewReader("a confidential text"),
		SSECustomerAlgorithm: aws.String("AES256"),
		SSECustomerKey:       aws.String(base64.StdEncoding.EncodeToString([]byte(key))),
		SSECustomerKeyMD5:    aws.String(base64.StdEncoding.EncodeToString(sum[:])),
	})
	if err != nil {
		t.Fatal(err)
	}

	signed, err := s3.NewPresignClient(p.client).PresignGetObject(
		t.Context(), &s3.GetObjectInput{Bucket: aws.String("demo"), Key: aws.String("private/name")})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(signed.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	p.stop()

	signature := regexp.MustCompile(`X-Amz-Signature=([0-9a-f]+)`).FindStringSubmatch(signed.URL)
	p.secrets = append(p.secrets, key, "S0tLS0tL", signature[1]) // S0tLS0tL: the key in base64
	p.checkSecrecy(receiver, true)
}

// A transfer that the proxy cuts, because the store's response breaks, is an
// error in both spans.
func TestTracingOfACutTransfer(t *testing.T) {
	t.Parallel()
	receiver := tracingtest.Start(t)
	p := startTraced(t, receiver.URL, "")
	body := bytes.NewReader(make([]byte, 2<<20))
	_, err := p.client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String("demo"), Key: aws.String("private/name"), Body: body,
	})
	if err != nil {
		t.Fatal(err)
	}

	p.mu.Lock()
	p.breaks = true
	p.mu.Unlock()
	if p.get() == nil {
		t.Fatal("the GET succeeds")
	}
	p.stop()

	get := serverSpan(t, receiver.Spans(), "S3.GetObject")
	if !get.IsError() || get.Attributes()["http.response.status_code"] != "200" {
		t.Errorf("%v", get)
	}
	children := childrenOf(receiver.Spans(), get)["S3.GetObject"]
	if len(children) == 0 || !children[0].IsError() || children[0].Attributes()["error.type"] != "broken" {
		t.Errorf("below: %v", children)
	}
}

// A store that sends half of its answer and then nothing is too slow, and has
// not broken the connection.
func TestTracingOfAStoreThatStops(t *testing.T) {
	t.Parallel()
	receiver := tracingtest.Start(t)
	p := startTraced(t, receiver.URL, "", "region: us-east-1", "region: us-east-1, idle_timeout: 1s")
	if err := p.put(); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	p.breaks, p.hangs = true, true
	p.mu.Unlock()
	if p.get() == nil {
		t.Fatal("the GET succeeds")
	}
	p.stop()

	get := serverSpan(t, receiver.Spans(), "S3.GetObject")
	children := childrenOf(receiver.Spans(), get)["S3.GetObject"]
	if len(children) == 0 || children[0].Attributes()["error.type"] != "timeout" {
		t.Errorf("below: %v", children)
	}
}

// The last spans have what is left of limits.shutdown_grace.
func TestTimeForSpans(t *testing.T) {
	now := time.Now()
	for name, row := range map[string]struct{ end, want time.Duration }{
		"a grace that has just begun": {30 * time.Second, 3 * time.Second},
		"its last second":             {time.Second, time.Second},
		"a grace that is over":        {-time.Second, 0},
	} {
		if got := timeForSpans(now.Add(row.end), now); got != row.want {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := timeForSpans(time.Time{}, now); got != 3*time.Second {
		t.Errorf("without a drain: %s", got)
	}
}

// Without a receiver requests are served, and the outage is logged once.
func TestTracingWithoutAReceiver(t *testing.T) {
	t.Parallel()
	p := startTraced(t, "http://127.0.0.1:"+strings.TrimPrefix(freePort(t), "127.0.0.1:"), "")
	for range 3 {
		if err := p.put(); err != nil {
			t.Fatal(err)
		}
		if err := p.get(); err != nil {
			t.Fatal(err)
		}
	}
	metrics := openMetrics(t, p.admin)
	for _, name := range []string{"cmekproxy_trace_spans_exported_total 0", "cmekproxy_trace_spans_dropped_total "} {
		if !strings.Contains(metrics, name) {
			t.Errorf("the metrics have no %s", name)
		}
	}

	p.stop()
	if n := strings.Count(p.log.String(), "sending spans failed"); n != 1 {
		t.Errorf("the outage is logged %d times", n)
	}
	if strings.Contains(p.log.String(), "otlp-secret") {
		t.Error("the header for the receiver is in the log")
	}
}

package s3api_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

const (
	storeAccess, storeSecret   = proxytest.AccessKey, proxytest.SecretKey
	clientAccess, clientSecret = "AKIACLIENT", "clientsecretclientsecret"
	readerAccess, readerSecret = "AKIAREADER", "readersecretreadersecret"
	region                     = proxytest.Region
)

// store is the real store of this test process.
var store struct {
	*proxytest.Store
	transport *origin.Transport
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	s, err := proxytest.StartStore()
	if err != nil {
		panic(err)
	}
	defer s.Close()
	store.Store = s
	store.transport = store.Transport(5 * time.Second)
	return m.Run()
}

// proxy is a running proxy in front of the store.
type proxy struct {
	t        testing.TB
	url      string
	server   *httptest.Server
	api      *s3api.Server
	origin   *tap
	keys     *keyring.Keyring
	cache    *dekcache.Cache
	keyFile  string
	ringKeys []keyring.Key
	log      *logBuffer
	clock    atomic.Int64 // nanoseconds by which the proxy's clock is ahead
	client   *s3.Client
	bucket   string
}

// applyForm makes all tests write objects in another form, if $FORM is set: 1
// for version 1 of the format, sealed for version 2 with sealed metadata.
func applyForm(cfg *keyring.Config) {
	switch os.Getenv("FORM") {
	case "1":
		cfg.FormatVersion = crypt.V1
	case "sealed":
		cfg.Rules = slices.Clone(cfg.Rules)
		for i := range cfg.Rules {
			cfg.Rules[i].SealMetadata = true
		}
	}
}

type option func(*proxy, *s3api.Config, *keyring.Config)

// newProxy starts a proxy with a new bucket.
func newProxy(t testing.TB, options ...option) *proxy {
	t.Helper()
	key, keyFile := proxytest.NewLocalKey(t)
	p := &proxy{t: t, keyFile: keyFile, log: &logBuffer{}}
	now := func() time.Time { return time.Now().Add(time.Duration(p.clock.Load())) }
	p.origin = &tap{next: origin.New(proxytest.OriginConfig(store.transport))}
	p.cache = dekcache.New(dekcache.Config{TTL: time.Minute, MaxEntries: 1000, Now: now})
	t.Cleanup(p.cache.Close)

	ringConfig := keyring.Config{
		Keys: []keyring.Key{{Name: "main", Wrapper: key}},
		Rules: []keyring.Rule{
			{Buckets: []string{"plain-*"}, Key: "main", AllowPlaintext: true},
			{Key: "main", AskedKeys: []string{"*"}},
		},
		Cache: p.cache,
	}

	clients, err := access.New([]access.Client{
		{
			Name:      "app",
			AccessKey: clientAccess,
			Secret:    clientSecret,
			Allow:     []access.Grant{{Buckets: []string{"*"}, Actions: everything}},
		},
		{
			Name:      "reader",
			AccessKey: readerAccess,
			Secret:    readerSecret,
			Allow: []access.Grant{
				{Buckets: []string{"shared-*"}, Actions: []access.Action{access.Read, access.List}},
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}

	cfg := s3api.Config{
		Origin: p.origin, Clients: clients, Capabilities: capability.Always(capability.Set{capability.PartCount: capability.Yes}), Metrics: metrics.New(),
		Now: now, Random: rand.Reader,
		Settings: s3api.Settings{
			Domains:     []string{"s3.test", "test", "other.s3.test"},
			IdleTimeout: 20 * time.Second, MaxConcurrent: 96, // 72 of them for one client
			LocalTLS: true,
		},
		Log: zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), p.log, zap.DebugLevel)),
	}

	for _, o := range options {
		o(p, &cfg, &ringConfig)
	}
	applyForm(&ringConfig)
	p.ringKeys = ringConfig.Keys
	if p.keys, err = keyring.New(ringConfig); err != nil {
		t.Fatal(err)
	}

	cfg.Keys = p.keys
	p.api = s3api.New(cfg)
	p.server = httptest.NewUnstartedServer(p.api)
	p.server.Config.DisableGeneralOptionsHandler = true
	p.server.Config.ConnContext = s3api.ConnContext
	p.server.Start()
	t.Cleanup(p.server.Close)
	t.Cleanup(func() {
		for line := range strings.Lines(p.log.String()) {
			if t.Failed() && strings.Contains(line, `"level":"error"`) {
				t.Log(line)
			}
		}
	})

	p.url = p.server.URL
	p.client = p.as(clientAccess, clientSecret)
	p.bucket = p.newBucket("test-")
	return p
}

func (p *proxy) as(accessKey, secret string, more ...func(*s3.Options)) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: &p.url, Region: region, UsePathStyle: true, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(accessKey, secret, ""),
		HTTPClient:  p.server.Client(),
	}, more...)
}

func (p *proxy) newBucket(prefix string) string {
	p.t.Helper()
	name := prefix + strings.ToLower(rand.Text()[:12])
	if _, err := p.client.CreateBucket(p.t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		p.t.Fatal(err)
	}
	return name
}

func (p *proxy) put(key string, text []byte, more ...func(*s3.PutObjectInput)) *s3.PutObjectOutput {
	p.t.Helper()
	in := &s3.PutObjectInput{Bucket: &p.bucket, Key: &key, Body: bytes.NewReader(text)}
	for _, m := range more {
		m(in)
	}
	out, err := p.client.PutObject(p.t.Context(), in)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// get returns the body and the error of reading it to the end.
func (p *proxy) get(key string, more ...func(*s3.GetObjectInput)) ([]byte, *s3.GetObjectOutput, error) {
	p.t.Helper()
	in := &s3.GetObjectInput{Bucket: &p.bucket, Key: &key}
	for _, m := range more {
		m(in)
	}

	out, err := p.client.GetObject(p.t.Context(), in)
	if err != nil {
		return nil, nil, err
	}
	defer out.Body.Close()
	var text bytes.Buffer

	text.Grow(
		int(max(0, *out.ContentLength)) + bytes.MinRead,
	) // read without copies, because the race detector checks each byte
	_, err = text.ReadFrom(out.Body)
	return text.Bytes(), out, err
}

func (p *proxy) mustGet(key string) []byte {
	p.t.Helper()
	text, _, err := p.get(key)
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// storeDo sends a request to the store without the proxy, as the store's
// administrator could.
func (p *proxy) storeDo(method, key string, header http.Header, body []byte) (*http.Response, []byte) {
	p.t.Helper()
	u := &url.URL{Path: "/" + p.bucket + "/" + key}
	if key == "" {
		u.Path = "/" + p.bucket
	}
	u.RawPath = sigv4.EscapePath(u.Path)

	if header == nil {
		header = http.Header{}
	}
	r := (&http.Request{
		Method: method, URL: u, Header: header, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}).WithContext(
		p.t.Context(),
	)

	if len(body) == 0 {
		r.Body = nil
	}
	resp, err := p.origin.next.RoundTrip(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()

	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp, answer
}

// stored returns the object as it is in the store: its body, and its
// metadata in a form that can be stored again.
func (p *proxy) stored(key string) ([]byte, http.Header) {
	p.t.Helper()
	resp, body := p.storeDo(http.MethodGet, key, nil, nil)
	if resp.StatusCode != http.StatusOK {
		p.t.Fatalf("the store has no %s: %d", key, resp.StatusCode)
	}
	header := http.Header{}
	for name, values := range resp.Header {
		if strings.HasPrefix(name, "X-Amz-Meta-") {
			header[name] = values
		}
	}
	return body, header
}

func (p *proxy) store(key string, body []byte, header http.Header) {
	p.t.Helper()
	if resp, answer := p.storeDo(http.MethodPut, key, header, body); resp.StatusCode != http.StatusOK {
		p.t.Fatalf("the store refuses %s: %s", key, answer)
	}
}

func (p *proxy) isStored(key string) bool {
	resp, _ := p.storeDo(http.MethodHead, key, nil, nil)
	return resp.StatusCode == http.StatusOK
}

// request is an HTTP request of a client, signed with the SDK's signer.
type request struct {
	method, path string // path is raw, and includes the query
	header       http.Header
	body         []byte
	hash         string // x-amz-content-sha256; "" for the hash of the body
	accessKey    string // "" for the client's own; the same for secret
	secret       string
	at           time.Time
	presign      bool
}

type answer struct {
	*http.Response
	body []byte
	Code string
}

func (p *proxy) send(r request) answer {
	p.t.Helper()
	resp, err := p.server.Client().Do(p.sign(r))
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()

	a := answer{Response: resp}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		p.t.Fatal(err)
	}

	if resp.StatusCode >= 300 && len(a.body) > 0 {
		var doc struct{ Code, RequestId string }
		if err := xml.Unmarshal(a.body, &doc); err != nil || doc.RequestId != resp.Header.Get("X-Amz-Request-Id") ||
			doc.RequestId == "" {
			p.t.Errorf("%s %s: the error is not S3's XML with the request id: %s", r.method, r.path, a.body)
		}
		a.Code = doc.Code
	}

	return a
}

func (p *proxy) sign(r request) *http.Request {
	p.t.Helper()
	u, err := url.Parse(p.url)
	if err != nil {
		p.t.Fatal(err)
	}
	raw, query, _ := strings.Cut(r.path, "?")
	u.RawQuery = query

	u.Opaque = "//" + u.Host + raw
	req := (&http.Request{
		Method: r.method, URL: u, Host: u.Host, Header: http.Header{}, ContentLength: int64(len(r.body)),
	}).WithContext(
		p.t.Context(),
	)
	if r.body != nil {
		req.Body = io.NopCloser(bytes.NewReader(r.body))
	}

	maps.Copy(req.Header, r.header)
	if r.hash == "" {
		sum := sha256.Sum256(r.body)
		r.hash = hex.EncodeToString(sum[:])
	}

	if r.at.IsZero() {
		r.at = time.Now()
	}
	creds := aws.Credentials{AccessKeyID: clientAccess, SecretAccessKey: clientSecret}
	if r.accessKey != "" {
		creds.AccessKeyID = r.accessKey
	}

	if r.secret != "" {
		creds.SecretAccessKey = r.secret
	}

	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	if !r.presign {
		req.Header.Set("X-Amz-Content-Sha256", r.hash)
		if err := signer.SignHTTP(p.t.Context(), creds, req, r.hash, "s3", region, r.at); err != nil {
			p.t.Fatal(err)
		}
		return req
	}

	signed, _, err := signer.PresignHTTP(p.t.Context(), creds, req, "UNSIGNED-PAYLOAD", "s3", region, r.at)
	if err != nil {
		p.t.Fatal(err)
	}
	if req.URL, err = url.Parse(signed); err != nil {
		p.t.Fatal(err)
	}

	return req
}

// tap counts the requests to the store, and can break them.
type tap struct {
	next http.RoundTripper

	mu       sync.Mutex
	requests []string
	// If it is not nil and returns something, it answers instead of the
	// store.
	fault     func(*http.Request) (*http.Response, error)
	alter     func(*http.Response)
	condition func(*http.Request) // changes a clone of the request
}

func (t *tap) RoundTrip(r *http.Request) (*http.Response, error) {
	t.mu.Lock()
	t.requests = append(t.requests, r.Method+" "+r.URL.Path+" "+r.Header.Get("Range"))
	fault, alter := t.fault, t.alter
	t.mu.Unlock()

	if fault != nil {
		if resp, err := fault(r); resp != nil || err != nil {
			if r.Body != nil {
				_ = r.Body.Close()
			}
			return resp, err
		}
	}

	if t.condition != nil {
		r = r.Clone(r.Context())
		t.condition(r)
	}

	resp, err := t.next.RoundTrip(r)
	if err == nil && alter != nil {
		alter(resp)
	}
	return resp, err
}

// take returns the requests since the last call.
func (t *tap) take() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.requests
	t.requests = nil
	return out
}

func (t *tap) set(fault func(*http.Request) (*http.Response, error), alter func(*http.Response)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fault, t.alter = fault, alter
}

// logBuffer holds the proxy's log.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) Sync() error { return nil }

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func randomText(n int) []byte {
	text := make([]byte, n)
	rand.Read(text)
	return text
}

//go:fix inline

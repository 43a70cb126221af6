//go:build !nodev

package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// `cmekproxy check` tells a store that is misconfigured, busy or away apart,
// and names what to change.
func TestCheckNamesTheFault(t *testing.T) {
	refusal := func(code, more string) string {
		return "<Error><Code>" + code + "</Code><Message>m</Message>" + more + "</Error>"
	}
	serve := func(status int, header http.Header, body string) *httptest.Server {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for name := range header {
				w.Header().Set(name, header.Get(name))
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}))
		t.Cleanup(server.Close)
		return server
	}

	gone := serve(200, nil, "")
	gone.Close()
	plain := strings.Replace(serve(200, nil, "").URL, "http:", "https:", 1)
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(secure.Close)

	for _, row := range []struct{ name, store, want string }{
		{"an unknown access key", serve(403, nil, refusal("InvalidAccessKeyId", "")).URL, "does not know origin.access_key"},
		{"a wrong secret", serve(403, nil, refusal("SignatureDoesNotMatch", "")).URL, "check origin.secret_key"},
		{"another time", serve(403, nil, refusal("RequestTimeTooSkewed", "")).URL, "synchronize the clocks"},
		{
			"a wrong region", serve(400, nil, refusal("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>")).URL,
			"set origin.region to eu-west-1",
		},
		{
			"another region", serve(301, http.Header{"X-Amz-Bucket-Region": {"eu-west-1"}},
				refusal("PermanentRedirect", "<Endpoint>bucket.s3.eu-west-1.amazonaws.com</Endpoint>")).URL,
			"set origin.region to eu-west-1",
		},
		{"throttling", serve(503, nil, refusal("SlowDown", "")).URL, "limits the rate"},
		{"throttling with 429", serve(429, nil, "").URL, "limits the rate"},
		{
			"a page", serve(200, http.Header{"Content-Type": {"text/html"}}, "<html>log in</html>").URL,
			"something other than the store answered",
		},
		{
			"a page that says 404", serve(404, http.Header{"Content-Type": {"text/html"}}, "<html></html>").URL,
			"something other than the store answered",
		},
		{"another API", serve(404, nil, "404 page not found").URL, "something other than the store answered"},
		{
			"a login page elsewhere", serve(302, http.Header{"Location": {"https://login.example/"}}, "").URL,
			"redirects to login.example",
		},
		{"nothing", gone.URL, "nothing listens there"},
		{"no such host", "http://store.invalid:9000", "check the host in origin.endpoint"},
		{"an unknown authority", secure.URL, "origin.ca_file"},
		{"no TLS", plain, "use http:// in origin.endpoint"},
		{"only TLS", strings.Replace(secure.URL, "https:", "http:", 1), "use https:// in origin.endpoint"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			config := writeConfig(t, row.store, "127.0.0.1:0", "127.0.0.1:0")
			code := run(t.Context(), []string{"check", "--config", config}, &out, &out)
			line := ""
			for l := range strings.Lines(out.String()) {
				if strings.HasPrefix(l, "FAIL  store ") {
					line = l
				}
			}
			t.Log(line)
			if code != 1 || !strings.Contains(line, row.want) {
				t.Errorf("exit code %d, want 1 and %q:\n%s", code, row.want, out.String())
			}
		})
	}
}

// A store that fails for a moment costs a retry, which the metric shows, and
// no error.
func TestServeRetriesTheStore(t *testing.T) {
	store, err := url.Parse(proxytest.ServeStore(t))
	if err != nil {
		t.Fatal(err)
	}
	var throttles, asked atomic.Int64
	through := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(store)
		r.Out.Host = r.In.Host // the signature covers it
	}}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if throttles.Add(-1) < 0 {
			through.ServeHTTP(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "<Error><Code>SlowDown</Code></Error>")
	}))
	t.Cleanup(front.Close)

	listen, admin := freePort(t), freePort(t)
	s := start(t, "serve", "--config", writeConfig(t, front.URL, listen, admin))
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	bucket, key := "bucket", "k"
	direct := client(store.Host, proxytest.AccessKey, proxytest.SecretKey)
	if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}

	app := client(listen, "appkey", "appsecretappsecret")
	once := func(o *s3.Options) { o.RetryMaxAttempts = 1 }
	put := func() error {
		in := &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("text")}
		_, err := app.PutObject(t.Context(), in, once)
		return err
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}

	throttles.Store(2)
	out, err := app.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key}, once)
	if err != nil {
		t.Fatal(err)
	}
	out.Body.Close()
	waitMetric(t, "http://"+admin+"/metrics", `cmekproxy_origin_retries_total{fault="throttled"} 2`)

	// The body of a PUT was streamed.
	throttles.Store(1)
	asked.Store(0)
	var refusal smithy.APIError
	if err := put(); !errors.As(err, &refusal) || refusal.ErrorCode() != "SlowDown" || asked.Load() != 1 {
		t.Errorf("a PUT: %v, asked %d times", err, asked.Load())
	}
	waitMetric(t, "http://"+admin+"/metrics", `cmekproxy_origin_faults_total{fault="throttled"} 1`)
	s.end(t)
}

package s3api_test

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// storeFaults are the answers of a store, or of something in its place, that
// are not about the client's request, with what the client must get instead
// and what the log must say.
var storeFaults = []struct {
	name   string
	status int
	header http.Header
	body   string // of answers to other requests than HEAD

	want       int
	code       string
	retryAfter string
	log        []string // parts of the cause; what is in the one for HEAD comes first
	counted    string   // label of the metric
}{
	{
		"throttles", 503, nil, refusal("SlowDown", ""),
		503, "SlowDown", "1",
		[]string{"limit", "answered 503 SlowDown", "raise its limit"},
		"throttled",
	},
	{
		"throttles, and says for how long", 503,
		http.Header{"Retry-After": {"7"}},
		refusal("SlowDown", ""),
		503, "SlowDown", "7",
		[]string{"limit"},
		"throttled",
	},
	{
		"throttles for a year", 429,
		http.Header{"Retry-After": {"31536000"}},
		refusal("TooManyRequests", ""),
		503, "SlowDown", "300",
		[]string{"raise its limit"},
		"throttled",
	},
	{
		"throttles with 429", 429, nil, "",
		503, "SlowDown", "1",
		[]string{"raise its limit"},
		"throttled",
	},
	{
		"throttles in MinIO's words", 503, nil, refusal("SlowDownWrite", ""),
		503, "SlowDown", "1",
		[]string{"limit"},
		"throttled",
	},
	{
		"another region", 301,
		http.Header{"X-Amz-Bucket-Region": {"eu-west-1"}},
		refusal("PermanentRedirect", "<Endpoint>b.s3.eu-west-1.amazonaws.com</Endpoint>"),
		500, "InternalError", "",
		[]string{"origin.region to eu-west-1", "origin.endpoint", "b.s3.eu-west-1.amazonaws.com"},
		"redirect",
	},
	{
		"another endpoint for now", 307,
		http.Header{
			"Location":            {"https://b.s3.eu-west-1.amazonaws.com/k?X-Amz-Secret=1"},
			"X-Amz-Bucket-Region": {"eu-west-1"},
		},
		refusal("TemporaryRedirect", "<Endpoint>b.s3.eu-west-1.amazonaws.com</Endpoint>"),
		503, "ServiceUnavailable", "1",
		[]string{"b.s3.eu-west-1.amazonaws.com"},
		"redirect",
	},
	{
		"the wrong region in signatures", 400, nil, refusal("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
		500, "InternalError", "",
		[]string{"set origin.region to eu-west-1"},
		"redirect",
	},
	{
		"an unknown access key", 403, nil, refusal("InvalidAccessKeyId", ""),
		500, "InternalError", "",
		[]string{"origin.access_key"},
		"credentials",
	},
	{
		"an unknown access key, in versitygw's words", 404, nil, refusal("XAdminUserNotFound", ""),
		500, "InternalError", "",
		[]string{"origin.access_key"},
		"credentials",
	},
	{
		"a user that is suspended, in Ceph's words", 403, nil, refusal("UserSuspended", ""),
		500, "InternalError", "",
		[]string{"suspended the user of origin.access_key"},
		"credentials",
	},
	{
		"a wrong secret", 403, nil, refusal("SignatureDoesNotMatch", ""),
		500, "InternalError", "",
		[]string{"origin.secret_key"},
		"credentials",
	},
	{
		"an expired token", 400, nil, refusal("ExpiredToken", ""),
		500, "InternalError", "",
		[]string{"have expired"},
		"credentials",
	},
	{
		"another time", 403, nil, refusal("RequestTimeTooSkewed", "<ServerTime>2031-01-01T00:00:00Z</ServerTime>"),
		500, "InternalError", "",
		[]string{"synchronize the clocks", "its time is 2031-01-01T00:00:00Z"},
		"clock",
	},
	{
		"a login page", 200, htmlPage, "<html>log in</html>",
		503, "ServiceUnavailable", "1",
		[]string{"something other than the store answered"},
		"foreign",
	},
	{
		"a page that says 404", 404, htmlPage, "<html>nothing here</html>",
		503, "ServiceUnavailable", "1",
		[]string{"something other than the store answered"},
		"foreign",
	},
	{
		"a page of a load balancer", 502, htmlPage, "<html>bad gateway</html>",
		503, "ServiceUnavailable", "1",
		[]string{"load balancer"},
		"foreign",
	},
	{
		"a page that says 503", 503, htmlPage, "<!DOCTYPE html>",
		503, "ServiceUnavailable", "1",
		[]string{"load balancer"},
		"foreign",
	},
	{
		"another API", 401, nil, `{"error":"unauthorized"}`,
		503, "ServiceUnavailable", "1",
		[]string{"something other than the store answered"},
		"foreign",
	},
	{
		"a redirect to a login page", 302,
		http.Header{"Location": {"https://login.example/x?secret=1"}},
		"",
		503, "ServiceUnavailable", "1",
		[]string{"redirects to login.example"},
		"foreign",
	},
	{
		"a gateway without a page", 504, nil, "",
		503, "ServiceUnavailable", "1",
		[]string{"answered 504"},
		"unavailable",
	},
	{
		"an internal error", 500, nil, refusal("InternalError", ""),
		500, "InternalError", "",
		[]string{"answered 500"},
		"unavailable",
	},
}

var htmlPage = http.Header{"Content-Type": {"text/html"}}

func refusal(code, more string) string {
	return "<Error><Code>" + code + "</Code><Message>in the store's words</Message>" + more + "</Error>"
}

// answerAll makes the store answer everything in the same way.
func (w *network) answerAll(status int, header http.Header, body string) {
	w.set(func(rw http.ResponseWriter, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		maps.Copy(rw.Header(), header)
		if header["Content-Type"] != nil {
			rw.Header().Set("Content-Length", strconv.Itoa(len(body)))
		}
		rw.WriteHeader(status)
		if r.Method != http.MethodHead {
			_, _ = io.WriteString(rw, body)
		}
		return true
	})
}

// faults returns how many faults of a kind were counted; "" for all kinds.
func (w *network) faults(kind string) (total float64) {
	w.t.Helper()
	rec := httptest.NewRecorder()
	w.counts.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(w.t.Context(), http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(rec.Body.String()) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); strings.HasPrefix(name, "cmekproxy_origin_faults_total{") &&
			strings.Contains(name, kind) {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				w.t.Fatal(err)
			}
			total += n
		}
	}
	return total
}

// originUp returns the line of the metric; "" for none.
func (w *network) originUp() string {
	w.t.Helper()
	rec := httptest.NewRecorder()
	w.counts.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(w.t.Context(), http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(rec.Body.String()) {
		if strings.HasPrefix(line, "cmekproxy_origin_up ") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// The store is down after a fault of its own or of the proxy's credentials, and
// up after its next answer. What a client asks for cannot change that: not a
// refusal, and not a bucket of another region.
func TestOriginUp(t *testing.T) {
	const up, down = "cmekproxy_origin_up 1", "cmekproxy_origin_up 0"
	p, w := behindNetwork(t, time.Minute)
	get := request{method: "GET", path: "/" + p.bucket + "/k"}
	p.put("k", []byte("text"))
	if got := w.originUp(); got != up {
		t.Errorf("after an upload: %q", got)
	}

	for _, row := range []struct {
		name   string
		status int
		header http.Header
		body   string
		want   string // after up
		later  string // the same answer, after down
	}{
		{"internal error", 500, nil, refusal("InternalError", ""), down, down},
		{"a gateway", 502, htmlPage, "<html>bad gateway</html>", down, down},
		{"credentials", 403, nil, refusal("InvalidAccessKeyId", ""), down, down},
		{"clock", 403, nil, refusal("RequestTimeTooSkewed", ""), down, down},
		{"a login page", 200, htmlPage, "<html>log in</html>", down, down},
		{"another API", 401, nil, `{"error":"unauthorized"}`, down, down},
		{"a redirect to a login page", 302, http.Header{"Location": {"https://login.example/"}}, "", down, down},
		{"an object without an ETag", 200, http.Header{"X-Amz-Request-Id": {"1"}}, "text", up, down},
		{"throttles", 503, nil, refusal("SlowDown", ""), up, down},
		{"another region", 301, nil, refusal("PermanentRedirect", "<Region>eu-west-1</Region>"), up, down},
		{"a gateway that refuses a path", 403, htmlPage, "<html>blocked</html>", up, down},
		{"not implemented", 501, nil, refusal("NotImplemented", ""), up, down},
		{"bad request", 400, nil, refusal("InvalidArgument", ""), up, down},
		{"access denied", 403, nil, refusal("AccessDenied", ""), up, up},
		{"a missing object", 404, nil, refusal("NoSuchKey", ""), up, up},
		{"a missing bucket", 404, nil, refusal("NoSuchBucket", ""), up, up},
		{"a condition", 412, nil, refusal("PreconditionFailed", ""), up, up},
	} {
		t.Run(row.name, func(t *testing.T) {
			w.set(nil)
			p.send(get)
			w.answerAll(row.status, row.header, row.body)
			p.send(get)
			if got := w.originUp(); got != row.want {
				t.Errorf("after an answer and this: %q, want %q", got, row.want)
			}

			w.answerAll(500, nil, refusal("InternalError", ""))
			p.send(get)
			w.answerAll(row.status, row.header, row.body)
			p.send(get)
			if got := w.originUp(); got != row.later {
				t.Errorf("after a fault and this: %q, want %q", got, row.later)
			}
		})
	}
}

// lastCause returns the cause in the last line of the log.
func (p *proxy) lastCause() string {
	lines := strings.Split(strings.TrimSpace(p.log.String()), "\n")
	_, cause, _ := strings.Cut(lines[len(lines)-1], `"cause":`)
	return cause
}

// A fault of the store never looks like one of the client, and the log says
// what to check.
func TestFaultsOfTheStore(t *testing.T) {
	p, w := behindNetwork(t, time.Minute)
	p.put("k", []byte("text"))
	b := "/" + p.bucket
	p.clock.Store(int64(2 * time.Minute)) // since the store has accepted the credentials

	for _, row := range storeFaults {
		t.Run(row.name, func(t *testing.T) {
			w.answerAll(row.status, row.header, row.body)
			before := w.faults(row.counted)

			for name, r := range map[string]request{
				"GET":           {method: "GET", path: b + "/k"},
				"HEAD":          {method: "HEAD", path: b + "/k"},
				"PUT":           {method: "PUT", path: b + "/new", body: []byte("x")},
				"DELETE":        {method: "DELETE", path: b + "/k"},
				"listing":       {method: "GET", path: b + "?list-type=2"},
				"HEAD, bucket":  {method: "HEAD", path: b},
				"a new upload":  {method: "POST", path: b + "/new?uploads"},
				"copy":          {method: "PUT", path: b + "/new", header: http.Header{"X-Amz-Copy-Source": {b + "/k"}}},
				"configuration": {method: "GET", path: b + "?versioning"},
			} {
				a := p.send(r)
				head := r.method == http.MethodHead || name == "copy" // a copy begins with a HEAD
				if a.StatusCode != row.want || !head && a.Code != row.code || a.Header.Get("Retry-After") != row.retryAfter {
					t.Errorf("%s: %d %s, Retry-After %q; want %d %s %q", name,
						a.StatusCode, a.Code, a.Header.Get("Retry-After"), row.want, row.code, row.retryAfter)
				}

				for i, part := range row.log {
					if !strings.Contains(p.lastCause(), part) && (!head || i == 0) {
						t.Errorf("%s: the log has %s, want %q", name, p.lastCause(), part)
					}
				}
				if strings.Contains(string(a.body), "origin.") || strings.Contains(p.lastCause(), "ecret=1") {
					t.Errorf("%s: the client is told of settings, or the log has a secret: %s %s", name, a.body, p.lastCause())
				}
			}

			if after := w.faults(row.counted); after < before+6 { // HEAD may not tell the kind
				t.Errorf("the metric counts %v faults of 9 requests", after-before)
			}
		})
	}
}

// What a store says about the client's own request reaches the client.
//
// A 404 to a HEAD is not questioned while the store accepts the credentials.
func TestRefusalsOfTheRequest(t *testing.T) {
	p, w := behindNetwork(t, time.Minute)
	for _, row := range []struct {
		status int
		code   string
	}{
		{403, "AccessDenied"},
		{404, "NoSuchKey"},
		{404, "NoSuchBucket"},
		{409, "OperationAborted"},
		{412, "PreconditionFailed"},
		{501, "NotImplemented"},
		{507, "InsufficientStorage"},
	} {
		t.Run(row.code, func(t *testing.T) {
			before := w.faults("")
			w.answerAll(row.status, nil, refusal(row.code, ""))
			if a := p.send(request{method: "GET", path: "/" + p.bucket + "/k"}); a.StatusCode != row.status ||
				a.Code != row.code {
				t.Errorf("GET: %d %s", a.StatusCode, a.Code)
			}
			w.take()
			if a := p.send(request{method: "HEAD", path: "/" + p.bucket + "/k"}); a.StatusCode != row.status {
				t.Errorf("HEAD: %d", a.StatusCode)
			}
			if asked := w.take(); row.status != http.StatusForbidden && len(asked) != 1 {
				t.Errorf("HEAD: the store was asked %q", asked)
			}
			if after := w.faults(""); after != before {
				t.Errorf("it is counted as a fault: %v more", after-before)
			}
		})
	}
}

// A 404 to a HEAD is questioned, although the store has just accepted the
// credentials, if it is of a store that refuses credentials with it, and after
// a refusal of any other request.
func TestHeadAfterCredentialsChange(t *testing.T) {
	for _, row := range []struct {
		name   string
		header http.Header
		first  bool // another request is refused before the HEAD
		want   int
	}{
		{"a store that answers 403 to unknown keys", nil, false, http.StatusNotFound},
		{"versitygw", http.Header{"Server": {"VERSITYGW"}}, false, http.StatusInternalServerError},
		{"after another refusal", nil, true, http.StatusInternalServerError},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, w := behindNetwork(t, time.Minute)
			p.put("k", []byte("text"))
			w.answerAll(http.StatusNotFound, row.header, refusal("XAdminUserNotFound", ""))
			if row.first {
				p.send(request{method: "GET", path: "/" + p.bucket + "/k"})
			}
			for _, path := range []string{"/" + p.bucket + "/k", "/" + p.bucket} {
				if a := p.send(request{method: "HEAD", path: path}); a.StatusCode != row.want {
					t.Errorf("HEAD %s: %d, want %d", path, a.StatusCode, row.want)
				}
			}
		})
	}
}

// The log says how often requests to the store were repeated.
func TestRetriesAreLogged(t *testing.T) {
	p, w := behindNetwork(t, time.Minute)
	p.put("k", []byte("text"))
	cfg := proxytest.OriginConfig(origin.NewRetrier(
		newNetworkTransport(w.late), origin.RetryConfig{Observe: s3api.RecordRetry},
	))
	cfg.Endpoint = &url.URL{Scheme: "http", Host: strings.TrimPrefix(w.server.URL, "http://")}
	p.origin.next = origin.New(cfg)

	left := 2
	w.set(func(rw http.ResponseWriter, _ *http.Request) bool {
		if left--; left < 0 {
			return false
		}
		rw.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	if text := p.mustGet("k"); string(text) != "text" {
		t.Errorf("%q", text)
	}
	lines := strings.Split(strings.TrimSpace(p.log.String()), "\n")
	if !strings.Contains(lines[len(lines)-1], `"origin_retries":2`) || strings.Contains(lines[0], "origin_retries") {
		t.Errorf("the log has %s", lines)
	}
}

// Ceph sends no message with some errors, and aws-cli 1 fails without one.
func TestRefusalsWithoutAMessage(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("text"))
	p.origin.set(func(r *http.Request) (*http.Response, error) {
		body := "<Error><Code>PreconditionFailed</Code></Error>"
		return &http.Response{
			StatusCode: http.StatusPreconditionFailed, Header: http.Header{}, Request: r,
			Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
		}, nil
	}, nil)
	got := p.send(request{method: "GET", path: "/" + p.bucket + "/k"})
	if got.Code != "PreconditionFailed" || !bytes.Contains(got.body, []byte("<Message>Precondition Failed</Message>")) {
		t.Errorf("%d %s", got.StatusCode, got.body)
	}
}

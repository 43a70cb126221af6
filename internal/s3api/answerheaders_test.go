package s3api_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// invented are headers that a store, or something in front of it, could send
// to browsers that trust the proxy's host.
var invented = map[string]string{
	"Set-Cookie": "session=theirs", "Clear-Site-Data": `"*"`, "Alt-Svc": `h3="evil.example:443"`,
	"Access-Control-Allow-Origin":      "*",
	"Access-Control-Allow-Credentials": "true", "Access-Control-Allow-Private-Network": "true",
	"Refresh": "0; url=https://evil.example",
	"Link":    "<https://evil.example>; rel=preload", "Strict-Transport-Security": "max-age=99999999",
	"Www-Authenticate": "Basic",
	"Location":         "https://evil.example", "X-Anything": "at all", "Proxy-Authenticate": "Basic", "Sourcemap": "x",
	"Nel": "{}",
}

// Headers that a store invents never reach clients.
func TestInventedHeaders(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("text"), nil...)
	p.upload("parts", []int{100}).mustComplete()

	p.origin.set(nil, func(resp *http.Response) {
		for name, value := range invented {
			resp.Header.Set(name, value)
		}
	})

	b := "/" + p.bucket
	for _, r := range []request{
		{method: "GET", path: b + "/k"},
		{method: "HEAD", path: b + "/k"},
		{method: "GET", path: b + "/k", header: http.Header{"Range": {"bytes=0-1"}}},
		{method: "GET", path: b + "/k", header: http.Header{"If-None-Match": {"*"}}},
		{method: "GET", path: b + "/parts?partNumber=1"},
		{method: "GET", path: b + "/none"},
		{method: "PUT", path: b + "/new", body: []byte("x")},
		{method: "DELETE", path: b + "/new"},
		{method: "GET", path: b},
		{method: "GET", path: "/"},
		{method: "HEAD", path: b},
		{method: "GET", path: b + "?versioning"},
		{method: "POST", path: b + "/up?uploads"},
		{method: "POST", path: b + "?delete", body: []byte("<Delete><Object><Key>k2</Key></Object></Delete>")},
		{method: "PUT", path: b + "/copy", header: http.Header{"X-Amz-Copy-Source": {b + "/k"}}},
	} {
		t.Run(r.method+" "+r.path, func(t *testing.T) {
			a := p.send(r)
			for name, value := range invented {
				if got := a.Header.Get(name); got == value {
					t.Errorf("%s %s: %d, %s: %s", r.method, r.path, a.StatusCode, name, got)
				}
			}
		})
	}

	// CORS headers for another origin than the client's are dropped.
	p.origin.set(
		nil,
		func(resp *http.Response) { resp.Header.Set("Access-Control-Allow-Origin", "https://other.example") },
	)

	if a := p.browse(request{method: "GET", path: b + "/k"}, page); a.StatusCode != http.StatusOK ||
		a.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("to another origin: %d %v", a.StatusCode, a.Header)
	}
}

// S3's own headers are kept.
func TestHeadersOfS3(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("text"))
	said := map[string]string{
		"Cache-Control": "no-store", "Content-Language": "en", "Last-Modified": "Mon, 02 Jan 2006 15:04:05 GMT",
		"X-Amz-Version-Id": "v", "X-Amz-Storage-Class": "GLACIER",
		"X-Amz-Expiration": "e", "X-Amz-Restore": "r", "X-Amz-Object-Lock-Mode": "GOVERNANCE", "X-Amz-Meta-Color": "blue",
		"X-Amz-Tagging-Count": "2",
	}

	p.origin.set(nil, func(resp *http.Response) {
		for name, value := range said {
			resp.Header.Set(name, value)
		}
	})
	a := p.send(request{method: "GET", path: "/" + p.bucket + "/k"})

	for name, want := range said {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// Codes that a store invents do not become metric labels. Malformed ones do
// not reach the client, and none makes the proxy panic.
func TestInventedCodes(t *testing.T) {
	counted := metrics.New()
	p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.Metrics = counted })
	p.put("k", []byte("text"))

	answer := func(status int, code string) func(*http.Request) (*http.Response, error) {
		return func(*http.Request) (*http.Response, error) {
			body := "<Error><Code>" + code + "</Code><Message>\xff\xfe</Message></Error>"
			return &http.Response{
				StatusCode:    status,
				Header:        http.Header{},
				Body:          io.NopCloser(strings.NewReader(body)),
				ContentLength: int64(len(body)),
			}, nil
		}
	}

	for _, status := range []int{0, 99, 200, 404, 500, 600, 999} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			for n, code := range []string{
				"\xff\xfe", "Invented" + fmt.Sprint(status), "a b", strings.Repeat("x", 2000), "&#1;", "NoSuchKey",
			} {
				p.origin.set(answer(status, code), nil)
				for _, r := range []request{
					{method: "GET", path: "/" + p.bucket + "?versioning"},
					{method: "GET", path: "/" + p.bucket + "/k"},
					{method: "DELETE", path: "/" + p.bucket + "/k"},
				} {
					p.log.reset()
					resp, err := p.server.Client().Do(p.sign(r))
					if err != nil {
						t.Errorf("%d, code %d, %s %s: %v", status, n, r.method, r.path, err)
						continue
					}

					body, _ := io.ReadAll(resp.Body)
					resp.Body.Close()
					if resp.StatusCode < 400 || resp.StatusCode > 599 {
						t.Errorf(
							"%d, code %d, %s %s: answered %d %s",
							status,
							n,
							r.method,
							r.path,
							resp.StatusCode,
							body,
						)
					}

					if log := p.log.String(); strings.Contains(log, "panic") || !strings.Contains(log, `"operation"`) {
						t.Errorf("%d, code %d, %s %s: the log has %s", status, n, r.method, r.path, log)
					}
				}
			}
		})
	}

	w := httptest.NewRecorder()
	counted.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	text := w.Body.String()
	if strings.Contains(text, "Invented") || strings.Contains(text, "xxxx") ||
		!strings.Contains(text, `code="Other"`) ||
		!strings.Contains(text, `code="NoSuchKey"`) {
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "cmekproxy_requests_total") {
				t.Log(line)
			}
		}
		t.Error("the metrics have the store's codes, or not those of S3")
	}
}

// Unsigned preflights do not reveal which buckets exist.
func TestPreflightsTellNoBuckets(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("text"))
	var first string
	for _, path := range []string{
		"/" + p.bucket, "/" + p.bucket + "/k", "/no-such-bucket-at-all", "/no-such-bucket-at-all/k",
	} {
		resp, body := p.unsigned("OPTIONS", path, preflight(page, "GET", ""))
		body = strings.ReplaceAll(strings.ReplaceAll(body, resp.Header.Get("X-Amz-Request-Id"), ""), path, "")
		resp.Header.Del("X-Amz-Request-Id")
		resp.Header.Del("Date")
		resp.Header.Del("Content-Length")
		said := fmt.Sprint(resp.StatusCode, resp.Header, body)

		if first == "" {
			first = said
		}
		if said != first || resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s:\n%s\nof another:\n%s", path, said, first)
		}
	}

	// Not even if the store's answers differ from S3's.
	for _, status := range []int{301, 307, 403, 404, 405, 500, 501} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			p.origin.set(func(*http.Request) (*http.Response, error) {
				return &http.Response{
					StatusCode: status,
					Header:     http.Header{"X-Amz-Bucket-Region": {"here"}, "Allow": {"GET"}},
					Body:       http.NoBody,
				}, nil
			}, nil)

			resp, body := p.unsigned("OPTIONS", "/"+p.bucket+"/k", preflight(page, "GET", ""))
			if resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "AccessForbidden") ||
				resp.Header.Get("X-Amz-Bucket-Region") != "" ||
				resp.Header.Get("Allow") != "" {
				t.Errorf("the store answers %d, the proxy %d %s", status, resp.StatusCode, body)
			}
		})
	}
}

//go:build !nodev

package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
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
			config := writeConfig(t, row.store, "127.0.0.1:0", "127.0.0.1:1")
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

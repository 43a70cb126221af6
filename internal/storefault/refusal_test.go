package storefault_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

func TestOfAnswer(t *testing.T) {
	t.Parallel()
	doc := func(code, more string) string {
		return "<Error><Code>" + code + "</Code><Message>m</Message>" + more + "</Error>"
	}
	located := func(url string) http.Header { return http.Header{"Location": {url}} }
	html := http.Header{"Content-Type": {"text/html; charset=utf-8"}}

	for _, row := range []struct {
		name string
		a    storefault.Answer
		kind storefault.Kind // "" for none
		says string
	}{
		{"a missing object", storefault.Answer{Status: 404, Body: []byte(doc("NoSuchKey", ""))}, "", ""},
		{"a missing object, HEAD", storefault.Answer{Method: "HEAD", Status: 404}, "", ""},
		{"not modified", storefault.Answer{Status: 304}, "", ""},
		{"denied", storefault.Answer{Status: 403, Body: []byte(doc("AccessDenied", ""))}, "", ""},
		{"not implemented", storefault.Answer{Status: 501}, "", ""},
		{"a disk that is full", storefault.Answer{Status: 507, Body: []byte(doc("InsufficientStorage", ""))}, "", ""},
		{"XML without a code", storefault.Answer{Status: 403, Body: []byte("<?xml version='1.0'?><Denied/>")}, "", ""},
		{"a text for a preflight", storefault.Answer{Method: "OPTIONS", Status: 403, Body: []byte("no")}, "", ""},
		{
			"a text",
			storefault.Answer{Method: "GET", Status: 404, Body: []byte("404 page not found")},
			storefault.Foreign,
			"origin.endpoint",
		},
		{"a page for a HEAD", storefault.Answer{Method: "HEAD", Status: 404, Header: html}, storefault.Foreign, ""},
		{"HTTP to a TLS port", storefault.Answer{
			Method: "GET", Status: 400, Body: []byte("Client sent an HTTP request to an HTTPS server.\n"),
		}, storefault.Foreign, "use https://"},
		{"an egress proxy", storefault.Answer{Status: 407}, storefault.Foreign, "HTTPS_PROXY"},
		{
			"a login page",
			storefault.Answer{Status: 302, Header: located("https://login.example/?token=secret")},
			storefault.Foreign, "redirects to login.example",
		},
		{"a region in the header only", storefault.Answer{
			Method: "HEAD", Status: 301, Header: http.Header{"X-Amz-Bucket-Region": {"eu-west-1"}},
		}, storefault.Redirect, "set origin.region to eu-west-1"},
		{
			"no region",
			storefault.Answer{Status: 400, Body: []byte(doc("AuthorizationHeaderMalformed", ""))},
			storefault.Redirect, "check origin.region and origin.access_key",
		},
		{"a region that is none", storefault.Answer{
			Status: 400, Body: []byte(doc("AuthorizationHeaderMalformed", "<Region>run this; now</Region>")),
		}, storefault.Redirect, "check origin.region and origin.access_key"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			fault := storefault.OfAnswer(row.a)
			switch {
			case fault == nil && row.kind == "":
			case fault == nil || fault.Kind != row.kind || !strings.Contains(fault.Error(), row.says):
				t.Errorf("%v, want %q and %q", fault, row.kind, row.says)
			case strings.Contains(fault.Error(), "secret"), strings.Contains(fault.Hint, "run this"):
				t.Errorf("it repeats too much: %v", fault)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "99999999": 5 * time.Minute, "99999999999999999999": 0,
	} {
		fault := storefault.OfAnswer(storefault.Answer{Status: 429, Header: http.Header{"Retry-After": {value}}})
		if fault == nil || fault.RetryAfter != want {
			t.Errorf("%q: %+v, want %v", value, fault, want)
		}
	}
}

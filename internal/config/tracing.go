package config

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// maxTracingHeaders limits the number of headers for the receiver of spans.
const maxTracingHeaders = 20

func (d *decoder) checkTracing(t *Tracing) {
	if d.given[t] && !d.given[&t.Endpoint] && !d.failed[t] {
		d.fail(t, `"endpoint" is missing in tracing; "" turns tracing off`)
	}
	d.checkReceiver(&t.Endpoint, t.Insecure)

	if !(t.SamplingRatio > 0 && t.SamplingRatio <= 1) { // also false for NaN
		d.fail(&t.SamplingRatio, "tracing.sampling_ratio must be above 0 and at most 1; 0.01 is one request in 100")
	}
	if len(t.ServiceName) > 255 || strings.TrimSpace(t.ServiceName) == "" {
		d.fail(&t.ServiceName, "tracing.service_name must have 1 to 255 characters")
	}
	d.checkTracingHeaders(t.Headers)
}

func (d *decoder) checkReceiver(field *string, insecure bool) {
	if *field == "" {
		return
	}

	const name = "tracing.endpoint"
	u, err := url.Parse(*field)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "", !portOK(u):
		d.fail(field, "%s must be a URL such as https://otel.example.com or http://127.0.0.1:4318", name)
	case u.User != nil:
		d.fail(field, "%s must not contain credentials; use tracing.headers", name)
	case strings.ContainsAny(*field, "?#"):
		d.fail(field, "%s must not contain a query", name)
	case strings.HasSuffix(strings.TrimSuffix(u.Path, "/"), "/v1/traces"):
		d.fail(field, "%s must not end in /v1/traces, which is appended", name)
	case u.Scheme == "http" && !loopback(u.Hostname()) && !insecure:
		d.fail(field, "%s is http:// and not on this machine: tokens, and names of buckets and clients, "+
			"would be sent unencrypted; use https:// or set tracing.insecure: true", name)
	}
}

var (
	// headerName is a token of RFC 9110.
	headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$")
	// headerValue is what net/http sends as a value of a header.
	headerValue = regexp.MustCompile(`^[\t\x20-\x7e]*$`)
)

func (d *decoder) checkTracingHeaders(list []TracingHeader) {
	if len(list) > maxTracingHeaders {
		d.fail(&list[0], "tracing.headers has more than %d headers", maxTracingHeaders)
		return
	}

	seen := make(map[string]bool)
	for i := range list {
		h := &list[i]
		name := http.CanonicalHeaderKey(h.Name)
		switch {
		case h.Name == "": // reported as missing
		case !headerName.MatchString(h.Name):
			d.fail(&h.Name, "tracing.headers[%d].name is not the name of a header", i)
		case name == "Host", name == "Content-Length", name == "Content-Type", name == "Content-Encoding",
			name == "Transfer-Encoding", name == "Connection":
			d.fail(&h.Name, "tracing.headers[%d].name is a header that the proxy sets", i)
		case seen[name]:
			d.fail(&h.Name, "tracing.headers[%d].name is there twice", i)
		}
		seen[name] = true

		if !headerValue.MatchString(h.Value.Reveal()) {
			d.fail(&h.Value, "tracing.headers[%d].value must be printable ASCII", i)
		}
	}
}

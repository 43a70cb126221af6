package config_test

import (
	"fmt"
	"strings"
	"testing"
)

func TestTracingErrors(t *testing.T) {
	section := func(settings string) string { return "tracing: {" + settings + "}\n" }
	const https = "endpoint: https://otel.example.com"
	many := make([]string, 21)
	for i := range many {
		many[i] = fmt.Sprintf("{name: h%d, value: v}", i)
	}

	runErrors(t, []errorCase{
		{"no endpoint", "", section("object_keys: true"), []string{`19:10: "endpoint" is missing in tracing; "" turns tracing off`}},
		{"not a URL", "", section("endpoint: otel.example.com"), []string{
			`19:21: tracing.endpoint must be a URL such as https://otel.example.com or http://127.0.0.1:4318`,
		}},
		{"gRPC", "", section("endpoint: grpc://otel.example.com"), []string{
			`19:21: tracing.endpoint must be a URL such as https://otel.example.com or http://127.0.0.1:4318`,
		}},
		{"a password", "", section("endpoint: https://user:secret@otel.example.com"), []string{
			`19:21: tracing.endpoint must not contain credentials; use tracing.headers`,
		}},
		{"a query", "", section("endpoint: https://otel.example.com?token=secret"), []string{
			`19:21: tracing.endpoint must not contain a query`,
		}},
		{"the whole path", "", section("endpoint: https://otel.example.com/v1/traces"), []string{
			`19:21: tracing.endpoint must not end in /v1/traces, which is appended`,
		}},
		{"http", "", section("endpoint: http://otel.example.com"), []string{
			`19:21: tracing.endpoint is http:// and not on this machine: tokens, and names of buckets and clients, ` +
				`would be sent unencrypted; use https:// or set tracing.insecure: true`,
		}},
		{"ratio 0", "", section(https + ", sampling_ratio: 0"), []string{
			`19:63: tracing.sampling_ratio must be above 0 and at most 1; 0.01 is one request in 100`,
		}},
		{"ratio NaN", "", section(https + ", sampling_ratio: NaN"), []string{
			`19:63: tracing.sampling_ratio must be above 0 and at most 1; 0.01 is one request in 100`,
		}},
		{"percent", "", section(https + ", sampling_ratio: 5"), []string{
			`19:63: tracing.sampling_ratio must be above 0 and at most 1; 0.01 is one request in 100`,
		}},
		{"no name", "", section(https + `, service_name: " "`), []string{
			`19:61: tracing.service_name must have 1 to 255 characters`,
		}},
		{"a header's name", "", section(https + `, headers: [{name: "a b", value: v}]`), []string{
			`19:64: tracing.headers[0].name is not the name of a header`,
		}},
		{"a header's value", "", section(https + `, headers: [{name: a, value: "sec\nret"}]`), []string{
			`19:74: tracing.headers[0].value must be printable ASCII`,
		}},
		{"a header of HTTP", "", section(https + `, headers: [{name: content-type, value: v}]`), []string{
			`19:64: tracing.headers[0].name is a header that the proxy sets`,
		}},
		{"a header twice", "", section(https + `, headers: [{name: a, value: v}, {name: A, value: v}]`), []string{
			`19:85: tracing.headers[1].name is there twice`,
		}},
		{"many headers", "", section(https + ", headers: [" + strings.Join(many, ", ") + "]"), []string{
			`19:57: tracing.headers has more than 20 headers`,
		}},
	})
}

func TestTracing(t *testing.T) {
	for _, row := range []struct{ name, settings string }{
		{"off", `endpoint: ""`},
		{"on this machine", "endpoint: http://127.0.0.1:4318"},
		{"with a path", "endpoint: https://otel.example.com/otlp/"},
		{"insecure", "endpoint: http://otel.example.com:4318, insecure: true"},
		{"everything", "endpoint: https://otel.example.com, sampling_ratio: 1, headers: [{name: Authorization, value: Bearer x}]"},
	} {
		t.Run(row.name, func(t *testing.T) { parse(t, base+"tracing: {"+row.settings+"}\n") })
	}
	if parse(t, base).Tracing.Endpoint != "" {
		t.Error("tracing is on by default")
	}
}

package s3api_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
	"github.com/cmekproxy/cmekproxy/internal/tracing"
	"github.com/cmekproxy/cmekproxy/internal/tracing/tracingtest"
)

// BenchmarkTracing compares requests without tracing, with one in a hundred
// recorded, and with all.
func BenchmarkTracing(b *testing.B) {
	for _, row := range []struct {
		name  string
		ratio float64
	}{{"off", 0}, {"0.01", 0.01}, {"1", 1}} {
		b.Run(row.name, func(b *testing.B) {
			var options []option
			if row.ratio > 0 {
				options = append(options, withTracer(b, row.ratio))
			}
			for method, serve := range wholePath(b, options...) {
				b.Run(method, func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						serve()
					}
				})
			}
		})
	}
}

// withTracer makes a proxy record requests. Spans of requests to the store
// need the transport of cmd/proxy.
func withTracer(t testing.TB, ratio float64) option {
	return func(_ *proxy, c *s3api.Config, _ *keyring.Config) {
		tracer, err := tracing.New(context.Background(), tracing.Config{
			Endpoint: tracingtest.Start(t).URL, Transport: http.DefaultTransport, Ratio: ratio,
			Service: "cmekproxy", Version: "1", Instance: "host",
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tracer.Shutdown(context.Background()) })
		c.Tracing = tracer
	}
}

package kms_test

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// sentTraceparent records the header traceparent of requests to a KMS. It is
// an http.RoundTripper and a stats.Handler.
type sentTraceparent struct {
	next http.RoundTripper
	last atomic.Pointer[string]
}

func (s *sentTraceparent) RoundTrip(r *http.Request) (*http.Response, error) {
	s.record(r.Header["Traceparent"])
	return s.next.RoundTrip(r)
}

func (s *sentTraceparent) record(values []string) {
	all := strings.Join(values, " ")
	s.last.Store(&all)
}

func (s *sentTraceparent) HandleRPC(_ context.Context, event stats.RPCStats) {
	if out, ok := event.(*stats.OutHeader); ok {
		s.record(out.Header["traceparent"])
	}
}

func (s *sentTraceparent) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	return ctx
}

func (s *sentTraceparent) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return ctx
}
func (s *sentTraceparent) HandleConn(context.Context, stats.ConnStats) {}

// TestTraceparent: a KMS gets the place of a call in a trace, and nothing if
// there is no trace. It accepts the signature with the header.
func TestTraceparent(t *testing.T) {
	for _, row := range []struct {
		name string
		open func(*testing.T, *sentTraceparent) kms.Wrapper
	}{
		{"aws-kms", func(t *testing.T, sent *sentTraceparent) kms.Wrapper {
			t.Setenv("AWS_CA_BUNDLE", "") // does not go with a client of our own
			server := kmstest.StartTest(t)
			return server.NewKey(t, func(c *kms.AWSConfig) { c.HTTPClient = &http.Client{Transport: sent} })
		}},
		{"vault-transit", func(t *testing.T, sent *sentTraceparent) kms.Wrapper {
			server := kmstest.StartVault(t)
			return server.NewKey(t, func(c *kms.VaultConfig) { c.Transport = sent })
		}},
		{"azure-keyvault", func(t *testing.T, sent *sentTraceparent) kms.Wrapper {
			server := kmstest.StartAzure(t)
			sent.next = server.Client().Transport
			return server.NewKey(t, "RSA-2048", func(c *kms.AzureConfig) { c.Transport = &http.Client{Transport: sent} })
		}},
		{"gcp-kms", func(t *testing.T, sent *sentTraceparent) kms.Wrapper {
			server := kmstest.StartGCP(t)
			return server.NewKey(t, func(c *kms.GCPConfig) {
				c.Options = append(kmstest.GCPOptions(), option.WithGRPCDialOption(grpc.WithStatsHandler(sent)))
			})
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			sent := &sentTraceparent{next: http.DefaultTransport}
			w := row.open(t, sent)

			traced := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
				TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled,
			}))
			check := func(ctx context.Context, want string) {
				t.Helper()
				_, _, err := kms.Generate(ctx, w, nil)
				must(t, err)
				if got := sent.last.Load(); got == nil || *got != want {
					t.Errorf("the KMS gets %v, want %q", got, want)
				}
			}
			check(traced, "00-01000000000000000000000000000000-0200000000000000-01")
			check(t.Context(), "")
		})
	}
}

package origin_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

// The error of a request says which address failed, how, and what to check.
func TestConnectionFaults(t *testing.T) {
	t.Parallel()
	nothing := func(http.ResponseWriter, *http.Request) {}
	gone := serverOf(t, nothing)
	gone.Close()
	plain := serverOf(t, nothing)
	secure := httptest.NewTLSServer(http.HandlerFunc(nothing))
	t.Cleanup(secure.Close)
	cuts := serverOf(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	silent := serverOf(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })

	for _, row := range []struct {
		name, url string
		kind      storefault.Kind
		hint      string
	}{
		{"nothing listens", gone.URL, storefault.Unreachable, "whether the store runs"},
		{"no such host", "http://store.invalid", storefault.Unreachable, "DNS"},
		{"an unknown authority", secure.URL, storefault.TLS, "origin.ca_file"},
		{"HTTP instead of TLS", strings.Replace(plain.URL, "http:", "https:", 1), storefault.TLS, "http://"},
		{"no TLS handshake", "https://" + deaf(t), storefault.Timeout, "firewalls"},
		{"a connection that breaks", cuts.URL, storefault.Broken, ""},
		{"no answer", silent.URL, storefault.Timeout, "hangs"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			resp, err := sendTo(t, origin.TransportConfig{ConnectTimeout: short, ResponseTimeout: short, IdleTimeout: long},
				requestTo(t, "GET", row.url+"/b/k", nil, 0))
			if err == nil {
				resp.Body.Close()
			}
			fault := storefault.Of(err)
			if fault == nil || fault.Kind != row.kind || !strings.Contains(fault.Hint, row.hint) ||
				!strings.Contains(err.Error(), row.url) {
				t.Errorf("%+v: %v; want %s, %q and %s", fault, err, row.kind, row.hint, row.url)
			}
		})
	}
}

// An error of the request's body, or its end, is no fault of the store.
func TestFaultsThatAreNotTheStores(t *testing.T) {
	t.Parallel()
	server := serverOf(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	broken := errors.New("the client's connection broke")
	cfg := origin.TransportConfig{ConnectTimeout: long, ResponseTimeout: long, IdleTimeout: long}

	resp, err := sendTo(t, cfg, requestTo(t, "PUT", server.URL+"/b/k", io.MultiReader(strings.NewReader("x"), failing{broken}), 100))
	if err == nil {
		resp.Body.Close()
	}
	if !errors.Is(err, broken) || storefault.Of(err) != nil {
		t.Errorf("a body that fails: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	transport := origin.NewTransport(cfg)
	t.Cleanup(transport.CloseIdleConnections)
	resp, err = transport.RoundTrip(requestTo(t, "GET", server.URL+"/b/k", nil, 0).WithContext(ctx))
	if err == nil {
		resp.Body.Close()
	}
	if !errors.Is(err, context.Canceled) || storefault.Of(err) != nil {
		t.Errorf("a client that has gone: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

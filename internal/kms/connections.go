package kms

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"

	"github.com/cmekproxy/cmekproxy/internal/tracing"
)

// A connection can fail silently: a NAT or a firewall forgets it, or the
// machine behind an address is replaced. TCP needs a quarter of an hour to
// notice, and until then HTTP/2 sends all requests over the dead
// connection. Therefore an HTTP/2 connection that has been silent for
// pingAfter is pinged, and closed if there is no answer within pingTimeout.
const (
	pingAfter   = 3 * time.Second
	pingTimeout = 2 * time.Second
)

func http2Pings() *http.HTTP2Config {
	return &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout}
}

// Resetter is a Wrapper that keeps connections to its KMS.
type Resetter interface {
	// ResetConnections makes later calls use new connections. Call it when
	// the KMS does not answer: perhaps only the connections are dead.
	ResetConnections()
}

// processStart is the zero of clock.
var processStart = time.Now()

// clock returns a monotonic time, which changes of the wall clock do not
// affect.
func clock() time.Duration { return time.Since(processStart) }

// reconnecting is a transport that closes its idle connections when a
// request got no response in time, and no other request got one meanwhile.
// It helps with HTTP/1.1, where each dead connection in the pool would fail
// one request, and with HTTP/2 between two pings.
type reconnecting struct {
	next  http.RoundTripper
	heard atomic.Int64 // clock of the last response
}

func newReconnecting(next http.RoundTripper) *reconnecting { return &reconnecting{next: next} }

// RoundTrip implements http.RoundTripper.
func (r *reconnecting) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := clock()
	resp, err := r.next.RoundTrip(withTraceparent(req))
	switch {
	case err == nil:
		r.heard.Store(int64(clock()))
	case errors.Is(req.Context().Err(), context.DeadlineExceeded) && r.heard.Load() < int64(sent):
		r.CloseIdleConnections()
	}

	return resp, err
}

// withTraceparent returns req with the place of the call in a trace, if there
// is one. Signed requests already have their signature, so that a proxy
// between us and the KMS may replace the header.
func withTraceparent(req *http.Request) *http.Request {
	value := tracing.Traceparent(req.Context())
	if value == "" {
		return req
	}
	out := req.WithContext(req.Context())
	out.Header = req.Header.Clone()
	out.Header.Set("Traceparent", value)
	return out
}

// CloseIdleConnections is called by http.Client.
func (r *reconnecting) CloseIdleConnections() {
	if t, ok := r.next.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// reconnectingAWS returns client with a reconnecting transport. A
// BuildableClient cannot close its connections, and creates a separate
// transport for each service.
func reconnectingAWS(client aws.HTTPClient) aws.HTTPClient {
	switch c := client.(type) {
	case *awshttp.BuildableClient:
		return &http.Client{
			Transport:     newReconnecting(c.GetTransport()),
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	case *http.Client:
		return reconnectingHTTP(c)
	default:
		return client
	}
}

// reconnectingAzure is reconnectingAWS for the clients of Azure's library.
func reconnectingAzure(client policy.Transporter) policy.Transporter {
	if c, ok := client.(*http.Client); ok {
		return reconnectingHTTP(c)
	}
	return client
}

func reconnectingHTTP(client *http.Client) *http.Client {
	own := *client
	if own.Transport == nil {
		own.Transport = http.DefaultTransport
	}
	own.Transport = newReconnecting(own.Transport)
	return &own
}

// resetHTTP closes the idle connections of a client of any type. http2Pings
// closes dead connections in use.
func resetHTTP(client any) {
	if c, ok := client.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// ResetConnections implements Resetter.
func (a *AWS) ResetConnections() { resetHTTP(a.api.options.HTTPClient) }

// ResetConnections implements Resetter.
func (a *Azure) ResetConnections() { resetHTTP(a.transport) }

// ResetConnections implements Resetter.
func (v *Vault) ResetConnections() { resetHTTP(v.login.config.HttpClient) }

// ResetConnections implements Resetter.
func (g *GCP) ResetConnections() { g.conn.replace(g.conn.client()) }

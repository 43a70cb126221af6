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
)

// A connection can die without a word: a NAT or a firewall forgets it, or the
// machine behind an address is replaced. TCP itself notices after a quarter of
// an hour, and HTTP/2 sends all requests over the one dead connection until
// then. So an HTTP/2 connection that has been silent for pingAfter is pinged,
// and closed if that has no answer for pingTimeout.
const (
	pingAfter   = 3 * time.Second
	pingTimeout = 2 * time.Second
)

func http2Pings() *http.HTTP2Config {
	return &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout}
}

// Resetter is a Wrapper that keeps connections to its KMS.
type Resetter interface {
	// ResetConnections has later calls use new connections. Call it when the
	// KMS does not answer: the connections may be dead, and the KMS well.
	ResetConnections()
}

// processStart is what clock counts from.
var processStart = time.Now()

// clock is a time that no change of the wall clock moves.
func clock() time.Duration { return time.Since(processStart) }

// reconnecting is a transport that gives up its idle connections when a
// request had no answer in time, and no other request had one meanwhile. It is
// for HTTP/1.1, where each dead connection in the pool costs a request of its
// own, and for HTTP/2 between two pings.
type reconnecting struct {
	next  http.RoundTripper
	heard atomic.Int64 // when the last answer came, by clock
}

func newReconnecting(next http.RoundTripper) *reconnecting { return &reconnecting{next: next} }

// RoundTrip implements http.RoundTripper.
func (r *reconnecting) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := clock()
	resp, err := r.next.RoundTrip(req)
	switch {
	case err == nil:
		r.heard.Store(int64(clock()))
	case errors.Is(req.Context().Err(), context.DeadlineExceeded) && r.heard.Load() < int64(sent):
		r.CloseIdleConnections()
	}
	return resp, err
}

// CloseIdleConnections is what http.Client looks for.
func (r *reconnecting) CloseIdleConnections() {
	if t, ok := r.next.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// reconnectingAWS returns client with a reconnecting transport. A
// BuildableClient has no way to give up connections, and makes a transport of
// its own for each service.
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

// reconnectingAzure is reconnectingAWS for the clients that Azure's library
// takes.
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

// resetHTTP closes the idle connections of a client, whatever type a vendor's
// library has for it. Those in use are closed by http2Pings if they are dead.
func resetHTTP(client any) {
	if c, ok := client.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// ResetConnections implements Resetter.
func (a *AWS) ResetConnections() { resetHTTP(a.client.Options().HTTPClient) }

// ResetConnections implements Resetter.
func (a *Azure) ResetConnections() { resetHTTP(a.transport) }

// ResetConnections implements Resetter.
func (v *Vault) ResetConnections() { resetHTTP(v.login.config.HttpClient) }

// ResetConnections implements Resetter.
func (g *GCP) ResetConnections() { g.conn.replace(g.conn.client()) }

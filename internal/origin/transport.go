package origin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/origin/http1"
	"github.com/cmekproxy/cmekproxy/internal/pemfile"
)

// Errors if the store does not answer, or does not answer completely; see
// package http1. They say nothing about stored objects.
var (
	ErrConnect     = http1.ErrConnect
	ErrResponse    = http1.ErrResponse
	ErrIdle        = http1.ErrIdle
	ErrBroken      = http1.ErrBroken
	ErrExpectation = http1.ErrExpectation
)

// slowFactor multiplies the response timeout for operations that take a
// store long: copying an object and completing a multipart upload. S3
// itself starts such a response early and sends white space, but not every
// store does. Meanwhile the proxy sends white space to its client.
const slowFactor = 10

// TransportConfig configures NewTransport. A timeout of 0 means none.
type TransportConfig struct {
	ConnectTimeout  time.Duration // to connect, including the TLS handshake
	ResponseTimeout time.Duration // from the last byte of a request to the first byte of the response
	IdleTimeout     time.Duration // between two bytes of a request or a response
	MaxConns        int           // maximum number of idle connections
	UnixSocket      string        // if set, all connections use this socket
	Authorities     *pemfile.Pool // authorities for the store's certificate; nil means those of the system
}

// Transport sends requests to a store and limits how long the store may
// take. A client that is slow to send a body or to read a response does not
// count against the store. An answer of the store takes precedence over a
// failed write of the body.
type Transport struct {
	cfg    TransportConfig
	client *http1.Client
}

// NewTransport returns the transport for a store. It uses only HTTP/1.1,
// because HTTP/2 was measured to need 1.8 times the CPU for a quarter of
// the throughput. It never asks for compression, because ranges and sizes must
// be those of the stored bytes.
func NewTransport(cfg TransportConfig) *Transport {
	dialer := &net.Dialer{KeepAlive: 30 * time.Second}
	proxy := http.ProxyFromEnvironment
	if cfg.UnixSocket != "" {
		proxy = nil
	}

	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		if cfg.UnixSocket != "" {
			network, address = "unix", cfg.UnixSocket
		}
		return dialer.DialContext(ctx, network, address)
	}

	trust := &trust{pool: cfg.Authorities}
	return &Transport{cfg: cfg, client: http1.New(http1.Config{
		Dial:    dial,
		TLS:     trust.config,
		Proxy:   proxy,
		MaxIdle: cfg.MaxConns,
		// Shorter than the stores' own timeout, so that a PUT does not use
		// a connection that is being closed.
		IdleTimeout: 15 * time.Second,
	})}
}

// CloseIdleConnections closes the idle connections.
func (t *Transport) CloseIdleConnections() { t.client.CloseIdleConnections() }

// RoundTrip sends r. If the store takes too long, the error is ErrConnect,
// ErrResponse or ErrIdle, also while the response is read. An error of the
// connection is a storefault.Error.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	limits := http1.Limits{Connect: t.cfg.ConnectTimeout, Response: t.cfg.ResponseTimeout, Idle: t.cfg.IdleTimeout}
	if isSlow(r) {
		limits.Response *= slowFactor
		limits.Idle *= slowFactor
	}

	resp, err := t.client.Do(r, limits)
	if err != nil {
		return nil, describe(r, err)
	}
	return resp, nil
}

// isSlow reports whether slowFactor applies to a request.
func isSlow(r *http.Request) bool {
	switch r.Method {
	case http.MethodPut:
		return r.Header.Get("X-Amz-Copy-Source") != ""
	case http.MethodPost:
		return r.URL.Query().Has("uploadId")
	default:
		return false
	}
}

// trust is what certificates of the store are verified with. After the file of
// the authorities was read again, new connections use the new authorities, and
// the old ones are not used for further requests.
type trust struct {
	pool *pemfile.Pool // nil means the authorities of the system

	mu      sync.Mutex
	certs   *x509.CertPool // of current
	current *tls.Config
}

func (t *trust) config() *tls.Config {
	var certs *x509.CertPool
	if t.pool != nil {
		certs = t.pool.Certs()
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current == nil || t.certs != certs {
		// No session is resumed: the certificate would not be verified again.
		t.current, t.certs = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: certs}, certs
	}
	return t.current
}

// Package http1 is an HTTP/1.1 client for a store: much traffic to few hosts,
// through pooled connections.
//
// It does less than http.Transport, and so costs less. A connection has no
// goroutines, and a request has no timers: the limits are deadlines of the
// connection. Request and body leave in one write if the body is short. Only
// a long body is sent by a goroutine of its own, so that an answer that comes
// early is noticed.
//
//	client.go    what is configured, attempts
//	request.go   what is sent: the head, validated, and short bodies
//	exchange.go  a request and its answer on a connection
//	send.go      long bodies
//	answer.go    the body of the answer
//	conn.go      a connection: deadlines, cancellation, whether it is alive
//	socket.go    the lowest layer, which can be read without waiting
//	pool.go      idle connections
//	dial.go      new connections, TLS, proxies
//	buffers.go   buffers by size
//
// Answers are parsed by http.ReadResponse, as http.Transport does. The tests
// compare the behavior with http.Transport's.
//
// Not supported, and refused: bodies of unknown length, trailers, upgrades,
// CONNECT.
//
// There is no example: it needs a store. Package origin shows its use.
package http1

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// Errors if the store does not answer, or does not answer completely. They
// say nothing about stored objects.
var (
	// ErrConnect is returned if connecting took too long.
	ErrConnect = errors.New("origin: no connection to the store within origin.connect_timeout")
	// ErrResponse is returned if the store received the request but did not
	// answer.
	ErrResponse = errors.New("origin: the store did not start to respond within origin.response_timeout")
	// ErrIdle is returned if the store neither received nor sent a byte.
	ErrIdle = errors.New("origin: the store neither sent nor received a byte within origin.idle_timeout")
	// ErrBroken is returned if the connection ended before or during a
	// response.
	ErrBroken = errors.New("origin: the connection to the store ended before the response was complete")
	// ErrExpectation is returned if the store does not know Expect, or accepts
	// an upload without its body.
	ErrExpectation = errors.New("origin: the store does not handle Expect: 100-continue")
)

// Config configures a Client.
type Config struct {
	// Dial connects to a server; see net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// TLS returns the configuration for https URLs, without ServerName. If it
	// returns another one than before, the connections that were made with
	// the old one are not used for further requests.
	TLS func() *tls.Config
	// Proxy returns the proxy for a request, or nil; see
	// http.Transport.Proxy. nil means no proxies.
	Proxy func(*http.Request) (*url.URL, error)
	// MaxIdle is the maximum number of idle connections. 0 means 2.
	MaxIdle int
	// IdleTimeout closes a connection that has been idle for so long. It
	// should be shorter than the server's own.
	IdleTimeout time.Duration
}

// Limits are the time limits of a request. 0 means none. They end up to a
// second late, because the deadline of a connection is not set more often.
type Limits struct {
	Connect  time.Duration // to connect, including the TLS handshake
	Response time.Duration // from the last byte of the request to the end of the response's head
	Idle     time.Duration // between two bytes of a request, or of a response's body
}

// Client sends requests. It is safe for concurrent use.
type Client struct {
	cfg  Config
	pool pool

	// ignoresExpect remembers that a server has let a request with Expect
	// wait in vain.
	ignoresExpect atomic.Bool
}

// New returns a Client.
func New(cfg Config) *Client {
	if cfg.MaxIdle == 0 {
		cfg.MaxIdle = 2
	}
	return &Client{cfg: cfg, pool: pool{max: cfg.MaxIdle, timeout: cfg.IdleTimeout}}
}

// CloseIdleConnections closes the idle connections.
func (c *Client) CloseIdleConnections() { c.pool.closeAll() }

// Do sends r as http.RoundTripper describes. A time limit that has passed is
// the error ErrConnect, ErrResponse or ErrIdle, also while the response is
// read; the latter fails with ErrBroken if it is not complete. These errors
// never match io.EOF or io.ErrUnexpectedEOF, which callers could mistake for
// an object that is too short. If r's context has ended, the error is its
// cause.
//
// A response that comes before the whole body was sent takes precedence over
// a failed write.
func (c *Client) Do(r *http.Request, limits Limits) (*http.Response, error) {
	to, err := c.route(r)
	if err != nil {
		closeBody(r)
		return nil, err
	}
	out, err := c.prepare(r, to)
	if err != nil {
		closeBody(r)
		return nil, err
	}
	defer out.free()
	if r.Context().Err() != nil {
		out.closeLong()
		return nil, context.Cause(r.Context())
	}

	for again := false; ; again = true {
		var conn *conn
		if !again { // after a failure, other idle ones are likely to be dead too
			conn = c.idle(to)
		}
		if conn == nil {
			if conn, err = c.dial(r.Context(), to, limits.Connect); err != nil {
				out.closeLong()
				return nil, err
			}
		}

		x := exchange{client: c, conn: conn, request: out, limits: limits}
		resp, err := x.run()
		if err == nil || !x.repeatable {
			return resp, err
		}
	}
}

// idle returns an idle connection that can be used, or nil.
func (c *Client) idle(to route) *conn {
	for conn := c.pool.get(to.key); conn != nil; conn = c.pool.get(to.key) {
		if conn.trust == to.trust && conn.alive() {
			conn.reused = true
			return conn
		}
		conn.close()
	}
	return nil
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

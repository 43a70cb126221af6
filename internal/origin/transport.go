package origin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/pemfile"
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
// failed write of the body: see early.go.
type Transport struct {
	cfg  TransportConfig
	next interface {
		http.RoundTripper
		CloseIdleConnections()
	}
	expectations expectations
}

// NewTransport returns the transport for a store. It uses only HTTP/1.1,
// because HTTP/2 was measured to need 1.8 times the CPU for a quarter of
// the throughput. It disables compression, because ranges and sizes must be
// those of the stored bytes.
func NewTransport(cfg TransportConfig) *Transport {
	// RoundTrip enforces ConnectTimeout. The transport may then continue to
	// connect, for another request.
	dialer := &net.Dialer{Timeout: 2 * cfg.ConnectTimeout, KeepAlive: 30 * time.Second}
	proxy := http.ProxyFromEnvironment

	if cfg.UnixSocket != "" {
		proxy = nil
	}

	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		if cfg.UnixSocket != "" {
			network, address = "unix", cfg.UnixSocket
		}

		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}

		return newStoreConn(conn, cfg.IdleTimeout), nil
	}

	base := &http.Transport{
		Proxy:               proxy,
		DialContext:         dial,
		TLSHandshakeTimeout: 2 * cfg.ConnectTimeout,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{}, // no HTTP/2
		MaxIdleConns:        cfg.MaxConns,
		MaxIdleConnsPerHost: cfg.MaxConns,
		// Shorter than the stores' own timeout, so that a PUT does not use
		// a connection that is being closed.
		IdleConnTimeout:        15 * time.Second,
		ExpectContinueTimeout:  continueTimeout,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}

	if cfg.Authorities != nil {
		return &Transport{cfg: cfg, next: cfg.Authorities.Transport(base)}
	}
	return &Transport{cfg: cfg, next: base}
}

// CloseIdleConnections closes the idle connections.
func (t *Transport) CloseIdleConnections() { t.next.CloseIdleConnections() }

// RoundTrip sends r. If the store takes too long, the error is ErrConnect,
// ErrResponse or ErrIdle, also while the response is read. An error of the
// connection is a storefault.Error.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	w := &watch{cancel: cancel}
	response, idle := t.cfg.ResponseTimeout, t.cfg.IdleTimeout

	if isSlow(r) {
		response, idle = response*slowFactor, idle*slowFactor
	}

	trace := &httptrace.ClientTrace{
		GetConn: func(string) { w.begin(t.cfg.ConnectTimeout, ErrConnect) },
		GotConn: func(httptrace.GotConnInfo) { w.end() },
		WroteRequest: func(info httptrace.WroteRequestInfo) {
			if info.Err == nil {
				w.begin(response, ErrResponse)
			}
		},
	}

	sent, asked := t.expectations.apply(ctx, r)
	if asked != nil {
		trace.GotFirstResponseByte = func() { asked.heard.Store(true) }
		trace.Got100Continue = asked.continued
	}

	resp, err := t.next.RoundTrip(sent.WithContext(httptrace.WithClientTrace(ctx, trace)))
	w.answered()

	if err == nil && asked != nil {
		err = asked.check(resp)
	}

	if err != nil {
		err = describe(r, w.explain(err))
		cancel(nil)
		return nil, err
	}

	resp.Body = &answerBody{src: resp.Body, watch: w, idle: idle}
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

// watch cancels a request if the store takes too long. It is safe for
// concurrent use, because the transport calls its trace from several
// goroutines.
type watch struct {
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	timer *time.Timer
	cause error // the error if the timer fires
	late  bool  // the timer has canceled the request
	head  bool  // the response header has arrived
}

// begin starts the time limit of the store's next step.
func (w *watch) begin(limit time.Duration, cause error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if limit <= 0 || w.head { // a store may answer before it has received the whole request
		return
	}
	w.start(limit, cause)
}

func (w *watch) start(limit time.Duration, cause error) {
	w.cause = cause
	if w.timer == nil {
		w.timer = time.AfterFunc(limit, w.expire)
		return
	}
	w.timer.Reset(limit)
}

func (w *watch) expire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.late = true
	w.cancel(w.cause)
}

// end stops the time limit of the current step.
func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
}

// answered marks the arrival of the response header.
func (w *watch) answered() {
	w.end()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.head = true
}

// read starts the time limit for the next bytes of the response.
func (w *watch) read(limit time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.start(limit, ErrIdle)
}

// explain returns the reason for which the store was too late, or err. The
// result never matches io.EOF or io.ErrUnexpectedEOF with errors.Is:
// callers could mistake these for an object that is too short.
func (w *watch) explain(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()

	switch {
	case w.late:
		return w.cause
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("%w: %s", ErrBroken, err.Error())
	default:
		return err
	}
}

// answerBody is the body of the store's response.
type answerBody struct {
	src   io.ReadCloser
	watch *watch
	idle  time.Duration
}

// Read returns a bare io.EOF only at the end of a complete body. For an
// incomplete body it returns ErrBroken.
func (b *answerBody) Read(p []byte) (int, error) {
	if b.idle > 0 {
		b.watch.read(b.idle)
		defer b.watch.end()
	}

	n, err := b.src.Read(p)
	if err == nil || err == io.EOF { //nolint:errorlint // io.Reader requires a bare io.EOF
		return n, err
	}

	err = b.watch.explain(err)
	if errors.Is(err, ErrIdle) || errors.Is(err, ErrBroken) {
		return n, err
	}

	return n, fmt.Errorf("%w: %w", ErrBroken, err)
}

func (b *answerBody) Close() error {
	err := b.src.Close()
	b.watch.end()
	b.watch.cancel(nil)
	return err
}

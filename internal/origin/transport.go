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
	"os"
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/pemfile"
)

// The errors of a store that does not answer, or not to the end. None of them
// says anything of the stored objects.
var (
	// ErrConnect says that there was no connection within the time for it.
	ErrConnect = errors.New("origin: no connection to the store within origin.connect_timeout")
	// ErrResponse says that the store took the request and did not answer.
	ErrResponse = errors.New("origin: the store did not begin to answer within origin.response_timeout")
	// ErrIdle says that the store neither took nor sent a byte.
	ErrIdle = errors.New("origin: the store moved no byte within origin.idle_timeout")
	// ErrBroken says that the connection ended within an answer or before it.
	ErrBroken = errors.New("origin: the connection to the store ended before its answer did")
)

// slowFactor is how many times the response timeout the store has for what
// takes it long by nature: to copy an object or to put one together from parts.
// S3 itself begins such an answer early and sends white space, but not every
// store does. The proxy keeps its client waiting in this way meanwhile.
const slowFactor = 10

// TransportConfig is what NewTransport needs. A timeout of 0 is none.
type TransportConfig struct {
	ConnectTimeout  time.Duration // to connect, the TLS handshake included
	ResponseTimeout time.Duration // from the last byte of a request to the first of the answer
	IdleTimeout     time.Duration // between two bytes of a request that is sent or an answer that is read
	MaxConns        int           // idle connections kept
	UnixSocket      string        // if set, every connection goes to this socket
	Authorities     *pemfile.Pool // that sign the store's certificate; nil for those of the system
}

// Transport sends requests to a store and bounds how long the store may take.
// Only the store's time counts: a client that is slow to send a body or to take
// an answer does not make the store late.
type Transport struct {
	cfg  TransportConfig
	next interface {
		http.RoundTripper
		CloseIdleConnections()
	}
}

// NewTransport returns the transport for a store: HTTP/1.1 only, because HTTP/2
// was measured at 1.8 times the CPU and a quarter of the throughput; no
// compression, because ranges and sizes must stay those of the stored bytes.
func NewTransport(cfg TransportConfig) *Transport {
	// RoundTrip holds to ConnectTimeout. The transport goes on to connect for
	// another request then, for as long again.
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
		if err != nil || cfg.IdleTimeout <= 0 {
			return conn, err
		}

		return &idleConn{conn, cfg.IdleTimeout}, nil
	}

	base := &http.Transport{
		Proxy:                  proxy,
		DialContext:            dial,
		TLSHandshakeTimeout:    2 * cfg.ConnectTimeout,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{}, // no HTTP/2
		MaxIdleConns:           cfg.MaxConns,
		MaxIdleConnsPerHost:    cfg.MaxConns,
		IdleConnTimeout:        15 * time.Second, // below the stores' own, so that a PUT does not meet a dying connection
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}

	if cfg.Authorities != nil {
		return &Transport{cfg, cfg.Authorities.Transport(base)}
	}
	return &Transport{cfg, base}
}

// CloseIdleConnections closes the connections that no request uses.
func (t *Transport) CloseIdleConnections() { t.next.CloseIdleConnections() }

// RoundTrip sends r. If it fails because the store is late, the error is
// ErrConnect, ErrResponse or ErrIdle; so are the errors of reading the answer.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	w := &watch{cancel: cancel}
	response, idle := t.cfg.ResponseTimeout, t.cfg.IdleTimeout

	if isSlow(r) {
		response, idle = response*slowFactor, idle*slowFactor
	}

	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { w.begin(t.cfg.ConnectTimeout, ErrConnect) },
		GotConn: func(httptrace.GotConnInfo) { w.end() },
		WroteRequest: func(info httptrace.WroteRequestInfo) {
			if info.Err == nil {
				w.begin(response, ErrResponse)
			}
		},
	})

	resp, err := t.next.RoundTrip(r.WithContext(ctx))
	w.answered()

	if err != nil {
		cancel(nil)
		return nil, w.explain(err)
	}

	resp.Body = &answerBody{src: resp.Body, watch: w, idle: idle}
	return resp, nil
}

// isSlow reports whether a request is one of those that slowFactor is for.
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

// watch cancels a request whose store is late. It is safe for concurrent use:
// the transport calls its trace from several goroutines.
type watch struct {
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	timer *time.Timer
	cause error // what the store is late with, once the timer runs
	late  bool  // the timer has cancelled the request
	head  bool  // the header of the answer is there
}

// begin gives the store this long for its next step.
func (w *watch) begin(limit time.Duration, cause error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if limit <= 0 || w.head { // a store may answer before it has the whole request
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

// end says that the step was taken.
func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
}

// answered ends all steps up to the answer's header.
func (w *watch) answered() {
	w.end()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.head = true
}

// read gives the store this long for the next bytes of its answer.
func (w *watch) read(limit time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.start(limit, ErrIdle)
}

// explain returns what the store was late with, or err. What it returns is
// never io.EOF nor io.ErrUnexpectedEOF to errors.Is: readers of objects could
// take these for an object that is too short.
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

// answerBody is the body of the store's answer.
type answerBody struct {
	src   io.ReadCloser
	watch *watch
	idle  time.Duration
}

// Read returns a bare io.EOF at the end of a whole body only. A body that ended
// early is ErrBroken.
func (b *answerBody) Read(p []byte) (int, error) {
	if b.idle > 0 {
		b.watch.read(b.idle)
		defer b.watch.end()
	}

	n, err := b.src.Read(p)
	if err == nil || err == io.EOF { //nolint:errorlint // bare, as every io.Reader must say it
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

// idleConn is a connection on which a write fails that takes longer than idle.
// Reads have no such limit: the transport always reads, to find out when the
// store closes the connection.
type idleConn struct {
	net.Conn
	idle time.Duration
}

func (c *idleConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.idle)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: %w", ErrIdle, err)
	}
	return n, err
}

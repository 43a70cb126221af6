package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A store may refuse an upload before it has read the body: a condition does
// not hold, the bucket does not exist, a quota is exceeded. It then answers,
// and often closes the connection. Two things make sure that the client gets
// that answer, and not a failed write of the body:
//
//   - storeConn lets the answer be read before a failed write is reported.
//     http.Transport returns whichever it notices first.
//   - A long body is sent only after the store has asked for it
//     (expectations). Then no body is under way that a reset could meet: a
//     reset may make the kernel drop an answer that has not arrived yet.

// storeConn is a connection to the store.
//
// Its writes fail if they take longer than idle. Reads have no such limit,
// because the transport always reads, in order to notice when the store
// closes the connection.
type storeConn struct {
	net.Conn
	idle time.Duration // 0 for no limit

	end   sync.Once
	ended chan struct{} // closed if nothing more can be read
}

// maxHold limits how long a failed write waits for the answer, in case
// nobody reads: during a TLS handshake the goroutine that writes is the one
// that reads. What the store sent before it closed the connection has
// already arrived.
const maxHold = 2 * time.Second

func newStoreConn(conn net.Conn, idle time.Duration) *storeConn {
	return &storeConn{Conn: conn, idle: idle, ended: make(chan struct{})}
}

func (c *storeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.setEnded()
	}
	return n, err
}

func (c *storeConn) Close() error {
	c.setEnded()
	return c.Conn.Close()
}

func (c *storeConn) setEnded() { c.end.Do(func() { close(c.ended) }) }

// Write returns the error of a failed write only after everything that the
// store sent has been read, or the transport has closed the connection.
func (c *storeConn) Write(p []byte) (int, error) {
	if c.idle > 0 {
		if err := c.SetWriteDeadline(time.Now().Add(c.idle)); err != nil {
			return 0, err
		}
	}

	n, err := c.Conn.Write(p)
	switch {
	case err == nil:
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("%w: %w", ErrIdle, err)
	default:
		c.hold()
	}

	return n, err
}

func (c *storeConn) hold() {
	limit := time.NewTimer(maxHold)
	defer limit.Stop()
	select {
	case <-c.ended:
	case <-limit.C:
	}
}

// Requests with bodies of at least expectFrom bytes ask the store whether it
// wants the body ("Expect: 100-continue"). The AWS SDKs have similar limits.
// For shorter bodies, the round trip would cost more than it can save.
const expectFrom = 1 << 20

// continueTimeout is how long the store may take to ask for the body, before
// the body is sent anyway.
const continueTimeout = time.Second

// expectations remembers whether the store asks for bodies. It is safe for
// concurrent use.
type expectations struct {
	ignored atomic.Bool // the store has let a request wait in vain
}

// apply returns r with the header Expect if its body is long, and the store
// is not known to ignore that header. The returned expectation is nil if it
// is not.
func (e *expectations) apply(ctx context.Context, r *http.Request) (*http.Request, *expectation) {
	if r.ContentLength < expectFrom || r.Body == nil || e.ignored.Load() {
		return r, nil
	}

	asked := &expectation{ReadCloser: r.Body, all: e, ctx: ctx, asked: make(chan struct{})}
	out := *r
	out.Header = r.Header.Clone()
	out.Header.Set("Expect", "100-continue")
	out.Proto, out.ProtoMajor, out.ProtoMinor = "HTTP/1.1", 1, 1 // without them, http.Transport would not wait
	out.Body = asked
	return &out, asked
}

// ErrExpectation is returned if the store does not know Expect, or accepts
// an upload without its body.
var ErrExpectation = errors.New("origin: the store does not handle Expect: 100-continue")

// expectation is the body of a request with Expect.
type expectation struct {
	io.ReadCloser
	all     *expectations
	ctx     context.Context //nolint:containedctx // of the request whose body it is
	read    bool
	heard   atomic.Bool   // the store has sent something
	unasked atomic.Bool   // the body is sent although the store has sent nothing
	once    sync.Once     // guards asked
	asked   chan struct{} // closed if the store has asked for the body
}

func (e *expectation) Read(p []byte) (int, error) {
	if !e.read {
		e.read = true
		if err := e.begin(); err != nil {
			return 0, err
		}
	}
	return e.ReadCloser.Read(p)
}

// errNotAsked ends a body that the store does not want.
var errNotAsked = errors.New("origin: the store has answered before it asked for the body")

// begin decides whether the body is sent, before its first byte is read.
//
// http.Transport sends it also after an answer, in order to use the
// connection again. But not every store reads it then: RGW may take it for
// the next request. So begin waits until the answer has been read, and then
// fails, which closes the connection.
func (e *expectation) begin() error {
	if !e.heard.Load() { // continueTimeout has passed
		e.unasked.Store(true)
		e.all.ignored.Store(true)
		return nil
	}

	limit := time.NewTimer(maxHold)
	defer limit.Stop()
	select {
	case <-e.asked:
		return nil
	case <-e.ctx.Done():
	case <-limit.C:
	}
	return errNotAsked
}

// continued notes that the store asks for the body. It may be late.
func (e *expectation) continued() {
	e.once.Do(func() { close(e.asked) })
	e.all.ignored.Store(false)
}

func (e *expectation) isAsked() bool {
	select {
	case <-e.asked:
		return true
	default:
		return false
	}
}

// check returns an error for an answer that the store cannot mean: it refuses
// the expectation and not the request, or it accepts an upload that it does
// not have.
func (e *expectation) check(resp *http.Response) error {
	switch {
	case resp.StatusCode == http.StatusExpectationFailed:
		e.all.ignored.Store(true)
	case resp.StatusCode < http.StatusMultipleChoices && !e.isAsked() && !e.unasked.Load():
	default:
		return nil
	}

	_ = resp.Body.Close()
	return fmt.Errorf("%w: it answered %d before it had the body", ErrExpectation, resp.StatusCode)
}

package http1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// maxUnsent is how long the end of an answer waits for the end of the
// request's body, so that the connection can be used again. http.Transport
// waits as long.
const maxUnsent = 50 * time.Millisecond

var errClosed = fmt.Errorf("%w: it was closed", ErrBroken)

// Read reads the body of the answer. It returns a bare io.EOF only at the end
// of a complete body.
func (x *exchange) Read(p []byte) (int, error) {
	x.mu.Lock()
	err := x.bodyErr
	x.reading = err == nil
	x.mu.Unlock()
	if err != nil {
		return 0, err
	}

	n, err := x.body.Read(p)

	x.mu.Lock()
	defer x.mu.Unlock()
	x.reading = false
	if err == nil {
		return n, nil
	}

	complete := err == io.EOF && x.bodyErr == nil //nolint:errorlint // io.Reader requires a bare io.EOF
	if !complete {
		err = x.explainBody(err)
	}
	x.bodyErr = err
	x.end(complete)
	return n, err
}

// Close ends the answer. The rest of its body is not read, so the connection
// is closed, unless the end has been read. It may be called during a Read,
// which then fails.
func (x *exchange) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.bodyErr == nil {
		x.bodyErr = errClosed
	}
	if x.reading {
		_ = x.conn.socket.Close() // and Read ends the exchange
		return nil
	}
	x.end(false)
	return nil
}

// explainBody returns why the body is not complete.
func (x *exchange) explainBody(err error) error {
	switch ctx := x.request.Context(); {
	case x.bodyErr != nil:
		return x.bodyErr
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ErrBroken, context.Cause(ctx))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrIdle
	default:
		return broken(err)
	}
}

// end gives the connection away, once. x.mu is held.
func (x *exchange) end(complete bool) {
	if !x.ended {
		x.ended = true
		x.finish(complete)
	}
}

// finish puts the connection into the pool, if the exchange is complete, and
// closes it otherwise.
func (x *exchange) finish(complete bool) {
	unwatched := x.stop() // if not, the connection was canceled
	reusable := complete && unwatched && !x.broken && !x.resp.Close && !x.request.Close &&
		x.conn.br.Buffered() == 0 && x.sent()
	if !reusable {
		x.conn.abort()
		return
	}
	x.conn.releaseReader()
	x.client.pool.put(x.conn)
}

// sent reports whether the whole request has been sent.
func (x *exchange) sent() bool {
	if x.sending == nil {
		return true
	}

	select {
	case <-x.sending:
		return x.sendErr == nil
	default:
	}
	timer := time.NewTimer(maxUnsent)
	defer timer.Stop()
	select {
	case <-x.sending:
		return x.sendErr == nil
	case <-timer.C:
		return false
	}
}

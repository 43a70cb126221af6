package http1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// maxHold limits how long an answer is waited for after a failed write. What
// the server sent before it closed the connection has already arrived.
const maxHold = 2 * time.Second

// continueTimeout is how long the server may take to ask for a body, before
// the body is sent anyway.
const continueTimeout = time.Second

// exchange is a request and its answer on a connection. It is the body of the
// answer.
type exchange struct {
	client  *Client
	conn    *conn
	request *request
	limits  Limits
	stop    func() bool // stops watching the request's context

	repeatable bool // it failed, and may be repeated on another connection
	asked      bool // the server has asked for the body
	unasked    bool // the body is sent although the server has not asked
	broken     bool // the connection cannot be used again

	sending chan struct{} // closed after the long body; nil if it is not sent
	sendErr error         // why it could not be sent; valid after sending is closed

	resp *http.Response
	body io.Reader // of resp

	mu      sync.Mutex // guards what follows
	reading bool       // a Read of the body is under way
	ended   bool       // the connection has been given away
	bodyErr error      // what Read returns from now on
}

// run sends the request and returns the answer.
func (x *exchange) run() (*http.Response, error) {
	x.stop = context.AfterFunc(x.request.Context(), x.conn.cancel)
	x.conn.beginHead()

	resp, err := x.try()
	if err == nil && x.request.expect {
		err = x.checkExpectation(resp)
	}
	if err != nil {
		x.fail()
		return nil, err
	}

	x.conn.endHead(x.limits.Idle)
	x.resp, x.body = resp, resp.Body
	resp.Body = x
	if resp.ContentLength == 0 || x.body == http.NoBody {
		resp.Body = http.NoBody
		x.finish(true)
	}
	return resp, nil
}

func (x *exchange) try() (*http.Response, error) {
	n, err := x.conn.send(x.request.first, x.limits.Idle)
	if err != nil {
		return x.afterFailedWrite(n, err)
	}

	switch {
	case x.request.expect:
		x.askForBody()
	case x.request.long != nil:
		x.startSending()
	default:
		err = x.conn.limitRead(x.limits.Response)
	}

	if err == nil && x.conn.reused && x.request.long == nil {
		if _, err = x.conn.br.Peek(1); err != nil {
			x.repeatable = repeatsSafely(x.request.Request) && !errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
	var resp *http.Response
	if err == nil {
		resp, err = x.readHead()
	}
	if err != nil {
		return nil, x.explain(err)
	}
	return resp, nil
}

// repeatsSafely reports whether a request can be repeated if the server may
// have carried it out: the server closed the connection while the request was
// under way.
func repeatsSafely(r *http.Request) bool {
	switch r.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return r.Body == nil || r.Body == http.NoBody
	default:
		return false
	}
}

// afterFailedWrite returns the answer, if the server sent one before it
// closed the connection. n bytes were written.
func (x *exchange) afterFailedWrite(n int, cause error) (*http.Response, error) {
	x.broken = true
	if x.conn.reused && n == 0 && !errors.Is(cause, os.ErrDeadlineExceeded) && !errors.Is(cause, ErrIdle) {
		x.repeatable = x.request.Context().Err() == nil
		return nil, x.explain(cause)
	}

	if err := x.conn.limitRead(maxHold); err != nil {
		return nil, x.explain(err)
	}
	if resp, err := x.readHead(); err == nil {
		return resp, nil
	}
	return nil, x.explain(cause)
}

// askForBody waits until the server asks for the body or answers, and for
// continueTimeout. Errors remain, for readHead.
func (x *exchange) askForBody() {
	_ = x.conn.limitRead(continueTimeout)
	_, err := x.conn.br.Peek(1)
	if errors.Is(err, os.ErrDeadlineExceeded) && x.request.Context().Err() == nil {
		x.unasked = true
		x.client.ignoresExpect.Store(true)
		x.startSending()
		return
	}
	_ = x.conn.limitRead(x.limits.Response)
}

// readHead returns the answer. If the server asks for the body, readHead starts
// sending it.
func (x *exchange) readHead() (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(x.conn.br, x.request.Request)
		switch {
		case err != nil:
			return nil, err
		case resp.StatusCode == http.StatusContinue && x.request.expect:
			x.asked = true
			x.client.ignoresExpect.Store(false) // it may be late
			if x.sending == nil && !x.broken {
				x.startSending()
			}
		case resp.StatusCode == http.StatusSwitchingProtocols:
			return nil, errors.New("origin: the store switches to another protocol")
		case resp.StatusCode < http.StatusContinue || resp.StatusCode >= http.StatusOK:
			x.broken = x.broken || resp.StatusCode < http.StatusContinue
			return resp, nil
		}
	}
}

// checkExpectation returns an error for an answer that the server cannot
// mean: it refuses the expectation and not the request, or it accepts an
// upload that it does not have.
func (x *exchange) checkExpectation(resp *http.Response) error {
	if x.sending == nil {
		x.broken = true // the server may wait for the body
	}
	switch {
	case resp.StatusCode == http.StatusExpectationFailed:
		x.client.ignoresExpect.Store(true)
	case resp.StatusCode < http.StatusMultipleChoices && !x.asked && !x.unasked:
	default:
		return nil
	}
	return fmt.Errorf("%w: it answered %d before it had the body", ErrExpectation, resp.StatusCode)
}

// explain returns why there is no answer.
func (x *exchange) explain(err error) error {
	x.endSending()
	var ofBody *bodyError
	switch ctx := x.request.Context(); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(x.sendErr, &ofBody):
		return ofBody.error
	case errors.Is(err, os.ErrDeadlineExceeded) && x.sendErr != nil:
		return broken(x.sendErr)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrResponse
	default:
		return broken(err)
	}
}

// endSending closes the connection, and waits until the body is not read any
// more. That may take as long as the body does, as in http.Transport.
func (x *exchange) endSending() {
	if x.sending != nil {
		_ = x.conn.socket.Close()
		<-x.sending
	}
}

// broken returns err as that of a connection that has ended, if it is one.
func broken(err error) error {
	switch {
	case errors.Is(err, ErrIdle):
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %s", ErrBroken, err.Error())
	default:
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
}

// fail ends an exchange without an answer.
func (x *exchange) fail() {
	x.stop()
	x.endSending()
	x.conn.abort()
	if x.sending == nil && !x.repeatable {
		x.request.closeLong()
	}
}

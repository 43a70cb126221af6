package http1

import (
	"errors"
	"io"
)

// bodyError is an error of the request's body, in contrast to one of the
// connection.
type bodyError struct{ error }

func (e *bodyError) Unwrap() error { return e.error }

// startSending sends the long body in a goroutine, while the answer is
// awaited.
func (x *exchange) startSending() {
	_ = x.conn.limitRead(0) // the body may take long; an error remains
	x.sending = make(chan struct{})
	go x.sendBody()
}

// sendBody is the goroutine. When it ends, the time limit for the answer
// begins. If it failed, the answer is still waited for, in case the server
// sent one before it closed the connection; but not if the body failed.
func (x *exchange) sendBody() {
	defer close(x.sending)
	x.sendErr = x.copyBody()
	_ = x.request.long.Close()

	var ofBody *bodyError
	switch {
	case x.sendErr == nil:
		x.conn.bodySent(x.limits.Response)
	case errors.As(x.sendErr, &ofBody):
		x.conn.cancelUnlessAnswered()
	default:
		x.conn.bodySent(maxHold)
	}
}

// copyBody sends the body. Its last bytes are sent only after it has ended as
// it should, with a bare io.EOF at its declared length.
func (x *exchange) copyBody() error {
	buffer := takeBuffer(sizePiece)[:sizePiece]
	defer returnBuffer(buffer)

	for left := x.request.ContentLength; left > 0; {
		n, err := x.request.long.Read(buffer)
		left -= int64(n)
		if left == 0 && err == nil {
			err = x.endOfBody()
		}

		switch {
		case left < 0:
			return &bodyError{errLong}
		case err == io.EOF && left > 0: //nolint:errorlint // an error that wraps io.EOF is a failure
			return &bodyError{errShort}
		case err != nil && err != io.EOF: //nolint:errorlint // as above
			return &bodyError{hideEnd(err)}
		}
		if _, err := x.conn.send(buffer[:n], x.limits.Idle); err != nil {
			return err
		}
	}
	return nil
}

func (x *exchange) endOfBody() error {
	if err := expectEnd(x.request.long); err != nil {
		return err
	}
	return io.EOF
}

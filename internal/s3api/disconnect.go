package s3api

import (
	"context"
	"crypto/tls"
	"net"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

// A request whose key is taken away ends there and then, wherever it is stuck:
// reading from a client that sends nothing, or writing to one that takes
// nothing. A response that has begun is cut off with a TCP reset, which drops
// what the kernel still holds of it; an ordinary end of the connection would
// have the kernel deliver that, megabytes of it, at whatever pace the client
// likes.

// ConnContext belongs in http.Server.ConnContext: it is how a request finds
// its connection.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

type connKey struct{}

// watch has the lease end the call when its time is over.
func (c *call) watch(l *keyring.Lease) { l.Watch(c.Context(), c.cut, c.drained) }

// cut ends the call. It is called from outside of the call's goroutine.
func (c *call) cut(err error) {
	begun := c.w.cutOff(err)
	c.cancelContext(err)
	if !begun || !c.reset() {
		c.idle.interrupt()
	}
}

// reset ends the connection, and has the kernel forget what it holds of the
// answer. It reports whether it could.
func (c *call) reset() bool {
	conn := c.conn()
	if conn == nil {
		return false
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
	return true
}

// drained reports whether the client's machine has all that was written to it.
func (c *call) drained() bool {
	conn := c.conn()
	return !c.w.begun() || conn != nil && unacknowledged(conn) == 0
}

// conn returns the connection of the call, under TLS if there is some; nil if
// the server has no ConnContext.
func (c *call) conn() net.Conn {
	conn, _ := c.Request.Context().Value(connKey{}).(net.Conn)
	if secure, ok := conn.(*tls.Conn); ok {
		return secure.NetConn()
	}
	return conn
}

// cutOff has all writes fail with err from now on, and reports whether the
// answer has begun.
func (w *response) cutOff(err error) (begun bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = err
	return w.status != 0
}

func (w *response) begun() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status != 0
}

// reopen lets the error be answered that the call was cut for, if its answer
// has not begun. It returns that error. The connection ends with that:
// net/http may have met the deadline that interrupt has set, and would have
// the next request canceled.
func (w *response) reopen() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.ended
	if err != nil && w.status == 0 {
		w.ended = nil
		id := w.Header().Get("X-Amz-Request-Id")
		clear(w.Header()) // what was meant for a good answer
		w.Header().Set("X-Amz-Request-Id", id)
		w.Header().Set("Connection", "close")
	}
	return err
}

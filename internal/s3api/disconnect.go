package s3api

import (
	"context"
	"net"
	"net/http"
	"net/netip"

	"github.com/cmekproxy/cmekproxy/internal/clientaddr"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

// A request ends as soon as its key is revoked, even if it is blocked:
// reading from a client that sends nothing, or writing to a client that
// reads nothing. A response that has begun is cut off with a TCP reset,
// which discards the kernel's send buffer. After a normal close, the kernel
// would still deliver megabytes, as slowly as the client reads.

// ConnContext must be the http.Server's ConnContext, so that a request can
// find its connection.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

type connKey struct{}

// watch makes the lease cut the call when it ends.
func (c *call) watch(l *keyring.Lease) { l.Watch(c.Context(), c.cut, c.drained) }

// cut ends the call. Other goroutines than the call's may call it.
func (c *call) cut(err error) {
	begun := c.w.cutOff(err)
	c.cancelContext(err)
	if !begun || !c.reset() {
		c.idle.interrupt()
	}
}

// reset closes the connection, and discards what the kernel has not sent
// yet. It reports whether it found a connection.
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

// drained reports whether the client's machine has received all that was
// written.
func (c *call) drained() bool {
	conn := c.conn()
	return !c.w.begun() || conn != nil && unacknowledged(conn) == 0
}

// conn returns the call's TCP connection; nil if the server does not use
// ConnContext.
func (c *call) conn() net.Conn { return connOf(c.Request) }

func connOf(r *http.Request) net.Conn {
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	return clientaddr.TCP(conn)
}

// fromThisMachine reports whether a process on this machine sent the request,
// by the peer of the TCP connection. What a load balancer says about the client
// is no evidence.
func fromThisMachine(r *http.Request) bool {
	if conn := connOf(r); conn != nil {
		return clientaddr.IsLoopback(conn.RemoteAddr())
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr) // without ConnContext, it is not from a PROXY protocol header
	return err == nil && peer.Addr().Unmap().IsLoopback()
}

// cutOff makes all further writes fail with err, and reports whether the
// response has begun.
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

// reopen allows an error response after the call was cut, if the response
// has not begun. It returns the error for which the call was cut. The
// connection is closed after the response: net/http may have seen the
// deadline that interrupt set, and would cancel the next request.
func (w *response) reopen() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.ended
	if err != nil && w.status == 0 {
		w.ended = nil
		id := w.Header().Get("X-Amz-Request-Id")
		clear(w.Header()) // headers of the successful response
		w.Header().Set("X-Amz-Request-Id", id)
		w.Header().Set("Connection", "close")
	}
	return err
}

package main

import (
	"container/list"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/clientaddr"
)

// connections are the open connections of the S3 port. Their number is
// limited: a client that finds no place waits in the kernel's queue, which
// costs the proxy nothing.
type connections struct {
	mu      sync.Mutex
	limit   int                        // 0 means none
	changed *sync.Cond                 // one was closed, or serves no request any more
	active  map[net.Conn]bool          // on which a request is being served
	waiting map[net.Conn]*list.Element // on which none is
	oldest  *list.List                 // of waiting
	closed  bool
}

// waitingConn is a connection without a request.
type waitingConn struct {
	net.Conn
	since time.Time
}

// idleAfter is how long a connection must be without a request before it may
// have to make place for another. If it were shorter, overload would close
// connections that are about to be used, and opening one costs more than a
// request.
const idleAfter = 5 * time.Second

func newConnections(limit int) *connections {
	c := &connections{
		limit: limit, active: make(map[net.Conn]bool),
		waiting: make(map[net.Conn]*list.Element), oldest: list.New(),
	}
	c.changed = sync.NewCond(&c.mu)
	return c
}

// track is the http.Server's ConnState.
func (c *connections) track(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.active, conn)
	if e := c.waiting[conn]; e != nil {
		c.oldest.Remove(e)
		delete(c.waiting, conn)
	}

	switch state {
	case http.StateActive:
		c.active[conn] = true
	case http.StateNew, http.StateIdle:
		c.waiting[conn] = c.oldest.PushBack(&waitingConn{conn, time.Now()})
	case http.StateClosed, http.StateHijacked:
		c.changed.Broadcast()
	}
}

// setLimit changes the limit. Connections that are open remain open.
func (c *connections) setLimit(limit int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = limit
	c.changed.Broadcast()
}

// most returns the limit.
func (c *connections) most() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.limit
}

// count returns the number of open connections.
func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.active) + len(c.waiting)
}

// limited returns a listener that waits for a place for each connection.
func (c *connections) limited(l net.Listener) net.Listener { return &limitedListener{l, c} }

type limitedListener struct {
	net.Listener
	connections *connections
}

// Accept implements net.Listener. The server calls track for a connection
// before it calls Accept again, so that the count is exact.
func (l *limitedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if !l.connections.waitForPlace() {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	return conn, nil
}

// Close implements net.Listener.
func (l *limitedListener) Close() error {
	l.connections.mu.Lock()
	l.connections.closed = true
	l.connections.changed.Broadcast()
	l.connections.mu.Unlock()
	return l.Listener.Close()
}

// waitForPlace closes the connection that has been without a request for the
// longest time, if there are too many. It returns false if the listener was
// closed.
func (c *connections) waitForPlace() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.limit > 0 && len(c.active)+len(c.waiting) >= c.limit && !c.closed {
		wait := idleAfter
		if first := c.oldest.Front(); first != nil {
			conn := first.Value.(*waitingConn) //nolint:forcetypeassert // the list has nothing else
			if wait = idleAfter - time.Since(conn.since); wait <= 0 {
				c.oldest.Remove(first)
				delete(c.waiting, conn.Conn)
				_ = clientaddr.TCP(conn.Conn).Close()
				continue
			}
		}

		timer := time.AfterFunc(wait, c.changed.Broadcast)
		c.changed.Wait()
		timer.Stop()
	}
	return !c.closed
}

// reset discards the kernel's send buffers and closes the connections.
// Otherwise the kernel would still deliver megabytes to slow clients after
// the proxy has stopped checking the keys.
func (c *connections) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.active {
		if tcp, ok := clientaddr.TCP(conn).(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
			_ = tcp.Close()
		}
	}
}

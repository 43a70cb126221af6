package main

import (
	"container/list"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
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
	closed  bool                       // the listener is closed

	listener *limitedListener
}

// waitingConn is a connection without a request.
type waitingConn struct {
	net.Conn
	since time.Time
	fresh bool // it has had no request yet
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
		c.waiting[conn] = c.oldest.PushBack(&waitingConn{conn, time.Now(), state == http.StateNew})
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
func (c *connections) limited(l net.Listener) net.Listener {
	c.listener = &limitedListener{Listener: l, connections: c, queued: -1}
	return c.listener
}

type limitedListener struct {
	net.Listener
	connections *connections
	last        atomic.Bool // accept only what is in the kernel's queue
	queued      int         // how many of these are left; -1 before they are counted
}

// Accept implements net.Listener. The server calls track for a connection
// before it calls Accept again, so that the count is exact.
func (l *limitedListener) Accept() (net.Conn, error) {
	if l.last.Load() {
		if l.queued < 0 {
			l.queued = queueLength(l.Listener)
		}
		if l.queued == 0 {
			_ = l.Close()
			return nil, net.ErrClosed
		}
	}

	conn, err := l.Listener.Accept()
	if port, ok := l.Listener.(deadliner); ok && errors.Is(err, os.ErrDeadlineExceeded) {
		_ = port.SetDeadline(time.Time{})
		return l.Accept()
	}
	if err != nil {
		return nil, err
	}
	if l.queued > 0 {
		l.queued--
	}

	if !l.connections.waitForPlace() {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	return conn, nil
}

// deadliner is a listener whose Accept can be woken.
type deadliner interface{ SetDeadline(t time.Time) error }

// acceptLast makes Accept return the connections that are in the kernel's
// queue now, and then close the port. Closing it before would reset them.
func (l *limitedListener) acceptLast() {
	l.last.Store(true)
	port, ok := l.Listener.(deadliner)
	if !ok || port.SetDeadline(time.Now()) != nil {
		_ = l.Close()
	}
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

// Times of a drain.
const (
	// quietDelays times limits.shutdown_delay is how long a connection must be
	// without a request to be closed. Closing it fails a request that is on
	// its way, so it should be longer than most pauses of clients.
	quietDelays = 3
	// leastQuiet is longer than the kernel's clock is inexact.
	leastQuiet = 100 * time.Millisecond
	// freshQuiet is how long a connection may be open before its first
	// request, as in http.Server.Shutdown.
	freshQuiet = 5 * time.Second
	leaveEvery = 20 * time.Millisecond
)

// leave closes the port, and each connection that has been without a request
// for some time. It returns when none is left, or when ctx ends. delay is
// limits.shutdown_delay, or 0.
//
// http.Server.Shutdown closes all idle connections at once. Some of them have
// a request that has arrived and was not read yet, or only half of it, which
// fails without a response.
func (c *connections) leave(ctx context.Context, delay time.Duration) {
	c.listener.acceptLast()
	quiet := max(quietDelays*delay, leastQuiet)
	every := time.NewTicker(leaveEvery)
	defer every.Stop()
	for !c.closeQuiet(quiet) {
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
	}
}

// closeQuiet closes connections for leave. It reports whether none is left.
func (c *connections) closeQuiet(quiet time.Duration) (none bool) {
	c.mu.Lock()
	var quietest []net.Conn
	for e := c.oldest.Front(); e != nil; {
		conn := e.Value.(*waitingConn) //nolint:forcetypeassert // the list has nothing else
		e = e.Next()
		if conn.inUse(quiet) {
			continue
		}
		c.oldest.Remove(c.waiting[conn.Conn])
		delete(c.waiting, conn.Conn)
		quietest = append(quietest, conn.Conn)
	}
	none = c.closed && len(c.active)+len(c.waiting) == 0
	c.mu.Unlock()

	for _, conn := range quietest {
		_ = conn.Close()
	}
	return none
}

// inUse reports whether a connection without a request is needed. It is if a
// part of a request has arrived: limits.header_timeout then ends the wait for
// the rest.
func (w *waitingConn) inUse(quiet time.Duration) bool {
	waited := time.Since(w.since)
	switch {
	case waited < quiet || w.fresh && waited < freshQuiet:
		return true
	case w.fresh: // a TLS handshake is no request
		return sinceReceived(clientaddr.TCP(w.Conn)) < quiet
	default:
		return sinceReceived(clientaddr.TCP(w.Conn)) < waited-leastQuiet
	}
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

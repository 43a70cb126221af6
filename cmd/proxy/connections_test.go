package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// limitedServer serves with at most n connections. A request for /held blocks
// until release is called.
func limitedServer(t *testing.T, n int) (open *connections, address string, release func()) {
	t.Helper()
	open = newConnections(n)
	held := make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/held" {
			<-held
		}
	}))
	server.Config.ConnState = open.track
	server.Listener = open.limited(server.Listener)
	server.Start()
	t.Cleanup(server.Close)
	return open, server.Listener.Addr().String(), func() { close(held) }
}

// ask sends a request on a connection.
func ask(t *testing.T, conn net.Conn, path string) {
	t.Helper()
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
}

func dialTo(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	return conn
}

func answered(t *testing.T, conn net.Conn) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("answered %d", resp.StatusCode)
	}
}

// TestConnectionsAreLimited: further clients wait until a request has ended,
// and its connection with it.
func TestConnectionsAreLimited(t *testing.T) {
	open, address, release := limitedServer(t, 3)
	var busy []net.Conn
	for range 3 {
		conn := dialTo(t, address)
		ask(t, conn, "/held")
		busy = append(busy, conn)
	}
	eventually(t, "all are served", func() bool { return open.count() == 3 })

	late := dialTo(t, address)
	ask(t, late, "/")
	_ = late.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, _ := late.Read(make([]byte, 1)); n > 0 || open.count() > 3 {
		t.Errorf("one more is served; %d are open", open.count())
	}

	release()
	answered(t, busy[0])
	busy[0].Close()
	_ = late.SetReadDeadline(time.Now().Add(time.Minute))
	answered(t, late)
}

// TestIdleConnectionsMakePlace: a new client does not wait for those that
// keep a connection for later.
func TestIdleConnectionsMakePlace(t *testing.T) {
	open, address, _ := limitedServer(t, 2)
	var idle []net.Conn
	for range 2 {
		conn := dialTo(t, address)
		ask(t, conn, "/")
		answered(t, conn)
		idle = append(idle, conn)
		eventually(t, "it is idle", func() bool { return open.idle() == len(idle) })
	}
	open.age(idleAfter)
	late := dialTo(t, address)
	ask(t, late, "/")
	answered(t, late)
	if _, err := idle[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the oldest idle connection: %v, want %v", err, io.EOF)
	}
	ask(t, idle[1], "/")
	answered(t, idle[1])
}

// idle returns the number of connections without a request.
func (c *connections) idle() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting)
}

// age makes all connections wait for longer.
func (c *connections) age(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.oldest.Front(); e != nil; e = e.Next() {
		conn := e.Value.(*waitingConn)
		conn.since = conn.since.Add(-by)
	}
	c.changed.Broadcast()
}

// drainedServer is a server on which the test calls drain.
type drainedServer struct {
	*server
	http    *http.Server
	health  *health
	address string
	release func() // ends the requests for /held and /begun
	ended   chan error
}

func newDrainedServer(t *testing.T, limits config.Limits) *drainedServer {
	t.Helper()
	d := &drainedServer{
		server: &server{
			backend: &backend{cfg: &config.Config{Limits: limits}, log: zap.NewNop()},
			open:    newConnections(limits.MaxConnections),
		},
		health: newHealth(), ended: make(chan error, 1),
	}
	held := make(chan struct{})
	d.release = sync.OnceFunc(func() { close(held) })
	t.Cleanup(d.release)
	d.http = d.httpServer(d.health.leaving(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begun" {
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
		}
		if r.URL.Path != "/" {
			<-held
		}
		w.Header().Set("Content-Length", "5")
		w.WriteHeader(http.StatusOK)
		_, _ = io.WriteString(w, "whole")
	})))

	d.http.ConnState = d.open.track
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.address = listener.Addr().String()
	d.health.serve()
	limited := d.open.limited(listener)
	go func() { _ = d.http.Serve(limited) }()
	t.Cleanup(func() { _ = d.http.Close() })
	return d
}

// stop drains the server as after a SIGTERM. It returns after
// limits.shutdown_delay.
func (d *drainedServer) stop(t *testing.T) {
	t.Helper()
	d.health.drain(time.Now())
	go func() { d.ended <- d.drain(signalError{syscall.SIGTERM}, nil, d.http) }()
	time.Sleep(3 * d.cfg.Limits.ShutdownDelay) // some of the tests need it to be over
}

func (d *drainedServer) mustEnd(t *testing.T) {
	t.Helper()
	select {
	case err := <-d.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the drain does not end")
	}
	eventually(t, "all connections are closed", func() bool { return d.open.count() == 0 })
}

// answeredLast reads a response, which must close the connection.
func answeredLast(t *testing.T, conn *bufio.Reader, last bool) {
	t.Helper()
	resp, err := http.ReadResponse(conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "whole" || resp.Close != last {
		t.Errorf("%q, %v; Connection: close is %v, want %v", body, err, resp.Close, last)
	}
}

var drainLimits = config.Limits{ShutdownDelay: 100 * time.Millisecond, ShutdownGrace: time.Hour}

// TestDrainAnswers has requests that http.Server.Shutdown does not answer.
func TestDrainAnswers(t *testing.T) {
	t.Run("a request that has half arrived", func(t *testing.T) {
		d := newDrainedServer(t, drainLimits)
		conn := dialTo(t, d.address)
		responses := bufio.NewReader(conn)
		ask(t, conn, "/")
		answeredLast(t, responses, false)
		time.Sleep(3 * leastQuiet) // it is idle
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHo"); err != nil {
			t.Fatal(err)
		}
		d.stop(t)
		if _, err := io.WriteString(conn, "st: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		answeredLast(t, responses, true)
		d.mustEnd(t)
	})

	t.Run("a connection that was used a moment before", func(t *testing.T) {
		d := newDrainedServer(t, drainLimits)
		conn := dialTo(t, d.address)
		responses := bufio.NewReader(conn)
		ask(t, conn, "/")
		answeredLast(t, responses, false)
		eventually(t, "it is idle", func() bool { return d.open.idle() == 1 })
		d.open.age(-time.Hour) // so that the moment does not end in this test
		d.stop(t)
		ask(t, conn, "/")
		answeredLast(t, responses, true)
		d.mustEnd(t)
	})

	t.Run("the request after a response that began before", func(t *testing.T) {
		d := newDrainedServer(t, drainLimits)
		conn := dialTo(t, d.address)
		ask(t, conn, "/begun")
		responses := bufio.NewReader(conn)
		if _, err := responses.Peek(1); err != nil {
			t.Fatal(err)
		}
		d.stop(t)
		ask(t, conn, "/")
		d.release()
		answeredLast(t, responses, false)
		answeredLast(t, responses, true)
		d.mustEnd(t)
	})

	t.Run("connections that wait for a place", func(t *testing.T) {
		limits := drainLimits
		limits.MaxConnections = 1
		d := newDrainedServer(t, limits)
		var conns []net.Conn
		for _, path := range []string{"/held", "/", "/", "/"} {
			conn := dialTo(t, d.address)
			ask(t, conn, path)
			conns = append(conns, conn)
			eventually(t, "the first is served", func() bool { return d.open.count() == 1 && d.open.idle() == 0 })
		}
		d.stop(t)
		d.release()
		answeredLast(t, bufio.NewReader(conns[0]), false)
		for _, conn := range conns[1:] {
			answeredLast(t, bufio.NewReader(conn), true)
		}
		d.mustEnd(t)
	})
}

// TestDrainEnds has connections that a drain must not wait for.
func TestDrainEnds(t *testing.T) {
	for name, test := range map[string]struct {
		limits config.Limits
		age    time.Duration
		open   func(t *testing.T, conn net.Conn)
	}{
		"an idle connection": {drainLimits, 0, func(t *testing.T, conn net.Conn) {
			t.Helper()
			ask(t, conn, "/")
			answeredLast(t, bufio.NewReader(conn), false)
		}},
		"a connection without a request": {drainLimits, freshQuiet, func(*testing.T, net.Conn) {}},
		"a request that never arrives whole": {
			config.Limits{ShutdownDelay: time.Millisecond, ShutdownGrace: 300 * time.Millisecond},
			freshQuiet,
			func(t *testing.T, conn net.Conn) {
				t.Helper()
				if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHo"); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDrainedServer(t, test.limits)
			conn := dialTo(t, d.address)
			test.open(t, conn)
			eventually(t, "the server has it", func() bool { return d.open.count() == 1 })
			d.open.age(test.age)
			d.stop(t)
			d.mustEnd(t)
			if n, err := conn.Read(make([]byte, 1)); err == nil {
				t.Errorf("%d bytes came", n)
			}
			if late, err := net.Dial("tcp", d.address); err == nil {
				late.Close()
				t.Error("the port is open")
			}
		})
	}
}

package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
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
	}
	eventually(t, "both are idle", func() bool {
		open.mu.Lock()
		defer open.mu.Unlock()
		return len(open.waiting) == 2
	})
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

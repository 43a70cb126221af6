package http1

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func send(t *testing.T, c *Client, url string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(r, Limits{Connect: time.Minute, Response: time.Minute, Idle: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
}

// An idle connection has no buffer. There are never more than MaxIdle, and
// none after IdleTimeout.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	all := make(chan struct{})
	waiting := make(chan struct{}, 3)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		waiting <- struct{}{}
		<-all
		io.WriteString(w, "ok")
	}))
	t.Cleanup(server.Close)
	c := New(Config{Dial: (&net.Dialer{}).DialContext, MaxIdle: 2, IdleTimeout: 50 * time.Millisecond})

	done := make(chan struct{})
	for range 3 {
		go func() { send(t, c, server.URL); done <- struct{}{} }()
	}
	for range 3 {
		<-waiting
	}
	close(all)
	for range 3 {
		<-done
	}

	c.pool.mu.Lock()
	if c.pool.count > 2 {
		t.Errorf("%d idle connections", c.pool.count)
	}
	for _, list := range c.pool.idle {
		for _, conn := range list {
			if conn.br != nil {
				t.Error("an idle connection has a buffer")
			}
		}
	}
	c.pool.mu.Unlock()

	idle := func() int {
		c.pool.mu.Lock()
		defer c.pool.mu.Unlock()
		return c.pool.count
	}
	for range 1000 {
		if idle() == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("%d idle connections remain", idle())
}

// A deadline is set rarely, and is never early.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	c := &conn{}
	var set []time.Time
	limit := func(limit time.Duration) {
		t.Helper()
		before := time.Now()
		err := c.setDeadline(&c.readBy, limit, func(by time.Time) error { set = append(set, by); return nil })
		if err != nil {
			t.Fatal(err)
		}
		if limit > 0 && c.readBy.Before(before.Add(limit)) {
			t.Errorf("%v is less than %v away", c.readBy, limit)
		}
	}

	for range 100 {
		limit(time.Hour)
	}
	if len(set) != 1 {
		t.Errorf("set %d times", len(set))
	}
	limit(time.Minute)
	limit(time.Hour)
	limit(0)
	limit(0)
	if len(set) != 4 || !set[3].IsZero() {
		t.Errorf("%v", set)
	}
}

// What was sent is overwritten before its buffer is used again.
func TestBuffersAreOverwritten(t *testing.T) { // not parallel: another test could take the buffer
	b := append(takeBuffer(sizeHead), "secret"...)
	returnBuffer(b)
	if string(b) != "\x00\x00\x00\x00\x00\x00" {
		t.Errorf("%q", b)
	}
}

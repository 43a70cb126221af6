package main

import (
	"net"
	"testing"
	"time"
)

// TestUnknownConnectionsAreClosed: where the kernel does not say when data
// arrived, the time without a request decides.
func TestUnknownConnectionsAreClosed(t *testing.T) {
	conn, _ := net.Pipe()
	since := time.Now().Add(-time.Minute)
	for _, fresh := range []bool{false, true} {
		w := &waitingConn{Conn: conn, since: since, fresh: fresh}
		if w.inUse(time.Second) || !w.inUse(time.Hour) {
			t.Errorf("fresh %v: in use after a minute: %v, %v", fresh, w.inUse(time.Second), w.inUse(time.Hour))
		}
	}
}

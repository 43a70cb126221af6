package kmstest

import (
	"context"
	"net"
	"sync"
	"testing"
)

// Forwarder forwards TCP connections, as a NAT or a firewall does, and can
// forget those that there are: their packets are lost from then on, and nobody
// is told.
type Forwarder struct {
	listener net.Listener
	target   string

	mu          sync.Mutex
	connections []*flow
	all         int
}

type flow struct {
	client, server net.Conn
	lost           chan struct{}
}

// StartForwarder starts one to the address target, for the time of a test.
func StartForwarder(t testing.TB, target string) *Forwarder {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &Forwarder{listener: l, target: target}
	go f.serve()
	t.Cleanup(f.close)
	return f
}

// Addr is the address to give to a client.
func (f *Forwarder) Addr() string { return f.listener.Addr().String() }

// Lose forgets all connections that there are. New ones are forwarded.
func (f *Forwarder) Lose() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, flow := range f.connections {
		select {
		case <-flow.lost:
		default:
			close(flow.lost)
		}
	}
}

// Flows is how many connections were made so far.
func (f *Forwarder) Flows() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all
}

func (f *Forwarder) close() {
	_ = f.listener.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, flow := range f.connections {
		_, _ = flow.client.Close(), flow.server.Close()
	}
}

func (f *Forwarder) serve() {
	for {
		client, err := f.listener.Accept()
		if err != nil {
			return
		}

		server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", f.target)
		if err != nil {
			_ = client.Close()
			continue
		}

		made := &flow{client: client, server: server, lost: make(chan struct{})}
		f.mu.Lock()
		f.connections = append(f.connections, made)
		f.all++
		f.mu.Unlock()
		go made.copy(server, client)

		go made.copy(client, server)
	}
}

// copy forwards one direction. What comes after the loss is read and thrown
// away, and an end is not told on: both sides keep their connection.
func (l *flow) copy(to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		select {
		case <-l.lost:
			if err != nil {
				return
			}
			continue
		default:
		}

		if _, writeErr := to.Write(buffer[:n]); err != nil || writeErr != nil {
			_, _ = to.Close(), from.Close()
			return
		}
	}
}

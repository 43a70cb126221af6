package kmstest

import (
	"context"
	"net"
	"sync"
	"testing"
)

// Forwarder forwards TCP connections, like a NAT or a firewall. It can
// forget its current connections: their packets are then lost without
// notice to either side.
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

// StartForwarder starts a Forwarder to the address target, until the end of
// the test.
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

// Addr returns the address for clients.
func (f *Forwarder) Addr() string { return f.listener.Addr().String() }

// Lose forgets all current connections. New ones are forwarded.
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

// Flows returns how many connections were made so far.
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

// copy forwards data in one direction. After Lose, it discards all data and
// does not forward the end of the stream, so both sides keep their
// connections.
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

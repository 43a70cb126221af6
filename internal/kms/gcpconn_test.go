package kms

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// A client is replaced only if its connection seems dead.
func TestGCPConnIsKept(t *testing.T) {
	conn, err := newGCPConn(t.Context(), []option.ClientOption{
		option.WithEndpoint("127.0.0.1:1"), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.close()

	late := status.Error(codes.DeadlineExceeded, "")
	const past = -time.Hour // for an established connection

	for _, c := range []struct {
		name     string
		made     time.Duration
		heard    time.Duration
		err      error
		replaced bool
	}{
		{"no answer in time", past, past, late, true},
		{"no answer in time, between two attempts", past, past, context.DeadlineExceeded, true},
		{"no answer in time, but to another call", past, clock() + time.Hour, late, false},
		{"no answer in time, of a new connection", clock(), past, late, false},
		{"not connected", past, past, status.Error(codes.Unavailable, ""), false},
		{"canceled", past, past, context.Canceled, false},
		{"a refusal", past, past, status.Error(codes.PermissionDenied, ""), false},
		{"an answer", past, past, nil, false},
	} {
		used := &gcpClient{conn.client().KeyManagementClient, c.made}
		conn.now.Store(used)
		conn.heard.Store(int64(c.heard))
		conn.note(used, clock(), c.err)
		now := conn.client()
		if replaced := now != used; replaced != c.replaced {
			t.Errorf("%s: replaced is %v", c.name, replaced)
		}

		conn.replace(used) // again, by another call that used the same client
		if c.replaced && conn.client() != now {
			t.Errorf("%s: replaced twice", c.name)
		}
	}
}

// pool is a transport that counts calls of CloseIdleConnections.
type pool struct {
	answer func(*http.Request) error
	closed int
}

func (p *pool) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := p.answer(r); err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
}

func (p *pool) CloseIdleConnections() { p.closed++ }

// Idle connections are closed only if they may be dead.
func TestRevivingKeepsConnections(t *testing.T) {
	expired, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()

	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	p := &pool{}
	r := newReconnecting(p)
	fails := func(*http.Request) error { return errors.New("no answer") }

	for _, c := range []struct {
		name   string
		ctx    context.Context //nolint:containedctx // of the request
		answer func(*http.Request) error
		closed int
	}{
		{"no answer in time", expired, fails, 1},
		{"an answer", t.Context(), func(*http.Request) error { return nil }, 0},
		{"canceled", canceled, fails, 0},
		{"refused", t.Context(), fails, 0},
		{"no answer in time, but to another request", expired, func(req *http.Request) error {
			r.heard.Store(int64(clock() + time.Hour))
			return fails(req)
		}, 0},
	} {
		p.answer, p.closed = c.answer, 0
		req, err := http.NewRequestWithContext(c.ctx, http.MethodGet, "http://kms.test/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := r.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
		}

		if p.closed != c.closed {
			t.Errorf("%s: idle connections closed %d times, want %d", c.name, p.closed, c.closed)
		}
	}
}

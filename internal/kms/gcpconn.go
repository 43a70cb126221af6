package kms

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	gcpkms "cloud.google.com/go/kms/apiv1"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// gcpKeepalive has gRPC ping a connection that is silent while a call waits.
// Google's servers allow a ping in 30 seconds
// (https://github.com/googleapis/java-bigtable-hbase/pull/2682), and gRPC none
// in less than 10. The timeout is also that of the kernel for what was sent and
// is not acknowledged (TCP_USER_TIMEOUT,
// https://github.com/grpc/proposal/blob/master/A18-tcp-user-timeout.md), which
// ends a connection whose packets are lost long before a ping does.
var gcpKeepalive = keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 5 * time.Second}

// gcpLeastAge is how old a connection must be before it is taken for dead: one
// that is still being made must not be given up for another one, again and
// again.
const gcpLeastAge = 4 * time.Second

// gcpConn is the client of the KMS. gRPC sends all calls over one connection,
// and cannot be told that it is dead, so a client whose calls have no answer is
// replaced.
type gcpConn struct {
	options []option.ClientOption
	now     atomic.Pointer[gcpClient]
	heard   atomic.Int64 // when the last answer came, by clock
	turn    sync.Mutex   // of who replaces the client
}

type gcpClient struct {
	*gcpkms.KeyManagementClient
	made time.Duration // by clock
}

func newGCPConn(ctx context.Context, options []option.ClientOption) (*gcpConn, error) {
	c := &gcpConn{options: append(options, option.WithGRPCDialOption(grpc.WithKeepaliveParams(gcpKeepalive)))}
	client, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.now.Store(client)
	return c, nil
}

// dial makes a client, which connects at the first call.
func (c *gcpConn) dial(ctx context.Context) (*gcpClient, error) {
	client, err := gcpkms.NewKeyManagementClient(ctx, c.options...)
	if err != nil {
		return nil, err
	}
	return &gcpClient{client, clock()}, nil
}

func (c *gcpConn) client() *gcpClient { return c.now.Load() }

// note looks at the result of a call that was made with a client, and replaces
// the client if its connection looks dead: the call had no answer in time, and
// no other one had any meanwhile.
func (c *gcpConn) note(used *gcpClient, sent time.Duration, err error) {
	code := status.Code(err)
	switch {
	case code == codes.DeadlineExceeded, errors.Is(err, context.DeadlineExceeded): // between two attempts it is the latter
		if c.heard.Load() < int64(sent) && clock()-used.made > gcpLeastAge {
			c.replace(used)
		}
	case code == codes.Canceled, code == codes.Unavailable, errors.Is(err, context.Canceled):
	default:
		c.heard.Store(int64(clock()))
	}
}

// replace puts a new client in the place of one that is still in use. Calls
// that wait for the old one end with Canceled, which is Unreachable here.
func (c *gcpConn) replace(used *gcpClient) {
	c.turn.Lock()
	defer c.turn.Unlock()

	if c.now.Load() != used {
		return // by another call
	}

	next, err := c.dial(context.Background())
	if err != nil {
		return // the old one may do yet
	}

	c.now.Store(next)
	_ = used.Close()
}

// close ends the connection.
func (c *gcpConn) close() error {
	c.turn.Lock()
	defer c.turn.Unlock()
	return c.now.Load().Close()
}

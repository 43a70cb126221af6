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
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/cmekproxy/cmekproxy/internal/tracing"
)

// gcpKeepalive makes gRPC ping a connection that is silent while a call
// waits. Google's servers allow one ping in 30 seconds
// (https://github.com/googleapis/java-bigtable-hbase/pull/2682), and gRPC
// does not ping more often than every 10 seconds. The timeout also limits
// how long sent data may remain unacknowledged (TCP_USER_TIMEOUT,
// https://github.com/grpc/proposal/blob/master/A18-tcp-user-timeout.md).
// This ends a connection that loses packets long before a ping does.
var gcpKeepalive = keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 5 * time.Second}

// gcpLeastAge is the minimum age of a connection to be considered dead.
// Without it, connections that are still being established would be
// replaced again and again.
const gcpLeastAge = 4 * time.Second

// gcpConn is the client of the KMS. gRPC sends all calls over one
// connection, and cannot be told that the connection is dead. Therefore a
// client whose calls get no response is replaced.
type gcpConn struct {
	options []option.ClientOption
	now     atomic.Pointer[gcpClient]
	heard   atomic.Int64 // clock of the last response
	turn    sync.Mutex   // held while the client is replaced
}

type gcpClient struct {
	*gcpkms.KeyManagementClient
	made time.Duration // clock
}

func newGCPConn(ctx context.Context, options []option.ClientOption) (*gcpConn, error) {
	c := &gcpConn{options: append(
		options,
		option.WithGRPCDialOption(grpc.WithKeepaliveParams(gcpKeepalive)),
		option.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(sendTraceparent)),
	)}
	client, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.now.Store(client)
	return c, nil
}

// sendTraceparent adds the place of the call in a trace, if there is one. It
// is a grpc.UnaryClientInterceptor.
func sendTraceparent(
	ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	if value := tracing.Traceparent(ctx); value != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", value)
	}
	return invoke(ctx, method, req, reply, cc, options...)
}

// dial creates a client, which connects at the first call.
func (c *gcpConn) dial(ctx context.Context) (*gcpClient, error) {
	client, err := gcpkms.NewKeyManagementClient(ctx, c.options...)
	if err != nil {
		return nil, err
	}
	return &gcpClient{client, clock()}, nil
}

func (c *gcpConn) client() *gcpClient { return c.now.Load() }

// note evaluates the result of a call. It replaces the client if the
// connection seems dead: the call got no response in time, and no other
// call got one meanwhile.
func (c *gcpConn) note(used *gcpClient, sent time.Duration, err error) {
	code := status.Code(err)
	switch {
	// Between two attempts, the error is the context's.
	case code == codes.DeadlineExceeded, errors.Is(err, context.DeadlineExceeded):
		if c.heard.Load() < int64(sent) && clock()-used.made > gcpLeastAge {
			c.replace(used)
		}
	case code == codes.Canceled, code == codes.Unavailable, errors.Is(err, context.Canceled):
	default:
		c.heard.Store(int64(clock()))
	}
}

// replace replaces a client if it is still current. Calls that wait for the
// old client end with the code Canceled, which counts as Unreachable.
func (c *gcpConn) replace(used *gcpClient) {
	c.turn.Lock()
	defer c.turn.Unlock()

	if c.now.Load() != used {
		return // another call has replaced it
	}

	next, err := c.dial(context.Background())
	if err != nil {
		return // keep the old one
	}

	c.now.Store(next)
	_ = used.Close()
}

// close closes the connection.
func (c *gcpConn) close() error {
	c.turn.Lock()
	defer c.turn.Unlock()
	return c.now.Load().Close()
}

package kms_test

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/api/option"
	"google.golang.org/grpc"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// TestGCPKeysShareAConnection: many keys need one connection, which Close ends.
func TestGCPKeysShareAConnection(t *testing.T) {
	t.Parallel()
	server := kmstest.StartGCP(t)
	var dials atomic.Int64
	keys, err := kms.NewGCPKeys(t.Context(), kms.GCPConfig{
		Endpoint: server.Endpoint(), Timeout: 2 * time.Second, MaxAttempts: 1,
		Options: append(kmstest.GCPOptions(), option.WithGRPCDialOption(grpc.WithContextDialer(
			func(ctx context.Context, address string) (net.Conn, error) {
				dials.Add(1)
				return new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(address, "passthrough:///"))
			}))),
	})
	must(t, err)

	var last *kms.GCP
	for range 20 {
		name := server.NewKey(t, nil).KeyID()
		last, err = keys.Open(name)
		must(t, err)
		if _, _, err := kms.RoundTrip(t.Context(), last); err != nil || last.KeyID() != name {
			t.Errorf("%s: %v", last.KeyID(), err)
		}
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}

	for _, name := range []string{"", "key-1", gcpKey1 + "/cryptoKeyVersions/1", gcpKey1 + "/..", gcpKey1 + strings.Repeat("x", 63)} {
		_, err := keys.Open(name)
		wantKind(t, name, err, kms.Invalid)
	}
	must(t, keys.Close())
	if _, _, err := kms.RoundTrip(t.Context(), last); err == nil {
		t.Error("the connection is still open")
	}
}

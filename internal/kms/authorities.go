package kms

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"

	"google.golang.org/grpc/credentials"

	"github.com/cmekproxy/cmekproxy/internal/pemfile"
)

// Report is called when a file has been reloaded. what names the file. If
// err is not nil, the reload failed and the old content remains in use.
type Report func(what string, err error)

func openPool(file string, report Report) (*pemfile.Pool, error) {
	pool, err := pemfile.OpenPool(file, func(err error) {
		if report != nil {
			report("the CA file "+file, err)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("the CA file: %w", err)
	}

	return pool, nil
}

// withAuthorities returns a transport that trusts the authorities in a PEM
// file, and reloads the file when it changes. If file is empty, it returns
// base.
func withAuthorities(base *http.Transport, file string, report Report) (http.RoundTripper, error) {
	if file == "" {
		return base, nil
	}

	pool, err := openPool(file, report)
	if err != nil {
		return nil, err
	}

	return pool.Transport(base), nil
}

// poolCredentials is TLS for gRPC. Each new connection uses the authorities
// that are in the file at that time.
type poolCredentials struct {
	credentials.TransportCredentials // for everything except the handshake

	pool *pemfile.Pool
}

func newPoolCredentials(file string, report Report) (credentials.TransportCredentials, error) {
	pool, err := openPool(file, report)
	if err != nil {
		return nil, err
	}
	return &poolCredentials{tlsCredentials(pool), pool}, nil
}

func tlsCredentials(pool *pemfile.Pool) credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool.Certs()})
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *poolCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (
	net.Conn, credentials.AuthInfo, error,
) {
	return tlsCredentials(c.pool).ClientHandshake(ctx, authority, conn)
}

// Clone implements credentials.TransportCredentials.
func (c *poolCredentials) Clone() credentials.TransportCredentials {
	return &poolCredentials{c.TransportCredentials.Clone(), c.pool}
}

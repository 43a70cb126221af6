// Package proxytest starts what tests of several packages need in front of or
// behind the proxy: a real store in a directory, and keys in files.
//
// There is no example: it is for tests, which show its use.
package proxytest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/origin/embedded"
)

// What every Store takes.
const (
	AccessKey = "storekey"
	SecretKey = "storesecretstoresecret"
	Region    = "us-east-1"
)

// Store is a store that runs in the process of the tests. One process has one,
// from its TestMain: it changes the working directory.
type Store struct {
	Dir string // of the buckets: an object is a file

	root, socket string
	stop         func()
}

// StartStore starts a store that keeps versions in buckets that ask for them.
func StartStore() (*Store, error) {
	root, err := os.MkdirTemp("", "proxytest-")
	if err != nil {
		return nil, err
	}
	s := &Store{Dir: filepath.Join(root, "buckets"), root: root}
	versions := filepath.Join(root, "versions")
	if err = errors.Join(os.Mkdir(s.Dir, 0o700), os.Mkdir(versions, 0o700)); err == nil {
		s.socket, s.stop, err = embedded.Start(context.Background(), embedded.Config{
			Dir: s.Dir, Versions: versions, AccessKey: AccessKey, SecretKey: SecretKey, Region: Region,
		})
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(root))
	}
	return s, nil
}

// ServeStore starts a store for the time of the test, and returns the URL at
// which it is served over plain HTTP. No other store may run meanwhile.
func ServeStore(t testing.TB) (address string) {
	t.Helper()
	s, err := StartStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})

	server := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: r.In.Host})
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{
			DisableCompression: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", s.socket)
			},
		},
	})
	t.Cleanup(server.Close)
	return server.URL
}

// Close stops the store and removes what it has.
func (s *Store) Close() error {
	s.stop()
	return os.RemoveAll(s.root)
}

// Transport returns a transport to the store that waits for an answer until
// timeout.
func (s *Store) Transport(timeout time.Duration) *origin.Transport {
	return origin.NewTransport(origin.TransportConfig{
		ConnectTimeout: 5 * time.Second, ResponseTimeout: timeout, MaxConns: 64, UnixSocket: s.socket,
	})
}

// OriginConfig returns what a proxy needs to send requests to a store with
// these keys by a transport, whose address is to be in Endpoint if it is
// another.
func OriginConfig(transport http.RoundTripper) origin.Config {
	return origin.Config{
		Endpoint: &url.URL{Scheme: "http", Host: "store"}, Region: Region, PathStyle: true,
		Uploads: origin.Always(origin.Uploads{Trailer: true, PartChecksums: true}),
		Now:     time.Now, Transport: transport,
		Credentials: credentials.NewStaticCredentialsProvider(AccessKey, SecretKey, ""),
	}
}

// NewLocalKey returns a key in a new file, and the path of the file.
func NewLocalKey(t testing.TB) (key *kms.Local, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "kms.key")
	if err := kms.CreateLocalKeyFile(path); err != nil {
		t.Fatal(err)
	}
	key, err := kms.NewLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	return key, path
}

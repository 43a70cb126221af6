// Command store is the store of the tests: a real one, in a process of its own.
// There it does not run under the race detector, which makes it many times
// slower, and tests need not link it.
//
// It keeps buckets and old versions in the directory that is its argument. It
// prints the address at which it serves HTTP, then the path of a Unix socket
// for the same, and ends at the end of its standard input.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/origin/embedded"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(root string) error {
	addresses := os.Stdout
	os.Stdout = nil // what the store prints is not for the tests
	socket, stop, err := embedded.Start(context.Background(), embedded.Config{
		Dir: filepath.Join(root, proxytest.Buckets), Versions: filepath.Join(root, proxytest.Versions),
		AccessKey: proxytest.AccessKey, SecretKey: proxytest.SecretKey, Region: proxytest.Region,
	})
	if err != nil {
		return err
	}
	defer stop()

	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	go http.Serve(listener, forward(socket)) //nolint:errcheck,gosec // until the process ends

	fmt.Fprintf(addresses, "http://%s\n%s\n", listener.Addr(), socket)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// forward returns a handler that sends requests to the store as they are.
func forward(socket string) http.Handler {
	return &httputil.ReverseProxy{
		ErrorLog: zap.NewStdLog(zap.NewNop()), // tests break connections
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: r.In.Host})
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{
			DisableCompression: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
		},
	}
}

package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// reverseProxyCommand runs this program as the plain reverse proxy:
// reverse-proxy HOST:PORT STORE.
const reverseProxyCommand = "reverse-proxy"

// serveReverseProxy replaces nginx where it is not installed. It forwards
// the Host header unchanged, because the signature covers it.
func serveReverseProxy(ctx context.Context, addr, store string) error {
	u, err := url.Parse(store)
	if err != nil {
		return err
	}

	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.Out.Host = r.In.Host
		},
		Transport:  &http.Transport{MaxIdleConnsPerHost: 128, DisableCompression: true},
		BufferPool: &bufferPool{sync.Pool{New: func() any { return make([]byte, 256<<10) }}},
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}

	server := &http.Server{Handler: proxy, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}

	return nil
}

// bufferPool is a sync.Pool with the interface that httputil requires.
type bufferPool struct{ sync.Pool }

func (p *bufferPool) Get() []byte { return p.Pool.Get().([]byte) }

func (p *bufferPool) Put(b []byte) { p.Pool.Put(b) } //nolint:staticcheck // small slice header

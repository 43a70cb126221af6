package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"sync"
)

// passThrough is the leanest proxy that net/http makes: a server, a
// transport, and a handler that copies headers and bodies. It is what the
// proxy would cost in Go if it did nothing. httputil.ReverseProxy does more:
// it clones each request and removes hop-by-hop headers.
type passThrough struct {
	scheme, host string
	transport    *http.Transport
}

// newPassThrough returns a pass-through to the origin at a host and port. It
// verifies an origin with TLS by the certificate in a file.
func newPassThrough(host, caFile string) (*passThrough, error) {
	p := &passThrough{scheme: "http", host: host, transport: &http.Transport{
		MaxIdleConnsPerHost: 2048,
		DisableCompression:  true,
	}}
	if caFile == "" {
		return p, nil
	}

	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New(caFile + " has no certificate")
	}
	p.scheme = "https"
	p.transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	return p, nil
}

// ServeHTTP implements http.Handler.
func (p *passThrough) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := *r
	target := *r.URL
	target.Scheme, target.Host = p.scheme, p.host
	out.URL, out.RequestURI = &target, ""

	resp, err := p.transport.RoundTrip(&out)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()

	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)

	buf := copyBuffers.Get().(*[256 << 10]byte)
	defer copyBuffers.Put(buf)
	// Without its method ReadFrom, which would copy in pieces of 32 KiB.
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, resp.Body, buf[:]); err != nil {
		panic(http.ErrAbortHandler)
	}
}

var copyBuffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

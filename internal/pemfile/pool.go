// Package pemfile loads PEM files for TLS and reloads them when they
// change: certificate authorities (Pool), and a server's certificate with
// its key (Server). Package livefile defines what counts as a change.
//
// There is no example: it needs certificates. The tests show its use.
package pemfile

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/livefile"
)

// maxFile limits the size of a PEM file in bytes. A bundle of all public
// authorities has about 250 kB.
const maxFile = 8 << 20

// Pool contains the certificate authorities in a PEM file.
type Pool struct {
	file *livefile.File[*authorities]
}

// authorities are the certificates of a PEM file.
type authorities struct {
	certs  *x509.CertPool
	expiry time.Time // of the first one to expire
}

// OpenPool loads the authorities in a file. report is called after each
// reload; if its error is not nil, the old authorities remain in use. It
// may be nil.
func OpenPool(path string, report func(error)) (*Pool, error) {
	file, err := livefile.Open(livefile.Config[*authorities]{
		Paths:  []string{path},
		Load:   func() (*authorities, error) { return readAuthorities(path) },
		Report: report,
	})
	if err != nil {
		return nil, err
	}

	return &Pool{file: file}, nil
}

// Certs returns the current authorities.
func (p *Pool) Certs() *x509.CertPool { return p.file.Get().certs }

// Expiry returns when the first of the current authorities expires.
func (p *Pool) Expiry() time.Time { return p.file.Get().expiry }

// Transport returns a transport like base that trusts the authorities of
// the pool. After a reload, new connections use the new authorities, and
// idle connections are closed. base must not be used afterwards.
func (p *Pool) Transport(base *http.Transport) *Transport {
	return &Transport{pool: p, base: base}
}

// Transport is an http.RoundTripper that trusts the authorities of a Pool.
type Transport struct {
	pool *Pool
	base *http.Transport

	mu      sync.Mutex
	trusts  *x509.CertPool // authorities of current
	current *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	return t.transport().RoundTrip(r)
}

// CloseIdleConnections closes the idle connections.
func (t *Transport) CloseIdleConnections() { t.transport().CloseIdleConnections() }

func (t *Transport) transport() *http.Transport {
	certs := t.pool.Certs()
	t.mu.Lock()
	defer t.mu.Unlock()

	if t.current != nil && t.trusts == certs {
		return t.current
	}

	next := t.base.Clone()
	if next.TLSClientConfig == nil {
		next.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}

	next.TLSClientConfig.RootCAs = certs
	if t.current != nil {
		t.current.CloseIdleConnections()
	}

	t.current, t.trusts = next, certs
	return next
}

func readAuthorities(path string) (*authorities, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	certs := x509.NewCertPool()
	if !certs.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s contains no PEM certificate", path)
	}
	return &authorities{certs, firstExpiry(data)}, nil
}

// firstExpiry returns when the first of the certificates in a PEM file expires.
// It skips the blocks that x509.CertPool skips.
func firstExpiry(data []byte) (first time.Time) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" || len(block.Headers) > 0 {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err == nil && (first.IsZero() || cert.NotAfter.Before(first)) {
			first = cert.NotAfter
		}
	}
	return first
}

// readFile reads a regular file of limited size.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}

	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(data) == 0 {
		return nil, errors.New(path + " is empty")
	}

	return data, nil
}

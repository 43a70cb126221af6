package pemfile

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/livefile"
)

// ServerConfig names the files of a TLS server.
type ServerConfig struct {
	// CertFile and KeyFile contain the certificate with its intermediates,
	// and its private key.
	CertFile, KeyFile string
	// ClientCAFile contains the authorities of client certificates, which
	// are then required. Empty means that clients need no certificate.
	ClientCAFile string
	// Report is called after each reload. If its error is not nil, the old
	// files remain in use. It may be nil.
	Report func(error)
}

// Server is the TLS configuration of a server, loaded from files.
type Server struct {
	file *livefile.File[*serverFiles]
}

// serverFiles is what the files of a Server contain.
type serverFiles struct {
	config *tls.Config
	// authorities is when the first authority of client certificates expires;
	// zero without authorities.
	authorities time.Time
}

// OpenServer loads the files.
func OpenServer(cfg ServerConfig) (*Server, error) {
	paths := []string{cfg.CertFile, cfg.KeyFile}
	if cfg.ClientCAFile != "" {
		paths = append(paths, cfg.ClientCAFile)
	}

	file, err := livefile.Open(livefile.Config[*serverFiles]{
		Paths:  paths,
		Load:   func() (*serverFiles, error) { return readServer(cfg) },
		Report: cfg.Report,
	})
	if err != nil {
		return nil, err
	}

	return &Server{file: file}, nil
}

// TLS returns a configuration that uses the current files for each
// handshake. Like S3, it offers only HTTP/1.1: HTTP/2 needs more CPU and
// has no advantage for S3 clients.
func (s *Server) TLS() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		NextProtos:         []string{"http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.file.Get().config, nil },
	}
}

// Check reloads the files now if they have changed. If it returns an error,
// the old files remain in use.
func (s *Server) Check() error { return s.file.Check() }

// Certificate returns the server's current certificate.
func (s *Server) Certificate() *x509.Certificate { return s.file.Get().config.Certificates[0].Leaf }

// ClientAuthorityExpiry returns when the first authority of client certificates
// expires. It is zero if clients need no certificate.
func (s *Server) ClientAuthorityExpiry() time.Time { return s.file.Get().authorities }

// Valid returns an error if the certificate is expired or not yet valid.
func (s *Server) Valid(now time.Time) error {
	leaf := s.Certificate()
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate expired on %s: replace it", leaf.NotAfter.Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate is not valid before %s: replace it, or correct this machine's clock",
			leaf.NotBefore.Format(time.RFC3339))
	}

	return nil
}

func readServer(cfg ServerConfig) (*serverFiles, error) {
	certPEM, err := readFile(cfg.CertFile)
	if err != nil {
		return nil, fmt.Errorf("cert_file: %w", err)
	}

	keyPEM, err := readFile(cfg.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("key_file: %w", err)
	}

	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", cfg.CertFile, cfg.KeyFile, err)
	}
	if cert.Leaf == nil { // with GODEBUG=x509keypairleaf=0
		return nil, errors.New("cert_file: the certificate was not parsed")
	}

	out := &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"},
	}

	files := &serverFiles{config: out}
	if cfg.ClientCAFile != "" {
		trusted, err := readAuthorities(cfg.ClientCAFile)
		if err != nil {
			return nil, fmt.Errorf("client_ca_file: %w", err)
		}
		files.authorities = trusted.expiry
		out.ClientCAs, out.ClientAuth = trusted.certs, tls.RequireAndVerifyClientCert
	}

	return files, nil
}

package main

import (
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/pemfile"
)

// tlsFiles are the files of the S3 port's certificate.
type tlsFiles struct {
	*pemfile.Server
	settings config.TLS
	config   *tls.Config // one for all connections, because it has the keys of session tickets
}

// buildTLS reads the TLS files, and rereads them when they change. It
// returns nil for plain HTTP.
func buildTLS(cfg config.TLS, log *zap.Logger) (*tlsFiles, error) {
	if cfg.CertFile == "" {
		return nil, nil
	}

	server, err := pemfile.OpenServer(pemfile.ServerConfig{
		CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, ClientCAFile: cfg.ClientCAFile,
		Report: func(err error) {
			if err != nil {
				log.Error("reading the TLS files failed; keeping the ones read before", zap.Error(err))
				return
			}
			log.Info("TLS files read again")
		},
	})
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}

	return &tlsFiles{server, cfg, server.TLS()}, nil
}

// tlsListener uses TLS for its connections while there are files for it.
type tlsListener struct {
	net.Listener
	server *server
}

// Accept implements net.Listener.
func (l *tlsListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if files := l.server.tls.Load(); err == nil && files != nil {
		return tls.Server(conn, files.config), nil
	}
	return conn, err
}

// watchCertificate exports the certificate's expiry as a metric, and logs an
// error if the certificate is not valid now.
func (s *server) watchCertificate() {
	files := s.tls.Load()
	if files == nil {
		return
	}

	s.certificateGauge.Do(func() {
		s.expiry("cmekproxy_tls_certificate_expiry_timestamp_seconds",
			"Expiry of the certificate of the S3 port, in Unix time.",
			func(files *tlsFiles) time.Time { return files.Certificate().NotAfter })
	})
	if !files.ClientAuthorityExpiry().IsZero() {
		s.authorityGauge.Do(func() {
			s.expiry("cmekproxy_tls_client_ca_expiry_timestamp_seconds",
				"Expiry of the first authority in client_ca_file to expire, in Unix time.",
				func(files *tlsFiles) time.Time { return files.ClientAuthorityExpiry() })
		})
	}
	if err := files.Valid(time.Now()); err != nil {
		s.log.Error(
			"clients will reject the certificate of the S3 port",
			zap.String("cert_file", files.settings.CertFile),
			zap.Error(err),
		)
	}
}

// expiry exports a time in the files as a metric. It is NaN, for which no alert
// fires, after a reload has removed what expires.
func (s *server) expiry(name, help string, of func(*tlsFiles) time.Time) {
	s.metrics.Gauge(name, help, func() float64 {
		files := s.tls.Load()
		if files == nil || of(files).IsZero() {
			return math.NaN()
		}
		return float64(of(files).Unix())
	})
}

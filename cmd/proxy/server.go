package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/pemfile"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
	"github.com/cmekproxy/cmekproxy/internal/statuspage"
)

// Limits without a setting.
const (
	maxHeaderBytes = 32 << 10 // S3 itself accepts 8 KiB
	idleConnection = 2 * time.Minute
)

// server is the proxy, built from its configuration, before serve starts it.
type server struct {
	*backend
	file    *configFile // the source of cfg, and its last reload; nil for none
	audit   *audit.Log  // nil without an audit log, and before serve
	clients *access.Directory
	// configured are the clients of the configuration, without those of
	// tenants.
	configured []config.Client

	adminToken atomic.Pointer[config.Secret]
	s3         http.Handler
	open       *connections
	history    *statuspage.History
	load       func() s3api.Load
	tls        *pemfile.Server // nil for plain HTTP
}

// newServer opens the store and the keys, and creates the S3 API. unixSocket
// is that of openBackend.
func newServer(ctx context.Context, cfg *config.Config, log *zap.Logger, unixSocket string) (*server, error) {
	s := &server{configured: cfg.Clients, open: newConnections(cfg.Limits.MaxConnections)}
	s.adminToken.Store(&cfg.AdminToken)
	var err error
	if s.clients, err = buildClients(cfg, log); err != nil {
		return nil, err
	}
	if s.tls, err = buildTLS(cfg.TLS, log); err != nil {
		return nil, err
	}

	var auditor keyring.Auditor
	if cfg.Audit.File != "" || cfg.Audit.Stdout {
		auditor = s3api.Trail(s.record)
	}
	if s.backend, err = openBackend(ctx, cfg, log, unixSocket, auditor); err != nil {
		return nil, err
	}
	if s.tenants != nil {
		if err := s.clients.Replace(s.allClients(cfg.Clients, s.tenants.dir.Current())); err != nil {
			s.backend.close()
			return nil, err
		}
	}

	api := s3api.New(s3api.Config{
		Origin:        s.origin,
		Keys:          s.keys,
		Clients:       s.clients,
		Domains:       domains(cfg),
		Capabilities:  s.capabilities.Find,
		UniformParts:  cfg.Origin.UniformParts,
		VerifyHead:    cfg.Encryption.VerifyHead,
		KeyNames:      keyname.Store(cfg.Origin.Keys),
		Log:           log,
		Metrics:       s.metrics,
		IdleTimeout:   cfg.Limits.IdleTimeout,
		HeaderTimeout: cfg.Limits.HeaderTimeout,
		MaxConcurrent: cfg.Limits.MaxConcurrentRequests,
		MaxPerClient:  cfg.Limits.MaxConcurrentPerClient,
		MaxUnsigned:   cfg.Limits.MaxConcurrentUnsigned,
		MinRate:       cfg.Limits.MinBytesPerSecond,
		Memory:        requestMemory(memoryLimit(cfg.Limits.Memory)),
		Admission:     newAdmission(log),
		Now:           time.Now,
		Random:        rand.Reader,
		LocalTLS:      cfg.TLS.EndsOnThisMachine,
	})
	s.s3, s.load = api, api.Load
	s.exportLoad(api)
	s.exportProcess()

	return s, nil
}

func (s *server) close() {
	s.backend.close()
	if s.audit != nil {
		_ = s.audit.Close() // each record was written, or its writer got an error
	}
	_ = s.log.Sync()
}

func buildClients(cfg *config.Config, log *zap.Logger) (*access.Directory, error) {
	clients, err := access.New(accessClients(cfg.Clients, cfg.Origin.Keys))
	if err != nil || cfg.SessionCredentialsFile == "" {
		return clients, err
	}

	sessions, err := access.OpenSessions(cfg.SessionCredentialsFile, time.Now, func(err error, sessions int) {
		if err != nil {
			log.Error("reading the temporary credentials failed; keeping the ones read before", zap.Error(err))
			return
		}
		log.Info("temporary credentials read again", zap.Int("sessions", sessions))
	})
	if err != nil {
		return nil, fmt.Errorf("session_credentials_file: %w", err)
	}

	clients.UseSessions(sessions)
	return clients, nil
}

// accessClients returns the clients of the configuration. keys is the
// setting origin.keys.
func accessClients(list []config.Client, keys string) (clients []access.Client) {
	for _, c := range list {
		client := access.Client{
			Name: c.Name, AccessKey: c.AccessKey, Secret: c.SecretKey.Reveal(), Anonymous: c.Anonymous,
			LiteralKeys: keys == config.LiteralKeys,
		}

		for _, grant := range c.Allow {
			g := access.Grant{Buckets: grant.Buckets, Prefixes: grant.Prefixes}
			for _, action := range grant.Actions {
				g.Actions = append(g.Actions, access.Action(action))
			}
			client.Allow = append(client.Allow, g)
		}

		clients = append(clients, client)
	}

	return clients
}

// buildTLS reads the TLS files, and rereads them when they change. It
// returns nil for plain HTTP.
func buildTLS(cfg config.TLS, log *zap.Logger) (*pemfile.Server, error) {
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

	return server, nil
}

// newLog returns a JSON log on standard error, with times in RFC 3339.
func newLog(level string) (*zap.Logger, error) {
	parsed, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, err
	}
	cfg := zap.NewProductionConfig()
	cfg.Level = zap.NewAtomicLevelAt(parsed)
	cfg.Sampling = nil // an access log must be complete
	cfg.DisableCaller = true
	cfg.DisableStacktrace = true
	cfg.EncoderConfig.TimeKey = "time"
	cfg.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	return cfg.Build()
}

// domains returns the base domains of virtual-host-style requests.
func domains(cfg *config.Config) []string {
	if cfg.Domain == "" {
		return cfg.Domains
	}
	return append([]string{cfg.Domain}, cfg.Domains...)
}

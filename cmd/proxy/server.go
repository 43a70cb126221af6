package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
	"github.com/cmekproxy/cmekproxy/internal/statuspage"
	"github.com/cmekproxy/cmekproxy/internal/tracing"
)

// Limits without a setting.
const (
	maxHeaderBytes = 32 << 10 // S3 itself accepts 8 KiB
	idleConnection = 2 * time.Minute
)

// server is the proxy, built from its configuration, before serve starts it.
type server struct {
	*backend
	file    *configFile               // the source of cfg, and its last reload; nil for none
	path    string                    // of file; "" for none
	audit   atomic.Pointer[audit.Log] // nil without an audit log, and before serve
	clients *access.Directory
	// configured are the clients of the configuration, without those of
	// tenants.
	configured []config.Client

	adminToken       atomic.Pointer[config.Secret]
	s3               http.Handler
	open             *connections
	history          *statuspage.History
	lastReload       atomic.Pointer[statuspage.Reload] // nil before the first
	tracer           *tracing.Tracer                   // nil if tracing is off
	end              time.Time                         // of limits.shutdown_grace; zero before the drain
	api              *s3api.Server
	tls              atomic.Pointer[tlsFiles] // nil for plain HTTP
	certificateGauge sync.Once
	authorityGauge   sync.Once
	level            *zap.AtomicLevel   // of log; nil if it cannot change
	goLimit          int64              // the runtime's memory limit before the proxy has set one
	requests         chan reloadRequest // see onSignals
}

// newServer opens the store and the keys, and creates the S3 API. unixSocket
// is that of openBackend.
func newServer(ctx context.Context, cfg *config.Config, log *zap.Logger, unixSocket string) (*server, error) {
	s := &server{
		configured: cfg.Clients, open: newConnections(cfg.Limits.MaxConnections),
		goLimit: debug.SetMemoryLimit(-1), requests: make(chan reloadRequest),
	}
	s.adminToken.Store(&cfg.AdminToken)
	var err error
	if s.clients, err = buildClients(cfg, log); err != nil {
		return nil, err
	}
	files, err := buildTLS(cfg.TLS, log)
	if err != nil {
		return nil, err
	}
	s.tls.Store(files)

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

	if s.tracer, err = buildTracing(ctx, cfg.Tracing, log, s.metrics); err != nil {
		s.backend.close()
		return nil, err
	}
	s.api = s3api.New(s3api.Config{
		Origin:       s.origin,
		Keys:         s.keys,
		Clients:      s.clients,
		Settings:     s.apiSettings(cfg),
		Capabilities: s.capabilities.Find,
		UniformParts: cfg.Origin.UniformParts,
		KeyNames:     keyname.Store(cfg.Origin.Keys),
		Log:          log,
		Metrics:      s.metrics,
		Tracing:      s.tracer,
		Admission:    newAdmission(log),
		Now:          time.Now,
		Random:       rand.Reader,

		TrustedProxies: trustedProxies(cfg.TrustedProxies),
	})
	s.s3 = s.api
	s.exportLoad(s.api)
	s.exportProcess()

	return s, nil
}

// apiSettings returns the settings of the S3 API that a reload can change.
func (s *server) apiSettings(cfg *config.Config) s3api.Settings {
	every, _ := cfg.Log.AccessEvery() // Parse has checked it
	if every == 0 {
		every = -1
	}
	return s3api.Settings{
		Domains:       domains(cfg),
		VerifyHead:    cfg.Encryption.VerifyHead,
		IdleTimeout:   cfg.Limits.IdleTimeout,
		HeaderTimeout: s.cfg.Limits.HeaderTimeout,
		MaxConcurrent: cfg.Limits.MaxConcurrentRequests,
		MaxPerClient:  cfg.Limits.MaxConcurrentPerClient,
		MaxUnsigned:   cfg.Limits.MaxConcurrentUnsigned,
		MinRate:       cfg.Limits.MinBytesPerSecond,
		Memory:        requestMemory(memoryLimit(cfg.Limits.Memory, s.goLimit)),
		LocalTLS:      cfg.TLS.EndsOnThisMachine,
		LogEvery:      int64(every),
	}
}

func (s *server) close() {
	s.sendLastSpans()
	s.backend.close()
	if log := s.audit.Load(); log != nil {
		_ = log.Close() // each record was written, or its writer got an error
	}
	_ = s.log.Sync()
}

func buildClients(cfg *config.Config, log *zap.Logger) (*access.Directory, error) {
	clients, err := access.New(accessClients(cfg.Clients, cfg.Origin.Keys))
	if err != nil {
		return nil, err
	}
	sessions, err := openSessions(cfg.SessionCredentialsFile, log)
	if err != nil {
		return nil, err
	}
	clients.UseSessions(sessions)
	return clients, nil
}

// openSessions reads the temporary credentials. It returns nil for none.
func openSessions(path string, log *zap.Logger) (*access.Sessions, error) {
	if path == "" {
		return nil, nil
	}
	sessions, err := access.OpenSessions(path, time.Now, func(err error, sessions int) {
		if err != nil {
			log.Error("reading the temporary credentials failed; keeping the ones read before", zap.Error(err))
			return
		}
		log.Info("temporary credentials read again", zap.Int("sessions", sessions))
	})
	if err != nil {
		return nil, fmt.Errorf("session_credentials_file: %w", err)
	}
	return sessions, nil
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

// domains returns the base domains of virtual-host-style requests.
func domains(cfg *config.Config) []string {
	if cfg.Domain == "" {
		return cfg.Domains
	}
	return append([]string{cfg.Domain}, cfg.Domains...)
}

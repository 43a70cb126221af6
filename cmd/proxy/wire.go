package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/advisor"
	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/awscreds"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/pemfile"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// Time limits that are nobody's business to tune.
const (
	maxHeaderBytes = 32 << 10 // S3 itself takes 8 KiB of headers
	idleConnection = 2 * time.Minute
)

// app is the proxy, built from its configuration and not yet serving.
type app struct {
	cfg      *config.Config
	file     *configFile // what cfg was read from, and its last reload; nil for none
	log      *zap.Logger
	audit    *audit.Log // nil for none, and before serve
	metrics  *metrics.Metrics
	cache    *dekcache.Cache
	keys     *keyring.Keyring
	clients  *access.Directory
	advisor  *advisor.Recorder
	observer *keyObserver
	opened   []openKey                   // at the start
	tending  sync.Map                    // by name of a key, the context.CancelFunc that ends what tend has begun
	tended   []func(ctx context.Context) // what has to go on while they are served

	adminToken atomic.Pointer[config.Secret]
	storeLogin *staticLogin // nil where the SDK's default chain finds the credentials
	s3         http.Handler
	tls        *pemfile.Server // nil for plain HTTP
}

// build wires the proxy. unixSocket, if not empty, is where the store listens in place of its endpoint's host.
func build(ctx context.Context, cfg *config.Config, log *zap.Logger, unixSocket string) (*app, error) {
	a := &app{cfg: cfg, log: log, metrics: metrics.New()}
	a.adminToken.Store(&cfg.AdminToken)
	var err error
	if a.clients, err = buildClients(cfg, log); err != nil {
		return nil, err
	}
	credentials, err := originCredentials(ctx, cfg.Origin, log)
	if err != nil {
		return nil, err
	}
	a.storeLogin, _ = credentials.(*staticLogin)
	store, err := newOrigin(cfg, credentials, unixSocket, log)
	if err != nil {
		return nil, err
	}
	if a.tls, err = buildTLS(cfg.TLS, log); err != nil {
		return nil, err
	}
	if err := a.buildKeys(ctx); err != nil {
		return nil, err
	}
	a.s3 = s3api.New(s3api.Config{
		Origin:        store,
		Keys:          a.keys,
		Clients:       a.clients,
		Domain:        cfg.Domain,
		ETagPartCount: cfg.Origin.ETagPartCount,
		UniformParts:  cfg.Origin.UniformParts,
		VerifyHead:    cfg.Encryption.VerifyHead,
		KeyNames:      keyname.Store(cfg.Origin.Keys),
		Log:           log,
		Metrics:       a.metrics,
		IdleTimeout:   cfg.Limits.IdleTimeout,
		HeaderTimeout: cfg.Limits.HeaderTimeout,
		MaxConcurrent: cfg.Limits.MaxConcurrentRequests,
		MaxPerClient:  cfg.Limits.MaxConcurrentPerClient,
		MaxUnsigned:   cfg.Limits.MaxConcurrentUnsigned,
		MinRate:       cfg.Limits.MinBytesPerSecond,
		Now:           time.Now,
		Random:        rand.Reader,
		LocalTLS:      cfg.TLS.EndsOnThisMachine,
	})
	return a, nil
}

func (a *app) close() {
	if a.cache != nil {
		a.cache.Close()
	}
	if a.audit != nil {
		_ = a.audit.Close() // each record has been written, or its writer was told
	}
	_ = a.log.Sync()
}

func buildClients(cfg *config.Config, log *zap.Logger) (*access.Directory, error) {
	clients, err := access.New(accessClients(cfg.Clients, cfg.Origin.Keys))
	if err != nil || cfg.SessionCredentialsFile == "" {
		return clients, err
	}
	sessions, err := access.OpenSessions(cfg.SessionCredentialsFile, time.Now, func(err error, sessions int) {
		if err != nil {
			log.Error("the temporary credentials were not read again, and the old ones stay in force", zap.Error(err))
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

// accessClients are the clients of the configuration, for a store that takes
// keys as keys says.
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

func buildOrigin(ctx context.Context, cfg *config.Config, unixSocket string) (*origin.Origin, error) {
	credentials, err := originCredentials(ctx, cfg.Origin, zap.NewNop())
	if err != nil {
		return nil, err
	}
	return newOrigin(cfg, credentials, unixSocket, zap.NewNop())
}

func newOrigin(cfg *config.Config, login aws.CredentialsProvider, unixSocket string, log *zap.Logger) (*origin.Origin, error) {
	endpoint, err := url.Parse(cfg.Origin.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("origin.endpoint: %w", err)
	}
	transport, err := buildTransport(cfg, unixSocket, log)
	if err != nil {
		return nil, err
	}
	return origin.New(origin.Config{
		Endpoint:    endpoint,
		Region:      cfg.Origin.Region,
		Credentials: login,
		PathStyle:   cfg.Origin.PathStyle,
		Trailers:    cfg.Origin.ChecksumTrailer,
		Now:         time.Now,
		Transport:   transport,
	}), nil
}

func buildTransport(cfg *config.Config, unixSocket string, log *zap.Logger) (*origin.Transport, error) {
	out := origin.TransportConfig{
		ConnectTimeout:  cfg.Origin.ConnectTimeout,
		ResponseTimeout: cfg.Origin.ResponseTimeout,
		IdleTimeout:     cfg.Origin.IdleTimeout,
		MaxConns:        2 * cfg.Limits.MaxConcurrentRequests, // as many slow ones, beside
		UnixSocket:      unixSocket,
	}
	if cfg.Origin.CAFile != "" && strings.HasPrefix(cfg.Origin.Endpoint, "https:") {
		pool, err := pemfile.OpenPool(cfg.Origin.CAFile, func(err error) {
			if err != nil {
				log.Error("reading origin.ca_file failed; keeping the authorities read before", zap.Error(err))
				return
			}
			log.Info("origin.ca_file read again")
		})
		if err != nil {
			return nil, fmt.Errorf("origin.ca_file, or AWS_CA_BUNDLE: %w", err)
		}
		out.Authorities = pool
	}
	return origin.NewTransport(out), nil
}

func originCredentials(ctx context.Context, cfg config.Origin, log *zap.Logger) (aws.CredentialsProvider, error) {
	if cfg.AccessKey != "" {
		login := &staticLogin{}
		login.set(cfg)
		return login, nil
	}

	creds, err := awscreds.New(ctx, awscreds.Config{
		Load: func(ctx context.Context) (aws.CredentialsProvider, error) {
			chain, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(cfg.Region))
			return chain.Credentials, err
		},
		Report: func(err error) {
			if err != nil {
				log.Error("the store's AWS credentials were not read again, and the old ones stay in force", zap.Error(err))
				return
			}
			log.Info("the store's AWS credentials read again")
		},
	})
	if err != nil {
		return nil, fmt.Errorf("the store's credentials from the AWS SDK's default chain: %w", err)
	}
	return creds, nil
}

// staticLogin is the credentials for the store from the configuration, which a
// reload may change.
type staticLogin struct {
	current atomic.Pointer[aws.Credentials]
}

// set changes the credentials, unless there are none in the configuration.
func (l *staticLogin) set(cfg config.Origin) {
	if l != nil && cfg.AccessKey != "" {
		l.current.Store(&aws.Credentials{AccessKeyID: cfg.AccessKey, SecretAccessKey: cfg.SecretKey.Reveal(), Source: "config"})
	}
}

// Retrieve implements aws.CredentialsProvider.
func (l *staticLogin) Retrieve(context.Context) (aws.Credentials, error) {
	return *l.current.Load(), nil
}

// buildTLS reads the files of TLS, which serve reads again when they change; nil
// for plain HTTP.
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

// newLog returns the JSON log on standard error. Times are RFC 3339.
func newLog(level string) (*zap.Logger, error) {
	parsed, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, err
	}
	cfg := zap.NewProductionConfig()
	cfg.Level = zap.NewAtomicLevelAt(parsed)
	cfg.Sampling = nil // an access log with holes is none
	cfg.DisableCaller = true
	cfg.DisableStacktrace = true
	cfg.EncoderConfig.TimeKey = "time"
	cfg.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	return cfg.Build()
}

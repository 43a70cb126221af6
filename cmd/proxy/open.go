package main

import (
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/advisor"
	"github.com/cmekproxy/cmekproxy/internal/awscreds"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/pemfile"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// backend is the store and the keys. It is all that commands without a
// server need, and the basis of the server. It does not depend on settings
// of the server.
type backend struct {
	cfg     *config.Config
	log     *zap.Logger
	metrics *metrics.Metrics

	origin      *origin.Origin
	originLogin *staticLogin // nil if the SDK's default chain finds the credentials

	cache    *dekcache.Cache
	keys     *keyring.Keyring
	advisor  *advisor.Recorder
	observer *keyObserver
	opened   []openKey                   // the keys that could be opened at the start
	keeping  sync.Map                    // by key name, the context.CancelFunc that ends keep
	duties   []func(ctx context.Context) // background work while the keys are in use
}

// openBackend opens the store and the keys. unixSocket, if not empty, is
// used instead of the host of the store's endpoint. auditor, if not nil,
// records each use of a key.
func openBackend(
	ctx context.Context,
	cfg *config.Config,
	log *zap.Logger,
	unixSocket string,
	auditor keyring.Auditor,
) (*backend, error) {
	if fips140.Enforced() {
		return nil, errFIPSOnly
	}

	b := &backend{cfg: cfg, log: log, metrics: metrics.New()}
	var err error
	if b.origin, b.originLogin, err = openOrigin(ctx, cfg, unixSocket, log); err != nil {
		return nil, err
	}
	if err := b.openKeyring(ctx, auditor); err != nil {
		return nil, err
	}
	return b, nil
}

// errFIPSOnly refuses a mode in which no object can be read or written. Without
// it the proxy would start, and fail each request.
var errFIPSOnly = errors.New("GODEBUG=fips140=only is not supported: it refuses AES-GCM with the nonces " +
	"of the object format, and MD5, which S3 needs for Content-MD5; use GODEBUG=fips140=on")

func (b *backend) close() {
	if b.cache != nil {
		b.cache.Close()
	}
}

// openOrigin prepares requests to the store. The login is nil if the SDK's
// default chain finds the credentials.
func openOrigin(
	ctx context.Context,
	cfg *config.Config,
	unixSocket string,
	log *zap.Logger,
) (*origin.Origin, *staticLogin, error) {
	credentials, err := originCredentials(ctx, cfg.Origin, log)
	if err != nil {
		return nil, nil, err
	}

	endpoint, err := url.Parse(cfg.Origin.Endpoint)
	if err != nil {
		return nil, nil, fmt.Errorf("origin.endpoint: %w", err)
	}

	transport, err := buildTransport(cfg, unixSocket, log)
	if err != nil {
		return nil, nil, err
	}

	login, _ := credentials.(*staticLogin)
	return origin.New(origin.Config{
		Endpoint:    endpoint,
		Region:      cfg.Origin.Region,
		Credentials: credentials,
		PathStyle:   cfg.Origin.PathStyle,
		Trailers:    cfg.Origin.ChecksumTrailer,
		Now:         time.Now,
		Transport:   origin.NewRetrier(transport, origin.RetryConfig{Observe: s3api.RecordRetry}),
	}), login, nil
}

func buildTransport(cfg *config.Config, unixSocket string, log *zap.Logger) (*origin.Transport, error) {
	out := origin.TransportConfig{
		ConnectTimeout:  cfg.Origin.ConnectTimeout,
		ResponseTimeout: cfg.Origin.ResponseTimeout,
		IdleTimeout:     cfg.Origin.IdleTimeout,
		MaxConns:        2 * cfg.Limits.MaxConcurrentRequests, // slow requests have as many
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
				log.Error(
					"reading the store's AWS credentials failed; keeping the ones read before",
					zap.Error(err),
				)
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

// staticLogin has the credentials for the store from the configuration. A
// reload can change them.
type staticLogin struct {
	current atomic.Pointer[aws.Credentials]
}

// set changes the credentials, unless the configuration has none.
func (l *staticLogin) set(cfg config.Origin) {
	if l != nil && cfg.AccessKey != "" {
		l.current.Store(
			&aws.Credentials{AccessKeyID: cfg.AccessKey, SecretAccessKey: cfg.SecretKey.Reveal(), Source: "config"},
		)
	}
}

// Retrieve implements aws.CredentialsProvider.
func (l *staticLogin) Retrieve(context.Context) (aws.Credentials, error) {
	return *l.current.Load(), nil
}

// openKeyring creates the cache and the keyring, and their metrics. A key
// that cannot be opened now does not stop the others; openLater tries it
// again.
func (b *backend) openKeyring(ctx context.Context, auditor keyring.Auditor) error {
	b.observer = &keyObserver{log: b.log, metrics: b.metrics, label: b.keyLabels()}
	keys, err := b.keyringKeys(ctx)
	if err != nil {
		return err
	}
	b.buildCache()
	var defaults *keyring.Defaults

	if path := b.cfg.Encryption.BucketDefaultsFile; path != "" {
		if defaults, err = keyring.OpenDefaults(path, time.Now); err != nil {
			return err
		}
	}

	b.keys, err = keyring.New(keyring.Config{
		Keys: keys, Rules: buildRules(b.cfg.Encryption.Rules), Cache: b.cache,
		RevocationProbe: b.cfg.DEKCache.RevocationProbe, OutageWait: b.cfg.DEKCache.OutageWait,
		LiteralKeys: b.cfg.Origin.Keys == config.LiteralKeys,
		Observer:    b.observer, Auditor: auditor, Defaults: defaults,
	})
	if err != nil {
		return err
	}

	b.warnOfTwins()
	b.warnOfUnread()
	b.measureKeys()
	return nil
}

// keyringKeys opens the keys of the configuration, and then the keys in
// also_known_as.
func (b *backend) keyringKeys(ctx context.Context) ([]keyring.Key, error) {
	var keys, earlier []keyring.Key
	opened := b.openKeys(ctx)
	for i, k := range b.cfg.Keys {
		key := keyring.Key{
			Name:         k.Name,
			Provider:     string(k.Provider),
			Timeout:      kms.AttemptsPerCall * k.Timeout,
			ProbeTimeout: k.Timeout,
		}

		wrapper, err := opened[i].wrapper, opened[i].err
		switch failure := (*kms.Error)(nil); {
		case err == nil:
			key.Wrapper, key.Probe = b.withLimits(k, wrapper), wrapper
			b.opened = append(b.opened, openKey{k.Name, wrapper})
			b.duties = append(b.duties, func(ctx context.Context) { b.watchAlias(ctx, k, wrapper, aliasCheck) })
		case errors.As(err, &failure) && failure.Kind != kms.Invalid:
			key.Unavailable = err
		default:
			return nil, fmt.Errorf("key %s: %w", k.Name, err)
		}

		keys = append(keys, key)

		before, err := b.earlierKeys(ctx, k)
		if err != nil {
			return nil, err
		}
		earlier = append(earlier, before...)
	}

	return append(keys, earlier...), nil
}

// buildCache creates the cache of data keys and the advisor.
func (b *backend) buildCache() {
	dek := b.cfg.DEKCache
	memory := &freeing{free: debug.FreeOSMemory}
	b.cache = dekcache.New(dekcache.Config{
		Purged:     memory.purged,
		TTL:        dek.TTL,
		MaxEntries: dek.MaxEntries,
		Jitter:     dekcache.RandomJitter,
		Remember:   keyring.RememberFor,
		Now:        time.Now,
	})

	b.advisor = advisor.New(advisor.Config{
		TTL:             dek.TTL,
		Life:            dekcache.MeanLife,
		Window:          func(ttl time.Duration) time.Duration { return b.keys.Window(ttl) },
		ProbesPerSecond: func() float64 { return b.keys.ProbesPerSecond() },
		PricePer10000:   price(b.cfg.KMS.PricePer10000),
		Currency:        b.cfg.KMS.Currency,
		Now:             time.Now,
	})

	b.observer.advisor = b.advisor
}

// price converts a configured price for the advisor. A configured 0 means that
// calls are free, for which the advisor takes a negative number.
func price(configured float64) float64 {
	if configured == 0 {
		return -1
	}
	return configured
}

func buildRules(list []config.Rule) []keyring.Rule {
	rules := make([]keyring.Rule, 0, len(list))
	for _, r := range list {
		rules = append(rules, keyring.Rule{
			Buckets: r.Buckets, Prefixes: r.Prefixes, Clients: r.Clients, Key: r.Key,
			AllowPlaintext: r.PlaintextObjects == config.Allow, AskedKeys: r.AllowedKeys,
			RefuseCustomerKeys: r.CustomerKeys == config.Deny,
			ReadKeys:           r.ReadKeys,
			Reuse:              buildReuse(r.DEKReuse),
		})
	}
	return rules
}

func buildReuse(r config.DEKReuse) *keyring.Reuse {
	if r == (config.DEKReuse{}) {
		return nil
	}
	return &keyring.Reuse{MaxAge: r.MaxAge, MaxObjects: int64(r.MaxObjects), MaxBytes: int64(r.MaxBytes)}
}

package main

import (
	"context"
	"crypto/fips140"
	"errors"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/advisor"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

// backend is the store and the keys. It is all that commands without a
// server need, and the basis of the server. It does not depend on settings
// of the server.
type backend struct {
	cfg     *config.Config // from the start; see current
	log     *zap.Logger
	metrics *metrics.Metrics

	*store

	cache    *dekcache.Cache
	keys     *keyring.Keyring
	advisor  *advisor.Recorder
	observer *keyObserver
	tenants  *tenantFiles // nil without tenants_dir
	keeping  sync.Map     // by key name, the context.CancelFunc that ends keep

	inForce atomic.Pointer[config.Config] // see current
	holding sync.Mutex                    // held while keys are opened and replaced
	held    map[string]*heldKey           // by name, also those in also_known_as
	members map[string]*memberKey         // by name, the keys that others consist of
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
	if b.store, err = openStore(ctx, cfg, unixSocket, log, b.metrics); err != nil {
		return nil, err
	}
	if err := b.openKeyring(ctx, auditor); err != nil {
		return nil, err
	}
	if err := b.openTenants(); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// errFIPSOnly refuses a mode in which no object can be read or written. Without
// it the proxy would start, and fail each request.
var errFIPSOnly = errors.New("GODEBUG=fips140=only is not supported: it refuses AES-GCM with the nonces " +
	"of the object format, and MD5, which S3 needs for Content-MD5; use GODEBUG=fips140=on")

// current returns the configuration in force. Of what needs a restart, cfg is in
// force.
func (b *backend) current() *config.Config {
	if c := b.inForce.Load(); c != nil {
		return c
	}
	return b.cfg
}

func (b *backend) close() {
	if b.cache != nil {
		b.cache.Close()
	}
}

// openKeyring creates the cache and the keyring, and their metrics. A key
// that cannot be opened now does not stop the others; openLater tries it
// again.
func (b *backend) openKeyring(ctx context.Context, auditor keyring.Auditor) error {
	b.observer = &keyObserver{log: b.log, metrics: b.metrics}
	b.holding.Lock()
	defer b.holding.Unlock()
	first, err := b.prepareKeys(ctx, b.cfg)
	if err != nil {
		return err
	}
	b.useKeys(first)
	b.buildCache()
	var defaults *keyring.Defaults

	if path := b.cfg.Encryption.BucketDefaultsFile; path != "" {
		if defaults, err = keyring.OpenDefaults(path, time.Now); err != nil {
			return err
		}
	}

	b.keys, err = keyring.New(keyring.Config{
		Keys: first.keys, Rules: buildRules(b.cfg.Encryption.Rules), Cache: b.cache,
		RevocationProbe: b.cfg.DEKCache.RevocationProbe, OutageWait: b.cfg.DEKCache.OutageWait,
		LiteralKeys:   b.cfg.Origin.Keys == config.LiteralKeys,
		FormatVersion: crypt.Version(b.cfg.Encryption.FormatVersion), //nolint:gosec // 1 or 2
		Observer:      b.observer, Auditor: auditor, Defaults: defaults, MaxOpen: b.cfg.KMS.MaxOpenKeys,
		FileTenants: b.cfg.TenantsDir != "",
	})
	if err != nil {
		return err
	}

	b.warnOfTwins()
	b.warnOfUnread()
	b.measureKeys()
	return nil
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
			SealMetadata:       r.SealMetadata,
			Reuse:              buildReuse(r.DEKReuse),
			Tenants:            r.Tenants,
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

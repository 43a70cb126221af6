package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/cmekproxy/cmekproxy/internal/advisor"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// Time limits of key management that are nobody's business to tune.
const (
	kmsAttempts     = 3                      // how many attempts of full length a call has time for
	rememberRevoked = time.Second            // how long a DEK that was refused is not asked for again
	rememberOutage  = 250 * time.Millisecond // the same, of one that the KMS did not answer for
	reopenEvery     = 10 * time.Second       // how soon a key that could not be opened is tried again
	longestReopen   = 5 * time.Minute        // what that grows to for keys that were opened and do not work
	startTogether   = 8                      // how many keys are opened, and tried, at a time at the start
	measuredKeys    = 100                    // how many keys have metrics of their own
	breakerFailures = 8                      // calls without an answer, after which a KMS is left alone
	breakerOpen     = 2 * time.Second        // and for how long
)

// A DEK lives for less than the TTL: by something, so that the KMS can be asked again, and what is on its way to a slow
// client can arrive, before the TTL is over; and by something more that is drawn, so that DEKs that were fetched together
// are not fetched together again.
const (
	leastShorter  = 5                      // percent of the TTL,
	shorterMoment = 500 * time.Millisecond // and at least so long, or a quarter of the TTL
	drawnShorter  = 10                     // percent of the TTL, at most
)

func leastJitter(ttl time.Duration) time.Duration {
	return max(ttl*leastShorter/100, min(shorterMoment, ttl/4))
}

// jitter draws by how much shorter than the TTL the life of a DEK is.
func jitter(ttl time.Duration) time.Duration {
	var random [4]byte
	rand.Read(random[:])
	thousandths := int64(binary.BigEndian.Uint32(random[:]) % 1001)
	return leastJitter(ttl) + time.Duration(int64(ttl)/1000*thousandths*drawnShorter/100)
}

// remember is for how long the error of a KMS stands without asking again.
func remember(err error) time.Duration {
	switch {
	case keyring.IsRemembered(err):
		return 0
	case kms.IsRevoked(err):
		return rememberRevoked
	case kms.IsUnreachable(err), kms.IsThrottled(err):
		return rememberOutage
	default:
		return 0
	}
}

// buildKeys makes the cache and the keyring, and has both measured. A key that cannot be opened now does not keep the
// others from working: openLater goes on trying.
func (a *app) buildKeys(ctx context.Context) error {
	a.observer = &keyObserver{log: a.log, metrics: a.metrics, label: a.keyLabels()}
	var keys, earlier []keyring.Key
	open := a.openKeys(ctx)
	for i, k := range a.cfg.Keys {
		key := keyring.Key{
			Name: k.Name, Provider: string(k.Provider), Timeout: kmsAttempts * k.Timeout, ProbeTimeout: k.Timeout,
		}
		wrapper, err := open[i].wrapper, open[i].err
		switch failure := (*kms.Error)(nil); {
		case err == nil:
			key.Wrapper, key.Probe = a.weathered(k, wrapper), wrapper
			a.opened = append(a.opened, openKey{k.Name, wrapper})
			a.tended = append(a.tended, func(ctx context.Context) { a.watchAlias(ctx, k, wrapper, aliasCheck) })
		case errors.As(err, &failure) && failure.Kind != kms.Invalid:
			key.Unavailable = err
		default:
			return fmt.Errorf("key %s: %w", k.Name, err)
		}
		keys = append(keys, key)
		before, err := a.earlierKeys(ctx, k)
		if err != nil {
			return err
		}
		earlier = append(earlier, before...)
	}
	a.buildCache()
	var auditor keyring.Auditor
	if a.cfg.Audit.File != "" || a.cfg.Audit.Stdout {
		auditor = s3api.Trail(a.record)
	}
	var err error
	var defaults *keyring.Defaults
	if path := a.cfg.Encryption.BucketDefaultsFile; path != "" {
		if defaults, err = keyring.OpenDefaults(path, time.Now); err != nil {
			return err
		}
	}
	a.keys, err = keyring.New(keyring.Config{
		Keys: append(keys, earlier...), Rules: buildRules(a.cfg.Encryption.Rules), Cache: a.cache,
		RevocationProbe: a.cfg.DEKCache.RevocationProbe, OutageWait: a.cfg.DEKCache.OutageWait,
		LiteralKeys: a.cfg.Origin.Keys == config.LiteralKeys,
		Observer:    a.observer, Auditor: auditor, Defaults: defaults,
	})
	if err != nil {
		return err
	}
	a.tellTwins()
	a.tellUnread()
	a.measureKeys()
	return nil
}

// buildCache makes the cache of data keys, and what measures it.
func (a *app) buildCache() {
	dek := a.cfg.DEKCache
	memory := &freeing{free: debug.FreeOSMemory}
	a.cache = dekcache.New(dekcache.Config{
		Purged: memory.purged, TTL: dek.TTL, MaxEntries: dek.MaxEntries, Jitter: jitter, Remember: remember, Now: time.Now,
	})
	a.advisor = advisor.New(advisor.Config{
		TTL:             dek.TTL,
		Life:            func(ttl time.Duration) time.Duration { return ttl - leastJitter(ttl) - ttl*drawnShorter/2/100 },
		Window:          func(ttl time.Duration) time.Duration { return a.keys.Window(ttl) },
		ProbesPerSecond: func() float64 { return a.keys.ProbesPerSecond() },
		PricePer10000:   price(a.cfg.KMS.PricePer10000),
		Currency:        a.cfg.KMS.Currency,
		Now:             time.Now,
	})
	a.observer.advisor = a.advisor
}

// openedKey is a key, or why it could not be opened.
type openedKey struct {
	wrapper kms.Wrapper
	err     error
}

// openKeys opens the keys of the configuration, in its order. A few at a time:
// that some need an answer of a KMS that is away must not add up.
func (a *app) openKeys(ctx context.Context) []openedKey {
	out := make([]openedKey, len(a.cfg.Keys))
	var all errgroup.Group
	all.SetLimit(startTogether)
	for i, k := range a.cfg.Keys {
		all.Go(func() error {
			out[i].wrapper, out[i].err = buildWrapper(ctx, k, a.tellReread(k))
			return nil
		})
	}
	_ = all.Wait() // each has its own error
	return out
}

// price is as the advisor takes it, to whom 0 is no price named.
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
			AllowPlaintext: r.PlaintextObjects == config.Allow, AskedKeys: r.AllowedKeys, RefuseCustomerKeys: r.CustomerKeys == config.Deny,
			ReadKeys: r.ReadKeys,
			Reuse:    buildReuse(r.DEKReuse),
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

// weathered bounds what is asked of a KMS, and asks again what it could not answer.
func (a *app) weathered(k config.Key, w kms.Wrapper) kms.Wrapper {
	label := w.KeyID()
	if a.observer.label[k.Name] == otherKeys {
		label = otherKeys
	}
	left := a.metrics.Breaker(label)
	limits := kms.LimitConfig{MaxConcurrent: a.cfg.KMS.MaxConcurrent}
	if k.Provider != config.Local { // which has no quota that others share
		limits.PerSecond, limits.Burst = float64(a.cfg.KMS.MaxPerSecond), a.cfg.KMS.MaxPerSecond
	}
	limited := kms.Limit(w, limits)
	broken := kms.Breaker(limited, kms.BreakerConfig{
		Failures: breakerFailures, OpenFor: breakerOpen,
		OnChange: func(open bool) {
			left.Add(map[bool]float64{true: 1, false: -1}[open])
			a.log.Warn("kms circuit breaker", zap.String("kms_key", w.KeyID()), zap.Bool("open", open))
			if r, ok := w.(kms.Resetter); ok && open {
				go r.ResetConnections() // the trial is to use new ones
			}
		},
	})
	return kms.Retry(broken, kms.RetryConfig{})
}

// openKey is a key that could be opened, by its name.
type openKey struct {
	name    string
	wrapper kms.Wrapper
}

// tend does what a provider has to do while it is not asked, such as to keep a
// token alive; until ctx ends, or the key of that name is opened again.
func (a *app) tend(ctx context.Context, k openKey) {
	ctx, stop := context.WithCancel(ctx)
	if before, ok := a.tending.Swap(k.name, stop); ok {
		before.(context.CancelFunc)()
	}
	if t, ok := k.wrapper.(interface{ Run(ctx context.Context) }); ok {
		go t.Run(ctx)
	}
}

// tryKeys says at once which keys do not work.
func (a *app) tryKeys(ctx context.Context) {
	for _, k := range a.opened {
		a.tend(ctx, k)
	}
	for _, duty := range a.tended {
		go duty(ctx)
	}
	together := make(chan struct{}, startTogether)
	for _, k := range a.cfg.Keys {
		go func() {
			together <- struct{}{}
			err := a.keys.Try(ctx, k.Name)
			<-together
			if err != nil {
				a.observer.broken.Store(k.Name, true)
				a.log.Error("this key does not work; the others are served", zap.String("kms_key_name", k.Name),
					zap.String("provider", string(k.Provider)), zap.Error(err))
				a.openLater(ctx, k)
				a.tryLater(ctx, k)
				return
			}
			a.log.Info("this key works", zap.String("kms_key_name", k.Name), zap.String("provider", string(k.Provider)))
		}()
	}
}

// tryLater tries a key again that was called broken, until it works: by this or
// by any other call.
func (a *app) tryLater(ctx context.Context, k config.Key) {
	for wait := reopenEvery; ; wait = min(2*wait, longestReopen) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if _, broken := a.observer.broken.Load(k.Name); !broken || a.keys.Try(ctx, k.Name) == nil {
			return // the observer says that it works
		}
	}
}

// openLater tries again to open a key that could not be opened at the start.
func (a *app) openLater(ctx context.Context, k config.Key) {
	for a.keys.Unopened(k.Name) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(reopenEvery):
		}
		wrapper, err := buildWrapper(ctx, k, a.tellReread(k))
		if err == nil {
			err = a.keys.Provide(k.Name, a.weathered(k, wrapper), wrapper)
		}
		if err != nil {
			a.log.Warn("this key cannot be opened yet", zap.String("kms_key_name", k.Name), zap.Error(err))
			continue
		}
		a.tend(ctx, openKey{k.Name, wrapper})
		go a.watchAlias(ctx, k, wrapper, aliasCheck)
		a.tellTwins()
		a.log.Info("this key is open now", zap.String("kms_key_name", k.Name))
	}
}

// reopen opens the keys again whose secrets are others in next: a Vault token, a
// secret id, or the PIN of an HSM. One that cannot be opened so stays as it was.
func (a *app) reopen(ctx context.Context, before, next *config.Config) {
	for _, k := range next.Keys {
		i := slices.IndexFunc(before.Keys, func(old config.Key) bool { return old.Name == k.Name })
		if i < 0 || reflect.DeepEqual(before.Keys[i], k) || !reflect.DeepEqual(withoutSecrets(before.Keys[i]), withoutSecrets(k)) {
			continue
		}
		wrapper, err := buildWrapper(ctx, k, a.tellReread(k))
		if err == nil {
			err = a.keys.Provide(k.Name, a.weathered(k, wrapper), wrapper)
		}
		if err != nil {
			a.log.Error("opening a key with its new secret failed; keeping the old one", zap.String("kms_key_name", k.Name), zap.Error(err))
			continue
		}
		a.tend(ctx, openKey{k.Name, wrapper})
		a.log.Info("key opened with its new secret", zap.String("kms_key_name", k.Name))
	}
}

func withoutSecrets(k config.Key) config.Key {
	k.PIN, k.Login.Token, k.Login.AppRole.SecretID = "", "", ""
	return k
}

// keyObserver counts and logs what happens to keys.
type keyObserver struct {
	log     *zap.Logger
	metrics *metrics.Metrics
	advisor *advisor.Recorder
	label   map[string]string // of keys in metrics, by name
	broken  sync.Map          // names of keys of which it was said that they do not work
}

// KMSCall implements keyring.Observer.
func (o *keyObserver) KMSCall(ctx context.Context, key, op string, took time.Duration, err error) {
	result := "ok"
	if failure := (*kms.Error)(nil); errors.As(err, &failure) {
		result = failure.Kind.String()
	} else if err != nil {
		result = "error"
	}
	s3api.RecordKMS(ctx, took)
	o.metrics.KMS(o.label[key], op, result, took)
	if _, broken := o.broken.Load(key); err == nil && broken {
		o.broken.Delete(key)
		o.log.Info("this key works now", zap.String("kms_key_name", key), zap.String("operation", op))
	}
	if err != nil {
		o.log.Warn("kms request failed", zap.String("kms_key_name", key), zap.String("operation", op), zap.Stringer("took", took), zap.Error(err))
	}
}

// Revoked implements keyring.Observer.
func (o *keyObserver) Revoked(r keyring.Revocation) {
	if r.Part == "" {
		o.log.Warn("key revoked: its data keys are purged", zap.String("kms_key_name", r.Key), zap.Int("purged", r.Purged), zap.Error(r.Err))
		return
	}
	o.log.Warn("key revoked for some objects: their data keys are purged", zap.String("kms_key_name", r.Key), zap.String("part", r.Part),
		zap.Int("purged", r.Purged), zap.Error(r.Err))
}

// Used implements keyring.Observer.
func (o *keyObserver) Used(key string, id [32]byte, use keyring.Use) {
	switch use {
	case keyring.Created:
		o.advisor.Created(id)
	case keyring.Opened:
		o.advisor.Opened(id)
	case keyring.Released:
		o.advisor.Released(id)
	case keyring.Renewed:
		o.metrics.Lease(o.label[key], "renewed")
	case keyring.Cut:
		o.metrics.Lease(o.label[key], "cut")
	}
}

// otherKeys is the name in metrics of all keys beyond measuredKeys.
const otherKeys = "(others)"

// keyLabels returns the names of keys in metrics, by name. Each key has some 150
// time series, so that not all of hundreds of keys can have their own.
func (a *app) keyLabels() map[string]string {
	labels := make(map[string]string)
	for i, k := range a.cfg.Keys {
		label := otherKeys
		if i < measuredKeys {
			label = k.Name
		}
		labels[k.Name] = label
		for j := range k.AlsoKnownAs {
			labels[earlierKey(k, j).Name] = label
		}
	}
	return labels
}

func (a *app) measureKeys() {
	count := func(name, help string, of func(dekcache.Stats) uint64) {
		a.metrics.Counter(name, help, func() float64 { return float64(of(a.cache.Stats())) })
	}
	count("cmekproxy_dek_cache_hits_total", "Data keys found in the cache.", func(s dekcache.Stats) uint64 { return s.Hits })
	count("cmekproxy_dek_cache_misses_total", "Data keys not found in the cache, and asked of the KMS.", func(s dekcache.Stats) uint64 { return s.Misses })
	count("cmekproxy_dek_cache_joins_total", "Data keys that somebody else was asking the KMS for already.", func(s dekcache.Stats) uint64 { return s.Shared })
	count("cmekproxy_dek_cache_negative_hits_total", "Data keys that the KMS had refused, or not answered for, a moment before.", func(s dekcache.Stats) uint64 { return s.NegativeHits })
	count("cmekproxy_dek_cache_evictions_total", "Data keys dropped because the cache was full.", func(s dekcache.Stats) uint64 { return s.Evictions })

	sum := func(a, b float64) float64 { return a + b }
	most := func(a, b float64) float64 { return max(a, b) }
	for _, m := range []struct {
		name, help string
		together   func(a, b float64) float64 // of keys that share a label
		of         func(keyring.Status) float64
	}{
		{"cmekproxy_dek_cache_entries", "Data keys in the cache.", sum, func(s keyring.Status) float64 { return float64(s.DEKs) }},
		{"cmekproxy_dek_cache_oldest_seconds", "Age of the oldest data key in the cache.", most, func(s keyring.Status) float64 { return s.OldestAge.Seconds() }},
		{"cmekproxy_dek_leases", "Transfers that use a data key.", sum, func(s keyring.Status) float64 { return float64(s.Leases) }},
		{"cmekproxy_key_parts", "Parts of what the key protects that are in use and probed by themselves.", sum, func(s keyring.Status) float64 { return float64(s.Parts) }},
		{"cmekproxy_key_parts_revoked", "Parts of what the key protects that the KMS refuses.", sum, func(s keyring.Status) float64 { return float64(s.PartsRevoked) }},
		{
			"cmekproxy_revocation_window_seconds", "Longest time from the moment at which the KMS begins to refuse the key, to the last byte: now.",
			most, func(s keyring.Status) float64 { return s.Window.Seconds() },
		},
		{
			"cmekproxy_revocation_last_byte_seconds", "Time from the KMS's first answer that the key is revoked, to the last byte under it; 0 while it is not.",
			most, func(s keyring.Status) float64 { return s.LastUse.Seconds() },
		},
		{"cmekproxy_key_revoked", "1 while the KMS calls the key revoked; for several keys, how many.", sum, revokedAsNumber},
	} {
		a.metrics.ByKey(m.name, m.help, a.ofEachLabel(m.of, m.together))
	}
}

func revokedAsNumber(s keyring.Status) float64 {
	if s.State == keyring.Revoked {
		return 1
	}
	return 0
}

// ofEachLabel is a value for each label of keys.
func (a *app) ofEachLabel(of func(keyring.Status) float64, together func(a, b float64) float64) func(yield func(string, float64)) {
	return func(yield func(string, float64)) {
		values := make(map[string]float64)
		for _, s := range a.keys.Status() {
			label := a.observer.label[s.Name]
			if value, ok := values[label]; ok {
				values[label] = together(value, of(s))
			} else {
				values[label] = of(s)
			}
		}
		for label, value := range values {
			yield(label, value)
		}
	}
}

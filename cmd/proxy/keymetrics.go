package main

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/advisor"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
	"github.com/cmekproxy/cmekproxy/internal/tenant"
)

// keyObserver counts and logs events of keys.
type keyObserver struct {
	log     *zap.Logger
	metrics *metrics.Metrics
	advisor *advisor.Recorder
	labels  atomic.Pointer[map[string]string] // metric labels of keys, by name
	broken  sync.Map                          // names of keys that were logged as not working
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

	o.metrics.KMS(o.labelOf(key), op, result, took)
	if _, broken := o.broken.Load(key); err == nil && broken {
		o.broken.Delete(key)
		o.log.Info("this key works now", zap.String("kms_key_name", key), zap.String("operation", op))
	}

	if err != nil {
		o.log.Warn(
			"kms request failed",
			zap.String("kms_key_name", key),
			zap.String("operation", op),
			zap.Stringer("took", took),
			zap.Error(err),
		)
	}
}

// labelOf returns the metric label of a key. All keys of a template have the
// label of the template.
func (o *keyObserver) labelOf(key string) string {
	labels := o.labels.Load()
	if labels == nil {
		return otherKeys
	}
	if label, ok := (*labels)[key]; ok {
		return label
	}
	template, _, _ := strings.Cut(key, ":")
	return cmp.Or((*labels)[template], otherKeys) // a key that has just been removed
}

// Revoked implements keyring.Observer.
func (o *keyObserver) Revoked(r keyring.Revocation) {
	if r.Part == "" {
		o.log.Warn(
			"key revoked: its data keys are purged",
			zap.String("kms_key_name", r.Key),
			zap.Int("purged", r.Purged),
			zap.Error(r.Err),
		)
		return
	}

	o.log.Warn(
		"key revoked for some objects: their data keys are purged",
		zap.String("kms_key_name", r.Key),
		zap.String("part", r.Part),
		zap.Int("purged", r.Purged),
		zap.Error(r.Err),
	)
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
		o.metrics.Lease(o.labelOf(key), "renewed")
	case keyring.Cut:
		o.metrics.Lease(o.labelOf(key), "cut")
	}
}

// measuredKeys is the number of keys with their own metrics.
const measuredKeys = 100

// otherKeys is the metric label of all other keys.
const otherKeys = metrics.OtherNames

// keyLabels returns the metric labels of keys, by name. Each key has about
// 150 time series, so with hundreds of keys not all can have their own.
func keyLabels(keys []config.Key) map[string]string {
	labels := make(map[string]string)
	for i, k := range keys {
		label := otherKeys
		if i < measuredKeys {
			label = k.Name
		}
		labels[k.Name] = label
		for j := range k.AlsoKnownAs {
			labels[earlierKey(k, j).Name] = label
		}
	}
	labels[config.TenantKeys] = config.TenantKeys
	return labels
}

func (b *backend) measureKeys() {
	b.measureTenants()
	b.metrics.Gauge("cmekproxy_kms_max_per_second", "Limit of the calls to each KMS key in a second.",
		func() float64 { return float64(b.current().KMS.MaxPerSecond) })
	b.metrics.Gauge("cmekproxy_dek_cache_ttl_seconds", "How long a data key may be used: dek_cache.ttl.",
		func() float64 { return b.cache.TTL().Seconds() })
	count := func(name, help string, of func(dekcache.Stats) uint64) {
		b.metrics.Counter(name, help, func() float64 { return float64(of(b.cache.Stats())) })
	}

	count(
		"cmekproxy_dek_cache_hits_total",
		"Data keys found in the cache.",
		func(s dekcache.Stats) uint64 { return s.Hits },
	)
	count(
		"cmekproxy_dek_cache_misses_total",
		"Data keys not found in the cache, and requested from the KMS.",
		func(s dekcache.Stats) uint64 { return s.Misses },
	)

	count(
		"cmekproxy_dek_cache_joins_total",
		"Data keys that another request was already requesting from the KMS.",
		func(s dekcache.Stats) uint64 { return s.Shared },
	)
	count(
		"cmekproxy_dek_cache_negative_hits_total",
		"Data keys that were not requested, because the KMS had just refused them or not answered.",
		func(s dekcache.Stats) uint64 { return s.NegativeHits },
	)

	count(
		"cmekproxy_dek_cache_evictions_total",
		"Data keys dropped because the cache was full.",
		func(s dekcache.Stats) uint64 { return s.Evictions },
	)

	b.measureEachKey()
}

// measureEachKey adds the metrics that have a value for each key.
func (b *backend) measureEachKey() {
	sum := func(a, b float64) float64 { return a + b }
	most := func(a, b float64) float64 { return max(a, b) }
	for _, m := range []struct {
		name, help string
		together   func(a, b float64) float64 // combines the values of keys that share a label
		of         func(keyring.Status) float64
	}{
		{
			"cmekproxy_dek_cache_entries", "Data keys in the cache.", sum,
			func(s keyring.Status) float64 { return float64(s.DEKs) },
		},
		{
			"cmekproxy_dek_cache_oldest_seconds", "Age of the oldest data key in the cache.", most,
			func(s keyring.Status) float64 { return s.OldestAge.Seconds() },
		},
		{
			"cmekproxy_dek_leases", "Transfers that use a data key.", sum,
			func(s keyring.Status) float64 { return float64(s.Leases) },
		},
		{
			"cmekproxy_key_parts", "Parts of the objects under the key that are in use and probed separately.", sum,
			func(s keyring.Status) float64 { return float64(s.Parts) },
		},
		{
			"cmekproxy_key_parts_revoked", "Parts of the objects under the key that the KMS refuses.", sum,
			func(s keyring.Status) float64 { return float64(s.PartsRevoked) },
		},
		{
			"cmekproxy_key_template_open", "Keys of the template that are open.", sum,
			func(s keyring.Status) float64 { return float64(s.Open) },
		},
		{
			"cmekproxy_revocation_window_seconds",
			"Current upper bound of the time from the KMS's refusal of the key to the last byte under it.",
			most, func(s keyring.Status) float64 { return s.Window.Seconds() },
		},
		{
			"cmekproxy_revocation_window_stated_seconds",
			"Revocation window while the KMS answers probes: what the configuration promises.",
			most, func(s keyring.Status) float64 { return s.Stated.Seconds() },
		},
		{
			"cmekproxy_revocation_last_byte_seconds",
			"Time from the KMS's first refusal of the key to the last byte under it; 0 if it is not revoked.",
			most, func(s keyring.Status) float64 { return s.LastUse.Seconds() },
		},
		{
			"cmekproxy_key_revoked", "Number of keys with this label that the KMS reports as revoked.",
			sum, revokedAsNumber,
		},
	} {
		b.metrics.ByKey(m.name, m.help, b.ofEachLabel(always(m.of), m.together))
	}

	b.metrics.ByKey(
		"cmekproxy_kms_ca_expiry_timestamp_seconds",
		"Expiry of the first authority in the key's ca_file to expire, in Unix time; missing without a ca_file.",
		b.expiryOfAuthorities(),
	)
	b.metrics.ByKey(
		"cmekproxy_key_usable",
		"1 if the KMS lets the proxy use the key, or all keys with this label, 0 if not; "+
			"missing before the first use, and for templates.",
		b.ofEachLabel(usableAsNumber, lower),
	)
}

func (b *backend) measureTenants() {
	of := func(value func(s *tenant.State) int) func() float64 {
		return func() float64 {
			if b.tenants == nil {
				return 0
			}
			s := b.tenants.state.Load()
			if s == nil {
				return 0
			}
			return float64(value(s))
		}
	}

	b.metrics.Gauge("cmekproxy_tenants", "Tenants of tenants_dir that are served.",
		of(func(s *tenant.State) int { return len(s.Tenants) }))
	b.metrics.Gauge("cmekproxy_tenant_file_errors", "Files in tenants_dir with an error.",
		of(func(s *tenant.State) int { return len(s.Problems) }))
	b.metrics.Gauge("cmekproxy_tenants_dir_failed",
		"1 if tenants_dir could not be read the last time, so that its changes are not seen.",
		of(func(s *tenant.State) int {
			if s.Err != nil {
				return 1
			}
			return 0
		}))
}

func revokedAsNumber(s keyring.Status) float64 {
	if s.State == keyring.Revoked {
		return 1
	}
	return 0
}

// usableAsNumber returns 1 or 0, and false if that is unknown.
func usableAsNumber(s keyring.Status) (float64, bool) {
	switch s.State {
	case keyring.Usable:
		return 1, true
	case keyring.Revoked, keyring.Unreachable, keyring.Unopened:
		return 0, true
	default:
		return 0, false
	}
}

// always returns of, whose value is always known.
func always(of func(keyring.Status) float64) func(keyring.Status) (float64, bool) {
	return func(s keyring.Status) (float64, bool) { return of(s), true }
}

// ofEachLabel returns a value for each label of keys. of returns false for a
// key without a value.
func (b *backend) ofEachLabel(
	of func(keyring.Status) (float64, bool),
	together func(a, b float64) float64,
) func(yield func(string, float64)) {
	return func(yield func(string, float64)) {
		values := labelValues{b.observer, together, make(map[string]float64)}
		for _, s := range b.keys.Status() {
			if value, known := of(s); known {
				values.add(s.Name, value)
			}
		}
		values.each(yield)
	}
}

// labelValues are the values of keys by label. Keys that share a label have one
// together.
type labelValues struct {
	observer *keyObserver
	together func(a, b float64) float64
	values   map[string]float64
}

func (l labelValues) add(key string, value float64) {
	label := l.observer.labelOf(key)
	if before, ok := l.values[label]; ok {
		value = l.together(before, value)
	}
	l.values[label] = value
}

func (l labelValues) each(yield func(string, float64)) {
	for label, value := range l.values {
		yield(label, value)
	}
}

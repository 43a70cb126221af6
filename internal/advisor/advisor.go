// Package advisor estimates the cost of different TTLs of data keys (DEKs)
// from the actual accesses.
//
// A longer TTL needs fewer calls to the key management service (KMS). With
// a shorter TTL, a revocation takes effect sooner. The cost of a TTL
// depends on how often each object is read, which is hard to know.
// Therefore the package simulates a cache for each TTL in a short list,
// alongside the real cache, and counts how often each would have asked the
// KMS.
//
// The simulated caches follow the rule of the real one: a DEK may be used
// for the TTL (or Config.Life of it), counted from when the KMS was asked.
// Using a DEK does not extend this time, and a stream that lasts longer
// asks again. The simulated caches have unlimited space and the KMS answers
// at once, so evictions, purges and refusals are not simulated.
//
// Only a sample of the blobs (wrapped DEKs) is simulated, chosen by a hash
// of their ids as in SHARDS (Waldspurger et al., "Efficient MRC
// Construction with SHARDS", FAST 2015,
// https://www.usenix.org/conference/fast15/technical-sessions/presentation/waldspurger).
// This limits memory for any traffic. If there are few blobs, all are in
// the sample and the results are exact. The hash has a random key, so
// no one can choose object names that are in the sample or outside it.
// Neither names nor ids are stored.
//
//	advisor.go  Recorder
//	sample.go   the simulated caches
//	diary.go    counts of the last 24 hours
//	report.go   Report
//	handler.go  serving the report
//	page.go     the report as a web page
//	plot.go     the plot on that page
//
// There is no example: its result is a page to look at, which cmekproxy dev
// serves.
package advisor

import (
	"cmp"
	"hash/maphash"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of Config.
const (
	// DefaultPricePer10000 is the price of AWS KMS in most regions. It
	// ignores the 20,000 free calls per month
	// (https://aws.amazon.com/kms/pricing/).
	DefaultPricePer10000 = 0.03
	DefaultCurrency      = "USD"
)

// Config configures a Recorder.
type Config struct {
	// TTL is the current TTL. 0 means no cache.
	TTL time.Duration
	// Life returns the mean lifetime of a DEK for a TTL. It must be 0 for 0
	// and positive otherwise. Nil means the TTL itself.
	Life func(ttl time.Duration) time.Duration
	// Window returns how long a revocation takes with a TTL. It is called
	// for each TTL in the report, including 0. Nil means the TTL itself.
	Window func(ttl time.Duration) time.Duration
	// ProbesPerSecond returns the rate of KMS calls that detect
	// revocations, which does not depend on the TTL. Nil means 0.
	ProbesPerSecond func() float64
	// PricePer10000 is the price of 10,000 KMS calls. 0 means
	// DefaultPricePer10000; a negative price means that calls are free.
	PricePer10000 float64
	// Currency is the currency of the price. Empty means DefaultCurrency.
	Currency string
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// Recorder records uses of DEKs and creates the Report. It is safe for
// concurrent use. Create one with New.
//
// Each Opened or Created must be followed by one Released with the same id.
// Between the two there is a stream, which counts as continuous use.
type Recorder struct {
	cfg   Config
	start time.Time
	hash  func(id [32]byte) uint64
	price atomic.Pointer[price]

	// Counts of all blobs, not only of the sample.
	accesses, creates atomic.Uint64

	// Copies of sample.tracked and of the time of the diary's next page,
	// readable without the lock.
	tracked atomic.Int32
	due     atomic.Int64

	mu     sync.Mutex
	sample sample
	diary  diary
	ttl    time.Duration // current TTL
	since  tally         // when the simulation of ttls[own] started
}

// New returns an empty Recorder.
func New(cfg Config) *Recorder {
	if cfg.Window == nil {
		cfg.Window = func(ttl time.Duration) time.Duration { return ttl }
	}
	if cfg.Life == nil {
		cfg.Life = func(ttl time.Duration) time.Duration { return ttl }
	}

	if cfg.ProbesPerSecond == nil {
		cfg.ProbesPerSecond = func() float64 { return 0 }
	}

	if cfg.Now == nil {
		cfg.Now = time.Now
	}

	seed := maphash.MakeSeed()
	r := &Recorder{
		cfg:    cfg,
		start:  cfg.Now(),
		hash:   func(id [32]byte) uint64 { return maphash.Comparable(seed, id) },
		sample: newSample(cfg.Life),
	}
	r.SetPrice(cfg.PricePer10000, cfg.Currency)

	r.SetTTL(cfg.TTL)
	return r
}

// Opened records that a stream needs the DEK of a blob, from the cache or
// the KMS.
func (r *Recorder) Opened(id [32]byte) {
	h := r.hash(id)
	if r.aside(h) {
		r.accesses.Add(1)
		return
	}

	r.mu.Lock()
	defer r.mu.Unlock()

	now := r.advance()
	r.accesses.Add(1)
	r.sample.open(h, now)
	r.tracked.Store(r.sample.tracked)
}

// Created records that the KMS generated or wrapped the DEK of a new blob,
// for a stream that writes. This costs one call with any TTL.
func (r *Recorder) Created(id [32]byte) {
	h := r.hash(id)
	if r.aside(h) {
		r.creates.Add(1)
		return
	}

	r.mu.Lock()
	defer r.mu.Unlock()

	now := r.advance()
	r.creates.Add(1)
	r.sample.create(h, now)
	r.tracked.Store(r.sample.tracked)
}

// Released records the end of a stream.
func (r *Recorder) Released(id [32]byte) {
	h := r.hash(id)
	if level(h) < r.tracked.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sample.release(h, r.advance())
}

// SetPrice changes Config.PricePer10000 and Config.Currency.
func (r *Recorder) SetPrice(per10000 float64, currency string) {
	if per10000 == 0 {
		per10000 = DefaultPricePer10000
	}
	r.price.Store(&price{max(per10000, 0), cmp.Or(currency, DefaultCurrency)})
}

// price is the price of 10,000 calls.
type price struct {
	per10000 float64
	currency string
}

// SetTTL changes the current TTL. If it is not in the list, its simulation
// starts now.
func (r *Recorder) SetTTL(ttl time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.advance()
	r.ttl = max(ttl, 0)
	if r.sample.choose(r.ttl, now) {
		r.since = r.tally(now)
	}
}

// aside reports, without the lock, that a blob is not in the sample and
// that no page of the diary is due. Then the access is only counted.
func (r *Recorder) aside(h uint64) bool {
	return level(h) < r.tracked.Load() && int64(r.cfg.Now().Sub(r.start)) < r.due.Load()
}

// level returns the level of a hash. Half of all blobs have level 1 or
// more, a quarter 2 or more, and so on.
func level(h uint64) int32 { return int32(bits.LeadingZeros64(h)) } //nolint:gosec // at most 64

// advance updates the diary, and returns the time since the start. The
// caller holds r.mu.
func (r *Recorder) advance() time.Duration {
	now := r.cfg.Now().Sub(r.start)
	for at := r.diary.next(); at <= now; at = r.diary.next() {
		r.sample.tidy(at)
		r.diary.begin(r.tally(at))
	}

	r.due.Store(int64(r.diary.next()))
	r.tracked.Store(r.sample.tracked)
	return now
}

// tally returns all counts so far. The caller holds r.mu.
func (r *Recorder) tally(at time.Duration) tally {
	return tally{at: at, accesses: r.accesses.Load(), creates: r.creates.Load(), asked: r.sample.asked}
}

// Package advisor tells what each TTL of the data keys (DEKs) would cost, from
// the accesses that are really made.
//
// A longer TTL asks the key management service (KMS) less often; a shorter one
// makes a revocation bite sooner. What a TTL costs depends on how often which
// object is read, which nobody knows by heart. So the package runs, beside the
// real cache, one simulated cache for each TTL of a short list, and counts how
// often each would have asked the KMS. All of them follow the rule of the real
// one: a DEK may be used for the TTL (or Config.Life of it), counted from when
// the KMS was asked, and no use makes it longer; a stream that lasts longer
// asks again. They have room for everything and the KMS answers at once, so
// evictions, purges and refusals are not simulated.
//
// The simulation runs for a sample of the blobs (a blob is a wrapped DEK),
// chosen by a hash of their ids as in SHARDS (Waldspurger et al., "Efficient
// MRC Construction with SHARDS", FAST 2015,
// https://www.usenix.org/conference/fast15/technical-sessions/presentation/waldspurger).
// So memory is bounded whatever the traffic, and while there are few blobs,
// all are in the sample and the figures are exact. The hash is keyed by
// chance, so that nobody outside can choose object names that are, or are not,
// in the sample. Neither names nor ids are kept.
package advisor

import (
	"hash/maphash"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of Config.
const (
	// DefaultPricePer10000 is what AWS KMS takes in most regions, without the
	// first 20,000 calls of a month, which are free
	// (https://aws.amazon.com/kms/pricing/).
	DefaultPricePer10000 = 0.03
	DefaultCurrency      = "USD"
)

// Config configures a Recorder.
type Config struct {
	// TTL is the TTL in force. 0: no cache.
	TTL time.Duration
	// Life tells how long a DEK lives under a TTL, on average, where a cache
	// spreads its lives below the TTL; 0 of 0, else above 0. Nil: the TTL.
	Life func(ttl time.Duration) time.Duration
	// Window tells how long a revocation takes to bite with a TTL. It is
	// called with each TTL of the report, also with 0. Nil: as long as the
	// TTL.
	Window func(ttl time.Duration) time.Duration
	// ProbesPerSecond tells how many KMS calls are made whatever the TTL, to
	// find out about revocations. Nil: none.
	ProbesPerSecond func() float64
	// PricePer10000 is the price of 10,000 KMS calls. 0: DefaultPricePer10000;
	// below 0: they cost nothing.
	PricePer10000 float64
	// Currency is the label of the price. Empty: DefaultCurrency.
	Currency string
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Recorder is told of the uses of DEKs, and makes the Report. It is safe for
// concurrent use. Make one with New.
//
// Each Opened and each Created is to be followed by one Released of the same
// id: what lies between is a stream, and counts as use without a pause.
type Recorder struct {
	cfg   Config
	start time.Time
	hash  func(id [32]byte) uint64

	// What is counted of every blob, not of the sample only.
	accesses, creates atomic.Uint64

	// Copies of sample.tracked and of when the next page of the diary is due,
	// to be read without the lock.
	tracked atomic.Int32
	due     atomic.Int64

	mu     sync.Mutex
	sample sample
	diary  diary
	ttl    time.Duration // in force
	since  tally         // when the simulation of ttls[own] began
}

// New returns a Recorder that has seen nothing.
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

	switch {
	case cfg.PricePer10000 == 0:
		cfg.PricePer10000 = DefaultPricePer10000
	case cfg.PricePer10000 < 0:
		cfg.PricePer10000 = 0
	}

	if cfg.Currency == "" {
		cfg.Currency = DefaultCurrency
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

	r.SetTTL(cfg.TTL)
	return r
}

// Opened says that a stream wants the DEK of the blob id now, from the cache
// or the KMS.
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

// Created says that the KMS made or wrapped the DEK of the new blob id now,
// for a stream that writes. It costs one call whatever the TTL.
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

// Released says that a stream has come to its end.
func (r *Recorder) Released(id [32]byte) {
	h := r.hash(id)
	if level(h) < r.tracked.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sample.release(h, r.advance())
}

// SetTTL says that another TTL is in force from now on. If it is not on the
// list, its simulation begins now.
func (r *Recorder) SetTTL(ttl time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.advance()
	r.ttl = max(ttl, 0)
	if r.sample.choose(r.ttl, now) {
		r.since = r.tally(now)
	}
}

// aside reports, without the lock, that a blob of this hash is not in the
// sample, and that no page of the diary is due: then there is nothing to do
// but to count.
func (r *Recorder) aside(h uint64) bool {
	return level(h) < r.tracked.Load() && int64(r.cfg.Now().Sub(r.start)) < r.due.Load()
}

// level of a hash: half of all blobs are of level 1 or more, a quarter of 2 or
// more, and so on.
func level(h uint64) int32 { return int32(bits.LeadingZeros64(h)) } //nolint:gosec // at most 64

// advance brings the diary up to the present, which it returns as the time
// since the start. The caller holds r.mu.
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

// tally is all that was counted so far. The caller holds r.mu.
func (r *Recorder) tally(at time.Duration) tally {
	return tally{at: at, accesses: r.accesses.Load(), creates: r.creates.Load(), asked: r.sample.asked}
}

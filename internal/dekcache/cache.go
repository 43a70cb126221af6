// Package dekcache caches unwrapped data keys (DEKs) for a limited time.
//
// A DEK can be used for at most the TTL, counted from before the request
// that fetched it was sent. Using a DEK does not extend this time. When a
// DEK leaves the cache for any reason, it is overwritten with zeros, and an
// expired DEK is overwritten on time rather than at the next access. A
// purge or a shorter TTL applies to cached DEKs, to DEKs that were handed
// out (through their Term), and to fetches in progress.
//
// The DEKs of a KMS key are divided into groups, which can be purged
// separately. A KMS may refuse some uses of a key, such as those of an
// older version, and allow the others.
//
// The package does not depend on any key management service: a fetch is a
// function, and a key id is a string.
//
//	cache.go   Cache: getting, putting, purging
//	flight.go  fetches, and the callers that wait for them
//	term.go    Term: how long a DEK may be used
//	expiry.go  the cached DEKs, and wiping them on time
//	jitter.go  DEK lifetimes
package dekcache

import (
	"bytes"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Defaults of Config.
const (
	DefaultTTL        = 5 * time.Minute
	DefaultMaxEntries = 100_000
)

// maxFailures limits the remembered failures. They are stored apart from
// the DEKs, so that requests for revoked objects cannot evict DEKs in use.
const maxFailures = 4096

var (
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("dekcache: closed")
	// ErrTooLate is returned if a fetch took longer than the TTL: the DEK
	// has already expired.
	ErrTooLate = errors.New("dekcache: the DEK came after the end of its time")
	// ErrPurged is returned if the key was purged during several fetches in
	// a row.
	ErrPurged = errors.New("dekcache: purged while fetching")
)

// ID identifies a wrapped DEK. It is a hash of provider, key id, encryption
// context and wrapped DEK, and must be unique.
type ID [32]byte

// Group identifies DEKs that are purged together: all DEKs of a KMS key, or
// some of them. The cache never removes a group, so their number must be
// bounded.
type Group struct {
	KeyID string
	Part  int // a number chosen by the caller; 0 if the key has no parts
}

// Config configures a Cache.
type Config struct {
	// TTL is how long a DEK may be used, counted from before the request
	// that fetched it. 0 means DefaultTTL. See SetTTL.
	TTL time.Duration
	// MaxEntries is the maximum number of cached DEKs. Beyond it, the least
	// recently used DEK is evicted. 0 means DefaultMaxEntries.
	MaxEntries int
	// Jitter returns how much shorter than the TTL the lifetime of one DEK
	// is, so that DEKs that were fetched together do not expire together.
	// The result must be from 0 to less than the TTL. Nil means no jitter.
	Jitter func(ttl time.Duration) time.Duration
	// Remember returns how long the error of a fetch is returned to other
	// callers without a new fetch. It must not call the cache. Nil means 0.
	Remember func(error) time.Duration
	// Purged is called in a new goroutine after each purge. It may be nil.
	Purged func()
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// Cache is a cache of DEKs. It is safe for concurrent use. Create one with
// New, and call Close at the end.
type Cache struct {
	cfg      Config
	ttlNanos atomic.Int64            // nanoseconds
	limits   atomic.Pointer[[]limit] // limits from earlier TTL changes; nil for none

	mu       sync.Mutex
	closed   bool
	entries  *simplelru.LRU[ID, *cachedDEK]
	byExpiry expiryHeap
	timer    *time.Timer // fires at the expiry of byExpiry[0]; nil if none exists
	groups   map[Group]*groupState
	purges   uint64            // number of purges so far; each purge has a number
	purged   map[string]uint64 // number of the last purge of each whole KMS key, by key id
	cleared  uint64            // number of the last purge of all keys
	flights  map[flightID]*flight
	failures *simplelru.LRU[ID, failure]
	counters Stats

	running sync.WaitGroup // counts flights
}

// Entry is a DEK handed out by the cache.
type Entry struct {
	DEK  []byte // a copy that the caller owns and must wipe
	Term        // how long the DEK may be used
	// Hit is set if the cache answered without a fetch, with a DEK or a
	// remembered error.
	Hit bool
}

// Stats has counters since New, and the state of the cache.
type Stats struct {
	Hits         uint64 // answers from the cache
	Misses       uint64 // fetches started
	Shared       uint64 // answers from a fetch that another caller had started
	NegativeHits uint64 // answers with a remembered failure
	Evictions    uint64 // DEKs removed for lack of space
	Expirations  uint64 // DEKs removed because they expired
	Purges       uint64 // DEKs removed by purges
	Entries      int    // cached DEKs
	// OldestAge is the time since the request for the oldest cached DEK was
	// sent; 0 if none exists.
	OldestAge time.Duration
}

// Holding describes the cached DEKs of one KMS key.
type Holding struct {
	Entries   int
	OldestAge time.Duration // see Stats
}

// New returns an empty cache.
func New(cfg Config) *Cache {
	if cfg.TTL <= 0 {
		cfg.TTL = DefaultTTL
	}
	if cfg.MaxEntries <= 0 {
		cfg.MaxEntries = DefaultMaxEntries
	}

	if cfg.Jitter == nil {
		cfg.Jitter = func(time.Duration) time.Duration { return 0 }
	}
	if cfg.Remember == nil {
		cfg.Remember = func(error) time.Duration { return 0 }
	}

	if cfg.Now == nil {
		cfg.Now = time.Now
	}

	c := &Cache{
		cfg: cfg, groups: make(map[Group]*groupState), purged: make(map[string]uint64),
		flights: make(map[flightID]*flight),
	}

	c.ttlNanos.Store(int64(cfg.TTL))
	// NewLRU fails only for sizes below one.
	c.entries, _ = simplelru.NewLRU(cfg.MaxEntries, c.wipeEvicted)
	c.failures, _ = simplelru.NewLRU[ID, failure](min(cfg.MaxEntries, maxFailures), nil)
	return c
}

// Now returns the time of the cache's clock.
func (c *Cache) Now() time.Time { return c.cfg.Now() }

// TTL returns the maximum time that a DEK may be used, counted from before
// the request that fetched it.
func (c *Cache) TTL() time.Duration { return time.Duration(c.ttlNanos.Load()) }

// SetTTL changes the TTL. A shorter TTL applies to all DEKs at once,
// including those handed out. A longer TTL applies only to DEKs fetched
// from now on.
func (c *Cache) SetTTL(ttl time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()

	now, before := c.cfg.Now(), c.TTL()
	if ttl == before {
		return
	}

	limits := []limit{{now, min(ttl, before)}}
	if old := c.limits.Load(); old != nil {
		for _, l := range *old {
			if now.Sub(l.before) < l.ttl { // otherwise all DEKs under this limit have expired
				limits = append(limits, l)
			}
		}
	}

	c.limits.Store(&limits)
	c.ttlNanos.Store(int64(ttl))
	heap.Init(&c.byExpiry) // limits can change the order of expiry
	c.expireBy(now)

	for _, g := range c.groups {
		g.watches.check()
	}
}

// Resize changes the maximum number of cached DEKs.
func (c *Cache) Resize(maxEntries int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counters.Evictions += uint64(c.entries.Resize(maxEntries)) //nolint:gosec // a number of DEKs
	c.schedule()
}

// Get returns the DEK of id, which belongs to the group g. If it is not
// cached, Get calls fetch, and concurrent callers for the same id share
// that call. fetch runs with the values of one caller's ctx but is not
// canceled with it, so it should have its own timeout; Close cancels it. If
// a caller's ctx ends, Get returns its error, and the fetch continues for
// the others. The cache takes ownership of the DEK that fetch returns. All
// waiting callers get an error of fetch unchanged.
func (c *Cache) Get(ctx context.Context, id ID, g Group, fetch func(context.Context) ([]byte, error)) (Entry, error) {
	for range 3 {
		e, err := c.getOnce(ctx, id, g, fetch)
		if !errors.Is(err, errStale) {
			return e, err
		}
	}
	return Entry{}, ErrPurged
}

func (c *Cache) getOnce(
	ctx context.Context, id ID, g Group, fetch func(context.Context) ([]byte, error),
) (Entry, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return Entry{}, ErrClosed
	}
	if e, ok := c.entries.Get(id); ok {
		switch {
		case !e.InForce():
			c.remove(e, &c.counters.Expirations)
		case e.group.Group == g: // otherwise a purge of g would not reach this DEK
			c.counters.Hits++
			out := Entry{DEK: bytes.Clone(e.dek), Term: e.Term, Hit: true}
			c.mu.Unlock()
			return out, nil
		}
	}

	if f, ok := c.failures.Get(id); ok {
		if c.cfg.Now().Before(f.until) {
			c.counters.NegativeHits++
			c.mu.Unlock()
			return Entry{Hit: true}, f.err
		}
		c.failures.Remove(id)
	}

	f := c.flights[flightID{id, g}]
	if f == nil {
		c.counters.Misses++
		f = c.startFlight(ctx, id, g, fetch)
	} else {
		c.counters.Shared++
	}

	f.waiting++
	c.mu.Unlock()
	return c.wait(ctx, f)
}

// Peek returns the DEK of id if it is cached and in force. It does not
// fetch, and does not count as a use for eviction.
func (c *Cache) Peek(id ID, g Group) (Entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries.Peek(id)
	if c.closed || !ok || e.group.Group != g || !e.InForce() {
		return Entry{}, false
	}
	return Entry{DEK: bytes.Clone(e.dek), Term: e.Term, Hit: true}, true
}

// Mark is the time before a KMS request that is not made through Get, such
// as one that generates a DEK.
type Mark struct{ term Term }

// Mark returns the current time for a request that is about to be sent.
func (c *Cache) Mark() Mark {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Mark{c.term()}
}

// Put caches a copy of the DEK returned by the request that m was taken
// for, unless its group was purged since. It returns the DEK as Get would.
func (c *Cache) Put(id ID, g Group, m Mark, dek []byte) Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	term := m.term
	term.group = c.group(g)
	c.insert(id, term, bytes.Clone(dek))
	return Entry{DEK: bytes.Clone(dek), Term: term}
}

// Purge removes all DEKs and remembered failures of KMS keys, and ends the
// Term of DEKs that were handed out. Fetches in progress are repeated. It
// returns the number of DEKs that were cached.
func (c *Cache) Purge(keyIDs ...string) int {
	c.mu.Lock()
	defer c.mu.Unlock()

	c.purges++
	named := make(map[string]bool, len(keyIDs))
	for _, id := range keyIDs {
		c.purged[id], named[id] = c.purges, true
	}
	return c.purgeMatching(func(g Group) bool { return named[g.KeyID] })
}

// PurgeGroup purges one group.
func (c *Cache) PurgeGroup(g Group) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.purges++
	c.group(g)
	return c.purgeMatching(func(other Group) bool { return other == g })
}

// PurgeAll purges all keys.
func (c *Cache) PurgeAll() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.purges++
	c.cleared = c.purges
	return c.purgeMatching(func(Group) bool { return true })
}

// Forget removes all DEKs of a KMS key, and what the cache keeps about the
// key itself, so that keys may come and go. No DEK of the key may be handed
// out at that time, and none may be about to be Put. The result of a fetch
// that is still in progress is dropped.
func (c *Cache) Forget(keyID string) {
	c.mu.Lock()
	defer c.mu.Unlock()

	c.purges++
	entries, flights := 0, 0
	for name, g := range c.groups {
		if name.KeyID == keyID {
			g.purged.Store(c.purges)
			entries += g.entries
			flights += g.flights
		}
	}

	if entries > 0 {
		var old []*cachedDEK
		for _, e := range c.byExpiry { // removing one moves others
			if e.group.KeyID == keyID {
				old = append(old, e)
			}
		}
		for _, e := range old {
			c.remove(e, &c.counters.Purges)
		}
	}

	for id, f := range c.flights {
		if f.term.group.KeyID == keyID {
			delete(c.flights, id)
		}
	}

	if flights > 0 { // their results are compared with purged
		return
	}
	maps.DeleteFunc(c.groups, func(name Group, _ *groupState) bool { return name.KeyID == keyID })
	delete(c.purged, keyID)
}

// ForgetFailures removes the remembered failures of a KMS key.
func (c *Cache) ForgetFailures(keyID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removeFailures(func(g Group) bool { return g.KeyID == keyID })
}

// ForgetGroupFailures removes the remembered failures of a group.
func (c *Cache) ForgetGroupFailures(g Group) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removeFailures(func(other Group) bool { return other == g })
}

// Busy reports whether a group has cached DEKs or fetches in progress.
func (c *Cache) Busy(g Group) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.groups[g]
	return known != nil && known.entries+known.flights > 0
}

// Holdings describes the cached DEKs of each KMS key, by key id. It visits
// every cached DEK.
func (c *Cache) Holdings() map[string]Holding {
	c.mu.Lock()
	defer c.mu.Unlock()

	now := c.cfg.Now()
	out := make(map[string]Holding)

	for _, e := range c.byExpiry {
		h := out[e.group.KeyID]
		out[e.group.KeyID] = Holding{h.Entries + 1, max(h.OldestAge, now.Sub(e.sent))}
	}

	return out
}

// Stats returns the statistics. It visits every cached DEK.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()

	s := c.counters
	s.Entries = c.entries.Len()
	now := c.cfg.Now()

	for _, e := range c.byExpiry { // with jitter, the first to expire need not be the oldest
		s.OldestAge = max(s.OldestAge, now.Sub(e.sent))
	}

	return s
}

// Close purges all keys, cancels the fetches in progress and waits for
// them. Later calls of Get return ErrClosed.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	c.purges++
	c.cleared = c.purges
	c.purgeMatching(func(Group) bool { return true })
	c.schedule()
	c.mu.Unlock()

	c.running.Wait()
}

// failure is the remembered error of a fetch.
type failure struct {
	group Group
	err   error
	until time.Time
}

// purgeMatching purges the groups that match. The caller holds c.mu and has
// incremented c.purges.
func (c *Cache) purgeMatching(match func(Group) bool) int {
	before := c.counters.Purges
	for name, g := range c.groups {
		if match(name) {
			g.purged.Store(c.purges)
			g.watches.check()
		}
	}

	for id, f := range c.flights {
		if match(f.term.group.Group) {
			delete(c.flights, id) // later callers start a new fetch
			if c.closed {
				f.cancel()
			}
		}
	}

	for _, e := range c.entries.Values() {
		if match(e.group.Group) {
			c.remove(e, &c.counters.Purges)
		}
	}

	c.removeFailures(match)
	if c.cfg.Purged != nil && !c.closed {
		go c.cfg.Purged()
	}

	return int(c.counters.Purges - before) //nolint:gosec // at most MaxEntries
}

func (c *Cache) removeFailures(match func(Group) bool) {
	for _, id := range c.failures.Keys() {
		if f, ok := c.failures.Peek(id); ok && match(f.group) {
			c.failures.Remove(id)
		}
	}
}

// errStale is the result of a fetch if the group was purged after the
// request was sent. The answer may be older than a revocation.
var errStale = errors.New("purged")

// panicError returns the error for a fetch that panicked. A panic in the
// fetch's goroutine would end the process. The panic's text is dropped
// because it may contain a DEK.
func panicError(v any) error { return fmt.Errorf("dekcache: fetch panicked (%T)", v) }

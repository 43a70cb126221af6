// Package dekcache keeps unwrapped data keys (DEKs) for a bounded time.
//
// The bound is the point of the package: a DEK is usable for at most the TTL
// from the moment before the request that fetched it was sent, and no use
// makes it longer. What leaves the cache, for whatever reason, is overwritten
// with zeros, at its time and not at the next access. A purge, and a TTL that
// is made shorter, take effect on DEKs in the cache, on those handed out (by
// their Term), and on fetches under way.
//
// The DEKs of a KMS key are in groups, each of which can be purged by itself:
// a KMS may refuse a part of what a key protects, such as what an older
// version of it has wrapped.
//
// The package knows nothing of key management services: a fetch is a function,
// and a key id a string.
//
//	cache.go   Cache: getting, putting, purging
//	flight.go  fetches, and those who wait for them
//	term.go    Term: how long a DEK may be used
//	expiry.go  the DEKs in the cache, and wiping them in time
package dekcache

import (
	"bytes"
	"container/heap"
	"context"
	"errors"
	"fmt"
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

// maxFailures bounds the remembered failures. They are apart from the DEKs, so
// that a flood of requests for revoked objects does not push out DEKs in use.
const maxFailures = 4096

var (
	// ErrClosed says that the cache was closed.
	ErrClosed = errors.New("dekcache: closed")
	// ErrTooLate says that a fetch took longer than the TTL, so that its
	// answer is of no use.
	ErrTooLate = errors.New("dekcache: the DEK came after the end of its time")
	// ErrPurged says that the key was purged during each of several fetches in
	// a row.
	ErrPurged = errors.New("dekcache: purged while fetching")
)

// ID names a wrapped DEK: a hash over provider, key id, encryption context and
// wrapped DEK, so that no two of them share one.
type ID [32]byte

// Group names DEKs that are purged together: those of a KMS key, or a part of
// them. Groups are kept for ever, so that their number must be bounded.
type Group struct {
	KeyID string
	Part  int // of the DEKs of the key; 0 where there are no parts
}

// Config configures a Cache.
type Config struct {
	// TTL is how long a DEK may be used, from before the request that fetched
	// it. 0: DefaultTTL. See SetTTL.
	TTL time.Duration
	// MaxEntries is how many DEKs are kept; beyond, the least recently used
	// one goes. 0: DefaultMaxEntries.
	MaxEntries int
	// Jitter returns by how much shorter than the TTL the life of one DEK is
	// to be, so that DEKs that were fetched together are not fetched together
	// again; it must be less than the TTL, and not negative. Nil: by nothing.
	Jitter func(ttl time.Duration) time.Duration
	// Remember returns how long the error of a fetch stands as the answer to
	// whoever asks for the same DEK, without another fetch. It must not call
	// the cache. Nil: not at all.
	Remember func(error) time.Duration
	// Purged, if not nil, is called after each purge, in a goroutine of its
	// own.
	Purged func()
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Cache is safe for concurrent use. Make one with New, and Close it.
type Cache struct {
	cfg      Config
	ttlNanos atomic.Int64            // nanoseconds
	limits   atomic.Pointer[[]limit] // from changes of the TTL; nil for none

	mu       sync.Mutex
	closed   bool
	entries  *simplelru.LRU[ID, *cachedDEK]
	byExpiry expiryHeap
	timer    *time.Timer // at the expiry of byExpiry[0]; nil while there is none
	groups   map[Group]*groupState
	purges   uint64            // how many there were; each has a number
	purged   map[string]uint64 // the last purge of a KMS key as a whole, by its id
	cleared  uint64            // the last purge of everything
	flights  map[flightID]*flight
	failures *simplelru.LRU[ID, failure]
	counters Stats

	running sync.WaitGroup // flights
}

// Entry is a DEK as handed out.
type Entry struct {
	DEK  []byte // the caller's own copy, to be wiped by the caller
	Term        // how long it may be used
	Hit  bool   // from the cache, without a fetch by anyone; true with an error that is remembered too
}

// Stats is the cache's counters, since New, and its state.
type Stats struct {
	Hits         uint64        // answered from the cache
	Misses       uint64        // fetches started
	Shared       uint64        // answered by a fetch that another caller had started
	NegativeHits uint64        // answered by a remembered failure
	Evictions    uint64        // DEKs that went for lack of room
	Expirations  uint64        // DEKs that went because their time was over
	Purges       uint64        // DEKs that were purged
	Entries      int           // DEKs in the cache
	OldestAge    time.Duration // since the request that fetched the oldest DEK in the cache was sent; 0 without any
}

// Holding is the DEKs of one KMS key in the cache.
type Holding struct {
	Entries   int
	OldestAge time.Duration // as in Stats
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

// Now is the time by the cache's clock.
func (c *Cache) Now() time.Time { return c.cfg.Now() }

// TTL is the longest time of a DEK, from before the request that fetched it.
func (c *Cache) TTL() time.Duration { return time.Duration(c.ttlNanos.Load()) }

// SetTTL changes the TTL. A shorter one holds for all DEKs at once, those
// handed out included; a longer one only for those that are fetched from now
// on.
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
			if now.Sub(l.before) < l.ttl { // else every DEK that it holds for is over
				limits = append(limits, l)
			}
		}
	}

	c.limits.Store(&limits)
	c.ttlNanos.Store(int64(ttl))
	heap.Init(&c.byExpiry) // a limit can change the order of DEKs
	c.expireBy(now)

	for _, g := range c.groups {
		g.recheckTerms()
	}
}

// Resize changes how many DEKs are kept.
func (c *Cache) Resize(maxEntries int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counters.Evictions += uint64(c.entries.Resize(maxEntries)) //nolint:gosec // a number of DEKs
	c.schedule()
}

// Get returns the DEK of id, which belongs to the group g. If it is not in the
// cache, fetch is called, once at a time for each id, whoever asks. fetch runs
// with the values of one caller's ctx but without its end, and should have a
// timeout of its own; Close ends it. A caller whose ctx ends leaves with its
// error, and the fetch goes on for the others. The cache takes over what fetch
// returns. An error of fetch goes to all who wait, as it is.
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
		case e.group.Group == g: // a purge of g must end what is handed out for it
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

// Peek returns the DEK of id if it is in the cache and in force, and fetches
// nothing. It is no use of the DEK that keeps it in the cache for longer.
func (c *Cache) Peek(id ID, g Group) (Entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries.Peek(id)
	if c.closed || !ok || e.group.Group != g || !e.InForce() {
		return Entry{}, false
	}
	return Entry{DEK: bytes.Clone(e.dek), Term: e.Term, Hit: true}, true
}

// Mark is the moment before a request to a KMS that is not a fetch of Get's,
// such as one that makes a new DEK.
type Mark struct{ term Term }

// Mark marks the moment before a request for a DEK.
func (c *Cache) Mark() Mark {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Mark{c.term()}
}

// Put stores a copy of the DEK that the request after m answered with, unless
// its group was purged since, and returns it as Get would.
func (c *Cache) Put(id ID, g Group, m Mark, dek []byte) Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	term := m.term
	term.group = c.group(g)
	c.insert(id, term, bytes.Clone(dek))
	return Entry{DEK: bytes.Clone(dek), Term: term}
}

// Purge forgets all DEKs and failures of a KMS key, ends the Term of those
// handed out, and returns how many DEKs were in the cache. Fetches under way
// are made again.
func (c *Cache) Purge(keyID string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.purges++
	c.purged[keyID] = c.purges
	return c.purgeMatching(func(g Group) bool { return g.KeyID == keyID })
}

// PurgeGroup is Purge for one group.
func (c *Cache) PurgeGroup(g Group) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.purges++
	c.group(g)
	return c.purgeMatching(func(other Group) bool { return other == g })
}

// PurgeAll is Purge for every key.
func (c *Cache) PurgeAll() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.purges++
	c.cleared = c.purges
	return c.purgeMatching(func(Group) bool { return true })
}

// ForgetFailures forgets the failures of a KMS key.
func (c *Cache) ForgetFailures(keyID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removeFailures(func(g Group) bool { return g.KeyID == keyID })
}

// ForgetGroupFailures forgets the failures of a group.
func (c *Cache) ForgetGroupFailures(g Group) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removeFailures(func(other Group) bool { return other == g })
}

// Busy reports whether DEKs of a group are in the cache, or on their way to it.
func (c *Cache) Busy(g Group) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.groups[g]
	return known != nil && known.entries+known.flights > 0
}

// Holdings returns what the cache has of each KMS key, by its id. It looks at
// every DEK.
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

// Stats returns the counters.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.counters
	s.Entries = c.entries.Len()
	now := c.cfg.Now()
	for _, e := range c.byExpiry { // not the first alone: with jitter it need not be the oldest
		s.OldestAge = max(s.OldestAge, now.Sub(e.sent))
	}
	return s
}

// Close purges everything, ends the fetches under way and waits for them. Get
// then fails with ErrClosed.
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

// purgeMatching purges the groups that match. The caller has counted it in
// c.purges.
func (c *Cache) purgeMatching(match func(Group) bool) int {
	before := c.counters.Purges
	for name, g := range c.groups {
		if match(name) {
			g.purged.Store(c.purges)
			g.recheckTerms()
		}
	}

	for id, f := range c.flights {
		if match(f.term.group.Group) {
			delete(c.flights, id) // those who come now start another
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

// errStale says that the group was purged after the request was sent: the
// answer may be from before a revocation.
var errStale = errors.New("purged")

// panicError is the error of a fetch that panicked. It must not end the
// process, as the panic of a goroutine does; what it said is not kept, as it
// may hold a DEK.
func panicError(v any) error { return fmt.Errorf("dekcache: fetch panicked (%T)", v) }

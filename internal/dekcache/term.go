package dekcache

import (
	"context"
	"sync/atomic"
	"time"
)

// Term is how long a DEK may be used: until its life is over or its group is
// purged. The zero Term is over.
type Term struct {
	sent   time.Time     // the moment before the request
	life   time.Duration // the TTL of that moment, less the jitter
	ttl    time.Duration // of that moment
	purges uint64        // how many there were at that moment
	group  *groupState   // nil until it is known
	cache  *Cache
}

// InForce reports whether the DEK may still be used. It takes no lock and
// allocates nothing.
func (t *Term) InForce() bool {
	return t.current() && !t.isOver(t.cache.cfg.Now())
}

// Expires returns the end of the DEK's life: the TTL after the request was
// sent, less the jitter.
func (t *Term) Expires() time.Time { return t.sent.Add(t.capped(t.life)) }

// Limit returns the end of the TTL, which no byte that was decrypted with the
// DEK should outlive: the jitter is what there is between Expires and Limit. A
// purge does not change it.
func (t *Term) Limit() time.Time { return t.sent.Add(t.capped(t.ttl)) }

// Wait returns nil when the term is over, and the error of ctx if that ends
// first.
func (t *Term) Wait(ctx context.Context) error {
	for {
		turn := t.group.changed.Load() // before the look at the term, so that a change in between closes it
		if !t.InForce() {
			return nil
		}

		timer := time.NewTimer(t.Expires().Sub(t.cache.cfg.Now()))
		select {
		case <-timer.C:
		case <-*turn:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}

		timer.Stop()
	}
}

// limit holds for every DEK that was asked for before a change of the TTL: it
// lasts no longer than the shorter of the two TTLs, and no later change brings
// it back.
type limit struct {
	before time.Time
	ttl    time.Duration
}

func (t *Term) capped(d time.Duration) time.Duration {
	if limits := t.cache.limits.Load(); limits != nil {
		for _, l := range *limits {
			if t.sent.Before(l.before) {
				d = min(d, l.ttl)
			}
		}
	}
	return d
}

// current reports whether the group was not purged since the request was sent.
func (t *Term) current() bool { return t.group != nil && t.group.purged.Load() <= t.purges }

// isOver compares both clocks that a time.Time carries: the monotonic one
// stands still while a machine is suspended or migrated, the wall clock can be
// set back. A DEK is out of time when either says so.
func (t *Term) isOver(now time.Time) bool {
	expires := t.Expires()
	return !now.Before(expires) || now.UnixNano() >= expires.UnixNano()
}

// groupState is what the cache knows of a Group. It is never removed, as a
// Term points to it.
type groupState struct {
	Group
	purged  atomic.Uint64                 // the number of its last purge
	changed atomic.Pointer[chan struct{}] // closed, and replaced, when terms may have ended before their time

	entries, flights int // under Cache.mu
}

// recheckTerms has all who wait for the end of a term look at it again.
func (g *groupState) recheckTerms() {
	turn := make(chan struct{})
	close(*g.changed.Swap(&turn))
}

// group returns the group of that name. One that is new was purged with its
// key, as a DEK may be on its way that was asked for before. The caller holds
// c.mu.
func (c *Cache) group(name Group) *groupState {
	if g := c.groups[name]; g != nil {
		return g
	}
	g := &groupState{Group: name}
	g.purged.Store(max(c.cleared, c.purged[name.KeyID]))
	turn := make(chan struct{})
	g.changed.Store(&turn)
	c.groups[name] = g
	return g
}

// term is the Term of a request that is about to be sent, without its group.
// The caller holds c.mu.
func (c *Cache) term() Term {
	ttl := c.TTL()
	return Term{sent: c.cfg.Now(), life: ttl - c.cfg.Jitter(ttl), ttl: ttl, purges: c.purges, cache: c}
}

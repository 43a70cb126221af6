package dekcache

import (
	"sync/atomic"
	"time"
)

// Term is the time during which a DEK may be used. It ends when the DEK
// expires or its group is purged. The zero Term has ended.
type Term struct {
	sent   time.Time     // the time just before the request
	life   time.Duration // the TTL at that time, minus the jitter
	ttl    time.Duration // the TTL at that time
	purges uint64        // number of purges at that time
	group  *groupState   // nil until known
	cache  *Cache
}

// InForce reports whether the DEK may still be used. It takes no lock and
// does not allocate.
func (t *Term) InForce() bool {
	return t.current() && !t.isOver(t.cache.cfg.Now())
}

// Expires returns when the DEK expires: one TTL after the request was sent,
// minus the jitter.
func (t *Term) Expires() time.Time { return t.sent.Add(t.capped(t.life)) }

// Limit returns the end of the TTL. No byte decrypted with the DEK should
// be in transit after it. The time between Expires and Limit is the jitter.
// A purge does not change Limit.
func (t *Term) Limit() time.Time { return t.sent.Add(t.capped(t.ttl)) }

// limit is the effect of a TTL change on DEKs that were requested before
// it: they last no longer than the shorter TTL. A later change does not
// undo this.
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

// current reports whether the group has not been purged since the request
// was sent.
func (t *Term) current() bool { return t.group != nil && t.group.purged.Load() <= t.purges }

// isOver reports whether the term has expired by either clock of a
// time.Time. The monotonic clock stops while a machine is suspended or
// migrated, and the wall clock can be set back.
func (t *Term) isOver(now time.Time) bool {
	expires := t.Expires()
	return !now.Before(expires) || now.UnixNano() >= expires.UnixNano()
}

// groupState is the state of a Group. It is never removed, because Terms
// point to it.
type groupState struct {
	Group
	purged  atomic.Uint64 // number of its last purge
	watches watches

	entries, flights int // protected by Cache.mu
}

// group returns the state of a group. A new group starts with the last
// purge of its key, because a DEK requested before that purge may still
// arrive. The caller holds c.mu.
func (c *Cache) group(name Group) *groupState {
	if g := c.groups[name]; g != nil {
		return g
	}

	g := &groupState{Group: name}
	g.purged.Store(max(c.cleared, c.purged[name.KeyID]))
	c.groups[name] = g

	return g
}

// term returns the Term of a request that is about to be sent. Its group is
// not yet set. The caller holds c.mu.
func (c *Cache) term() Term {
	ttl := c.TTL()
	return Term{sent: c.cfg.Now(), life: ttl - c.cfg.Jitter(ttl), ttl: ttl, purges: c.purges, cache: c}
}

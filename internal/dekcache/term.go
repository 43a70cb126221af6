package dekcache

import (
	"sync/atomic"
	"time"
)

// Term is how long a DEK may be used: until its TTL is over or its key is purged. The zero Term is over.
type Term struct {
	keyID      string
	expires    time.Time
	generation uint64
	current    *atomic.Uint64 // the key's generation; each purge raises it
	now        func() time.Time
}

// InForce reports whether the DEK may still be used. It takes no lock and allocates nothing.
func (t *Term) InForce() bool {
	return t.current != nil && t.current.Load() == t.generation && !t.over(t.now())
}

// Expires returns the end of the TTL.
func (t *Term) Expires() time.Time { return t.expires }

// over compares both clocks that a time.Time carries: the monotonic one stands still while a machine is suspended or
// migrated, the wall clock can be set back. A DEK is out of time when either says so.
func (t *Term) over(now time.Time) bool {
	return !now.Before(t.expires) || now.UnixNano() >= t.expires.UnixNano()
}

// key is what the cache knows of a KMS key. It is never removed, as a Term points to it; there are as many as keys
// are configured.
type key struct {
	generation atomic.Uint64
	entries    int
}

// term is the Term of a request that is about to be sent. The caller holds c.mu.
func (c *Cache) term(keyID string) Term {
	k := c.keys[keyID]
	if k == nil {
		k = new(key)
		c.keys[keyID] = k
	}
	return Term{
		keyID:      keyID,
		expires:    c.cfg.Now().Add(c.cfg.TTL),
		generation: k.generation.Load(),
		current:    &k.generation,
		now:        c.cfg.Now,
	}
}

package dekcache

import (
	"context"
	"sync/atomic"
	"time"
)

// Term is how long a DEK may be used: until its life is over or its key is purged. The zero Term is over.
type Term struct {
	keyID      string
	sent       time.Time     // the moment before the request
	life       time.Duration // the TTL of that moment, less the jitter
	ttl        time.Duration // of that moment
	generation uint64
	key        *key
	cache      *Cache
}

// InForce reports whether the DEK may still be used. It takes no lock and allocates nothing.
func (t *Term) InForce() bool {
	return t.current() && !t.over(t.cache.cfg.Now())
}

// Expires returns the end of the DEK's life: the TTL after the request was sent, less the jitter.
func (t *Term) Expires() time.Time { return t.sent.Add(t.capped(t.life)) }

// Limit returns the end of the TTL, which no byte that was decrypted with the DEK should outlive: the jitter is what
// there is between Expires and Limit. A purge does not change it.
func (t *Term) Limit() time.Time { return t.sent.Add(t.capped(t.ttl)) }

// Wait returns nil when the term is over, and the error of ctx if that ends first.
func (t *Term) Wait(ctx context.Context) error {
	for {
		turn := t.key.turn.Load() // before the look at the term, so that a change in between closes it
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

// limit holds for every DEK that was asked for before a change of the TTL: it lasts no longer than the shorter of the
// two TTLs, and no later change brings it back.
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

// current reports whether the key was not purged since the request was sent.
func (t *Term) current() bool { return t.key != nil && t.key.generation.Load() == t.generation }

// over compares both clocks that a time.Time carries: the monotonic one stands still while a machine is suspended or
// migrated, the wall clock can be set back. A DEK is out of time when either says so.
func (t *Term) over(now time.Time) bool {
	expires := t.Expires()
	return !now.Before(expires) || now.UnixNano() >= expires.UnixNano()
}

// key is what the cache knows of a KMS key. It is never removed, as a Term points to it; there are as many as keys
// are configured.
type key struct {
	generation atomic.Uint64                 // raised by each purge
	turn       atomic.Pointer[chan struct{}] // closed, and replaced, when terms may have ended before their time
	entries    int
}

func newKey() *key {
	k := new(key)
	turn := make(chan struct{})
	k.turn.Store(&turn)
	return k
}

// wake has all who wait for the end of a term look at it again.
func (k *key) wake() {
	turn := make(chan struct{})
	close(*k.turn.Swap(&turn))
}

// term is the Term of a request that is about to be sent. The caller holds c.mu.
func (c *Cache) term(keyID string) Term {
	k := c.keys[keyID]
	if k == nil {
		k = newKey()
		c.keys[keyID] = k
	}
	ttl := c.TTL()
	return Term{
		keyID:      keyID,
		sent:       c.cfg.Now(),
		life:       ttl - c.cfg.Jitter(ttl),
		ttl:        ttl,
		generation: k.generation.Load(),
		key:        k,
		cache:      c,
	}
}

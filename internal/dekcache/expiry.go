package dekcache

import (
	"container/heap"
	"time"
)

// cachedDEK is a DEK in the cache.
type cachedDEK struct {
	Term
	id    ID
	dek   []byte
	place int // index in expiryHeap
}

// insert adds a DEK to the cache and takes ownership of it. The caller
// holds c.mu.
func (c *Cache) insert(id ID, t Term, dek []byte) {
	if c.closed || !t.InForce() {
		clear(dek)
		return
	}
	if old, ok := c.entries.Peek(id); ok {
		if old.group == t.group && !old.Expires().Before(t.Expires()) {
			clear(dek) // the cached one expires later
			return
		}
		c.entries.Remove(id)
	}

	c.failures.Remove(id)
	e := &cachedDEK{Term: t, id: id, dek: dek}
	t.group.entries++
	heap.Push(&c.byExpiry, e)

	if c.entries.Add(id, e) {
		c.counters.Evictions++
	}
	c.schedule()
}

// remove removes a DEK and increments the counter. The caller holds c.mu.
func (c *Cache) remove(e *cachedDEK, counter *uint64) {
	*counter++
	c.entries.Remove(e.id)
	c.schedule()
}

// wipeEvicted wipes a DEK that leaves the cache. The LRU calls it for every
// removal.
func (c *Cache) wipeEvicted(_ ID, e *cachedDEK) {
	clear(e.dek)
	heap.Remove(&c.byExpiry, e.place)
	e.group.entries--
}

// schedule sets the timer to the next expiry. The caller holds c.mu.
func (c *Cache) schedule() {
	if len(c.byExpiry) == 0 {
		if c.timer != nil {
			c.timer.Stop()
			c.timer = nil
		}
		return
	}

	wait := c.byExpiry[0].Expires().Sub(c.cfg.Now())
	if c.timer == nil {
		c.timer = time.AfterFunc(wait, c.expire)
		return
	}

	c.timer.Reset(wait)
}

// expire wipes expired DEKs. The timer calls it.
func (c *Cache) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expireBy(c.cfg.Now())
}

// expireBy wipes the DEKs that have expired at now, and sets the timer. The
// caller holds c.mu.
func (c *Cache) expireBy(now time.Time) {
	for len(c.byExpiry) > 0 && c.byExpiry[0].isOver(now) {
		c.counters.Expirations++
		c.entries.Remove(c.byExpiry[0].id)
	}
	c.schedule()
}

// expiryHeap is a heap with the next DEK to expire at the top.
type expiryHeap []*cachedDEK

func (h expiryHeap) Len() int           { return len(h) }
func (h expiryHeap) Less(i, j int) bool { return h[i].Expires().Before(h[j].Expires()) }
func (h expiryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push implements heap.Interface.
func (h *expiryHeap) Push(x any) {
	e := x.(*cachedDEK)
	e.place = len(*h)
	*h = append(*h, e)
}

// Pop implements heap.Interface.
func (h *expiryHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}

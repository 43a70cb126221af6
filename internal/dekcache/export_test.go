package dekcache

// Held returns the cache's own bytes of a DEK, so that tests can see them
// wiped.
func (c *Cache) Held(id ID) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries.Peek(id); ok {
		return e.dek
	}
	return nil
}

// Bare reports whether the cache is empty: no flight, no timer, no entries
// in any group.
func (c *Cache) Bare() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := c.entries.Len() + len(c.byExpiry) + len(c.flights)
	for _, g := range c.groups {
		left += g.entries + g.flights
	}
	return left == 0 && c.timer == nil
}

// Groups returns the number of groups and of purged keys that the cache keeps.
func (c *Cache) Groups() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.groups) + len(c.purged)
}

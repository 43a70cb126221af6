package dekcache_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
)

// TestForget: the DEKs of a key are wiped, and the cache keeps nothing about
// the key. A fetch in progress has no effect.
func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, dekcache.Config{})
		s := &source{}
		other := dekcache.Group{KeyID: "other"}
		for i := range 20 {
			g := dekcache.Group{KeyID: keyID, Part: i % 3}
			if i%5 == 0 {
				g = other
			}
			if _, err := c.Get(t.Context(), id(i), g, s.fetch(i)); err != nil {
				t.Fatal(err)
			}
		}
		c.Purge(keyID, "unknown")
		if c.Groups() != 6 {
			t.Errorf("%d groups and purges", c.Groups())
		}
		if _, err := c.Get(t.Context(), id(1), group, s.fetch(1)); err != nil {
			t.Fatal(err)
		}

		held := c.Held(id(1))
		c.Forget(keyID)
		c.Forget("unknown")
		if h := c.Holdings(); len(h) != 1 || h["other"].Entries != 4 {
			t.Errorf("%v", h)
		}
		if c.Groups() != 1 {
			t.Errorf("%d groups and purges are left", c.Groups())
		}
		for _, b := range held {
			if b != 0 {
				t.Fatal("a DEK was not wiped")
			}
		}

		s.delay = time.Second
		gone, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, cancel)
		if _, err := c.Get(gone, id(1), group, s.fetch(1)); err == nil {
			t.Error("no error for a caller that left")
		}
		c.Forget(keyID)
		time.Sleep(2 * time.Second)
		if h := c.Holdings(); len(h) != 1 {
			t.Errorf("the fetch has added a DEK: %v", h)
		}
		c.Forget(keyID)
		if c.Groups() != 1 {
			t.Errorf("%d groups and purges are left", c.Groups())
		}
	})
}

package main

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
)

// Memory is returned after a purge, once for several purges, and again after
// later ones.
func TestMemoryIsFreedAfterPurges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		frees := make(chan time.Duration, 10)
		start := time.Now()
		f := &freeing{free: func() { frees <- time.Since(start) }}
		cache := dekcache.New(dekcache.Config{Purged: f.purged})
		defer cache.Close()

		for range 100 {
			cache.Purge("key")
			cache.PurgeGroup(dekcache.Group{KeyID: "key"})
			cache.PurgeAll()
		}
		time.Sleep(2 * freeAfter)
		synctest.Wait()

		if len(frees) != 1 || <-frees != freeAfter {
			t.Fatalf("memory was freed %d times more", len(frees))
		}
		cache.Purge("key")
		time.Sleep(2 * freeAfter)
		synctest.Wait()

		if len(frees) != 1 {
			t.Errorf("a later purge: memory was freed %d times", len(frees))
		}
	})
}

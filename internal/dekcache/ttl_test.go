package dekcache_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
)

func TestJitterIsDownwardsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		by := 10 * time.Second
		c := newCache(t, dekcache.Config{TTL: time.Minute, Jitter: func(ttl time.Duration) time.Duration {
			if ttl != time.Minute {
				t.Errorf("asked for the jitter of %v", ttl)
			}
			return by
		}})

		start, s := time.Now(), &source{}
		e := get(t, c, 1, s)
		if e.Expires().Sub(start) != 50*time.Second || e.Limit().Sub(start) != time.Minute {
			t.Errorf("expires %v, limit %v", e.Expires().Sub(start), e.Limit().Sub(start))
		}

		by = 0
		get(t, c, 2, s) // expires later, although it was fetched at the same time
		time.Sleep(50 * time.Second)
		synctest.Wait()

		if e.InForce() || c.Held(id(1)) != nil || c.Held(id(2)) == nil {
			t.Error("the jitter did not end the one, or ended the other")
		}
		if age := c.Stats().OldestAge; age != 50*time.Second {
			t.Errorf("oldest age %v", age)
		}
	})
}

func TestShorterTTLHoldsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newCache(t, dekcache.Config{TTL: time.Hour}), &source{}
		old := get(t, c, 1, s)
		time.Sleep(20 * time.Second)
		young := get(t, c, 2, s)
		time.Sleep(5 * time.Second)
		held := c.Held(id(1))
		c.SetTTL(10 * time.Second)

		if old.InForce() || !bytes.Equal(held, make([]byte, 32)) || c.Held(id(1)) != nil {
			t.Error("a DEK that is older than the new TTL is still of use")
		}
		if !young.InForce() || c.Held(id(2)) == nil {
			t.Error("a DEK that is younger than the new TTL was removed")
		}

		if left := time.Until(young.Expires()); left != 5*time.Second {
			t.Errorf("the young one has %v left, want 5s", left)
		}

		time.Sleep(5 * time.Second)
		synctest.Wait()

		if young.InForce() || c.Stats().Entries != 0 {
			t.Error("the shorter TTL does not end what it found")
		}

		c.SetTTL(time.Hour)
		if old.InForce() || young.InForce() {
			t.Error("a longer TTL brought a DEK back")
		}

		get(t, c, 1, s)
		wantCalls(t, s, 3)
		time.Sleep(59 * time.Minute)

		if !get(t, c, 1, s).Hit {
			t.Error("the longer TTL does not hold for what was fetched under it")
		}
	})
}

func TestLongerTTLExtendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newCache(t, dekcache.Config{TTL: time.Minute}), &source{}
		e := get(t, c, 1, s)
		c.SetTTL(time.Hour)
		time.Sleep(time.Minute)
		synctest.Wait()
		if e.InForce() || c.Stats().Entries != 0 {
			t.Error("a DEK lives longer than the TTL it was fetched under")
		}
	})
}

func TestShorterTTLDuringAFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newCache(t, dekcache.Config{TTL: time.Minute}), &source{delay: 10 * time.Second}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Get(t.Context(), id(1), group, s.fetch(1)); !errors.Is(err, dekcache.ErrTooLate) {
				t.Errorf("%v, want ErrTooLate", err)
			}
		})

		time.Sleep(time.Second)
		c.SetTTL(5 * time.Second)
		wg.Wait()
	})
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newCache(t, dekcache.Config{TTL: time.Minute}), &source{}
		start := time.Now()
		wait := func(e dekcache.Entry) (took func() time.Duration) {
			ended := make(chan time.Duration, 1)
			e.Watch(func() {
				if e.InForce() {
					t.Error("still in force")
				}
				ended <- time.Since(start)
			})

			return func() time.Duration { return <-ended }
		}

		purged, cut := wait(get(t, c, 1, s)), wait(get(t, c, 2, s))
		other, err := c.Get(t.Context(), id(3), dekcache.Group{KeyID: "other"}, s.fetch(3))
		if err != nil {
			t.Fatal(err)
		}

		time.Sleep(10 * time.Second)
		c.Purge(keyID)

		if a, b := purged(), cut(); a != 10*time.Second || b != 10*time.Second {
			t.Errorf("woken after %v and %v", a, b)
		}

		shrunk := wait(other)
		c.SetTTL(30 * time.Second)

		if whole := shrunk(); whole != 30*time.Second {
			t.Errorf("woken after %v, want 30s", whole)
		}

		over := get(t, c, 1, s)
		c.Purge(keyID)
		if at := wait(over)(); at != 30*time.Second {
			t.Errorf("a term that has ended: woken after %v", at)
		}

		e := get(t, c, 1, s)
		stop := e.Watch(func() { t.Error("called after stop") })
		stop()
		time.Sleep(time.Hour)
		if e.InForce() {
			t.Error("in force after an hour")
		}
	})
}

// The timer of a group must fire for the term that ends first, whatever the
// order in which the watches began.
func TestWatchesEndInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newCache(t, dekcache.Config{TTL: time.Minute}), &source{}
		start := time.Now()
		var entries []dekcache.Entry
		for n := range 5 {
			entries = append(entries, get(t, c, n, s))
			time.Sleep(time.Second)
		}

		ended := make(chan int, len(entries))
		var stops []func()
		for _, n := range []int{3, 0, 4, 1, 2} {
			stops = append(stops, entries[n].Watch(func() {
				if took := time.Since(start); took != time.Minute+time.Duration(n)*time.Second {
					t.Errorf("term %d ended after %v", n, took)
				}
				ended <- n
			}))
		}
		stops[4]() // that of 2

		for _, want := range []int{0, 1, 3, 4} {
			if n := <-ended; n != want {
				t.Errorf("term %d ended, want %d", n, want)
			}
		}
	})
}

func TestResize(t *testing.T) {
	c, s := newCache(t, dekcache.Config{}), &source{}
	for n := range 10 {
		get(t, c, n, s)
	}

	held := c.Held(id(0))
	c.Resize(3)

	if st := c.Stats(); st.Entries != 3 || st.Evictions != 7 || !bytes.Equal(held, make([]byte, 32)) {
		t.Errorf("%+v, or not wiped", st)
	}

	get(t, c, 20, s)
	if n := c.Stats().Entries; n != 3 {
		t.Errorf("%d entries, want 3", n)
	}
}

func TestHoldings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newCache(t, dekcache.Config{TTL: time.Minute}), &source{}
		get(t, c, 1, s)
		time.Sleep(10 * time.Second)
		get(t, c, 2, s)

		if _, err := c.Get(t.Context(), id(3), dekcache.Group{KeyID: "other"}, s.fetch(3)); err != nil {
			t.Fatal(err)
		}

		time.Sleep(time.Second)
		h := c.Holdings()
		if len(h) != 2 || h[keyID] != (dekcache.Holding{Entries: 2, OldestAge: 11 * time.Second}) ||
			h["other"] != (dekcache.Holding{Entries: 1, OldestAge: time.Second}) {
			t.Errorf("%+v", h)
		}
	})
}

// TestNoStaleRead runs readers, purges and TTL changes concurrently, with a
// KMS whose answers contain the number of revocations so far. After a purge
// has returned, no caller may get or use a DEK that was requested before
// it, or one that is older than every TTL used.
func TestNoStaleRead(t *testing.T) {
	const longest = 50 * time.Millisecond
	c := newCache(t, dekcache.Config{TTL: longest, Jitter: func(ttl time.Duration) time.Duration { return ttl / 10 }})
	var purges atomic.Uint32
	fetch := func(n int) func(context.Context) ([]byte, error) {
		return func(context.Context) ([]byte, error) {
			before := byte(purges.Load())
			time.Sleep(time.Duration(n) * 100 * time.Microsecond)
			return bytes.Repeat([]byte{before + 1}, 32), nil
		}
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()

	var wg sync.WaitGroup
	for reader := range 8 {
		wg.Go(func() {
			for n := reader; ctx.Err() == nil; n++ {
				purged := purges.Load() // all these purges have returned
				begun := time.Now()
				e, err := c.Get(ctx, id(n%5), group, fetch(n%5))
				if err != nil {
					if ctx.Err() == nil && !errors.Is(err, dekcache.ErrPurged) && !errors.Is(err, dekcache.ErrTooLate) {
						t.Error(err)
					}
					continue
				}

				if from := uint32(e.DEK[0]) - 1; from+1 < purged { // the last purge may not be counted yet
					t.Errorf("a DEK from before purge %d, got after purge %d", from+1, purged)
				}

				purged = purges.Load()
				if from := uint32(e.DEK[0]) - 1; e.InForce() && from+1 < purged {
					t.Errorf("a DEK from before purge %d is in force after purge %d", from+1, purged)
				}
				if age := e.Limit().Sub(begun); age > longest+time.Since(begun) {
					t.Errorf("a limit %v away", age)
				}
			}
		})
	}

	wg.Go(func() {
		for n := 0; ctx.Err() == nil && purges.Load() < 200; n++ {
			time.Sleep(3 * time.Millisecond)
			c.SetTTL(longest / time.Duration(n%4+1))
			c.Purge(keyID)
			purges.Add(1)
		}
	})

	wg.Wait()
}

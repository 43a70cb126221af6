package dekcache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"go.uber.org/goleak"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const keyID = "key"

var group = dekcache.Group{KeyID: keyID}

var (
	errNo   = errors.New("no")
	errDown = errors.New("down")
)

func id(n int) dekcache.ID { return dekcache.ID{byte(n), byte(n >> 8), byte(n >> 16)} }

func dekOf(n int) []byte { return bytes.Repeat([]byte{byte(n + 1)}, 32) }

// source is a KMS that counts its calls.
type source struct {
	calls atomic.Int64
	delay time.Duration
	err   error
}

func (s *source) fetch(n int) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		s.calls.Add(1)
		select {
		case <-time.After(s.delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}

		if s.err != nil {
			return nil, s.err
		}
		return dekOf(n), nil
	}
}

func newCache(t testing.TB, cfg dekcache.Config) *dekcache.Cache {
	t.Helper()
	c := dekcache.New(cfg)
	t.Cleanup(func() {
		c.Close()
		if !c.Bare() {
			t.Error("something is left after Close")
		}
	})
	return c
}

func get(t testing.TB, c *dekcache.Cache, n int, s *source) dekcache.Entry {
	t.Helper()
	e, err := c.Get(t.Context(), id(n), group, s.fetch(n))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(e.DEK, dekOf(n)) {
		t.Fatalf("DEK %d is wrong", n)
	}
	return e
}

func wantCalls(t testing.TB, s *source, want int64) {
	t.Helper()
	if got := s.calls.Load(); got != want {
		t.Errorf("%d fetches, want %d", got, want)
	}
}

func TestGet(t *testing.T) {
	c, s := newCache(t, dekcache.Config{}), &source{}
	first := get(t, c, 1, s)
	second := get(t, c, 1, s)
	if first.Hit || !second.Hit {
		t.Errorf("hits: %v, %v", first.Hit, second.Hit)
	}

	clear(first.DEK)
	clear(second.DEK)
	get(t, c, 1, s) // not wiped together with the copies
	get(t, c, 2, s)
	wantCalls(t, s, 2)

	if st := c.Stats(); st.Hits != 2 || st.Misses != 2 || st.Entries != 2 || c.Holdings()[keyID].Entries != 2 {
		t.Errorf("%+v", st)
	}
}

func TestTTLCountsFromTheRequestAndIsNotExtended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newCache(t, dekcache.Config{TTL: time.Minute}), &source{delay: 10 * time.Second}
		start := time.Now()
		e := get(t, c, 1, s)
		if want := start.Add(time.Minute); !e.Expires().Equal(want) {
			t.Errorf("expires %v after the request was sent, want 1m", e.Expires().Sub(start))
		}

		for time.Since(start) < 59*time.Second { // in constant use
			time.Sleep(time.Second)
			if !get(t, c, 1, s).Hit {
				t.Fatalf("gone after %v", time.Since(start))
			}
		}

		if age := c.Stats().OldestAge; age != 59*time.Second {
			t.Errorf("oldest age %v", age)
		}

		held := c.Held(id(1))
		time.Sleep(time.Second - time.Nanosecond)

		if !e.InForce() || !bytes.Equal(held, dekOf(1)) {
			t.Error("over before its time")
		}

		time.Sleep(time.Nanosecond)
		if e.InForce() {
			t.Error("in force after the TTL")
		}

		synctest.Wait()
		if !bytes.Equal(held, make([]byte, 32)) || c.Stats().Entries != 0 || c.Stats().Expirations != 1 {
			t.Error("not wiped at its expiry without a request for it")
		}

		get(t, c, 1, s)
		wantCalls(t, s, 2)
	})
}

func TestExpiryInAnyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, dekcache.Config{TTL: time.Minute})
		var wg sync.WaitGroup

		for n := range 20 { // the first to start finishes last
			wg.Go(func() { get(t, c, n, &source{delay: time.Duration(20-n) * time.Second}) })
			time.Sleep(100 * time.Millisecond)
		}

		wg.Wait()
		for left := 20; left > 0; left-- {
			synctest.Wait()
			if n := c.Stats().Entries; n != left {
				t.Fatalf("%d entries, want %d", n, left)
			}
			time.Sleep(time.Minute - c.Stats().OldestAge)
		}
	})
}

func TestWallClockEndsTheTermToo(t *testing.T) {
	now := time.Now()
	c := newCache(t, dekcache.Config{TTL: time.Minute, Now: func() time.Time { return now }})
	e := get(t, c, 1, &source{})

	// The monotonic clock stops, as on a suspended machine. It is the
	// second word of a time.Time, and there is no other way to set it.
	now = now.Add(time.Minute)
	*(*time.Duration)(unsafe.Add(unsafe.Pointer(&now), 8)) -= time.Minute

	if !now.Before(e.Expires()) || now.Round(0).Before(e.Expires().Round(0)) {
		t.Fatal("the two clocks do not differ: the test needs another way to set them")
	}
	if e.InForce() {
		t.Error("in force a minute later by the wall clock")
	}
}

func TestAnswerAfterTheTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newCache(t, dekcache.Config{TTL: time.Second}), &source{delay: time.Second}
		if _, err := c.Get(t.Context(), id(1), group, s.fetch(1)); !errors.Is(err, dekcache.ErrTooLate) {
			t.Errorf("%v, want ErrTooLate", err)
		}
		if c.Stats().Entries != 0 {
			t.Error("it was stored")
		}
	})
}

func TestSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newCache(t, dekcache.Config{}), &source{delay: time.Second}
		var wg sync.WaitGroup

		for range 100 {
			wg.Go(func() { clear(get(t, c, 1, s).DEK) })
		}

		wg.Wait()
		wantCalls(t, s, 1)

		if st := c.Stats(); st.Misses != 1 || st.Shared != 99 {
			t.Errorf("%+v", st)
		}
	})
}

func TestWaiterLeavesAndTheFlightGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newCache(t, dekcache.Config{}), &source{delay: time.Minute}
		type valueKey struct{}
		var value any
		first, cancel := context.WithCancel(context.WithValue(t.Context(), valueKey{}, "request 1"))
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := c.Get(first, id(1), group, func(ctx context.Context) ([]byte, error) {
				value = ctx.Value(valueKey{})
				return s.fetch(1)(ctx)
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the one who left got %v", err)
			}
		})

		synctest.Wait()
		wg.Go(func() { get(t, c, 1, s) })
		time.Sleep(time.Second)
		cancel()
		wg.Wait()
		wantCalls(t, s, 1)

		if value != "request 1" {
			t.Errorf("the fetch has no values of its caller: %v", value)
		}
	})
}

func TestErrorsAreSharedButNotKept(t *testing.T) {
	c, s := newCache(t, dekcache.Config{}), &source{err: errNo}
	for want := int64(1); want <= 3; want++ {
		if _, err := c.Get(t.Context(), id(1), group, s.fetch(1)); !errors.Is(err, errNo) {
			t.Errorf("%v", err)
		}
		wantCalls(t, s, want)
	}
}

func TestFailuresAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, dekcache.Config{MaxEntries: 3, Remember: func(err error) time.Duration {
			if errors.Is(err, errNo) {
				return time.Second
			}
			return 100 * time.Millisecond
		}})

		no, down := &source{err: fmt.Errorf("wrapped: %w", errNo)}, &source{err: errDown}
		ask := func(n int, s *source) {
			t.Helper()
			if _, err := c.Get(t.Context(), id(n), group, s.fetch(n)); !errors.Is(err, s.err) {
				t.Errorf("%v, want %v", err, s.err)
			}
		}

		get(t, c, 100, &source{})
		for range 5 {
			ask(1, no)
			ask(2, down)
		}

		wantCalls(t, no, 1)
		wantCalls(t, down, 1)

		if n := c.Stats().NegativeHits; n != 8 {
			t.Errorf("%d negative hits, want 8", n)
		}

		time.Sleep(100 * time.Millisecond) // each has its own lifetime
		ask(1, no)
		ask(2, down)
		wantCalls(t, no, 1)
		wantCalls(t, down, 2)
		time.Sleep(900 * time.Millisecond)
		ask(1, no)
		wantCalls(t, no, 2)
		c.ForgetFailures("other")
		ask(1, no)
		wantCalls(t, no, 2)
		c.ForgetFailures(keyID)
		ask(1, no)
		wantCalls(t, no, 3)
		c.Purge(keyID)
		ask(1, no)
		wantCalls(t, no, 4)
		get(t, c, 101, &source{})

		for n := range 50 { // failures evict only failures
			ask(n, no)
		}

		if c.Held(id(101)) == nil {
			t.Error("failures pushed out a DEK")
		}
	})
}

func TestEvictionWipes(t *testing.T) {
	c, s := newCache(t, dekcache.Config{MaxEntries: 2}), &source{}
	for n := range 2 {
		get(t, c, n, s)
	}

	held := c.Held(id(1))
	get(t, c, 0, s) // 1 is now the least recently used
	get(t, c, 2, s)

	if !bytes.Equal(held, make([]byte, 32)) {
		t.Error("an evicted DEK was not wiped")
	}
	if st := c.Stats(); st.Evictions != 1 || st.Entries != 2 || c.Holdings()[keyID].Entries != 2 {
		t.Errorf("%+v", st)
	}
}

func TestPurge(t *testing.T) {
	c, s := newCache(t, dekcache.Config{}), &source{}
	mine := get(t, c, 1, s)
	other, err := c.Get(t.Context(), id(2), dekcache.Group{KeyID: "other"}, s.fetch(2))
	if err != nil {
		t.Fatal(err)
	}

	held := c.Held(id(1))
	if n := c.Purge(keyID); n != 1 {
		t.Errorf("%d purged, want 1", n)
	}
	if mine.InForce() || !other.InForce() {
		t.Error("a purge ends the terms of its key, and of no other")
	}

	if !bytes.Equal(held, make([]byte, 32)) {
		t.Error("a purged DEK was not wiped")
	}
	if again := get(t, c, 1, s); again.Hit || !again.InForce() {
		t.Error("after a purge, the DEK is fetched again")
	}

	if n := c.PurgeAll(); n != 2 || other.InForce() {
		t.Errorf("%d purged, want 2", n)
	}
}

// TestPurgeGroup purges some DEKs of a key but no others.
func TestPurgeGroup(t *testing.T) {
	c, s := newCache(t, dekcache.Config{}), &source{}
	other := dekcache.Group{KeyID: keyID, Part: 1}
	mine := get(t, c, 1, s)
	theirs, err := c.Get(t.Context(), id(2), other, s.fetch(2))
	if err != nil {
		t.Fatal(err)
	}

	if n := c.PurgeGroup(other); n != 1 || theirs.InForce() || !mine.InForce() {
		t.Errorf("%d purged; in force: %v, and of the other group %v", n, theirs.InForce(), mine.InForce())
	}
	if c.Busy(other) || !c.Busy(group) {
		t.Error("Busy does not tell a purged group from the other one")
	}

	if n := c.Purge(keyID); n != 1 || mine.InForce() {
		t.Errorf("%d purged with the key", n)
	}
}

// TestPurgeBeforeTheGroupIsKnown: a DEK requested before the purge of its
// key, or of all keys, must not be used, even if its group is new.
func TestPurgeBeforeTheGroupIsKnown(t *testing.T) {
	for name, purge := range map[string]func(*dekcache.Cache){
		"key":        func(c *dekcache.Cache) { c.Purge(keyID) },
		"everything": func(c *dekcache.Cache) { c.PurgeAll() },
		"group":      func(c *dekcache.Cache) { c.PurgeGroup(dekcache.Group{KeyID: keyID, Part: 7}) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCache(t, dekcache.Config{})
			m := c.Mark()
			purge(c)

			if e := c.Put(id(1), dekcache.Group{KeyID: keyID, Part: 7}, m, dekOf(1)); e.InForce() ||
				c.Held(id(1)) != nil {
				t.Error("a DEK from before the purge is in force")
			}
			if e := c.Put(id(1), dekcache.Group{KeyID: keyID, Part: 7}, c.Mark(), dekOf(1)); !e.InForce() {
				t.Error("a DEK from after the purge is not in force")
			}
		})
	}
}

// TestADEKInTwoGroups: a purge of either group ends the use of DEKs handed
// out for it.
func TestADEKInTwoGroups(t *testing.T) {
	c, s := newCache(t, dekcache.Config{}), &source{}
	other := dekcache.Group{KeyID: keyID, Part: 1}
	mine := get(t, c, 1, s)
	theirs, err := c.Get(t.Context(), id(1), other, s.fetch(1))
	if err != nil || theirs.Hit {
		t.Fatalf("the DEK of another group was a hit: %v, %v", theirs.Hit, err)
	}

	again, err := c.Get(t.Context(), id(1), other, s.fetch(1))
	if err != nil || !again.Hit {
		t.Errorf("the group that fetched it last has no hit: %v", err)
	}

	c.PurgeGroup(other)
	if theirs.InForce() || again.InForce() || !mine.InForce() {
		t.Error("a purge of one group does not end its own terms, or ends those of the other")
	}
}

// TestBusyDuringAFlight: a group is busy while a DEK is being fetched for
// it, even if no caller waits any more.
func TestBusyDuringAFlight(t *testing.T) {
	c := newCache(t, dekcache.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	asked, answer, landed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(landed)
		_, _ = c.Get(ctx, id(1), group, func(context.Context) ([]byte, error) {
			close(asked)
			<-answer
			return dekOf(1), nil
		})
	}()

	<-asked
	cancel()
	<-landed

	if !c.Busy(group) {
		t.Error("a group is not busy while a fetch is under way")
	}
	close(answer)
}

func TestPurgeDuringAFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newCache(t, dekcache.Config{}), &source{delay: time.Minute}
		var wg sync.WaitGroup
		wg.Go(func() {
			if e := get(t, c, 1, s); !e.InForce() {
				t.Error("the answer to a request from before the purge was given out")
			}
		})

		time.Sleep(time.Second)
		c.Purge(keyID)
		wg.Go(func() { get(t, c, 1, s) }) // must not join the flight that started before the purge
		synctest.Wait()
		wantCalls(t, s, 2)
		time.Sleep(time.Minute - time.Second)
		synctest.Wait()

		if c.Stats().Entries != 0 {
			t.Error("the flight from before the purge stored its answer")
		}
		wg.Wait()
		wantCalls(t, s, 2)
	})
}

func TestPurgeAtEachFlight(t *testing.T) {
	c := newCache(t, dekcache.Config{})
	_, err := c.Get(t.Context(), id(1), group, func(context.Context) ([]byte, error) {
		c.Purge(keyID)
		return dekOf(1), nil
	})
	if !errors.Is(err, dekcache.ErrPurged) {
		t.Errorf("%v, want ErrPurged", err)
	}
}

func TestPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newCache(t, dekcache.Config{TTL: time.Minute}), &source{}
		m := c.Mark()
		time.Sleep(10 * time.Second) // the KMS generates the DEK
		dek := dekOf(1)
		e := c.Put(id(1), group, m, dek)
		clear(dek)

		if !bytes.Equal(e.DEK, dekOf(1)) || !e.InForce() {
			t.Error("Put does not return a separate copy")
		}

		time.Sleep(50*time.Second - time.Nanosecond)
		if !get(t, c, 1, s).Hit {
			t.Error("not a hit")
		}

		time.Sleep(time.Nanosecond)
		if e.InForce() {
			t.Error("in force a minute after the request was sent")
		}

		m = c.Mark()
		c.Purge(keyID)

		if e := c.Put(id(2), group, m, dekOf(2)); e.InForce() || c.Held(id(2)) != nil {
			t.Error("a DEK from before the purge was stored")
		}

		older := c.Mark()
		time.Sleep(time.Second)
		newer := c.Mark()
		c.Put(id(3), group, newer, dekOf(3))
		c.Put(id(3), group, older, dekOf(3))

		if age := c.Stats().OldestAge; age != 0 {
			t.Errorf("an older answer replaced a newer one: age %v", age)
		}
	})
}

func TestClose(t *testing.T) {
	c, s := dekcache.New(dekcache.Config{}), &source{delay: time.Hour}
	e := get(t, c, 1, &source{})
	held := c.Held(id(1))
	errs := make(chan error)
	go func() {
		_, err := c.Get(t.Context(), id(2), group, s.fetch(2))
		errs <- err
	}()

	for s.calls.Load() == 0 {
		time.Sleep(time.Millisecond)
	}

	c.Close()
	if err := <-errs; !errors.Is(err, context.Canceled) && !errors.Is(err, dekcache.ErrClosed) {
		t.Errorf("the waiter got %v", err)
	}
	if e.InForce() || !bytes.Equal(held, make([]byte, 32)) || !c.Bare() {
		t.Error("Close left a DEK")
	}

	if _, err := c.Get(t.Context(), id(1), group, s.fetch(1)); !errors.Is(err, dekcache.ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
	if e := c.Put(id(1), group, c.Mark(), dekOf(1)); c.Held(id(1)) != nil || len(e.DEK) != 32 {
		t.Error("put after Close")
	}

	c.Close()
}

func TestAFetchThatPanics(t *testing.T) {
	c := newCache(t, dekcache.Config{})
	_, err := c.Get(t.Context(), id(1), group, func(context.Context) ([]byte, error) { panic("secret") })
	if err == nil || bytes.Contains([]byte(err.Error()), []byte("secret")) {
		t.Errorf("%v", err)
	}
	get(t, c, 1, &source{})
}

func TestZeroTermIsOver(t *testing.T) {
	if (&dekcache.Entry{}).InForce() {
		t.Error("in force")
	}
}

// Runs everything concurrently, for the race detector.
func TestConcurrent(t *testing.T) {
	c := newCache(t, dekcache.Config{
		TTL: 2 * time.Millisecond, MaxEntries: 20, Remember: func(error) time.Duration { return time.Millisecond },
	})

	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				n, s := (g*7+i)%40, &source{}
				if i%10 == 0 {
					s.err = errNo
				}

				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				e, err := c.Get(ctx, id(n), group, s.fetch(n))
				cancel()

				if err == nil && !bytes.Equal(e.DEK, dekOf(n)) {
					t.Errorf("wrong DEK")
				}

				clear(e.DEK)
				switch i % 50 {
				case 0:
					c.Purge(keyID)
				case 1:
					c.PurgeAll()
				case 2:
					c.Stats()
				case 3:
					c.Put(id(n), group, c.Mark(), dekOf(n))
				}
			}
		})
	}

	wg.Wait()
}

func BenchmarkGetHit(b *testing.B) {
	c, s := newCache(b, dekcache.Config{}), &source{}
	fetch := s.fetch(1)
	if _, err := c.Get(b.Context(), id(1), group, fetch); err != nil {
		b.Fatal(err)
	}

	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.Get(b.Context(), id(1), group, fetch); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkInForce(b *testing.B) {
	c := newCache(b, dekcache.Config{})
	e := get(b, c, 1, &source{})
	b.ReportAllocs()
	for b.Loop() {
		if !e.InForce() {
			b.Fatal("over")
		}
	}
}

func BenchmarkPurge100k(b *testing.B) {
	c := newCache(b, dekcache.Config{})
	for b.Loop() {
		b.StopTimer()
		m := c.Mark()
		for n := range 100_000 {
			c.Put(id(n), group, m, dekOf(1))
		}
		b.StartTimer()
		c.Purge(keyID)
	}
}

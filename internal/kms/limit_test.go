package kms_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

func TestLimitConcurrency(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		var now, most atomic.Int64
		inner := &fakeKMS{answer: func(context.Context, int64) error {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			time.Sleep(time.Second)
			now.Add(-1)
			return nil
		}}

		w, start := kms.Limit(inner, kms.LimitConfig{MaxConcurrent: 2}), time.Now()
		var wg sync.WaitGroup

		for range 6 {
			wg.Go(func() {
				if err := unwrapOnce(t.Context(), w); err != nil {
					t.Error(err)
				}
			})
		}

		wg.Wait()
		if took := time.Since(start); most.Load() != 2 || took != 3*time.Second {
			t.Errorf("%d at once, all in %v; want 2 at once, in 3 s", most.Load(), took)
		}
	})
}

func TestLimitRate(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  kms.LimitConfig
		want []int64 // when each call reaches the KMS, in ms
	}{
		{"burst of one", kms.LimitConfig{PerSecond: 10, Burst: 1}, []int64{0, 100, 200, 300}},
		{"burst of two", kms.LimitConfig{PerSecond: 10, Burst: 2}, []int64{0, 0, 100, 200}},
		{"burst left out", kms.LimitConfig{PerSecond: 2}, []int64{0, 0, 500, 1000}},
		{"less than one a second", kms.LimitConfig{PerSecond: 0.5}, []int64{0, 2000, 4000}},
		{"with one slot", kms.LimitConfig{PerSecond: 10, Burst: 1, MaxConcurrent: 1}, []int64{0, 100, 200}},
		{"no limit", kms.LimitConfig{Burst: 1}, []int64{0, 0, 0, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			kmstest.Bubble(t, func(t *testing.T) {
				start := time.Now()
				var got []int64
				inner := &fakeKMS{answer: func(context.Context, int64) error {
					got = append(got, time.Since(start).Round(time.Millisecond).Milliseconds())
					return nil
				}}

				w := kms.Limit(inner, c.cfg)
				for range c.want {
					if err := unwrapOnce(t.Context(), w); err != nil {
						t.Error(err)
					}
				}

				if !slices.Equal(got, c.want) {
					t.Errorf("calls at %v ms, want %v", got, c.want)
				}
			})
		})
	}
}

func TestLimitReportsWaits(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  kms.LimitConfig
		want []time.Duration // of three calls at once, each of which takes a second
	}{
		{"for slots", kms.LimitConfig{MaxConcurrent: 1}, []time.Duration{time.Second, 2 * time.Second}},
		{"for tokens", kms.LimitConfig{PerSecond: 0.2, Burst: 2}, []time.Duration{5 * time.Second}},
		{"for both", kms.LimitConfig{MaxConcurrent: 2, PerSecond: 0.5, Burst: 2}, []time.Duration{2 * time.Second}},
		{"no limit is reached", kms.LimitConfig{MaxConcurrent: 3, PerSecond: 3, Burst: 3}, nil},
		{"no limit", kms.LimitConfig{}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			kmstest.Bubble(t, func(t *testing.T) {
				var mu sync.Mutex
				var got []time.Duration
				c.cfg.OnWait = func(waited time.Duration) {
					mu.Lock()
					defer mu.Unlock()
					got = append(got, waited.Round(time.Millisecond))
				}

				w := kms.Limit(&fakeKMS{answer: func(context.Context, int64) error {
					time.Sleep(time.Second)
					return nil
				}}, c.cfg)
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						if err := unwrapOnce(t.Context(), w); err != nil {
							t.Error(err)
						}
					})
				}

				wg.Wait()
				if !slices.Equal(got, c.want) {
					t.Errorf("waited %v, want %v", got, c.want)
				}
			})
		})
	}
}

// A call that gives up has waited too.
func TestLimitReportsWaitsInVain(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		var waited time.Duration
		w := hold(t, &fakeKMS{}, kms.LimitConfig{
			MaxConcurrent: 1, OnWait: func(d time.Duration) { waited = d.Round(time.Millisecond) },
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := unwrapOnce(ctx, w); !errors.Is(err, kms.ErrLimit) || waited != time.Second {
			t.Errorf("waited %v: %v", waited, err)
		}
		time.Sleep(10 * time.Second) // until the first call ends
	})
}

// hold takes the only slot, or the only token, of a Limit.
func hold(t *testing.T, inner *fakeKMS, cfg kms.LimitConfig) kms.Wrapper {
	t.Helper()
	inner.answer = func(_ context.Context, n int64) error {
		if n == 1 {
			time.Sleep(10 * time.Second)
		}
		return nil
	}

	w := kms.Limit(inner, cfg)
	go func() { _ = unwrapOnce(context.Background(), w) }()
	synctest.Wait()
	return w
}

func TestLimitDeadline(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  kms.LimitConfig
		want time.Duration
	}{
		{"no slot: at the deadline", kms.LimitConfig{MaxConcurrent: 1}, time.Second},
		{"no token: at once", kms.LimitConfig{PerSecond: 0.1, Burst: 1}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			kmstest.Bubble(t, func(t *testing.T) {
				inner := &fakeKMS{}
				w, start := hold(t, inner, c.cfg), time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()

				_, _, err := kms.Generate(ctx, w, nil)
				wantError(t, err, kms.Throttled, "local limit", kms.ErrLimit)

				if took := time.Since(start); took != c.want {
					t.Errorf("answered after %v, want %v", took, c.want)
				}

				time.Sleep(10 * time.Second)
				wantError(t, unwrapOnce(ctx, w), kms.Throttled, "local limit", kms.ErrLimit) // the deadline has passed

				if n := inner.calls.Load(); n != 1 {
					t.Errorf("the KMS was asked %d times, want once", n)
				}
				if err := unwrapOnce(t.Context(), w); err != nil {
					t.Errorf("later: %v", err)
				}
			})
		})
	}
}

func TestLimitCanceled(t *testing.T) {
	for name, cfg := range map[string]kms.LimitConfig{
		"no slot":  {MaxConcurrent: 1},
		"no token": {PerSecond: 0.1, Burst: 1},
	} {
		t.Run(name, func(t *testing.T) {
			kmstest.Bubble(t, func(t *testing.T) {
				inner := &fakeKMS{}
				w, start := hold(t, inner, cfg), time.Now()
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Second, cancel)
				wantError(t, unwrapOnce(ctx, w), kms.Canceled, "", context.Canceled)

				if took := time.Since(start); took != time.Second {
					t.Errorf("answered after %v, want when it was canceled", took)
				}

				// It must have returned its slot or token: the next call is
				// served when the first one is free.
				if err := unwrapOnce(t.Context(), w); err != nil || time.Since(start) > 10*time.Second {
					t.Errorf("the next one: %v after %v", err, time.Since(start))
				}
			})
		})
	}
}

func TestLimitKeepsToTheRateOfAServer(t *testing.T) {
	server := kmstest.StartTest(t)
	key := server.NewKey(t, nil)
	server.SetFaults(kmstest.Faults{MaxPerSecond: 20})

	throttled := func(w kms.Wrapper, calls int) (n int) {
		for range calls {
			if _, _, err := kms.Generate(t.Context(), w, nil); kms.IsThrottled(err) {
				n++
			} else if err != nil {
				t.Error(err)
			}
		}

		return n
	}
	if n := throttled(key, 200); n == 0 {
		t.Error("without a limit, the server throttled nothing")
	}

	time.Sleep(time.Second) // the server counts per second
	limited := kms.Limit(key, kms.LimitConfig{MaxConcurrent: 1, PerSecond: 12, Burst: 3})
	if n := throttled(limited, 24); n != 0 {
		t.Errorf("%d calls throttled within the limit", n)
	}
}

package walk_test

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
)

func count(n int, end error) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		for i := range n {
			if !yield(i, nil) {
				return
			}
		}
		if end != nil {
			yield(0, end)
		}
	}
}

func TestResultsComeInOrderWhateverTheWorkTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int64
		work := func(_ context.Context, i int) int {
			now := running.Add(1)
			defer running.Add(-1)
			for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); seen = most.Load() {
			}
			time.Sleep(time.Duration(100-i%7*10) * time.Millisecond)
			return i * i
		}

		next := 0
		for got, err := range walk.InOrder(t.Context(), count(100, nil), 8, 20, work) {
			if err != nil || got != next*next {
				t.Fatalf("result %d is %d, %v", next, got, err)
			}
			next++
		}

		if next != 100 || most.Load() != 8 {
			t.Errorf("%d results, %d at a time", next, most.Load())
		}
	})
}

func TestErrorOfTheInputComesLast(t *testing.T) {
	failure := errors.New("failure")
	n := 0
	var last error
	for _, err := range walk.InOrder(
		t.Context(), count(10, failure), 3, 5, func(_ context.Context, i int) int { return i },
	) {
		if last = err; err == nil {
			n++
		}
	}
	if n != 10 || !errors.Is(last, failure) {
		t.Errorf("%d results, then %v", n, last)
	}
}

func TestLeavingTheLoopEndsTheWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running atomic.Int64
		work := func(ctx context.Context, i int) int {
			running.Add(1)
			defer running.Add(-1)
			if i > 3 {
				<-ctx.Done()
			}
			return i
		}
		for i, err := range walk.InOrder(t.Context(), count(1000, nil), 4, 100, work) {
			if i == 3 || err != nil {
				break
			}
		}

		if n := running.Load(); n != 0 {
			t.Errorf("%d still run", n)
		}
	})
}

func TestCanceledContextIsAnError(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var last error
	n := 0

	for i, err := range walk.InOrder(ctx, count(1000, nil), 2, 2, func(_ context.Context, i int) int { return i }) {
		if last = err; err == nil && i != n {
			t.Errorf("%d in the place of %d", i, n)
		}
		if n++; n == 10 {
			cancel()
		}
	}

	if !errors.Is(last, context.Canceled) || n > 100 {
		t.Errorf("after %d results: %v", n, last)
	}
	cancel()
}

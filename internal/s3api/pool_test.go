package s3api

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// newCrowdedPool returns a pool with 100 slots, of which 20 are for young
// requests while the CPU is saturated. A client may have 75.
func newCrowdedPool(saturated bool) *pool {
	p := newPool(100, func() int { return 75 })
	p.crowd, p.saturated = 20, func() bool { return saturated }
	return p
}

func (p *pool) fill(h holder, n int) (got int) {
	for range n {
		if p.acquire(h, young) == "" {
			got++
		}
	}
	return got
}

// TestCrowd: a greedy client does not take the CPU from a quiet one.
func TestCrowd(t *testing.T) {
	greedy, quiet := holder{name: "greedy"}, holder{name: "quiet"}
	for _, row := range []struct {
		name          string
		saturated     bool
		before        int // slots of the greedy client from before the CPU was saturated
		greedy, quiet int // slots that they get, of 100 that each asks for
	}{
		{"idle", false, 0, 75, 25},
		{"saturated", true, 0, 20, 10},
		{"saturated late", true, 60, 0, 10},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newCrowdedPool(false)
			p.fill(greedy, row.before)
			p.saturated = func() bool { return row.saturated }
			got := [2]int{p.fill(greedy, 100), p.fill(quiet, 100)}
			if got != [2]int{row.greedy, row.quiet} {
				t.Errorf("the greedy client and the quiet one get %d, want %d and %d", got, row.greedy, row.quiet)
			}
		})
	}
}

// TestLine: requests wait for a place in the crowd, in the order in which they
// came, and the line has an end.
func TestLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newCrowdedPool(true)
		first, next := holder{name: "first"}, holder{name: "next"}
		p.fill(first, 20)
		p.of["next"] = &holding{used: 10, young: 10} // has its equal part already
		p.used, p.young = 30, 30

		var order []int
		for n := range 3 {
			go func() {
				if why := p.acquireInLine(t.Context(), next, young); why != "" {
					t.Errorf("request %d: %s", n, why)
				}
				order = append(order, n)
			}()
			synctest.Wait()
		}

		for range 13 { // 17 are left, so three places are free
			p.release(first, young)
			synctest.Wait()
		}
		if !slices.Equal(order, []int{0, 1, 2}) || p.young != 20 || p.line.Len() != 0 {
			t.Errorf("in the order %v, %d run, %d wait", order, p.young, p.line.Len())
		}

		full := p.size - p.used
		for range full {
			go p.acquireInLine(t.Context(), next, young)
		}
		synctest.Wait()
		if why := p.full(next, young); why != noCPU {
			t.Errorf("the line is full: %q", why)
		}
		if why := p.acquireInLine(t.Context(), next, young); why != noCPU {
			t.Errorf("behind a full line: %q", why)
		}
		time.Sleep(lineTime)
		synctest.Wait()

		// Now it is short.
		start := time.Now()
		if why := p.acquireInLine(t.Context(), next, young); why != noCPU || time.Since(start) != shortLineTime {
			t.Errorf("%q after %v", why, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range shortLine * p.crowd {
			go p.acquireInLine(ctx, next, young)
		}
		synctest.Wait()
		if why := p.full(next, young); why != noCPU {
			t.Errorf("the short line is full: %q", why)
		}
		cancel()
		synctest.Wait()
		if n := p.line.Len(); n != 0 {
			t.Errorf("%d wait whose clients have left", n)
		}

		time.Sleep(shortFor)
		start = time.Now()
		if why := p.acquireInLine(t.Context(), next, young); why != noCPU || time.Since(start) != lineTime {
			t.Errorf("%q after %v, when the line is long again", why, time.Since(start))
		}
	})
}

// TestReasons: each refusal has its reason.
func TestReasons(t *testing.T) {
	for _, row := range []struct {
		name      string
		saturated bool
		clients   []int // slots that each asks for
		want      refusal
	}{
		{"all slots are in use", false, []int{75, 25}, noSlot},
		{"the client has its share", false, []int{10, 75}, noShare},
		{"the CPU is saturated", true, []int{20}, noCPU},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newCrowdedPool(row.saturated)
			var last holder
			for i, n := range row.clients {
				last = holder{name: fmt.Sprint(i)}
				if got := p.fill(last, n); got != n {
					t.Fatalf("client %d gets %d slots of %d", i, got, n)
				}
			}
			early := row.want
			if early == noCPU {
				early = "" // there is a place in the line
			}
			if why := p.full(last, young); why != early {
				t.Errorf("got %q, want %q", why, early)
			}
			if why := p.acquire(last, young); why != row.want {
				t.Errorf("acquire: got %q, want %q", why, row.want)
			}
		})
	}
}

// TestTransfersAreNoCrowd: requests that have become old leave the crowd, so
// that bulk transfers do not keep small requests out.
func TestTransfersAreNoCrowd(t *testing.T) {
	p, client := newCrowdedPool(true), holder{name: "client"}
	for round := range 3 {
		if got := p.fill(client, 100); got != 20 {
			t.Errorf("round %d: %d slots", round, got)
		}
		for range 20 {
			p.age(client)
		}
		if why := p.acquire(client, old); why != "" {
			t.Errorf("round %d: a long upload is refused: %s", round, why)
		}
	}
}

// TestPoolReturnsToZero: whatever requests do, nothing is left of them.
func TestPoolReturnsToZero(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	fast, slow := newCrowdedPool(true), newPool(50, func() int { return 30 })
	fast.saturated = func() bool { return random.IntN(2) == 0 }
	var running []*slot
	for step := range 20_000 {
		pick := func() *slot { return running[random.IntN(len(running))] }
		switch action := random.IntN(4); {
		case action == 0 || len(running) == 0:
			h := holder{name: fmt.Sprint(random.IntN(5)), most: random.IntN(40)}
			if fast.acquire(h, young) == "" {
				s := &slot{}
				s.move(fast, h, young)
				running = append(running, s)
			}
		case action == 1:
			pick().grow()
		case action == 2:
			if s := pick(); s.pool == fast && slow.acquire(s.holder, old) == "" {
				s.move(slow, s.holder, old)
			}
		default:
			i := random.IntN(len(running))
			running[i].move(nil, holder{}, old)
			running = append(running[:i], running[i+1:]...)
		}
		if fast.young < 0 || fast.young > fast.used || fast.used > fast.size || slow.used > slow.size {
			t.Fatalf("step %d: %+v, %+v", step, fast, slow)
		}
	}

	for _, s := range running {
		s.move(nil, holder{}, old)
	}
	for _, p := range []*pool{fast, slow} {
		if p.used != 0 || p.young != 0 || len(p.of) != 0 {
			t.Errorf("%d slots, %d young, %d holders are left", p.used, p.young, len(p.of))
		}
	}
}

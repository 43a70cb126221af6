package capability_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/capability"
)

// prober is a store whose capabilities change.
type prober struct {
	probes atomic.Int64
	answer func(bucket string) (capability.Set, error)
}

func (p *prober) finder(fixed capability.Set) *capability.Finder {
	return capability.New(capability.Config{
		Probe: func(ctx context.Context, bucket string) (capability.Set, error) {
			p.probes.Add(1)
			select {
			case <-time.After(time.Second):
				return p.answer(bucket)
			case <-ctx.Done():
				return capability.Set{}, ctx.Err()
			}
		},
		Fixed: fixed,
		TTL:   time.Hour, Timeout: 10 * time.Second, Now: time.Now,
		Retry: func(error) time.Duration { return time.Minute },
	})
}

func (p *prober) want(t *testing.T, probes int64) {
	t.Helper()
	if n := p.probes.Load(); n != probes {
		t.Errorf("%d probes, want %d", n, probes)
	}
}

func always(s capability.Set) func(string) (capability.Set, error) {
	return func(string) (capability.Set, error) { return s, nil }
}

var all = func() (s capability.Set) {
	for c := range capability.All {
		s[c] = capability.Yes
	}
	return s
}()

func TestAnswersAreRememberedForATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &prober{answer: always(all)}
		f := p.finder(capability.Set{})
		if got := f.Known(); got != (capability.Set{}) {
			t.Errorf("known before anything was asked: %v", got)
		}

		for _, bucket := range []string{"a", "a", "b"} {
			if got := f.Find(t.Context(), bucket, capability.Trailer); got != all {
				t.Errorf("%s: %v", bucket, got)
			}
		}
		p.want(t, 1)

		without := all
		without[capability.Trailer] = capability.No
		p.answer = always(without)
		time.Sleep(time.Hour)
		if got := f.Find(t.Context(), "a", capability.Trailer); got != without {
			t.Errorf("after the TTL: %v", got)
		}
		p.want(t, 2)
	})
}

func TestSettingsHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &prober{answer: always(all)}
		var fixed capability.Set
		fixed[capability.Trailer] = capability.No
		f := p.finder(fixed)

		if got := f.Find(t.Context(), "a", capability.Trailer); got != fixed {
			t.Errorf("%v", got)
		}
		p.want(t, 0)

		got := f.Find(t.Context(), "a", capability.Trailer, capability.PartCount)
		if got[capability.Trailer] != capability.No || got[capability.PartCount] != capability.Yes {
			t.Errorf("%v", got)
		}
		p.want(t, 1)
	})
}

// A probe that fails, for example because the proxy must not write there,
// concerns one bucket, and is not repeated by each request.
func TestAProbeThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &prober{answer: func(bucket string) (capability.Set, error) {
			if bucket == "read-only" {
				return capability.Set{}, errors.New("access denied")
			}
			return all, nil
		}}
		f := p.finder(capability.Set{})

		for range 3 {
			if got := f.Find(t.Context(), "read-only", capability.Trailer); got != (capability.Set{}) {
				t.Errorf("%v", got)
			}
		}
		p.want(t, 1)

		time.Sleep(time.Minute)
		f.Find(t.Context(), "read-only", capability.Trailer)
		p.want(t, 2)

		if got := f.Find(t.Context(), "other", capability.Trailer); got != all {
			t.Errorf("in another bucket: %v", got)
		}
		if got := f.Find(t.Context(), "read-only", capability.Trailer); got != all {
			t.Errorf("when another bucket has the answers: %v", got)
		}
		p.want(t, 3)
	})
}

// What could be found out is used; the rest is asked for again later.
func TestAnswersInPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		part := all
		part[capability.PartCount] = capability.Unknown
		p := &prober{answer: func(string) (capability.Set, error) { return part, errors.New("ListParts is denied") }}
		f := p.finder(capability.Set{})
		for range 3 {
			if got := f.Find(t.Context(), "a", capability.PartCount); got != part {
				t.Errorf("%v", got)
			}
		}
		p.want(t, 1)
	})
}

func TestRequestsShareAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &prober{answer: always(all)}
		f := p.finder(capability.Set{})
		// The client that comes first goes away; the others need the answers.
		gone, leave := context.WithCancel(t.Context())
		go func() {
			time.Sleep(time.Millisecond)
			leave()
		}()

		var all sync.WaitGroup
		all.Go(func() { f.Find(gone, "a", capability.Trailer) })
		synctest.Wait() // it is waiting for the store
		for i := range 100 {
			all.Go(func() {
				if got := f.Find(t.Context(), fmt.Sprint(i), capability.Trailer); got[capability.Trailer] != capability.Yes {
					t.Errorf("%v", got)
				}
			})
		}
		all.Wait()
		p.want(t, 1)
	})
}

func TestTexts(t *testing.T) {
	names := make(map[string]bool)
	for c := range capability.All {
		name := c.String()
		if name == "" || names[name] {
			t.Errorf("capability %d is called %q", int(c), name)
		}
		names[name] = true

		yes, no := c.Text(capability.Yes), c.Text(capability.No)
		if yes == "" || no == "" || yes == no || c.Text(capability.Unknown) != "unknown" {
			t.Errorf("%s: %q and %q", name, yes, no)
		}
	}
}

func TestLiteral(t *testing.T) {
	for name, row := range map[string]struct {
		set  capability.Set
		want capability.Answer
	}{
		"nothing known": {capability.Set{}, capability.Unknown},
		"all kept":      {all, capability.Yes},
		"one folded":    {capability.Set{capability.LiteralBackslash: capability.No}.Over(all), capability.No},
		"one unknown": {
			capability.Set{capability.LiteralDots: capability.Yes, capability.LiteralSlashes: capability.Yes},
			capability.Unknown,
		},
		"known by one": {capability.Set{capability.LiteralDots: capability.No}, capability.No},
	} {
		t.Run(name, func(t *testing.T) {
			if got := row.set.Literal(); got != row.want {
				t.Errorf("%s, want %s", got, row.want)
			}
		})
	}
}

func Example() {
	f := capability.New(capability.Config{
		Probe: func(_ context.Context, bucket string) (s capability.Set, err error) {
			fmt.Println("asking the store, in", bucket)
			s[capability.Trailer] = capability.No
			return s, nil
		},
		TTL: time.Hour, Timeout: time.Second, Now: time.Now,
		Retry: func(error) time.Duration { return time.Minute },
	})
	for range 2 {
		set := f.Find(context.Background(), "bucket", capability.Trailer)
		fmt.Println(capability.Trailer, set[capability.Trailer])
	}
	// Output:
	// asking the store, in bucket
	// trailer no
	// trailer no
}

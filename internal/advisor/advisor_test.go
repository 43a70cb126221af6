package advisor_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/advisor"
)

// ttls are the TTLs in every report, except 0.
var ttls = []time.Duration{
	10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour,
}

// clock is a clock set by the test.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{now: time.Unix(1_700_000_000, 0)} }

func (c *clock) Now() time.Time { return c.now }

func (c *clock) sleep(d time.Duration) { c.now = c.now.Add(d) }

func id(n int) (id [32]byte) {
	binary.LittleEndian.PutUint64(id[:], uint64(n))
	return id
}

// mix is a deterministic hash (the finalizer of MurmurHash3).
func mix(id [32]byte) uint64 {
	h := binary.LittleEndian.Uint64(id[:]) + 0x9e3779b97f4a7c15
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// event is an event of a blob in a trace.
type event struct {
	blob int
	kind string // open, create or release
}

func tell(r *advisor.Recorder, e event) {
	switch e.kind {
	case "open":
		r.Opened(id(e.blob))
	case "create":
		r.Created(id(e.blob))
	case "release":
		r.Released(id(e.blob))
	}
}

// cost counts the events of a cache.
type cost struct{ accesses, misses, renewals, creates, held int }

// replay simulates a cache with one TTL in the simplest way: second by
// second, blob by blob. trace contains the events of each second. Events
// before the second from are not counted.
func replay(ttl time.Duration, trace [][]event, from int) cost {
	var c cost
	fetched, streams := map[int]int{}, map[int]int{}
	seconds := int(ttl / time.Second)

	for now, events := range trace {
		counted := 0
		if now >= from {
			counted = 1
		}

		for blob := range streams {
			if now == fetched[blob]+seconds {
				fetched[blob] = now
				c.renewals += counted
			}
		}

		for _, e := range events {
			switch e.kind {
			case "open":
				c.accesses += counted
				if at, ok := fetched[e.blob]; !ok || now >= at+seconds {
					fetched[e.blob] = now
					c.misses += counted
				}
				streams[e.blob]++
			case "create":
				c.creates += counted
				fetched[e.blob] = now
				streams[e.blob]++
			case "release":
				if streams[e.blob]--; streams[e.blob] == 0 {
					delete(streams, e.blob)
				}
			}
		}
	}

	for _, at := range fetched {
		if len(trace)-1 < at+seconds {
			c.held++
		}
	}

	return c
}

// randomTrace returns streams of all lengths, for blobs that are used often
// and rarely.
func randomTrace(seed uint64, seconds, blobs int) [][]event {
	rng := rand.New(rand.NewPCG(seed, 0))
	trace := make([][]event, seconds)
	next := blobs

	for now := range trace {
		if rng.IntN(4) > 0 {
			continue
		}

		e := event{blob: int(float64(blobs) * math.Pow(rng.Float64(), 3)), kind: "open"}
		if rng.IntN(10) == 0 {
			e = event{blob: next, kind: "create"}
			next++
		} else if rng.IntN(3) == 0 && next > blobs {
			e.blob = blobs + rng.IntN(next-blobs) // read what was written before
		}

		trace[now] = append(trace[now], e)
		length := int(math.Exp(rng.Float64() * 7)) // a second to 18 minutes
		if end := now + length; end < seconds {
			trace[end] = append(trace[end], event{e.blob, "release"})
		}
	}

	return trace
}

// play sends a trace to a Recorder, and leaves the clock at its last
// second.
func play(r *advisor.Recorder, c *clock, trace [][]event) {
	for now, events := range trace {
		if now > 0 {
			c.sleep(time.Second)
		}
		for _, e := range events {
			tell(r, e)
		}
	}
}

func near(got, want float64) bool { return math.Abs(got-want) <= 1e-9*max(1, math.Abs(want)) }

// wantRow compares a row with a result of replay.
func wantRow(t *testing.T, row advisor.Row, want cost, observed time.Duration) {
	t.Helper()
	if calls := row.CallsPerSecond * observed.Seconds(); !near(calls, float64(want.misses+want.renewals+want.creates)) {
		t.Errorf("TTL %v: %v KMS calls, want %d + %d + %d", row.TTL, calls, want.misses, want.renewals, want.creates)
	}
	if hits := row.HitRatio * float64(want.accesses); !near(hits, float64(want.accesses-want.misses)) {
		t.Errorf("TTL %v: %v hits, want %d", row.TTL, hits, want.accesses-want.misses)
	}
	if !near(row.DEKsHeld, float64(want.held)) {
		t.Errorf("TTL %v: %v DEKs held, want %d", row.TTL, row.DEKsHeld, want.held)
	}
}

func TestEqualsTheReplayOfATrace(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			own := 137 * time.Second
			trace := randomTrace(seed, 3*3600, 60)
			c := newClock()
			r := advisor.New(advisor.Config{TTL: own, Now: c.Now})
			play(r, c, trace)
			rep := r.Report()
			if rep.SampleRate != 1 || rep.Observed != 3*time.Hour-time.Second {
				t.Fatalf("rate %v, observed %v", rep.SampleRate, rep.Observed)
			}

			want := []time.Duration{0, 10e9, 30e9, 60e9, own, 300e9, 900e9, 3600e9}
			if len(rep.Rows) != len(want) {
				t.Fatalf("%d rows, want %d", len(rep.Rows), len(want))
			}

			for i, row := range rep.Rows {
				if row.TTL != want[i] || row.Current != (row.TTL == own) || row.WarmingUp {
					t.Errorf("row %d: %+v", i, row)
				}

				found := replay(row.TTL, trace, 0)
				if row.TTL == 0 {
					found.renewals, found.misses, found.held = 0, found.accesses, 0
				} else if found.renewals == 0 || found.misses == 0 || found.creates == 0 {
					t.Errorf("TTL %v: the trace tries nothing: %+v", row.TTL, found)
				}

				wantRow(t, row, found, rep.Observed)
			}
		})
	}
}

func TestFiguresAreOfADay(t *testing.T) {
	const seconds = 31 * 3600
	trace := randomTrace(9, seconds, 40)
	c := newClock()
	r := advisor.New(advisor.Config{TTL: time.Minute, Now: c.Now})
	c.sleep(time.Second / 2) // so that nothing happens exactly at the start of the window
	play(r, c, trace)
	rep := r.Report()
	if rep.Observed > 24*time.Hour || rep.Observed < 24*time.Hour-5*time.Minute {
		t.Fatalf("observed %v", rep.Observed)
	}

	from := seconds - int(rep.Observed/time.Second)
	for _, row := range rep.Rows[1:] {
		wantRow(t, row, replay(row.TTL, trace, from-1), rep.Observed)
	}
}

func TestFiguresGoWithTheirDay(t *testing.T) {
	c := newClock()
	r := advisor.New(advisor.Config{TTL: time.Minute, Now: c.Now})
	r.Opened(id(1))
	c.sleep(90 * time.Second)
	r.Released(id(1))
	c.sleep(23 * time.Hour)

	if rep := r.Report(); rep.AccessesPerSecond == 0 || rep.Rows[3].CallsPerSecond == 0 {
		t.Errorf("gone within a day: %+v", rep)
	}

	for _, pause := range []time.Duration{time.Hour, 100 * time.Hour} {
		c.sleep(pause)
		rep := r.Report()
		if rep.AccessesPerSecond != 0 || rep.Rows[3].CallsPerSecond != 0 {
			t.Errorf("there after a day: %+v", rep)
		}
		if rep.Observed > 24*time.Hour || rep.Observed < 24*time.Hour-5*time.Minute {
			t.Errorf("observed %v", rep.Observed)
		}
	}

	if n := r.Blobs(); n != 0 {
		t.Errorf("%d blobs remembered that no cache would hold", n)
	}
}

func TestAStreamUnderWayIsSeen(t *testing.T) {
	c := newClock()
	r := advisor.New(advisor.Config{TTL: time.Minute, Now: c.Now})
	r.Opened(id(1))
	c.sleep(10*time.Minute + time.Second)
	rep := r.Report()

	for i, want := range []float64{1, 61, 21, 11, 3, 1, 1} {
		if got := rep.Rows[i].CallsPerSecond * rep.Observed.Seconds(); !near(got, want) {
			t.Errorf("TTL %v: %v calls, want %v", rep.Rows[i].TTL, got, want)
		}
	}

	r.Released(id(1))
	r.Released(id(1)) // an extra call does no harm
	c.sleep(time.Hour)
	r.Opened(id(1))

	if got := r.Report(); !near(got.Rows[3].CallsPerSecond*got.Observed.Seconds(), 12) {
		t.Errorf("use went on after the release: %+v", got.Rows[3])
	}
}

// TestSampleOfManyBlobs limits the error to a tenth of the KMS calls, and
// to 0.05 of the hit ratio.
func TestSampleOfManyBlobs(t *testing.T) {
	const blobs, seconds, perSecond = 100_000, 3600 + 600, 200
	rng := rand.New(rand.NewPCG(5, 6))
	zipf := rand.NewZipf(rng, 1.05, 10, blobs-1)
	c := newClock()
	r := advisor.New(advisor.Config{TTL: 5 * time.Minute, Now: c.Now})
	r.SetHash(mix)
	all := make([]cost, len(ttls))
	fetched := make([][]time.Time, len(ttls))
	for i := range fetched {
		fetched[i] = make([]time.Time, blobs)
	}

	for range seconds {
		c.sleep(time.Second)
		for range perSecond {
			blob := int(zipf.Uint64())
			r.Opened(id(blob))
			r.Released(id(blob))

			for i, ttl := range ttls {
				if at := fetched[i][blob]; c.now.Sub(at) >= ttl {
					fetched[i][blob] = c.now
					all[i].misses++
				}
			}
		}
	}

	rep := r.Report()
	if rep.SampleRate > 0.25 || rep.SampledBlobs < advisor.MaxBlobs/8 || r.Blobs() > advisor.MaxBlobs {
		t.Fatalf("%d blobs at a rate of %v; %d remembered", rep.SampledBlobs, rep.SampleRate, r.Blobs())
	}
	if !near(rep.AccessesPerSecond, perSecond) {
		t.Errorf("%v accesses per second: they are counted, not estimated", rep.AccessesPerSecond)
	}

	for i, row := range rep.Rows[1:] {
		want := float64(all[i].misses) / seconds
		off := row.CallsPerSecond/want - 1
		t.Logf("TTL %v: %.1f calls per second, off by %+.1f %%", row.TTL, row.CallsPerSecond, 100*off)

		if math.Abs(off) > 0.1 {
			t.Errorf("TTL %v: %v calls per second, want %v", row.TTL, row.CallsPerSecond, want)
		}
		if math.Abs(row.HitRatio-(1-want/perSecond)) > 0.05 {
			t.Errorf("TTL %v: hit ratio %v, want %v", row.TTL, row.HitRatio, 1-want/perSecond)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	c := newClock()
	r := advisor.New(advisor.Config{TTL: time.Minute, Now: c.Now})

	for n := range 100_000 {
		if n%1000 == 0 {
			c.sleep(time.Second)
		}

		r.Created(id(2 * n))
		r.Opened(id(2*n + 1)) // never released

		if n%997 == 0 && r.Blobs() > advisor.MaxBlobs {
			t.Fatalf("%d blobs remembered", r.Blobs())
		}
	}

	rep := r.Report()
	if r.Blobs() > advisor.MaxBlobs || rep.SampledBlobs < advisor.MaxBlobs/4 {
		t.Errorf("%d blobs remembered, %d in the sample", r.Blobs(), rep.SampledBlobs)
	}
}

func TestTheSampleGrowsAgain(t *testing.T) {
	c := newClock()
	r := advisor.New(advisor.Config{TTL: time.Minute, Now: c.Now})
	r.SetHash(mix)

	for n := range 200_000 { // once
		r.Opened(id(1000 + n))
		r.Released(id(1000 + n))
	}

	if rate := r.Report().SampleRate; rate > 1.0/32 {
		t.Fatalf("rate %v", rate)
	}

	read := func(d time.Duration) { // 500 blobs, each once in 10 minutes
		for range int(d / (10 * time.Minute)) {
			for n := range 500 {
				c.sleep(1200 * time.Millisecond)
				r.Opened(id(n))
				r.Released(id(n))
			}
		}
	}

	read(48 * time.Hour)
	rep := r.Report()
	if rep.SampleRate != 1 || rep.SampledBlobs != 500 {
		t.Errorf("rate %v, %d blobs", rep.SampleRate, rep.SampledBlobs)
	}

	// One of two accesses costs a call at 15 minutes, one of six at an hour.
	for i, want := range map[int]float64{4: 1, 5: 0.5, 6: 1.0 / 6} {
		got := rep.Rows[i].CallsPerSecond / rep.AccessesPerSecond
		if math.Abs(got-want) > 0.05*want {
			t.Errorf("TTL %v: %v calls for each access, want %v: those without a past were counted",
				rep.Rows[i].TTL, got, want)
		}
	}
}

func TestSetTTL(t *testing.T) {
	c := newClock()
	r := advisor.New(advisor.Config{TTL: 2 * time.Minute, Now: c.Now})
	use := func(d time.Duration) { // every 10 seconds
		for range int(d / (10 * time.Second)) {
			r.Opened(id(1))
			r.Released(id(1))
			c.sleep(10 * time.Second)
		}
	}

	current := func(want time.Duration) advisor.Row {
		t.Helper()
		var row advisor.Row
		n := 0

		for _, candidate := range r.Report().Rows {
			if candidate.Current {
				row = candidate
				n++
			}
		}

		if n != 1 || row.TTL != want {
			t.Fatalf("%d rows are current, the last of TTL %v, want %v", n, row.TTL, want)
		}
		return row
	}

	use(time.Hour)
	if row := current(2 * time.Minute); !near(row.CallsPerSecond, 1.0/120) || !near(row.HitRatio, 11.0/12) {
		t.Errorf("%+v", row)
	}

	r.SetTTL(20 * time.Minute)
	if row := current(20 * time.Minute); !row.WarmingUp || row.CallsPerSecond != 0 {
		t.Errorf("has a past: %+v", row)
	}

	use(10 * time.Minute)
	if row := current(20 * time.Minute); !row.WarmingUp || !near(row.CallsPerSecond, 1.0/600) ||
		!near(row.HitRatio, 59.0/60) {
		t.Errorf("%+v", row)
	}

	r.SetTTL(20 * time.Minute) // no change: continues
	use(10 * time.Minute)

	if row := current(20 * time.Minute); row.WarmingUp || !near(row.CallsPerSecond, 1.0/1200) {
		t.Errorf("%+v", row)
	}

	r.SetTTL(5 * time.Minute)
	if row := current(5 * time.Minute); len(r.Report().Rows) != 7 || row.WarmingUp ||
		!near(row.CallsPerSecond, 1.0/300) {
		t.Errorf("a TTL of the list has no past: %+v", row)
	}

	r.SetTTL(0)
	if row := current(0); !near(row.CallsPerSecond, 1.0/10) || row.HitRatio != 0 {
		t.Errorf("%+v", row)
	}
}

func TestSetTTLWithAStreamUnderWay(t *testing.T) {
	c := newClock()
	r := advisor.New(advisor.Config{TTL: time.Minute, Now: c.Now})
	r.Opened(id(1))
	c.sleep(time.Hour)
	r.SetTTL(20 * time.Second)
	c.sleep(100 * time.Second)
	row := r.Report().Rows[2]
	if calls := row.CallsPerSecond * 100; row.TTL != 20*time.Second || !near(calls, 5) {
		t.Errorf("%v calls at %v, want 5", calls, row.TTL)
	}
}

func TestWhatConfigTells(t *testing.T) {
	c := newClock()
	cfg := advisor.Config{
		TTL:             time.Hour,
		Window:          func(ttl time.Duration) time.Duration { return min(ttl, 16*time.Second) },
		ProbesPerSecond: func() float64 { return 2 },
		PricePer10000:   0.05,
		Currency:        "EUR",
		Now:             c.Now,
	}

	r := advisor.New(cfg)
	for n := range 100 {
		r.Created(id(n))
		c.sleep(time.Second)
	}

	rep := r.Report()
	if rep.CreatesPerSecond != 1 || rep.ProbesPerSecond != 2 || rep.Currency != "EUR" {
		t.Errorf("%+v", rep)
	}

	for _, row := range rep.Rows { // 100 streams of writers are running, and renew
		if row.TTL >= 5*time.Minute && (!near(row.CallsPerSecond, 3) || !near(row.MonthlyCost, 3*30*86400*0.05/10000)) {
			t.Errorf("%+v", row)
		}
		if row.RevocationWindow != min(row.TTL, 16*time.Second) || row.HitRatio != 0 {
			t.Errorf("%+v", row)
		}
	}

	cfg.PricePer10000 = -1
	if row := advisor.New(cfg).Report().Rows[0]; row.MonthlyCost != 0 {
		t.Errorf("free calls cost %v", row.MonthlyCost)
	}

	rep = advisor.New(advisor.Config{Now: c.Now}).Report()
	if rep.PricePer10000 != advisor.DefaultPricePer10000 || rep.Currency != advisor.DefaultCurrency ||
		rep.Rows[6].RevocationWindow != time.Hour {
		t.Errorf("defaults: %+v", rep)
	}
}

func TestNothingSeen(t *testing.T) {
	c := newClock()
	rep := advisor.New(advisor.Config{Now: c.Now}).Report()
	for _, row := range rep.Rows { // no time has passed; there must be no division by zero
		if row.CallsPerSecond != 0 || row.HitRatio != 0 || row.MonthlyCost != 0 {
			t.Errorf("%+v", row)
		}
	}
}

// TestKeyedSample checks that the sample is different in each process, so
// outsiders cannot know it.
func TestKeyedSample(t *testing.T) {
	var sizes []int
	for range 4 {
		c := newClock()
		r := advisor.New(advisor.Config{Now: c.Now})
		for n := range 50_000 {
			r.Created(id(n))
		}
		sizes = append(sizes, r.Report().SampledBlobs)
	}

	slices.Sort(sizes)
	if sizes[0] == sizes[3] {
		t.Errorf("four samples of %d blobs each", sizes[0])
	}
}

func TestConcurrentUse(t *testing.T) {
	r := advisor.New(advisor.Config{TTL: time.Minute})
	const each = 20_000
	var wg sync.WaitGroup

	for g := range 4 {
		wg.Go(func() {
			for n := range each {
				blob := id(g*each + n/2)
				if n%2 == 0 {
					r.Created(blob)
				} else {
					r.Opened(blob)
				}

				r.Released(blob)
				switch n % 5000 {
				case 1000:
					r.SetTTL(time.Duration(n%3+1) * 7 * time.Second)
				case 2000:
					r.Report()
				}
			}
		})
	}

	wg.Wait()
	rep := r.Report()
	for what, got := range map[string]float64{"accesses": rep.AccessesPerSecond, "creates": rep.CreatesPerSecond} {
		if n := math.Round(got * rep.Observed.Seconds()); n != 4*each/2 {
			t.Errorf("%v %s, want %d", n, what, 4*each/2)
		}
	}
}

// BenchmarkRecorder measures the start and the end of a stream.
func BenchmarkRecorder(b *testing.B) {
	for _, blobs := range []int{1000, 1_000_000} {
		b.Run(fmt.Sprintf("blobs=%d", blobs), func(b *testing.B) {
			r := advisor.New(advisor.Config{TTL: time.Minute})
			for n := range blobs {
				r.Opened(id(n))
				r.Released(id(n))
			}

			b.ReportAllocs()
			n := 0
			for b.Loop() {
				r.Opened(id(n % blobs))
				r.Released(id(n % blobs))
				n++
			}
		})
	}
}

func TestAllocations(t *testing.T) {
	r := advisor.New(advisor.Config{TTL: time.Minute})
	for n := range 200_000 {
		r.Created(id(n))
		r.Released(id(n))
	}

	n := 0
	perRun := testing.AllocsPerRun(10_000, func() { // known, or not in the sample
		r.Opened(id(n))
		r.Released(id(n))
		n++
	})
	if perRun != 0 {
		t.Errorf("%v allocations for each access", perRun)
	}
}

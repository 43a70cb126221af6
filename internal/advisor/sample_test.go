package advisor_test

import (
	"encoding/binary"
	"math"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/advisor"
)

// leveled returns the id of a blob with a level, for a Recorder with an
// identity hash. Half of all blobs have level 0.
func leveled(level, n int) [32]byte { return id(1<<(62-level) | n) }

func plain(id [32]byte) uint64 { return binary.LittleEndian.Uint64(id[:]) << 1 }

// thinned returns a Recorder whose sample contains the blobs of level 1 or
// more, which is one blob so far. It has also seen MaxBlobs blobs of level
// 0, whose streams have all ended except the first.
func thinned(c *clock) *advisor.Recorder {
	r := advisor.New(advisor.Config{TTL: time.Minute, Now: c.Now})
	r.SetHash(plain)

	for n := range advisor.MaxBlobs {
		r.Opened(leveled(0, n))
		if n > 0 {
			r.Released(leveled(0, n))
		}
	}

	c.sleep(100 * time.Second)
	r.Opened(leveled(1, 0))
	r.Released(leveled(1, 0))
	return r
}

// calls returns the number of KMS calls counted in a row.
func calls(r *advisor.Recorder, row int) int {
	rep := r.Report()
	return int(math.Round(rep.Rows[row].CallsPerSecond * rep.Observed.Seconds()))
}

func TestThinning(t *testing.T) {
	c := newClock()
	r := thinned(c)
	if rep := r.Report(); r.Blobs() != 1 || rep.SampledBlobs != 1 || rep.SampleRate != 0.5 {
		t.Errorf("%d blobs, %+v", r.Blobs(), rep)
	}

	// The first blob's stream renewed every 10 seconds before the blob was
	// removed. The last blob would represent two, but there were fewer
	// accesses.
	if got, want := calls(r, 1), advisor.MaxBlobs+10+1; got != want {
		t.Errorf("%d calls, want %d", got, want)
	}

	if rep := r.Report(); rep.Rows[1].HitRatio != 0 {
		t.Errorf("hit ratio %v", rep.Rows[1].HitRatio)
	}

	r.Released(leveled(0, 0)) // no longer in the sample
	r.Opened(leveled(0, 1))   // not in the sample either
	before := calls(r, 1)
	c.sleep(time.Minute)
	r.Opened(leveled(0, 1))
	r.Opened(leveled(1, 0))
	r.Released(leveled(1, 0))

	if got := calls(r, 1) - before; got != 2 {
		t.Errorf("%d calls for a blob that represents two", got)
	}
}

func TestAFullSampleIsNotThinnedForAnOutsider(t *testing.T) {
	c := newClock()
	r := thinned(c)

	for n := range advisor.MaxBlobs {
		r.Opened(leveled(1, n))
	}

	c.sleep(10 * time.Minute) // a page of the diary is due
	r.Opened(leveled(0, 1))
	r.Created(leveled(0, 2))

	if n := r.Blobs(); n != advisor.MaxBlobs {
		t.Errorf("%d blobs are left, want %d", n, advisor.MaxBlobs)
	}
}

func TestBlobsWithoutAPastAreNotCounted(t *testing.T) {
	c := newClock()
	r := thinned(c)
	r.Opened(leveled(0, 2)) // too early for the sample
	c.sleep(10 * time.Minute)
	newcomer := leveled(0, 1)
	use := func() {
		r.Opened(newcomer) // blobs outside the sample do the pending work
		r.Released(newcomer)
	}

	before10s, before1h := calls(r, 1), calls(r, 6)
	use()

	if rep := r.Report(); r.Blobs() != 2 || rep.SampledBlobs != 1 || rep.SampleRate != 0.5 {
		t.Errorf("%d blobs, %+v", r.Blobs(), rep)
	}
	if calls(r, 1) != before10s || calls(r, 6) != before1h {
		t.Error("a blob without a past was counted")
	}

	c.sleep(50 * time.Minute)
	use()

	if calls(r, 1) != before10s || calls(r, 6) != before1h {
		t.Error("a blob with a short past was counted")
	}

	c.sleep(8 * time.Minute) // more than an hour after the level was lowered, at 5 minutes
	use()

	if rep := r.Report(); rep.SampledBlobs != 1 || rep.SampleRate != 1 {
		t.Errorf("%+v", rep)
	}
	if got := calls(r, 1) - before10s; got != 1 {
		t.Errorf("%d calls at 10s, want 1", got)
	}

	if got := calls(r, 6) - before1h; got != 0 { // 58 minutes after its first use
		t.Errorf("%d calls at 1h, want 0", got)
	}
}

func TestOutsidersTurnThePage(t *testing.T) {
	c := newClock()
	r := thinned(c)

	for range 3 * 60 {
		c.sleep(time.Minute)
		for n := range 3 {
			r.Opened(leveled(0, n))
			r.Released(leveled(0, n))
		}
	}

	if n := r.Blobs(); n != 3 {
		t.Fatalf("%d blobs: the level was not lowered before the report", n)
	}
}

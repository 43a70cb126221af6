package advisor

import "time"

// The report covers at most the last window, which moves by one page at a
// time.
const (
	window = 24 * time.Hour
	page   = 5 * time.Minute
	pages  = int(window / page)
)

// tally contains counts from the Recorder's start to a point in time. For
// the current TTL, see Recorder.since.
type tally struct {
	at                time.Duration // since the start
	accesses, creates uint64
	asked             [slots]asked
}

// diary contains the tallies at the start of each page. The difference to
// the current tally gives the counts since then.
type diary struct {
	tallies [pages]tally
	begun   int // number of pages started, not counting the first
}

// next returns when the next page starts.
func (d *diary) next() time.Duration { return time.Duration(d.begun+1) * page }

// begin starts the next page.
func (d *diary) begin(t tally) {
	d.begun++
	d.tallies[d.begun%pages] = t
}

// oldest returns the tally at the start of the window.
func (d *diary) oldest() tally { return d.tallies[max(0, d.begun-pages+1)%pages] }

package advisor

import "time"

// The figures are of the last window at most. It moves on by a page at a time.
const (
	window = 24 * time.Hour
	page   = 5 * time.Minute
	pages  = int(window / page)
)

// tally is what was counted from the Recorder's start to a moment, but for the
// TTL in force, which see Recorder.since.
type tally struct {
	at                time.Duration // since the start
	accesses, creates uint64
	asked             [slots]asked
}

// diary is the tallies at the beginning of each page: what was counted since
// then is the difference to the present.
type diary struct {
	tallies [pages]tally
	begun   int // how many pages, besides the first
}

// next returns when the next page begins.
func (d *diary) next() time.Duration { return time.Duration(d.begun+1) * page }

// begin begins the next page.
func (d *diary) begin(t tally) {
	d.begun++
	d.tallies[d.begun%pages] = t
}

// oldest returns the tally at the beginning of the window.
func (d *diary) oldest() tally { return d.tallies[max(0, d.begun-pages+1)%pages] }

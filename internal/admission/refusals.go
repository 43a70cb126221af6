package admission

import (
	"runtime"
	"sync"
	"time"
)

// Refusals spreads refusals over time, so that clients that repeat refused
// requests at once cannot take the CPU from those that are served. It is safe
// for concurrent use.
type Refusals struct {
	report func(reason string, n int64)

	mu       sync.Mutex
	next     time.Time // when the next refusal may be answered
	reported time.Time
	count    int64 // since then
}

// NewRefusals returns Refusals. From time to time, report is called with the
// reason of a refusal and the number of refusals since the last call.
func NewRefusals(report func(reason string, n int64)) *Refusals { return &Refusals{report: report} }

const (
	// refusalsPerCPU is how many refusals are answered in a second for each
	// CPU. They take a few percent of it.
	refusalsPerCPU = 1000
	// longestWait limits how long a refusal is held back.
	longestWait = 5 * time.Second
	// reportEvery is the shortest time between two reports.
	reportEvery = 10 * time.Second
)

// Refuse counts a refusal, and returns how long to wait before it is
// answered.
func (r *Refusals) Refuse(now time.Time, reason string) (wait time.Duration) {
	wait, n := r.add(now)
	if n > 0 {
		r.report(reason, n)
	}
	return wait
}

// add returns how many refusals are to be reported, too.
func (r *Refusals) add(now time.Time) (wait time.Duration, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next.Before(now) {
		r.next = now
	}
	wait = r.next.Sub(now)
	if wait < longestWait {
		r.next = r.next.Add(time.Second / time.Duration(refusalsPerCPU*runtime.GOMAXPROCS(0)))
	}

	r.count++
	if now.Sub(r.reported) >= reportEvery {
		n, r.count, r.reported = r.count, 0, now
	}
	return wait, n
}

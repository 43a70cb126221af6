package statuspage

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

const (
	// interval is the time between two samples.
	interval = 5 * time.Second
	// most is the number of samples that are kept: a quarter of an hour.
	most = int(15 * time.Minute / interval)
	// kinds is how many kinds of errors a sample names, the most frequent.
	kinds = 32
)

// Now are values at a moment.
type Now struct {
	Running     int `json:"running"`     // requests
	Connections int `json:"connections"` // of the S3 port
}

// Point is what happened between two samples.
type Point struct {
	Now

	Time         time.Time `json:"time"`    // its end
	Seconds      float64   `json:"seconds"` // its length
	Served       float64   `json:"served"`
	ClientErrors float64   `json:"client_errors"`
	ServerErrors float64   `json:"server_errors"`
	In           float64   `json:"bytes_in"`
	Out          float64   `json:"bytes_out"`
	KMSCalls     float64   `json:"kms_calls"`
	KMSFailed    float64   `json:"kms_failed"`
	Unaudited    float64   `json:"audit_failures"` // records that could not be written

	errors map[metrics.Failed]float64
	faults map[string]float64
}

// History keeps the course of some counts for a quarter of an hour.
type History struct {
	totals func() metrics.Totals
	now    func() Now
	clock  func() time.Time

	mu   sync.Mutex
	last metrics.Totals
	at   time.Time
	kept []Point // the oldest first
}

// NewHistory returns a History that has not begun.
func NewHistory(totals func() metrics.Totals, now func() Now, clock func() time.Time) *History {
	h := &History{totals: totals, now: now, clock: clock}
	h.last, h.at = totals(), clock()
	return h
}

// Run takes samples until ctx ends.
func (h *History) Run(ctx context.Context) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			h.Sample()
		}
	}
}

// Sample takes a sample now.
func (h *History) Sample() {
	h.mu.Lock()
	defer h.mu.Unlock()
	next, at, before := h.totals(), h.clock(), h.last
	if !at.After(h.at) {
		return
	}

	h.kept = append(h.kept, Point{
		Now: h.now(), Time: at, Seconds: at.Sub(h.at).Seconds(),
		Served:       next.Served - before.Served,
		ClientErrors: next.ClientErrors - before.ClientErrors,
		ServerErrors: next.ServerErrors - before.ServerErrors,
		In:           next.In - before.In,
		Out:          next.Out - before.Out,
		KMSCalls:     next.KMSCalls - before.KMSCalls,
		KMSFailed:    next.KMSFailed - before.KMSFailed,
		Unaudited:    next.Unaudited - before.Unaudited,
		errors:       mostOf(next.Errors, before.Errors),
		faults:       mostOf(next.Faults, before.Faults),
	})
	if len(h.kept) > most {
		h.kept = slices.Delete(h.kept, 0, len(h.kept)-most)
	}
	h.last, h.at = next, at
}

// mostOf returns what was added to the counts, the most frequent kinds of it.
func mostOf[K comparable](next, before map[K]float64) map[K]float64 {
	added := make(map[K]float64)
	for kind, n := range next {
		if n > before[kind] {
			added[kind] = n - before[kind]
		}
	}
	if len(added) <= kinds {
		return added
	}

	byCount := slices.SortedFunc(maps.Keys(added), func(a, b K) int { return cmp.Compare(added[b], added[a]) })
	for _, kind := range byCount[kinds:] {
		delete(added, kind)
	}
	return added
}

// Points returns the samples, the oldest first.
func (h *History) Points() []Point {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.kept)
}

// sumOf adds up counts of all points.
func sumOf[K comparable](points []Point, of func(Point) map[K]float64) map[K]float64 {
	sum := make(map[K]float64)
	for _, p := range points {
		for kind, n := range of(p) {
			sum[kind] += n
		}
	}
	return sum
}

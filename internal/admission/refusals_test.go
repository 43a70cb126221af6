package admission_test

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/admission"
)

// TestRefusals: few refusals are answered at once, and many one after the
// other, but none much later.
func TestRefusals(t *testing.T) {
	r := admission.NewRefusals(func(string, int64) {})
	now := time.Unix(1e9, 0)
	if wait := r.Refuse(now, "cpu"); wait != 0 {
		t.Errorf("the first one waits for %v", wait)
	}

	var last time.Duration
	for range 1000 * runtime.GOMAXPROCS(0) {
		wait := r.Refuse(now, "cpu")
		if wait <= last {
			t.Fatalf("one that waits for %v follows one that waits for %v", wait, last)
		}
		last = wait
	}
	if last < 999*time.Millisecond || last > 1001*time.Millisecond {
		t.Errorf("a thousand for each CPU take %v", last)
	}

	for range 100_000 * runtime.GOMAXPROCS(0) {
		last = r.Refuse(now, "cpu")
	}
	if last > 6*time.Second {
		t.Errorf("the last of very many waits for %v", last)
	}
	if wait := r.Refuse(now.Add(time.Hour), "cpu"); wait != 0 {
		t.Errorf("an hour later, one waits for %v", wait)
	}
}

// TestRefusalsAreReported: none is missing in the reports, and there are few
// reports.
func TestRefusalsAreReported(t *testing.T) {
	var reports []int64
	r := admission.NewRefusals(func(reason string, n int64) {
		if reason != "cpu" {
			t.Errorf("the reason is %q", reason)
		}
		reports = append(reports, n)
	})
	now := time.Unix(1e9, 0)
	for range 6 {
		r.Refuse(now, "cpu")
	}
	r.Refuse(now.Add(time.Minute), "cpu")
	if !slices.Equal(reports, []int64{1, 6}) {
		t.Errorf("the reports have %d refusals", reports)
	}
}

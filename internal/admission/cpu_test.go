package admission_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/admission"
)

// soon is the timeout for something that takes a moment on an idle machine.
const soon = time.Minute

// TestCPU: goroutines that wait for something else are no load, however many
// they are. Those that want to run are, until they end.
func TestCPU(t *testing.T) {
	cpu := admission.NewCPU()
	var all sync.WaitGroup
	blocked := make(chan struct{})
	for range 2000 {
		all.Go(func() { <-blocked })
	}
	await(t, "goroutines that wait are no load", func() bool { return !cpu.Saturated() })

	var ended atomic.Bool
	for range 50 * runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for !ended.Load() {
				runtime.Gosched()
			}
		})
	}
	await(t, "goroutines that want to run are load", cpu.Saturated)

	ended.Store(true)
	await(t, "the load has ended", func() bool { return !cpu.Saturated() })
	close(blocked)
	all.Wait()
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(soon); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so: %s", what)
		}
	}
}

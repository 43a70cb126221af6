// Package admission says whether the proxy has room for another request.
//
//	cpu.go       whether the CPU is saturated
//	refusals.go  how soon a refusal is answered
//
// Package s3api has the pools of slots, which also limit each client. There is
// no example: both types depend on the load of the machine.
package admission

import (
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"
)

// CPU says whether the CPU is saturated: whether goroutines that could run
// have to wait for one. A request that waits for the store, for the KMS or for
// its client does not count, however long it takes. It is safe for concurrent
// use.
type CPU struct {
	busy atomic.Bool

	mu       sync.Mutex // held while the runtime is asked
	at       atomic.Int64
	runnable float64 // moving average
	samples  [2]metrics.Sample
}

const (
	// queue is the number of goroutines that may wait for each CPU. A request
	// waits for the CPU several times, each time behind those.
	queue = 8
	// sampleEvery is the shortest time between two questions to the runtime.
	// Each costs about a microsecond.
	sampleEvery = 2 * time.Millisecond
	// weight is that of a sample in the moving average. Many connections that
	// become readable at the same moment are no overload.
	weight = 0.25
)

// epoch is the zero time of CPU.at.
var epoch = time.Now()

// NewCPU returns a CPU that is not saturated.
func NewCPU() *CPU {
	c := &CPU{}
	c.samples[0].Name = "/sched/goroutines/runnable:goroutines"
	c.samples[1].Name = "/sched/gomaxprocs:threads"
	return c
}

// Saturated reports whether the CPU was saturated a few milliseconds ago.
func (c *CPU) Saturated() bool {
	now := time.Since(epoch)
	if now-time.Duration(c.at.Load()) >= sampleEvery && c.mu.TryLock() {
		c.sample(now)
		c.mu.Unlock()
	}
	return c.busy.Load()
}

func (c *CPU) sample(now time.Duration) {
	c.at.Store(int64(now))
	metrics.Read(c.samples[:])
	c.runnable += weight * (float64(c.samples[0].Value.Uint64()) - c.runnable)
	c.busy.Store(c.runnable > queue*float64(c.samples[1].Value.Uint64()))
}

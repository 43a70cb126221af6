package main

import (
	"runtime/debug"
	"sync"
	"time"
)

// newHeapFloor returns a part of the heap that holds nothing, and must stay
// reachable; nil if the operator has set GOGC. The garbage collector runs when
// the heap has doubled. That of a proxy with little to do is so small that it
// would run every few hundred requests, for a sixth of the CPU. With the floor
// it runs a third as often, and a large heap is collected as before. The floor
// is never touched, so it is not resident.
func newHeapFloor() []byte {
	const usual, size = 100, 16 << 20
	if percent := debug.SetGCPercent(usual); percent != usual {
		debug.SetGCPercent(percent)
		return nil
	}
	return make([]byte, size)
}

// freeAfter is the time between a purge and returning memory to the system.
// By then, the transfers that the purge cuts have ended. Purges within that
// time count as one.
const freeAfter = 5 * time.Second

// freeing returns memory to the system some time after a purge, which
// removes what was in it. That takes a garbage collection, so it is done
// once for several purges.
type freeing struct {
	free func()

	mu      sync.Mutex
	planned bool
}

// purged schedules it.
func (f *freeing) purged() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.planned {
		return
	}
	f.planned = true
	time.AfterFunc(freeAfter, func() {
		f.mu.Lock()
		f.planned = false
		f.mu.Unlock()
		f.free()
	})
}

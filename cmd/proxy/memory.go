package main

import (
	"sync"
	"time"
)

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

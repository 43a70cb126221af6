package main

import (
	"sync"
	"time"
)

// freeAfter is how long after a purge memory is given back: transfers that the
// purge cuts have ended by then. Purges within that time are one.
const freeAfter = 5 * time.Second

// freeing gives memory back to the system some time after a purge, which wipes
// what was in it. It costs a garbage collection, so it is bounded in number.
type freeing struct {
	free func()

	mu      sync.Mutex
	planned bool
}

// purged plans it.
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

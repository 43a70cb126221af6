package main

import (
	"cmp"
	"context"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/config"
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

// A burst of requests leaves memory behind, in pools and as free heap, which
// the runtime returns over minutes.
const (
	// returnEvery is the interval at which the proxy looks for it.
	returnEvery = 5 * time.Second
	// worthReturning is the growth for which it runs a garbage collection.
	worthReturning = 32 << 20
)

// burst is memory that was left behind by requests.
type burst struct {
	resident func() int64 // bytes that the runtime has from the system
	free     func()       // returns what is not in use

	base int64 // resident bytes when nothing was left behind
	most int   // concurrent requests since then
}

// look returns memory if there is much more than before, and the load that
// needed it has ended. running is the number of requests.
func (b *burst) look(running int) {
	b.most = max(b.most, running)
	now := b.resident()
	b.base = min(b.base, now)
	if now-b.base < worthReturning || running > b.most/2 {
		return
	}
	b.free()
	b.base, b.most = b.resident(), running
}

// returnMemory returns what bursts leave behind, until ctx ends.
func returnMemory(ctx context.Context, running func() int) {
	b := burst{resident: residentBytes, free: freeMemory}
	b.base = b.resident()
	ticker := time.NewTicker(returnEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			b.look(running())
		}
	}
}

// freeMemory returns all free memory to the system. It takes two garbage
// collections to empty a sync.Pool.
func freeMemory() {
	runtime.GC()
	debug.FreeOSMemory()
}

func residentBytes() int64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return int64(samples[0].Value.Uint64() - samples[1].Value.Uint64()) //nolint:gosec // far below 2^63
}

// A part of the memory is not for requests: code and tables of the program,
// and garbage before it is collected.
const ownMemory = 32 << 20

// requestMemory returns how many bytes requests may hold together if the
// process may use limit bytes. 0 means any number.
func requestMemory(limit int64) int64 { return max(0, limit-ownMemory) / 4 * 3 }

// memoryLimit returns how many bytes the process may use: the setting, or the
// environment variable GOMEMLIMIT, or nine tenths of the memory of its control
// group. 0 means that there is no limit. The garbage collector works harder as
// the limit comes near.
//
// runtimeLimit is that of the runtime before the first call.
func memoryLimit(setting config.Bytes, runtimeLimit int64) int64 {
	limit := int64(setting)
	switch {
	case limit > 0:
	case runtimeLimit < math.MaxInt64:
		limit = runtimeLimit
	default:
		limit = cgroupMemory("/proc/self/cgroup", "/sys/fs/cgroup") / 10 * 9
	}
	if runtimeLimit == math.MaxInt64 {
		debug.SetMemoryLimit(cmp.Or(limit, math.MaxInt64))
	}
	return limit
}

// cgroupMemory returns the memory limit of the control group that file names,
// or of one above it; 0 for none. It knows version 2 of control groups:
// https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files.
func cgroupMemory(file, root string) (least int64) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	_, path, ok := strings.Cut("\n"+string(text), "\n0::")
	if !ok {
		return 0
	}
	path, _, _ = strings.Cut(path, "\n")

	for path = filepath.Clean("/" + path); ; path = filepath.Dir(path) {
		text, err := os.ReadFile(filepath.Join(root, path, "memory.max")) //nolint:gosec // the kernel names the path
		if n, parseErr := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && parseErr == nil &&
			(least == 0 || n < least) {
			least = n
		}
		if path == "/" {
			return least
		}
	}
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

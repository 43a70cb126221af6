package main

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
)

// Memory is returned after a purge, once for several purges, and again after
// later ones.
func TestMemoryIsFreedAfterPurges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		frees := make(chan time.Duration, 10)
		start := time.Now()
		f := &freeing{free: func() { frees <- time.Since(start) }}
		cache := dekcache.New(dekcache.Config{Purged: f.purged})
		defer cache.Close()

		for range 100 {
			cache.Purge("key")
			cache.PurgeGroup(dekcache.Group{KeyID: "key"})
			cache.PurgeAll()
		}
		time.Sleep(2 * freeAfter)
		synctest.Wait()

		if len(frees) != 1 || <-frees != freeAfter {
			t.Fatalf("memory was freed %d times more", len(frees))
		}
		cache.Purge("key")
		time.Sleep(2 * freeAfter)
		synctest.Wait()

		if len(frees) != 1 {
			t.Errorf("a later purge: memory was freed %d times", len(frees))
		}
	})
}

// TestBurst: memory is returned once after a burst, not during it, and not
// again and again if the rest is in use.
func TestBurst(t *testing.T) {
	testedBurst := burst{base: 20 << 20}
	const mib = 1 << 20
	for _, step := range []struct {
		name     string
		resident int64 // before and after
		after    int64
		running  int
		freed    bool
	}{
		{"idle", 20 * mib, 20 * mib, 0, false},
		{"few requests", 40 * mib, 40 * mib, 10, false},
		{"a burst", 600 * mib, 600 * mib, 1000, false},
		{"its end", 600 * mib, 50 * mib, 100, true},
		{"again", 50 * mib, 50 * mib, 0, false},
		{"a cache grows", 90 * mib, 85 * mib, 0, true},
		{"the cache stays", 85 * mib, 85 * mib, 0, false},
		{"the cache is emptied", 20 * mib, 20 * mib, 0, false},
		{"another burst has ended", 60 * mib, 25 * mib, 0, true},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			freed, resident := false, step.resident
			testedBurst.resident = func() int64 { return resident }
			testedBurst.free = func() { freed, resident = true, step.after }
			testedBurst.look(step.running)
			if freed != step.freed {
				t.Errorf("returned: %v, want %v", freed, step.freed)
			}
		}) {
			return
		}
	}
}

func TestCgroupMemory(t *testing.T) {
	root := t.TempDir()
	for path, limit := range map[string]string{
		"a/memory.max": "1000000\n", "a/b/memory.max": "max\n", "c/memory.max": "max\n", "c/d/memory.max": "77\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(limit), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	file := filepath.Join(root, "self")
	for _, row := range []struct {
		name, groups string
		want         int64
	}{
		{"a limit", "0::/c/d\n", 77},
		{"a limit above", "0::/a/b\n", 1_000_000},
		{"none", "0::/c\n", 0},
		{"not there", "0::/x/y\n", 0},
		{"beside version 1", "3:cpu:/c\n0::/a\n", 1_000_000},
		{"version 1", "3:memory:/a\n", 0},
		{"outside", "0::/../../a\n", 1_000_000},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(row.groups), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := cgroupMemory(file, root); got != row.want {
				t.Errorf("got %d, want %d", got, row.want)
			}
		})
	}
}

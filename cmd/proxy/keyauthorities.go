package main

import (
	"sync"

	"github.com/cmekproxy/cmekproxy/internal/pemfile"
)

// keyAuthorities are the files with the authorities of the KMS that keys name
// in ca_file, for the metric of their expiry. A key reads its file itself when
// it connects. Most keys have the same file.
type keyAuthorities struct {
	mu   sync.Mutex
	open map[string]*pemfile.Pool // by path
}

// expiry returns when the first authority in a file expires, in Unix time, and
// false if the file was never readable.
func (k *keyAuthorities) expiry(path string) (float64, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	pool := k.open[path]
	if pool == nil {
		var err error
		if pool, err = pemfile.OpenPool(path, nil); err != nil {
			return 0, false // the key reports it
		}
		k.open[path] = pool
	}
	return float64(pool.Expiry().Unix()), true
}

// expiryOfAuthorities returns the earliest expiry for each label of keys.
func (b *backend) expiryOfAuthorities() func(yield func(string, float64)) {
	files := &keyAuthorities{open: make(map[string]*pemfile.Pool)}
	return func(yield func(string, float64)) {
		values := labelValues{b.observer, lower, make(map[string]float64)}
		for _, k := range b.current().Keys {
			if k.CAFile == "" {
				continue
			}
			if value, known := files.expiry(k.CAFile); known {
				values.add(k.Name, value)
			}
		}
		values.each(yield)
	}
}

// lower is for values that several keys have together.
func lower(a, b float64) float64 { return min(a, b) }

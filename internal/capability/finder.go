package capability

import (
	"context"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
)

// Config configures a Finder.
type Config struct {
	// Probe finds out what the store can do. It writes small objects into the
	// bucket and removes them. With an error, it returns the answers that it
	// has found; without one, it has all.
	Probe func(ctx context.Context, bucket string) (Set, error)
	// Fixed has the answers that the configuration gives. They hold whatever
	// the probe finds.
	Fixed Set
	// Report, if not nil, is called with the result of each probe.
	Report func(bucket string, found Set, err error)
	// TTL is how long answers are remembered: a store can be replaced, or
	// updated. Timeout limits a probe.
	TTL, Timeout time.Duration
	// Retry returns how long a bucket in which the probe failed is left
	// alone.
	Retry func(error) time.Duration
	Now   func() time.Time
}

// Finder finds out what a store can do, and remembers it. All buckets of a
// store have the same capabilities; the bucket of a request is only where the
// probe may write. A Finder is safe for concurrent use.
type Finder struct {
	cfg     Config
	probing singleflight.Group
	failed  *lru.Cache[string, time.Time] // by bucket, when a probe that failed is repeated

	mu    sync.Mutex
	found Set
	until time.Time // when found is too old
}

// maxFailed limits the buckets whose failures are remembered. Clients can
// name buckets that do not exist.
const maxFailed = 1000

// New returns a Finder.
func New(cfg Config) *Finder {
	failed, err := lru.New[string, time.Time](maxFailed)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &Finder{cfg: cfg, failed: failed}
}

// Known returns the answers that are known without a probe.
func (f *Finder) Known() Set {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.cfg.Now().Before(f.until) {
		return f.cfg.Fixed
	}
	return f.cfg.Fixed.Over(f.found)
}

// Find returns the answers. If one of those needed is not known, Find asks
// the store, by a probe in the bucket. An answer is Unknown if the probe
// failed, for example because the proxy must not write there.
func (f *Finder) Find(ctx context.Context, bucket string, needed ...Capability) Set {
	known := f.Known()
	if known.Knows(needed...) || f.failedLately(bucket) {
		return known
	}

	// The probe also serves requests that come later, so it does not end with
	// this one.
	done := f.probing.DoChan("", func() (any, error) {
		if known := f.Known(); known.Knows(needed...) {
			return known, nil
		}
		return f.Probe(context.WithoutCancel(ctx), bucket)
	})
	select {
	case <-done:
	case <-ctx.Done():
	}
	return f.Known()
}

// Learn remembers answers that were found in another way.
func (f *Finder) Learn(found Set) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.found, f.until = found, f.cfg.Now().Add(f.cfg.TTL)
}

func (f *Finder) failedLately(bucket string) bool {
	until, ok := f.failed.Get(bucket)
	return ok && f.cfg.Now().Before(until)
}

// Probe asks the store now, and remembers the answers.
func (f *Finder) Probe(ctx context.Context, bucket string) (Set, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.Timeout)
	defer cancel()
	found, err := f.cfg.Probe(ctx, bucket)
	if f.cfg.Report != nil {
		f.cfg.Report(bucket, found, err)
	}
	if err != nil {
		f.failed.Add(bucket, f.cfg.Now().Add(f.cfg.Retry(err)))
	}

	if found != (Set{}) {
		f.Learn(found)
	}
	return f.cfg.Fixed.Over(found), err
}

package main

import (
	"context"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// How keys are opened and tried, at the start and later.
const (
	reopenEvery   = 10 * time.Second // pause before a key that could not be opened is tried again
	longestReopen = 5 * time.Minute  // longest pause for keys that are open but do not work
	startTogether = 8                // how many keys are opened, and tried, at the same time at the start
)

// openedKey is an open key, or the error of opening it.
type openedKey struct {
	wrapper kms.Wrapper
	err     error
}

// openKeys opens the keys that differ from those in use, and returns them in the
// same order. It opens several at a time, so that the timeouts of unreachable
// KMSs do not add up.
func (b *backend) openKeys(ctx context.Context, keys []config.Key) []openedKey {
	out := make([]openedKey, len(keys))
	var all errgroup.Group
	all.SetLimit(startTogether)
	for i, k := range keys {
		if k.IsTogether() || k.IsTemplate() || b.unchanged(k) != nil {
			continue // its members are opened, or the keys of tenants when they are used
		}
		all.Go(func() error {
			out[i].wrapper, out[i].err = buildWrapper(ctx, k, b.reportReread(k))
			return nil
		})
	}
	_ = all.Wait() // each key has its own error
	return out
}

// limitsOf returns the limits of each key.
func (b *backend) limitsOf(of config.KMS, k config.Key) kms.LimitConfig {
	limits := kms.LimitConfig{
		MaxConcurrent: of.MaxConcurrent,
		OnWait:        func(waited time.Duration) { b.metrics.KMSWait(b.observer.labelOf(k.Name), waited) },
	}
	if k.Provider != config.Local { // a local key has no quota
		limits.PerSecond, limits.Burst = float64(of.MaxPerSecond), of.MaxPerSecond
	}
	return limits
}

// limitedTo adds limits, a circuit breaker and retries to a key. opened is called
// with 1 when the circuit breaker opens, and with -1 when it closes.
func (b *backend) limitedTo(limits kms.LimitConfig, w kms.Wrapper, opened func(float64)) kms.Wrapper {
	limited := kms.Limit(w, limits)
	broken := kms.Breaker(limited, kms.BreakerConfig{
		OnChange: func(open bool) {
			opened(map[bool]float64{true: 1, false: -1}[open])
			b.log.Warn("kms circuit breaker", zap.String("kms_key", w.KeyID()), zap.Bool("open", open))
			if r, ok := w.(kms.Resetter); ok && open {
				go r.ResetConnections() // so that the trial request uses a new connection
			}
		},
	})

	return kms.Retry(broken, kms.RetryConfig{})
}

// keep runs the background work of a provider, such as renewing a token. It
// ends with the context that it returns: when ctx ends, or the key is opened
// again.
func (b *backend) keep(ctx context.Context, name string, shared any) context.Context {
	ctx, stop := context.WithCancel(ctx)
	if before, ok := b.keeping.Swap(name, stop); ok {
		before.(context.CancelFunc)()
	}
	if t, ok := shared.(interface{ Run(ctx context.Context) }); ok {
		go t.Run(ctx)
	}
	return ctx
}

// stopKeeping ends keep for a key.
func (b *backend) stopKeeping(name string) {
	if before, ok := b.keeping.LoadAndDelete(name); ok {
		before.(context.CancelFunc)()
	}
}

// tryKeys tries keys in the background, and logs which ones do not work.
func (b *backend) tryKeys(ctx context.Context, keys []config.Key) {
	go func() {
		var all errgroup.Group
		all.SetLimit(startTogether)
		for _, k := range keys {
			if k.IsTemplate() {
				continue // there is no key to try
			}
			all.Go(func() error {
				b.tryKey(ctx, k)
				return nil
			})
		}

		_ = all.Wait() // each has logged its error
	}()
}

// tryKey tries a key once. If it does not work, it continues in the
// background.
func (b *backend) tryKey(ctx context.Context, k config.Key) {
	log := b.log.With(zap.String("kms_key_name", k.Name), zap.String("provider", string(k.Provider)))
	err := b.keys.Try(ctx, k.Name)
	if err == nil {
		log.Info("this key works")
		return
	}

	b.observer.broken.Store(k.Name, true)
	log.Error("this key does not work; requests for other keys are served", zap.Error(err))
	go func() {
		b.openLater(ctx, k)
		b.tryLater(ctx, k)
	}()
}

// tryLater repeats the trial of a broken key until it works, in a trial or
// in any other request.
func (b *backend) tryLater(ctx context.Context, k config.Key) {
	for wait := reopenEvery; ; wait = min(2*wait, longestReopen) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if _, broken := b.observer.broken.Load(k.Name); !broken || !b.wants(k) || b.keys.Try(ctx, k.Name) == nil {
			return // the observer has logged that it works
		}
	}
}

// openLater retries to open a key that could not be opened, while the
// configuration has it.
func (b *backend) openLater(ctx context.Context, k config.Key) {
	for b.isLate(k) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(reopenEvery):
		}

		wrapper, err := buildWrapper(ctx, k, b.reportReread(k))
		ok := false
		if err == nil {
			ok, err = b.provide(k, wrapper)
		}
		if err != nil {
			b.log.Warn("this key cannot be opened yet", zap.String("kms_key_name", k.Name), zap.Error(err))
			continue
		}
		if !ok {
			return
		}

		b.beginOne(ctx, k.Name)
		b.warnOfTwins()
		b.log.Info("this key is open now", zap.String("kms_key_name", k.Name))
	}
}

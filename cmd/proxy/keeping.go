package main

import (
	"context"
	"reflect"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// How keys are opened and tried, at the start and later.
const (
	reopenEvery   = 10 * time.Second // how soon a key that could not be opened is tried again
	longestReopen = 5 * time.Minute  // what that grows to for keys that were opened and do not work
	startTogether = 8                // how many keys are opened, and tried, at a time at the start
)

// openedKey is a key, or why it could not be opened.
type openedKey struct {
	wrapper kms.Wrapper
	err     error
}

// openKeys opens the keys of the configuration, in its order. A few at a time:
// that some need an answer of a KMS that is away must not add up.
func (b *backend) openKeys(ctx context.Context) []openedKey {
	out := make([]openedKey, len(b.cfg.Keys))
	var all errgroup.Group
	all.SetLimit(startTogether)
	for i, k := range b.cfg.Keys {
		all.Go(func() error {
			out[i].wrapper, out[i].err = buildWrapper(ctx, k, b.reportReread(k))
			return nil
		})
	}
	_ = all.Wait() // each has its own error
	return out
}

// withLimits bounds what is asked of a KMS, and asks again what it could not
// answer.
func (b *backend) withLimits(k config.Key, w kms.Wrapper) kms.Wrapper {
	label := w.KeyID()
	if b.observer.label[k.Name] == otherKeys {
		label = otherKeys
	}
	left := b.metrics.Breaker(label)
	limits := kms.LimitConfig{MaxConcurrent: b.cfg.KMS.MaxConcurrent}

	if k.Provider != config.Local { // which has no quota that others share
		limits.PerSecond, limits.Burst = float64(b.cfg.KMS.MaxPerSecond), b.cfg.KMS.MaxPerSecond
	}
	limited := kms.Limit(w, limits)

	broken := kms.Breaker(limited, kms.BreakerConfig{
		OnChange: func(open bool) {
			left.Add(map[bool]float64{true: 1, false: -1}[open])
			b.log.Warn("kms circuit breaker", zap.String("kms_key", w.KeyID()), zap.Bool("open", open))
			if r, ok := w.(kms.Resetter); ok && open {
				go r.ResetConnections() // the trial is to use new ones
			}
		},
	})

	return kms.Retry(broken, kms.RetryConfig{})
}

// openKey is a key that could be opened, by its name.
type openKey struct {
	name    string
	wrapper kms.Wrapper
}

// keep does what a provider has to do while it is not asked, such as to keep a
// token alive; until ctx ends, or the key of that name is opened again.
func (b *backend) keep(ctx context.Context, k openKey) {
	ctx, stop := context.WithCancel(ctx)
	if before, ok := b.keeping.Swap(k.name, stop); ok {
		before.(context.CancelFunc)()
	}
	if t, ok := k.wrapper.(interface{ Run(ctx context.Context) }); ok {
		go t.Run(ctx)
	}
}

// tryKeys says at once which keys do not work.
func (b *backend) tryKeys(ctx context.Context) {
	for _, k := range b.opened {
		b.keep(ctx, k)
	}
	for _, duty := range b.duties {
		go duty(ctx)
	}

	go func() {
		var all errgroup.Group
		all.SetLimit(startTogether)
		for _, k := range b.cfg.Keys {
			all.Go(func() error {
				b.tryKey(ctx, k)
				return nil
			})
		}

		_ = all.Wait() // each has said what is wrong with it
	}()
}

// tryKey tries a key once, and goes on trying behind the scenes if it does not
// work.
func (b *backend) tryKey(ctx context.Context, k config.Key) {
	log := b.log.With(zap.String("kms_key_name", k.Name), zap.String("provider", string(k.Provider)))
	err := b.keys.Try(ctx, k.Name)
	if err == nil {
		log.Info("this key works")
		return
	}

	b.observer.broken.Store(k.Name, true)
	log.Error("this key does not work; the others are served", zap.Error(err))
	go func() {
		b.openLater(ctx, k)
		b.tryLater(ctx, k)
	}()
}

// tryLater tries a key again that was called broken, until it works: by this or
// by any other call.
func (b *backend) tryLater(ctx context.Context, k config.Key) {
	for wait := reopenEvery; ; wait = min(2*wait, longestReopen) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if _, broken := b.observer.broken.Load(k.Name); !broken || b.keys.Try(ctx, k.Name) == nil {
			return // the observer says that it works
		}
	}
}

// openLater tries again to open a key that could not be opened at the start.
func (b *backend) openLater(ctx context.Context, k config.Key) {
	for b.keys.Unopened(k.Name) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(reopenEvery):
		}

		wrapper, err := buildWrapper(ctx, k, b.reportReread(k))
		if err == nil {
			err = b.keys.Provide(k.Name, b.withLimits(k, wrapper), wrapper)
		}
		if err != nil {
			b.log.Warn("this key cannot be opened yet", zap.String("kms_key_name", k.Name), zap.Error(err))
			continue
		}

		b.keep(ctx, openKey{k.Name, wrapper})
		go b.watchAlias(ctx, k, wrapper, aliasCheck)
		b.warnOfTwins()
		b.log.Info("this key is open now", zap.String("kms_key_name", k.Name))
	}
}

// reopen opens the keys again whose secrets are others in next: a Vault token,
// a secret id, or the PIN of an HSM. One that cannot be opened so stays as it
// was.
func (b *backend) reopen(ctx context.Context, before, next *config.Config) {
	for _, k := range next.Keys {
		i := slices.IndexFunc(before.Keys, func(old config.Key) bool { return old.Name == k.Name })
		if i < 0 || reflect.DeepEqual(before.Keys[i], k) ||
			!reflect.DeepEqual(withoutSecrets(before.Keys[i]), withoutSecrets(k)) {
			continue
		}

		wrapper, err := buildWrapper(ctx, k, b.reportReread(k))
		if err == nil {
			err = b.keys.Provide(k.Name, b.withLimits(k, wrapper), wrapper)
		}

		if err != nil {
			b.log.Error(
				"opening a key with its new secret failed; keeping the old one",
				zap.String("kms_key_name", k.Name),
				zap.Error(err),
			)
			continue
		}

		b.keep(ctx, openKey{k.Name, wrapper})
		b.log.Info("key opened with its new secret", zap.String("kms_key_name", k.Name))
	}
}

func withoutSecrets(k config.Key) config.Key {
	k.PIN, k.Login.Token, k.Login.AppRole.SecretID = "", "", ""
	return k
}

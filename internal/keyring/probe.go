package keyring

import (
	"context"
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// Run asks the KMS about each key in use, every RevocationProbe, until ctx ends. In use is a key that has DEKs in the
// cache or leases out. It asks by unwrapping a blob that unwrapped before; an answer that the key is revoked purges all
// its DEKs, so that leases ask again at their next check. No other answer has an effect: an unreachable KMS is not a
// revoked key, and keeps nothing alive past its TTL either.
//
// Run must not run twice at a time. It returns when its last probe has. Without a RevocationProbe it returns at once.
func (k *Keyring) Run(ctx context.Context) {
	if k.cfg.RevocationProbe <= 0 {
		return
	}
	var wg sync.WaitGroup
	for _, key := range k.keys { // apart from each other: one KMS that hangs must not delay the probes of another
		wg.Go(func() { k.probeAtIntervals(ctx, key) })
	}
	wg.Wait()
}

// Window returns the longest time from the moment at which the KMS begins to refuse, to the last moment at which a
// Check returns nil, provided that Run runs and the KMS answers its probes. If it does not, it is the TTL. A KMS itself
// may take a while to begin: AWS calls its key states eventually consistent. What a change of a key policy revokes for
// some encryption contexts only, a probe of another context does not see, and again it is the TTL.
func (k *Keyring) Window() time.Duration {
	ttl := k.cfg.Cache.TTL()
	if k.cfg.RevocationProbe <= 0 {
		return ttl
	}
	return min(ttl, max(k.cfg.RevocationProbe, k.cfg.Timeout)+k.cfg.Timeout)
}

func (k *Keyring) probeAtIntervals(ctx context.Context, key *key) {
	ticker := time.NewTicker(k.cfg.RevocationProbe)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			k.probe(ctx, key)
		}
	}
}

func (k *Keyring) probe(ctx context.Context, key *key) {
	recent := key.recent.Load()
	if recent == nil || key.leases.Load() == 0 && k.cfg.Cache.Entries(key.id) == 0 {
		return
	}
	err := k.call(ctx, key, OpProbe, func(ctx context.Context) error {
		dek, err := kms.Unwrap(ctx, key.Wrapper, recent.wrapped, recent.ec)
		clear(dek)
		return err
	})
	if err == nil {
		key.refused = false
	}
	if !kms.IsRevoked(err) {
		return
	}
	n := k.cfg.Cache.Purge(key.id)
	if !key.refused && k.cfg.OnRevoked != nil {
		k.cfg.OnRevoked(key.Name, err, n)
	}
	key.refused = true
}

package keyring

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// probeRest is the least time between two probes of a key, however often they are asked for.
const probeRest = time.Second

// SetProbe changes how often the KMS is asked about each key in use; 0 is never.
func (k *Keyring) SetProbe(interval time.Duration) {
	k.probe.Store(int64(interval))
	for _, key := range k.keys {
		select {
		case key.rearm <- struct{}{}:
		default:
		}
	}
}

// SetOutageWait changes Config.OutageWait, for leases that run out from now on.
func (k *Keyring) SetOutageWait(d time.Duration) { k.outageWait.Store(int64(d)) }

// Run asks the KMS about each key in use, every RevocationProbe, until ctx ends; and at once when a KMS has called a key
// revoked. In use is a key that has DEKs in the cache or leases out. It asks by unwrapping a blob that unwrapped before,
// the only question that grants and policies have a say in; an answer that the key is revoked purges all its DEKs, so
// that leases ask again. No other answer has an effect: an unreachable KMS is not a revoked key, and keeps nothing alive
// past its TTL either.
//
// Run must not run twice at a time. It returns when its last probe has.
func (k *Keyring) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, key := range k.keys { // apart from each other: one KMS that hangs must not delay the probes of another
		wg.Go(func() { k.probeAtIntervals(ctx, key) })
	}
	wg.Wait()
}

func (k *Keyring) probeAtIntervals(ctx context.Context, key *key) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	last := k.now()
	for {
		wait := time.Hour // there is always a next look, which without an interval asks nothing
		interval := time.Duration(k.probe.Load())
		if interval > 0 {
			wait = last.Add(interval).Sub(k.now())
		}
		timer.Reset(wait)
		asked := false
		select {
		case <-ctx.Done():
			return
		case <-key.rearm: // another interval
		case <-key.nudge:
			asked = true
			if !rest(ctx, last.Add(pause(interval)).Sub(k.now())) {
				return
			}
		case <-timer.C:
		}
		if asked || interval > 0 && !k.now().Before(last.Add(interval)) {
			last = k.now()
			k.probeKey(ctx, key)
		}
	}
}

func pause(interval time.Duration) time.Duration {
	if interval > 0 {
		return min(probeRest, interval)
	}
	return probeRest
}

// rest sleeps, and reports whether ctx goes on.
func rest(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (k *Keyring) probeKey(ctx context.Context, key *key) {
	service, recent := key.kms.Load(), key.recent.Load()
	if service == nil || recent == nil {
		return
	}
	wanted := key.wanted.Swap(false)
	if !wanted && key.leases.Load() == 0 && k.cfg.Cache.Entries(service.id) == 0 {
		return
	}
	timeout, a := k.probeTimeout(key), &asked{}
	a.kms.Store(true)
	err := k.ask(kms.WithTrace(ctx, &a.Trace), key, OpProbe, timeout, func(ctx context.Context) error {
		dek, err := kms.Unwrap(ctx, service.probe, recent.wrapped, recent.ec)
		clear(dek)
		return err
	})
	if ctx.Err() != nil {
		return
	}
	purged, onlyVersion := 0, false
	if kms.IsRevoked(err) {
		purged = k.cfg.Cache.Purge(service.id) // before anything else is asked
		onlyVersion = !isDenied(err) && !key.isRefused() && k.wrapsStill(ctx, key, service)
	}
	changed := key.judge(err, !isDenied(err) && !onlyVersion, k.now().Add(time.Duration(k.probe.Load())+2*timeout))
	switch {
	case changed && kms.IsRevoked(err):
		k.cfg.Observer.Revoked(key.Name, err, purged)
		k.auditRevoked(ctx, key, a, err, purged)
	case changed:
		k.cfg.Cache.Forgive(service.id) // the key was given back, and is to work at once
	}
}

// probeTimeout bounds a probe, so that the next one is never late. What comes later counts as no answer.
func (k *Keyring) probeTimeout(key *key) time.Duration {
	timeout := min(cmp.Or(key.ProbeTimeout, DefaultProbeTimeout), k.timeout(key))
	if interval := time.Duration(k.probe.Load()); interval > 0 {
		timeout = min(timeout, interval)
	}
	return timeout
}

// wrapsStill reports whether a key makes new DEKs though it does not unwrap an old one: then only the version is gone that
// the old one is under, and probes ask about the new one from now on.
func (k *Keyring) wrapsStill(ctx context.Context, key *key, service *service) bool {
	err := k.ask(ctx, key, OpProbe, k.probeTimeout(key), func(ctx context.Context) error {
		wrapped, ec, err := kms.RoundTrip(ctx, service.probe)
		if err == nil {
			key.recent.Store(&sample{wrapped, ec})
		}
		return err
	})
	return err == nil
}

func isDenied(err error) bool {
	var failure *kms.Error
	return errors.As(err, &failure) && failure.Kind == kms.Denied
}

// judge notes what a probe has found, and reports whether the one before had found the opposite: that the key is revoked,
// or that it is not. A key that is gone as a whole is so for all objects, until another probe finds otherwise or until
// comes. A caller who is denied may be so for some of them, as a policy can speak of the encryption context; so may a key be
// disabled in one of its versions. Then each is asked about.
func (k *key) judge(err error, whole bool, until time.Time) (changed bool) { //nolint:revive // what was found, not what to do
	k.mu.Lock()
	defer k.mu.Unlock()
	var failure *kms.Error
	if k.silent = err != nil && (!errors.As(err, &failure) || passing(err)); k.silent {
		return false
	}
	changed = kms.IsRevoked(err) != k.refused
	k.refused = kms.IsRevoked(err)
	k.gone = nil
	if k.refused && whole {
		k.gone, k.goneUntil = err, until
	}
	return changed
}

func (k *key) isRefused() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.refused
}

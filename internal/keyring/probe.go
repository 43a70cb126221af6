package keyring

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// minProbeInterval is the least time between two probes of a key, however
// often they are asked for.
const minProbeInterval = time.Second

// SetProbe changes how often the KMS is asked about each key in use; 0 is
// never.
func (k *Keyring) SetProbe(interval time.Duration) {
	k.probe.Store(int64(interval))
	for _, key := range k.keys {
		select {
		case key.intervalChanged <- struct{}{}:
		default:
		}
	}
}

// SetOutageWait changes Config.OutageWait, for leases that run out from now on.
func (k *Keyring) SetOutageWait(d time.Duration) { k.outageWait.Store(int64(d)) }

// Run asks the KMS about each key in use, every RevocationProbe, until ctx
// ends; and at once when a KMS has called a key revoked. In use is a key that
// has DEKs in the cache or leases out. It asks by unwrapping blobs that
// unwrapped before, the only question that grants and policies have a say in:
// one for each part of what the key protects that the KMS could refuse by
// itself. An answer that it is revoked purges the DEKs of the part, or of the
// key, so that leases ask again. No other answer has an effect: an unreachable
// KMS is not a revoked key, and keeps nothing alive past its TTL either.
//
// Run must not run twice at a time. It returns when its last probe has.
func (k *Keyring) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, key := range k.keys { // apart from each other: one KMS that hangs must not delay the probes of another
		wg.Go(func() { k.probeAtIntervals(ctx, key) })
	}
	wg.Wait()
}

func (k *Keyring) probeAtIntervals(ctx context.Context, key *keyState) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()

	last := k.now().Add(-k.randomPhase())
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
		case <-key.intervalChanged: // another interval
		case <-key.probeNow:
			asked = true
			if !sleep(ctx, last.Add(probePause(interval)).Sub(k.now())) {
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

func probePause(interval time.Duration) time.Duration {
	if interval > 0 {
		return min(minProbeInterval, interval)
	}
	return minProbeInterval
}

// sleep sleeps, and reports whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// probeResult is what the KMS said to a probe about one blob.
type probeResult struct {
	sample *sample
	trace  *useTrace
	err    error
	purged int
}

// probeKey asks about all parts of a key at the same time, so that none is
// asked about later than its interval.
func (k *Keyring) probeKey(ctx context.Context, key *keyState) {
	defer key.beginProbe()()
	service, recent := key.kms.Load(), key.newestSample.Load()
	if service == nil || recent == nil {
		return
	}

	samples := k.toProbe(key)
	if wanted := key.probeWanted.Swap(false); wanted && len(samples) == 0 {
		samples = []*sample{recent}
	}

	results := make([]probeResult, len(samples))
	var wg sync.WaitGroup

	for i, s := range samples {
		wg.Go(func() { results[i] = k.probePart(ctx, key, service, s) })
	}

	wg.Wait()
	if ctx.Err() == nil && len(results) > 0 {
		k.actOnProbe(ctx, key, service, results)
	}
}

// beginProbe returns what to do at the end of a probe: it tells those who were
// waiting for one to begin.
func (k *keyState) beginProbe() (end func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := k.nextProbe
	k.nextProbe = nil
	return func() {
		if next != nil {
			close(next)
		}
	}
}

// probePart asks about one part, and purges it at once if it is revoked.
func (k *Keyring) probePart(ctx context.Context, key *keyState, service *service, s *sample) probeResult {
	v := probeResult{sample: s, trace: &useTrace{}}
	v.trace.kms.Store(true)
	p := cmp.Or(s.part, key.rest)
	traced, timeout := kms.WithTrace(ctx, &v.trace.Trace), k.probeTimeout(key)
	v.err = k.ask(traced, key, p, OpProbe, timeout, func(ctx context.Context) error {
		dek, err := kms.Unwrap(ctx, service.probe, s.wrapped, s.ec)
		clear(dek)
		return err
	})

	if kms.IsRevoked(v.err) {
		v.purged = k.cfg.Cache.PurgeGroup(p.group)
	}
	return v
}

// actOnProbe acts on the results of a probe: on the key, if it is revoked as a
// whole, else on each part that is.
func (k *Keyring) actOnProbe(ctx context.Context, key *keyState, service *service, results []probeResult) {
	no := slices.IndexFunc(results, func(v probeResult) bool { return kms.IsRevoked(v.err) })
	whole, gone := false, error(nil)

	if no >= 0 {
		whole, gone = k.isWhole(ctx, key, service, results)
	}
	if !whole {
		k.actOnParts(ctx, key, service, results)
		return
	}

	purged := k.cfg.Cache.Purge(service.id)
	for _, v := range results {
		purged += v.purged
	}

	if key.recordProbe(results, true, gone, k.now()) {
		k.cfg.Observer.Revoked(Revocation{Key: key.Name, Err: results[no].err, Purged: purged})
		k.auditRevoked(ctx, key, results[no], nil, purged)
	}
}

// isWhole reports whether results of which one is "revoked" are about the key
// as a whole: no part of it works. gone is set if the KMS does not have to be
// asked about each object. A caller who is denied may be so for some objects
// only; so may a key be disabled in one of its versions.
func (k *Keyring) isWhole(
	ctx context.Context, key *keyState, service *service, results []probeResult,
) (whole bool, gone error) {
	for _, v := range results {
		switch {
		case v.err == nil:
			return false, nil
		case !kms.IsRevoked(v.err): // no answer, or a strange one
		case !isDenied(v.err):
			gone = v.err
		}
	}

	if gone != nil {
		if key.isRefused() || !k.stillWraps(ctx, key, service) {
			return true, gone
		}
		return false, nil
	}

	return !slices.ContainsFunc(results, func(v probeResult) bool { return !isDenied(v.err) }), nil
}

func (k *Keyring) actOnParts(ctx context.Context, key *keyState, service *service, results []probeResult) {
	if key.recordProbe(results, false, nil, k.now()) {
		k.cfg.Cache.ForgetFailures(service.id) // the key was given back, and is to work at once
	}

	for _, v := range results {
		p := cmp.Or(v.sample.part, key.rest)
		switch changed := key.recordPartProbe(p, v.err); {
		case changed && kms.IsRevoked(v.err):
			k.cfg.Observer.Revoked(Revocation{Key: key.Name, Part: p.String(), Err: v.err, Purged: v.purged})
			k.auditRevoked(ctx, key, v, p, v.purged)
		case changed:
			k.cfg.Cache.ForgetGroupFailures(p.group)
		}
	}
}

// probeTimeout bounds a probe, so that the next one is never late. What comes
// later counts as no answer.
func (k *Keyring) probeTimeout(key *keyState) time.Duration {
	timeout := min(cmp.Or(key.ProbeTimeout, DefaultProbeTimeout), k.timeout(key))
	if interval := time.Duration(k.probe.Load()); interval > 0 {
		timeout = min(timeout, interval)
	}
	return timeout
}

// stillWraps reports whether a key makes new DEKs though it does not unwrap an
// old one: then only the version is gone that the old one is under, and probes
// ask about the new one from now on.
func (k *Keyring) stillWraps(ctx context.Context, key *keyState, service *service) bool {
	err := k.ask(ctx, key, key.rest, OpProbe, k.probeTimeout(key), func(ctx context.Context) error {
		wrapped, ec, err := kms.RoundTrip(ctx, service.probe)
		if err == nil {
			key.newestSample.Store(&sample{wrapped, ec, nil})
		}
		return err
	})
	return err == nil
}

func isDenied(err error) bool {
	var failure *kms.Error
	return errors.As(err, &failure) && failure.Kind == kms.Denied
}

// recordProbe notes what a probe has found of the key as a whole, and reports
// whether the one before had found the opposite. gone, if not nil, stands for
// all objects until the next probe.
func (k *keyState) recordProbe(results []probeResult, revoked bool, gone error, now time.Time) (changed bool) { //nolint:revive // what was found, not what to do
	k.mu.Lock()
	defer k.mu.Unlock()

	k.probedBlobs = len(results)
	k.probeUnanswered = slices.ContainsFunc(results, func(v probeResult) bool { return !hasAnswer(v.err) })

	if !revoked && !slices.ContainsFunc(results, func(v probeResult) bool { return hasAnswer(v.err) }) {
		return false // nothing is known that was not known before
	}

	changed = revoked != k.refused
	k.refused, k.gone, k.goneAt = revoked, gone, now

	if revoked && k.revokedSince.IsZero() {
		k.revokedSince, k.lastUse = now, 0
		for _, v := range results {
			p := cmp.Or(v.sample.part, k.rest)
			if since := p.revokedSince; !since.IsZero() && since.Before(k.revokedSince) {
				k.revokedSince, k.lastUse = since, max(k.lastUse, p.lastUse)
			}
		}
	}

	return changed
}

// recordPartProbe is recordProbe for a part, of a key that is not revoked as a
// whole.
func (k *keyState) recordPartProbe(p *part, err error) (changed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !hasAnswer(err) {
		return false
	}
	changed = kms.IsRevoked(err) != p.refused
	p.refused = kms.IsRevoked(err)
	return changed
}

// hasAnswer reports whether err, of a probe, is what a KMS has said.
func hasAnswer(err error) bool {
	var failure *kms.Error
	return err == nil || errors.As(err, &failure) && !transient(err)
}

func (k *keyState) isRefused() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.refused
}

// staleRefusal is how old what a probe has said against a key may be, to refuse
// a use without asking the KMS again.
const staleRefusal = time.Second

// rememberedError is the refusal of a key that a probe has found a moment ago.
type rememberedError struct{ error }

func (r rememberedError) Unwrap() error { return r.error }

// IsRemembered reports whether err is not the KMS's answer to a request of its
// own: it must not be remembered again.
func IsRemembered(err error) bool {
	var r rememberedError
	return errors.As(err, &r)
}

// refusal returns why a key cannot be used, by the last probe. If that is not
// of this moment, it has the next probe made at once, and waits for it: a key
// that was given back works with the first request.
func (k *Keyring) refusal(ctx context.Context, key *keyState) error {
	at, gone := key.refusal()
	if gone == nil {
		return nil
	}

	key.probeWanted.Store(true)
	if k.now().Sub(at) >= staleRefusal {
		key.awaitProbe(ctx, k.timeout(key))
		_, gone = key.refusal()
	}
	if gone == nil {
		return nil
	}

	return rememberedError{gone}
}

// awaitProbe waits until a probe that begins from now on has ended, for so long
// at most.
func (k *keyState) awaitProbe(ctx context.Context, atMost time.Duration) {
	k.mu.Lock()
	if k.nextProbe == nil {
		k.nextProbe = make(chan struct{})
	}

	next := k.nextProbe
	k.mu.Unlock()
	k.requestProbe()

	timer := time.NewTimer(atMost)
	defer timer.Stop()

	select {
	case <-next:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// randomPhase is how long before the start the first interval of a key begins:
// keys are not to be asked about all at the same time.
func (k *Keyring) randomPhase() time.Duration {
	interval := k.probe.Load()
	if interval <= 0 {
		return 0
	}
	var random [4]byte
	rand.Read(random[:])
	return time.Duration(float64(interval) * float64(binary.BigEndian.Uint32(random[:])) / (1 << 32))
}

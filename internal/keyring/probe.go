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

// minProbeInterval is the minimum time between two probes of a key, however
// often they are requested.
const minProbeInterval = time.Second

// SetProbe changes the interval at which Run asks the KMS about each key in
// use. 0 stops the probes.
func (k *Keyring) SetProbe(interval time.Duration) {
	k.probe.Store(int64(interval))
	for _, key := range k.allKeys() {
		select {
		case key.intervalChanged <- struct{}{}:
		default:
		}
	}
}

// SetOutageWait changes Config.OutageWait for leases that run out from now
// on.
func (k *Keyring) SetOutageWait(d time.Duration) { k.outageWait.Store(int64(d)) }

// Run probes each key in use once per RevocationProbe until ctx ends, and
// at once after a KMS has called a key revoked. A key is in use if it has
// cached DEKs or leases.
//
// A probe unwraps blobs that were unwrapped before, one for each part of
// the key that the KMS could refuse separately. No other request depends on
// grants and policies in the same way. If the KMS answers that the key is
// revoked, the DEKs of the part or of the whole key are purged, and leases
// have to ask again. All other errors have no effect: an unreachable KMS
// does not revoke a key, and it does not extend the TTL either.
//
// Run also closes keys of templates that are idle, and probes those that are
// open.
//
// Run must not be called twice at the same time. It returns after its last
// probe.
func (k *Keyring) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { k.keepTenants(ctx, &wg) }) // until the last probe has been started
	k.setProbing(func(key *keyState) context.CancelFunc {
		ctx, cancel := context.WithCancel(ctx)
		wg.Go(func() { k.probeAtIntervals(ctx, key) }) // one KMS that hangs does not delay the others
		return cancel
	})
	<-ctx.Done()
	k.setProbing(nil)
	wg.Wait()
}

// setProbing sets how probes of keys are started. It starts them for the
// current keys.
func (k *Keyring) setProbing(start func(*keyState) context.CancelFunc) {
	k.changing.Lock()
	defer k.changing.Unlock()

	k.probing = start
	for _, key := range k.latest().set().keys {
		key.endProbes()
		k.beginProbes(key)
	}
}

// beginProbes starts the probes of a key, if Run is running. The caller holds
// changing.
func (k *Keyring) beginProbes(key *keyState) {
	if k.probing != nil && !key.isTemplate() {
		key.stopProbes = k.probing(key)
	}
}

// endProbes ends the probes of a key. The caller holds ring.changing.
func (k *keyState) endProbes() {
	if k.stopProbes != nil {
		k.stopProbes()
		k.stopProbes = nil
	}
}

func (k *Keyring) probeAtIntervals(ctx context.Context, key *keyState) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()

	last := k.now().Add(-k.randomPhase())
	for {
		wait := time.Hour // without an interval, the timer has no effect
		interval := time.Duration(k.probe.Load())
		if interval > 0 {
			wait = last.Add(interval).Sub(k.now())
		}

		timer.Reset(wait)
		asked := false
		select {
		case <-ctx.Done():
			return
		case <-key.intervalChanged: // recompute the wait
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

// sleep sleeps for d, and reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// probeResult is the KMS's answer to a probe about one blob.
type probeResult struct {
	sample *sample
	trace  *useTrace
	err    error
	purged int
}

// probeKey asks about all parts of a key at the same time, so that none of
// them is late.
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

// beginProbe returns a function to call at the end of the probe. It wakes
// the goroutines that wait for this probe.
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

// actOnProbe handles the results of a probe, for the whole key or for each
// part.
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

// isWhole reports whether the whole key is revoked, given at least one
// result that is. It is if no part works. gone is the error for all
// objects, and nil if the KMS has to be asked about each of them: access
// may be denied for some objects only, and a key may be disabled in one
// version only.
func (k *Keyring) isWhole(
	ctx context.Context, key *keyState, service *service, results []probeResult,
) (whole bool, gone error) {
	for _, v := range results {
		switch {
		case v.err == nil:
			return false, nil
		case !kms.IsRevoked(v.err): // no answer, or an unexpected one
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
		k.cfg.Cache.ForgetFailures(service.id) // the key was restored and should work at once
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

// probeTimeout returns the time limit of a probe, so that the next probe is
// never late. A later answer counts as none.
func (k *Keyring) probeTimeout(key *keyState) time.Duration {
	timeout := min(cmp.Or(time.Duration(key.probeLimit.Load()), DefaultProbeTimeout), k.timeout(key))
	if interval := time.Duration(k.probe.Load()); interval > 0 {
		timeout = min(timeout, interval)
	}
	return timeout
}

// stillWraps reports whether a key can wrap new DEKs although it cannot
// unwrap an old one. If so, only the old version is revoked, and the next
// probes ask about the new one.
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

// recordProbe records the result of a probe for the whole key, and reports
// whether the previous probe had the opposite result. gone, if not nil, is
// the error for all objects until the next probe.
//
//nolint:revive // revoked is a result, not a mode
func (k *keyState) recordProbe(
	results []probeResult, revoked bool, gone error, now time.Time,
) (changed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()

	k.probedBlobs = len(results)
	k.probeUnanswered = slices.ContainsFunc(results, func(v probeResult) bool { return !hasAnswer(v.err) })

	if !revoked && !slices.ContainsFunc(results, func(v probeResult) bool { return hasAnswer(v.err) }) {
		return false // no new information
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

// recordPartProbe is recordProbe for one part of a key that is not revoked
// as a whole.
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

// hasAnswer reports whether the result of a probe is an answer from the
// KMS.
func hasAnswer(err error) bool {
	var failure *kms.Error
	return err == nil || errors.As(err, &failure) && !transient(err)
}

func (k *keyState) isRefused() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.refused
}

// staleRefusal is the maximum age of a probe's result for refusing a use
// without asking the KMS again.
const staleRefusal = time.Second

// rememberedError is the error of a recent probe, returned for other uses
// of the key.
type rememberedError struct{ error }

func (r rememberedError) Unwrap() error { return r.error }

// IsRemembered reports whether err is a remembered error rather than a new
// answer from the KMS. It must not be remembered again.
func IsRemembered(err error) bool {
	var r rememberedError
	return errors.As(err, &r)
}

// refusal returns the error with which the last probe found the key
// unusable, or nil. If that result is stale, refusal requests a new probe
// and waits for it, so a key that was restored works at the first request.
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

// awaitProbe waits for the end of a probe that starts after the call, for
// at most the given time.
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

// randomPhase returns how much of the first interval counts as already
// elapsed, so that the probes of different keys are spread over time.
func (k *Keyring) randomPhase() time.Duration {
	interval := k.probe.Load()
	if interval <= 0 {
		return 0
	}
	var random [4]byte
	rand.Read(random[:])
	return time.Duration(float64(interval) * float64(binary.BigEndian.Uint32(random[:])) / (1 << 32))
}

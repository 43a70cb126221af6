package keyring

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// keyState is a Key together with the state of its use.
type keyState struct {
	Key
	kms             atomic.Pointer[service] // nil until the key is opened; always nil for a template
	callLimit       atomic.Int64            // Timeout, which can change
	probeLimit      atomic.Int64            // ProbeTimeout, which can change
	retired         atomic.Bool             // it must not be used any more: it was changed or removed
	stopProbes      context.CancelFunc      // nil if there are none; protected by ring.changing
	tenant          *tenant                 // nil for a configured key
	holds           atomic.Int64            // uses in progress that may still become leases
	leases          atomic.Int64
	probeWanted     atomic.Bool            // a use was refused since the last probe
	newestSample    atomic.Pointer[sample] // the newest blob known to be genuine; nil for none
	probeNow        chan struct{}          // requests an early probe
	intervalChanged chan struct{}          // signals a new probe interval

	mu              sync.Mutex
	answeredAt      time.Time     // when the KMS last answered, with success or an error
	outcome         error         // error of that answer; nil for success
	unanswered      bool          // the last call got no answer
	probeUnanswered bool          // the last probe got no answer about one of its blobs
	probedBlobs     int           // number of blobs in the last probe
	refused         bool          // the last answered probe found the whole key revoked
	gone            error         // that probe's error, if it applies to all objects
	goneAt          time.Time     // when that probe was made
	nextProbe       chan struct{} // closed at the end of the next probe; nil if no goroutine waits
	revokedSince    time.Time     // the first refusal of a genuine blob since the last success; zero for none
	lastUse         time.Duration

	parts   map[aspect]*part
	slots   [maxParts]*part // the same parts by slot; nil if a slot is free
	rest    *part
	scanned time.Time // when slots were last searched for an idle part
}

// service is the KMS behind a key.
type service struct {
	id      string
	wrapper kms.Wrapper
	probe   kms.Wrapper
}

func newKey(c Key) *keyState {
	k := &keyState{
		Key: c, probeNow: make(chan struct{}, 1), intervalChanged: make(chan struct{}, 1),
		parts: make(map[aspect]*part), rest: &part{},
	}
	k.callLimit.Store(int64(c.Timeout))
	k.probeLimit.Store(int64(c.ProbeTimeout))
	return k
}

// open sets the KMS behind a key. The caller holds ring.changing.
func (k *keyState) open(w, probe kms.Wrapper) error {
	id := w.KeyID()
	if id == "" {
		return fmt.Errorf("keyring: key %q has no id", k.Name)
	}
	if probe == nil {
		probe = w
	}

	k.rest.group.KeyID = id
	k.kms.Store(&service{id: id, wrapper: w, probe: probe})
	return nil
}

// letGo ends a use of the key that keyFor, findToRead or findAny has begun.
func (k *keyState) letGo() { k.holds.Add(-1) }

// held begins a use of the key. Keys of templates are held by openKeys.take
// instead, so that they cannot be closed in between.
func (k *keyState) held() *keyState {
	k.holds.Add(1)
	return k
}

// isTemplate reports whether this is not a key but a template for keys.
func (k *keyState) isTemplate() bool { return k.Template != nil }

// isTwinOf reports whether both are the same key in the KMS.
func (k *keyState) isTwinOf(other *keyState) bool {
	a, b := k.kms.Load(), other.kms.Load()
	return a != nil && b != nil && kms.SameKey(a.id, b.id)
}

// transient reports whether a retry may succeed. That includes a use that
// could not be audited: the disk may be full only for a while.
func transient(err error) bool {
	return kms.IsUnreachable(err) || kms.IsThrottled(err) || errors.Is(err, dekcache.ErrTooLate) ||
		errors.Is(err, dekcache.ErrPurged) || errors.Is(err, ErrAudit) || errors.Is(err, ErrNotOpen)
}

// recordAnswer records the result of a KMS call about a part of the key. If
// the KMS refuses to unwrap an object's blob, the blob itself may be bad,
// so that only requests a probe.
func (k *keyState) recordAnswer(now time.Time, p *part, op string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()

	var failure *kms.Error
	isKMS := errors.As(err, &failure)
	if isKMS && failure.Kind == kms.Canceled {
		return
	}

	k.unanswered = isKMS && failure.Kind == kms.Unreachable
	if !k.unanswered {
		k.answeredAt, k.outcome = now, err
	}

	switch {
	case err == nil:
		k.revokedSince, p.revokedSince, p.refused = time.Time{}, time.Time{}, p.refused && op != OpUnwrap
	case kms.IsRevoked(err) && op != OpUnwrap:
		k.recordRevoked(now, p)
	}

	if kms.IsRevoked(err) && op != OpProbe {
		k.probeWanted.Store(true)
		k.requestProbe()
	}
}

// recordRevoked records that the KMS refuses a part of the key. If the key
// has only one part, the key itself counts as revoked. Otherwise a probe
// decides. The caller holds k.mu.
func (k *keyState) recordRevoked(now time.Time, p *part) {
	if p.revokedSince.IsZero() {
		p.revokedSince, p.lastUse = now, 0
	}
	if k.revokedSince.IsZero() && len(k.parts) <= 1 {
		k.revokedSince, k.lastUse = now, 0
	}
}

// requestProbe requests an early probe.
func (k *keyState) requestProbe() {
	select {
	case k.probeNow <- struct{}{}:
	default:
	}
}

// recordLastUse records the last time at which a stream used a DEK of the
// part.
func (k *keyState) recordLastUse(p *part, at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()

	if !p.revokedSince.IsZero() {
		p.lastUse = max(p.lastUse, at.Sub(p.revokedSince))
	}
	if !k.revokedSince.IsZero() {
		k.lastUse = max(k.lastUse, at.Sub(k.revokedSince))
	}
}

// refusal returns the error with which a probe found the whole key
// unusable, and when. The error is nil if it did not.
func (k *keyState) refusal() (at time.Time, gone error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.goneAt, k.gone
}

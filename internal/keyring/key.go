package keyring

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// keyState is a Key and what is known of its use.
type keyState struct {
	Key
	kms             atomic.Pointer[service] // nil while it is unavailable
	leases          atomic.Int64
	probeWanted     atomic.Bool            // a use was refused since the last probe
	newestSample    atomic.Pointer[sample] // the newest
	probeNow        chan struct{}          // asks for a probe before its time
	intervalChanged chan struct{}          // says that the interval of probes has changed

	mu              sync.Mutex
	answeredAt      time.Time     // of the KMS, the last one, whatever it was
	outcome         error         // of that answer; nil for a good one
	unanswered      bool          // the last call had no answer
	probeUnanswered bool          // a blob of the last probe had no answer
	probedBlobs     int           // how many blobs the last probe asked about
	refused         bool          // as a whole, by the last probe that had an answer
	gone            error         // what the KMS said of the whole key to a probe,
	goneAt          time.Time     // and when
	nextProbe       chan struct{} // closed when the next probe to begin has ended; nil if nobody waits for it
	revokedSince    time.Time     // the first "revoked" about a genuine blob since the last good answer; zero for none
	lastUse         time.Duration

	parts   map[aspect]*part
	slots   [maxParts]*part // the same; nil for free ones
	rest    *part
	scanned time.Time // when a part that is not in use was last looked for
}

// service is the KMS behind a key.
type service struct {
	id      string
	wrapper kms.Wrapper
	probe   kms.Wrapper
}

func newKey(c Key) *keyState {
	return &keyState{
		Key: c, probeNow: make(chan struct{}, 1), intervalChanged: make(chan struct{}, 1),
		parts: make(map[aspect]*part), rest: &part{},
	}
}

// isTwinOf reports whether both are one key in the KMS.
func (k *keyState) isTwinOf(other *keyState) bool {
	a, b := k.kms.Load(), other.kms.Load()
	return a != nil && b != nil && kms.SameKey(a.id, b.id)
}

// transient reports whether a retry may succeed. It may if a use could not be
// audited: the disk is full for now.
func transient(err error) bool {
	return kms.IsUnreachable(err) || kms.IsThrottled(err) || errors.Is(err, dekcache.ErrTooLate) ||
		errors.Is(err, dekcache.ErrPurged) ||
		errors.Is(err, ErrAudit) || errors.Is(err, ErrNotOpen)
}

// recordAnswer notes the result of a KMS call about a part of the key. A
// revoked key of one object's blob may be the blob's fault, so it only asks
// for a probe.
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

// recordRevoked notes that the KMS calls a part of the key revoked. With one
// part, it is the key; with several, a probe has to find that out. The caller
// holds k.mu.
func (k *keyState) recordRevoked(now time.Time, p *part) {
	if p.revokedSince.IsZero() {
		p.revokedSince, p.lastUse = now, 0
	}
	if k.revokedSince.IsZero() && len(k.parts) <= 1 {
		k.revokedSince, k.lastUse = now, 0
	}
}

// requestProbe asks for a probe before its time.
func (k *keyState) requestProbe() {
	select {
	case k.probeNow <- struct{}{}:
	default:
	}
}

// recordLastUse notes the last moment at which a DEK of a part was of use to a
// stream.
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

// refusal is when a probe has found something against the use of the key as a
// whole, and what; nil for nothing.
func (k *keyState) refusal() (at time.Time, gone error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.goneAt, k.gone
}

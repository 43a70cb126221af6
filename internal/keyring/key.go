package keyring

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// key is a Key and what is known of its use.
type key struct {
	Key
	kms    atomic.Pointer[service] // nil while it is unavailable
	leases atomic.Int64
	wanted atomic.Bool // somebody was refused since the last probe
	recent atomic.Pointer[sample]
	nudge  chan struct{} // asks for a probe before its time
	rearm  chan struct{} // says that the interval of probes has changed

	mu           sync.Mutex
	answer       time.Time // of the KMS, the last one, whatever it was
	outcome      error     // of that answer; nil for a good one
	unanswered   bool      // the last call had no answer
	silent       bool      // the last probe had no answer
	refused      bool      // by the last probe that had one
	gone         error     // what the KMS said of the whole key to a probe,
	goneUntil    time.Time // and how long that stands
	revokedSince time.Time // the first "revoked" about a genuine blob since the last good answer; zero for none
	lastUse      time.Duration
}

// service is the KMS behind a key.
type service struct {
	id      string
	wrapper kms.Wrapper
	probe   kms.Wrapper
}

// sample is a blob that the KMS itself made or unwrapped, so that a refusal of it is about the key.
type sample struct {
	wrapped []byte
	ec      kms.EncryptionContext
}

func newKey(c Key) *key {
	return &key{Key: c, nudge: make(chan struct{}, 1), rearm: make(chan struct{}, 1)}
}

// isTwinOf reports whether both are one key in the KMS.
func (k *key) isTwinOf(other *key) bool {
	a, b := k.kms.Load(), other.kms.Load()
	return a != nil && b != nil && kms.SameKey(a.id, b.id)
}

// passing reports whether err says "not now", and not "no". A full disk is no "no" either.
func passing(err error) bool {
	return kms.IsUnreachable(err) || kms.IsThrottled(err) || errors.Is(err, dekcache.ErrTooLate) || errors.Is(err, dekcache.ErrPurged) ||
		errors.Is(err, ErrAudit)
}

// answered notes the result of a KMS call. A revoked key of one object's blob may be the blob's fault, so it only has
// the probe look at once.
func (k *key) answered(now time.Time, op string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var failure *kms.Error
	isKMS := errors.As(err, &failure)
	if isKMS && failure.Kind == kms.Canceled {
		return
	}
	k.unanswered = isKMS && failure.Kind == kms.Unreachable
	if !k.unanswered {
		k.answer, k.outcome = now, err
	}
	switch {
	case err == nil:
		k.revokedSince = time.Time{}
	case kms.IsRevoked(err) && op != OpUnwrap && k.revokedSince.IsZero():
		k.revokedSince, k.lastUse = now, 0
	}
	if kms.IsRevoked(err) && op != OpProbe {
		select {
		case k.nudge <- struct{}{}:
		default:
		}
	}
}

// ended notes the last moment at which a DEK of the key was of use to a stream.
func (k *key) ended(at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.revokedSince.IsZero() {
		k.lastUse = max(k.lastUse, at.Sub(k.revokedSince))
	}
}

// refusal is what stands against the use of the key as a whole.
func (k *key) refusal(now time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.gone == nil || !now.Before(k.goneUntil) {
		return nil
	}
	k.wanted.Store(true)
	return k.gone
}

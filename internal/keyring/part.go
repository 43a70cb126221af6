package keyring

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/glob"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// A KMS can refuse some uses of a key and allow the others. It may refuse
// blobs that an older version of the key has wrapped, or a policy may deny
// certain encryption contexts. A probe with one blob says nothing about the
// others, so each part in use is probed with its own blob and purged
// separately.

const (
	// maxParts limits the parts of a key that are probed separately,
	// because each costs one KMS call in every probe. All other uses belong
	// to the rest. A probe sees only the newest blob of the rest, so its
	// revocation window is the TTL.
	maxParts = 32
	// minScanInterval is the minimum time between searches for an idle part
	// when all slots are taken.
	minScanInterval = time.Second
)

// aspect holds the properties by which a KMS can distinguish one part of a
// key from another.
type aspect struct {
	version string // see kms.Lineage
	bucket  string
	prefix  string // of the object's rule; "" for a bucket key
	context string // what the client added to the encryption context
}

// part is a set of DEKs with the same aspect, or the rest.
type part struct {
	aspect
	group dekcache.Group // in the cache; group.Part is 0 for the rest

	// The fields below are protected by keyState.mu.
	uses         int       // leases, and calls that may become leases
	sample       *sample   // nil before the KMS has generated or unwrapped a blob of the part
	refused      bool      // the last answered probe found the part revoked
	revokedSince time.Time // see keyState.revokedSince
	lastUse      time.Duration
}

// sample is a blob that the KMS itself has generated or unwrapped. If the
// KMS refuses it later, the blob cannot be the reason.
type sample struct {
	wrapped []byte
	ec      kms.EncryptionContext
	part    *part // nil if the blob belongs to no object
}

// String describes the part for people.
func (p *part) String() string {
	if p.group.Part == 0 {
		return "objects that are not probed separately"
	}

	text := fmt.Sprintf("bucket %q", p.bucket)
	if p.prefix != "" {
		text += fmt.Sprintf(", prefix %q", p.prefix)
	}
	if p.context != "" {
		text += ", with a client's encryption context"
	}

	return text
}

// aspectOf returns the aspect of a lease. known is false if the blob does
// not show which version of the key has wrapped it.
func (k *Keyring) aspectOf(l *Lease) (a aspect, known bool) {
	a.version, known = kms.Lineage(l.service.id, l.wrapped.Blob)
	a.bucket, a.context = l.obj.Bucket, contextText(l.wrapped)
	if l.wrapped.Salt == nil {
		a.prefix = k.prefixOf(l.obj)
	}
	return a, known
}

// prefixOf returns the prefix of the first rule that covers the object, for
// any client. KMS policies are usually written along these prefixes.
func (k *Keyring) prefixOf(obj Object) string {
	rules := k.set().rules
	for i := range rules {
		r := &rules[i]
		if !matchAny(r.Buckets, func(pattern string) bool { return glob.Match(pattern, obj.Bucket) }) {
			continue
		}
		if len(r.Prefixes) == 0 {
			return ""
		}

		for _, prefix := range r.Prefixes {
			if strings.HasPrefix(obj.Key, prefix) {
				return prefix
			}
		}
	}

	return ""
}

// contextText encodes the client's encryption context as an unambiguous
// string.
func contextText(w crypt.WrappedKey) string {
	if len(w.Context) == 0 {
		return ""
	}

	var b []byte
	for _, name := range slices.Sorted(maps.Keys(w.Context)) {
		b = appendPart(appendPart(b, name), w.Context[name])
	}

	return string(b)
}

// joinPart assigns the lease to its part. The part stays in use until
// leavePart.
func (k *Keyring) joinPart(l *Lease) {
	a, known := k.aspectOf(l)
	key := l.key
	key.mu.Lock()
	defer key.mu.Unlock()

	l.part = key.rest
	if known {
		l.part = k.partOf(key, a)
	}

	l.part.uses++
}

func (l *Lease) leavePart() {
	if l.part == nil { // a customer's key
		return
	}
	l.key.mu.Lock()
	defer l.key.mu.Unlock()
	l.part.uses--
}

// partOf returns the part for an aspect. It returns the rest if no slot is
// free. The caller holds key.mu.
func (k *Keyring) partOf(key *keyState, a aspect) *part {
	if p := key.parts[a]; p != nil {
		return p
	}

	slot := slices.Index(key.slots[:], nil)
	if now := k.now(); slot < 0 && now.Sub(key.scanned) >= minScanInterval {
		key.scanned = now
		slot = slices.IndexFunc(key.slots[:], k.idle)
	}
	if slot < 0 {
		return key.rest
	}

	if old := key.slots[slot]; old != nil {
		delete(key.parts, old.aspect)
	}

	p := &part{aspect: a, group: dekcache.Group{KeyID: key.rest.group.KeyID, Part: slot + 1}}
	key.parts[a], key.slots[slot] = p, p
	return p
}

// idle reports whether a part is not in use. The caller holds keyState.mu.
func (k *Keyring) idle(p *part) bool { return p.uses == 0 && !k.cfg.Cache.Busy(p.group) }

// recordSample records the lease's blob, which the KMS has generated or
// unwrapped.
func (l *Lease) recordSample(ec kms.EncryptionContext) {
	s := &sample{l.wrapped.Blob, ec, l.part}
	l.key.newestSample.Store(s)
	l.key.mu.Lock()
	defer l.key.mu.Unlock()
	l.part.sample = s
}

// toProbe returns one blob for each part in use. It removes idle parts that
// are not revoked.
func (k *Keyring) toProbe(key *keyState) (samples []*sample) {
	key.mu.Lock()
	defer key.mu.Unlock()

	for i, p := range key.slots {
		switch {
		case p == nil:
		case !k.idle(p):
			samples = append(samples, p.sample)
		case p.revokedSince.IsZero():
			delete(key.parts, p.aspect)
			key.slots[i] = nil
		}
	}

	if !k.idle(key.rest) {
		samples = append(samples, key.rest.sample)
	}
	return slices.DeleteFunc(samples, func(s *sample) bool { return s == nil })
}

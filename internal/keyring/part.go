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

// A KMS can refuse a part of what a key protects, and go on with the rest: what
// an older version of the key has wrapped, or what a policy denies by the
// encryption context. A probe with one blob says nothing of the others, so each
// part in use is probed with a blob of its own, and purged by itself.

const (
	// maxParts bounds the parts of a key that are probed by themselves: each
	// costs a KMS call at each probe. What is in use beyond is the rest, of
	// which a probe sees only the newest blob, and whose revocation window is
	// the TTL.
	maxParts = 32
	// minScanInterval is the least time between two searches for a part that
	// is not in use any more, when all are taken.
	minScanInterval = time.Second
)

// aspect is what the KMS can tell one part of a key from another by.
type aspect struct {
	version string // as kms.Lineage
	bucket  string
	prefix  string // of the rule that the object is under; "" under a bucket key
	context string // that the client has added to the encryption context
}

// part is the DEKs of one aspect, or the rest.
type part struct {
	aspect
	group dekcache.Group // in the cache; Part is 0 for the rest

	// Under key.mu.
	uses         int       // leases, and calls that may become one
	sample       *sample   // nil until the KMS has made or unwrapped a blob of the part
	refused      bool      // by the last probe that had an answer
	revokedSince time.Time // as that of key
	lastUse      time.Duration
}

// sample is a blob that the KMS itself made or unwrapped, so that a refusal of
// it is about the key.
type sample struct {
	wrapped []byte
	ec      kms.EncryptionContext
	part    *part // nil for a blob of no object
}

// String describes the part for a person.
func (p *part) String() string {
	if p.group.Part == 0 {
		return "objects that are not probed by themselves"
	}

	text := fmt.Sprintf("bucket %q", p.bucket)
	if p.prefix != "" {
		text += fmt.Sprintf(", prefix %q", p.prefix)
	}
	if p.context != "" {
		text += ", an encryption context of the client's"
	}

	return text
}

// aspectOf returns the aspect of a lease whose blob is known; known is false if
// the blob does not say which version of the key has wrapped it.
func (k *Keyring) aspectOf(l *Lease) (a aspect, known bool) {
	a.version, known = kms.Lineage(l.service.id, l.wrapped.Blob)
	a.bucket, a.context = l.obj.Bucket, contextText(l.wrapped)
	if l.wrapped.Salt == nil {
		a.prefix = k.prefixOf(l.obj)
	}
	return a, known
}

// prefixOf returns the prefix by which the first rule for the object matches,
// whoever the client is: policies of a KMS follow the rules.
func (k *Keyring) prefixOf(obj Object) string {
	for i := range *k.rules.Load() {
		r := &(*k.rules.Load())[i]
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

// contextText is what a client has added to the encryption context, without
// ambiguity.
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

// joinPart makes the lease one of its part's uses, until leavePart. The part
// is not given away meanwhile.
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
	if l.part == nil { // of a customer's key
		return
	}
	l.key.mu.Lock()
	defer l.key.mu.Unlock()
	l.part.uses--
}

// partOf returns the part of an aspect: its own, or the rest. The caller holds
// key.mu.
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

// idle reports whether nothing uses a part. The caller holds key.mu.
func (k *Keyring) idle(p *part) bool { return p.uses == 0 && !k.cfg.Cache.Busy(p.group) }

// recordSample notes a blob that the KMS made or unwrapped for a lease.
func (l *Lease) recordSample(ec kms.EncryptionContext) {
	s := &sample{l.wrapped.Blob, ec, l.part}
	l.key.newestSample.Store(s)
	l.key.mu.Lock()
	defer l.key.mu.Unlock()
	l.part.sample = s
}

// toProbe returns one blob for each part in use. Parts that are not are
// forgotten.
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

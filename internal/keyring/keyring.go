// Package keyring decides which KMS key protects an object, and how long a
// data key (DEK) may be used.
//
// Every DEK leaves this package in a Lease, which is in force for a limited
// time: until the TTL of the cache has passed, counted from before the KMS
// was asked, or until the key is purged. A stream checks its lease before
// each piece of data, and a watcher ends streams that are stuck.
//
// When the lease runs out, the KMS is asked again. If it refuses, the
// stream is cut. If it cannot be reached, the stream waits for a while, and
// no byte is sent. This limits the time from the revocation of a key to the
// last byte of plaintext, even for running transfers: see Status.Window.
//
//	keyring.go    Keyring: creating, opening and rewrapping data keys
//	keyset.go     the keys and rules, which are replaced together
//	rules.go      which key encrypts an object, and which keys can read it
//	tenants.go    templates: a key for each tenant, named by the object
//	filetenants.go  tenants with their own keys, which come and go
//	openkeys.go   which keys of tenants are open, and closing them
//	defaults.go   keys that clients have chosen for buckets
//	prove.go      proving that a key can unwrap what it has wrapped
//	bucketkey.go  one wrapped key for many objects
//	customer.go   keys that clients supply (SSE-C)
//	recovered.go  opening data keys with a recovery key
//	lease.go      Lease: use of a data key, renewal, cut
//	key.go        state of each KMS key
//	part.go       parts of a KMS key that the KMS can refuse separately
//	probe.go      asking the KMS about keys in use
//	remember.go   how long KMS errors are remembered
//	status.go     reported state of each key
//	audit.go      auditing each use
package keyring

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/tracing"
)

// DefaultTimeout limits a KMS call if the configuration sets no timeout. It
// leaves room for the provider's own timeouts.
const DefaultTimeout = 6 * time.Second

// DefaultProbeTimeout limits a probe of a key without its own probe
// timeout.
const DefaultProbeTimeout = 2 * time.Second

// The operations reported to Observer.KMSCall.
const (
	OpGenerate = "generate" // a new DEK
	OpWrap     = "wrap"     // the DEK of an object being copied
	OpUnwrap   = "unwrap"   // the DEK of a stored object
	OpRenew    = "renew"    // the same, for a lease that ran out
	OpProbe    = "probe"    // is the key still usable?
	OpOpen     = "open"     // opening the key of a tenant
)

var (
	// ErrUnknownKey is returned if no configured key has this id or name.
	ErrUnknownKey = errors.New("keyring: unknown key")
	// ErrNotCached is returned if a DEK is not in the cache, or has
	// expired.
	ErrNotCached = errors.New("keyring: not in the cache")
	// ErrNotOpen is returned if a key that is needed, or may be needed, has
	// not been opened yet. A retry may succeed.
	ErrNotOpen = errors.New("keyring: key is not open yet")
	// ErrRetired is returned, together with the reason why no other key opens
	// the object, if a key was changed or removed during its use. A retry uses
	// the keys that there are now.
	ErrRetired = errors.New("keyring: key has just been changed or removed")
	// ErrNoRule is returned if no rule covers the object and the client.
	ErrNoRule = errors.New("keyring: no rule covers this object")
	// ErrNotAllowed is returned if the rule for the object forbids what the
	// client asks for.
	ErrNotAllowed = errors.New("keyring: not allowed by the rule for this object")
	// ErrNotRead is returned if no rule for the object names the key that
	// the object is encrypted under.
	ErrNotRead = errors.New("keyring: no rule for this object names the key that it is encrypted under")
	// ErrKeyName is returned if a rule has prefixes and the object key has
	// a "." or ".." segment: the store may take it for another key.
	ErrKeyName = errors.New("keyring: rules with prefixes do not cover object keys with a . or .. segment")
	// ErrTenant is returned if the template of a key has no key for the
	// object. Its chain has a *TenantError.
	ErrTenant = errors.New("keyring: the object's name does not name a key")
	// ErrNoTenant is returned if the object is in a rule for tenants, and no
	// tenant has it.
	ErrNoTenant = errors.New("keyring: no tenant has this object")
	// ErrUnbound is returned if a data key might have been made by someone
	// without access to the KMS key (see Lease.Unbound), and the new
	// wrapping would hide that.
	ErrUnbound = errors.New("keyring: this data key is in form 1, which does not prove who made it")
	// ErrReleased is returned if a lease is used after Release.
	ErrReleased = errors.New("keyring: lease has been released")
	// ErrChanged is returned if the KMS unwraps the same blob to a
	// different DEK than before.
	ErrChanged = errors.New("keyring: the KMS returned a different DEK")
)

// Config configures a Keyring.
type Config struct {
	// Keys are the KMS keys. Names must be unique. If several keys have the
	// same id, the first opens objects with that id; see Twins.
	Keys []Key
	// Rules choose the key of a new object. The first match wins; without a
	// match, the object is refused. See SetRules.
	Rules []Rule
	// FormatVersion is the version of the format of new objects. 0 means
	// crypt.Newest.
	FormatVersion crypt.Version
	// LiteralKeys is set if the store gives "." and ".." in object keys no
	// special meaning. If it is false, see ErrKeyName.
	LiteralKeys bool
	// Cache holds the DEKs. Required. The Keyring uses its clock.
	Cache *dekcache.Cache
	// RevocationProbe is how often Run asks the KMS about each key in use.
	// With 0 there are no probes, and only the TTL limits how long a
	// revocation takes. See SetProbe.
	RevocationProbe time.Duration
	// Timeout limits each KMS call of a key without its own Timeout. 0
	// means DefaultTimeout.
	Timeout time.Duration
	// OutageWait is how long a stream whose lease has run out waits for a
	// KMS that is unreachable or throttles. No byte is sent meanwhile. With
	// 0 the stream is cut at the first such error. See SetOutageWait.
	OutageWait time.Duration
	// Observer is notified of events. It may be nil.
	Observer Observer
	// Defaults are keys chosen for buckets. They take precedence over the
	// keys of the rules. It may be nil.
	Defaults *Defaults
	// FileTenants is set if there are tenants with their own keys, which need
	// no template; see SetTenants.
	FileTenants bool
	// MaxOpen limits how many keys of tenants are open at once, for all
	// templates and SetTenants together. If there are more tenants, the least recently used
	// key without leases is closed. 0 means DefaultMaxOpen.
	MaxOpen int
	// Auditor records each use of a key. A use that it cannot record is
	// refused; a renewal that it cannot record is retried. It may be nil.
	Auditor Auditor
}

// Observer is notified of events. Its methods must not block.
type Observer interface {
	// KMSCall reports a call to the KMS: the name of the key, one of the Op
	// constants, the duration and the error. ctx has the values of the
	// request that caused the call.
	KMSCall(ctx context.Context, key, op string, took time.Duration, err error)
	// Revoked reports that a probe found a key or a part of it revoked. It
	// is called once, until a probe finds the key usable again.
	Revoked(r Revocation)
	// Used reports an event in the life of a DEK. id identifies the DEK.
	Used(key string, id [32]byte, use Use)
}

// Revocation is the result of a probe that found a key revoked.
type Revocation struct {
	Key    string // name of the key
	Part   string // a description of the part; "" for the whole key
	Err    error  // the KMS's error
	Purged int    // number of DEKs purged
}

// Use is an event in the life of a DEK. Each Created or Opened is followed
// by one Released.
type Use int

// The events.
const (
	Created  Use = iota // a new DEK was created for a stream
	Opened              // a stream opened the DEK of a stored object
	Renewed             // the lease ran out and was renewed
	Cut                 // the lease ran out and the stream was cut
	Released            // the stream ended
)

// Key is a KMS key with the name that rules use for it.
type Key struct {
	Name string
	// Provider is the kind of KMS. Two providers may use the same id.
	Provider string
	// Successor is the name of the key that replaces this one, if any.
	// Objects with this key's id can still be read. New objects are
	// encrypted under the successor, even if a client asks for this key.
	Successor string
	// Template, if not nil, makes this a template for the keys of many
	// tenants. Then Wrapper, Unavailable, Probe and Successor must not be
	// set.
	Template *Template
	// Wrapper is the opened key. It is nil if the key could not be opened
	// yet; then uses of the key fail with Unavailable until Provide is
	// called.
	Wrapper     kms.Wrapper
	Unavailable error
	// Timeout limits each call including all its attempts. It is never more
	// than half the TTL, because a late answer is of little use. 0 means
	// Config.Timeout.
	Timeout time.Duration
	// ProbeTimeout limits a probe, which is a single attempt. The
	// revocation window is the interval plus this timeout. 0 means
	// DefaultProbeTimeout.
	ProbeTimeout time.Duration
	// Probe is the same key for probes, without the queues that calls
	// through Wrapper may wait in. Nil means Wrapper.
	Probe kms.Wrapper
}

// Object is the name of an object. Its DEK is bound to this name.
type Object = crypt.Object

// Keyring holds the configured keys and rules. It is safe for concurrent
// use.
type Keyring struct {
	*ring
	pinned *keySet // see Snapshot; nil for the current keys and rules
}

// ring is what all Keyrings for the same keys share.
type ring struct {
	cfg     Config
	current atomic.Pointer[Keyring] // pinned to the current keys and rules

	audits     atomic.Pointer[Auditor]
	probe      atomic.Int64 // interval in nanoseconds
	outageWait atomic.Int64 // in nanoseconds

	bucketKeys *lru.Cache[bucketKeyName, *bucketKey] // bucket keys in use
	customer   *keyState                             // represents all customers' keys
	recovered  *keyState                             // represents a recovery key

	tenants  *openKeys
	fileKeys *keyState // represents the keys of all tenants of SetTenants; nil for none
	files    atomic.Pointer[tenantIndex]

	changing sync.Mutex                         // held while keys, rules or services change
	probing  func(*keyState) context.CancelFunc // starts the probes of a key; nil unless Run is running
}

// New checks cfg and returns a Keyring.
func New(cfg Config) (*Keyring, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Cache == nil {
		return nil, errors.New("keyring: no cache")
	}

	if cfg.Observer == nil {
		cfg.Observer = noObserver{}
	}

	k := &Keyring{ring: &ring{cfg: cfg, bucketKeys: newBucketKeys()}}
	k.customer, k.recovered = newCustomer(), newRecovered()
	k.tenants = newOpenKeys(cmp.Or(cfg.MaxOpen, DefaultMaxOpen))
	k.SetAuditor(cfg.Auditor)
	k.probe.Store(int64(cfg.RevocationProbe))
	k.outageWait.Store(int64(cfg.OutageWait))

	k.files.Store(newTenantIndex())
	if cfg.FileTenants {
		k.fileKeys = newKey(Key{Name: FileKeys, Provider: FileKeys, Template: &Template{}})
	}

	k.use(&keySet{})
	first, err := k.Prepare(Contents{cfg.Keys, cfg.Rules, cfg.FormatVersion})
	if err != nil {
		return nil, err
	}
	first.Apply()
	return k, nil
}

// Provide opens a key that was unavailable, or opens it again. With another id
// than before, it is another key; see Replacement.Apply. probe may be nil; see
// Key.Probe.
func (k *Keyring) Provide(name string, w, probe kms.Wrapper) error {
	k.changing.Lock()
	defer k.changing.Unlock()

	before := k.latest().set()
	opened := before.byName[name]
	if opened == nil || opened.isTemplate() {
		return fmt.Errorf("%w %q", ErrUnknownKey, name)
	}
	if was := opened.kms.Load(); was != nil && was.id != w.KeyID() {
		return k.exchange(before, opened, w, probe)
	}
	if err := opened.open(w, probe); err != nil {
		return err
	}

	before.index()
	return nil
}

// exchange replaces a key by another one with the same name. The caller holds
// changing.
func (k *Keyring) exchange(before *keySet, old *keyState, w, probe kms.Wrapper) error {
	fresh := newKey(old.Key)
	if err := fresh.open(w, probe); err != nil {
		return err
	}

	next := *before
	next.byID = new(atomic.Pointer[map[string]*keyState])
	next.keys, next.byName = slices.Clone(before.keys), maps.Clone(before.byName)
	next.keys[slices.Index(next.keys, old)], next.byName[old.Name] = fresh, fresh
	next.index()

	k.use(&next)
	k.beginProbes(fresh)
	k.retireAll(before, &next)
	return nil
}

// lookup returns the key that opens objects with this id, or nil.
func (k *Keyring) lookup(id string) *keyState {
	byID := *k.set().byID.Load()
	if key := byID[id]; key != nil {
		return key
	}
	return byID[kms.CanonicalID(id)]
}

// Twins returns the names of keys that are the same key in the KMS. In each
// pair, the first opens objects with that id. Keys with a successor are not
// included.
func (k *Keyring) Twins() (pairs [][2]string) {
	for _, key := range k.set().keys {
		service := key.kms.Load()
		if service == nil || key.Successor != "" {
			continue
		}
		if first := k.lookup(kms.CanonicalID(service.id)); first != key {
			pairs = append(pairs, [2]string{first.Name, key.Name})
		}
	}

	return pairs
}

// Recipients returns the ids of the KMS keys that new data keys under the key
// with this id are wrapped by, and of the recovery keys; see kms.KeysOf.
func (k *Keyring) Recipients(id string) (keys, recovery []string) {
	if w := k.opened(id); w != nil {
		return kms.RecipientsOf(w)
	}
	return []string{id}, nil
}

// opened returns the open key with this id; nil for none. Of several tenants
// that share a KMS key, it returns that of the one that used it last.
func (k *Keyring) opened(id string) kms.Wrapper {
	if key := k.lookup(id); key != nil {
		return key.kms.Load().wrapper
	}
	for _, key := range k.tenants.all() {
		if service := key.kms.Load(); kms.SameKey(service.id, id) {
			return service.wrapper
		}
	}
	return nil
}

// find returns the key with the id in an envelope.
func (k *Keyring) find(id string) (*keyState, error) {
	if key := k.lookup(id); key != nil {
		return key, nil
	}
	if err := k.unopenedError(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%w %q", ErrUnknownKey, id)
}

// unopenedError returns the error for an id that no open key has. The id of
// a key is unknown until the key is opened, so only if all keys are open is
// the id certainly unknown. Then unopenedError returns nil.
func (k *Keyring) unopenedError() error {
	for _, key := range k.set().keys {
		switch {
		case key.kms.Load() != nil, key.isTemplate():
		case transient(key.Unavailable):
			return fmt.Errorf("%w: key %q: %w", ErrNotOpen, key.Name, key.Unavailable)
		default: // a refusal of this key says nothing about the id
			return fmt.Errorf("%w: key %q: %s", ErrNotOpen, key.Name, key.Unavailable.Error())
		}
	}

	return nil
}

// Choice is what a client requests instead of the rule's settings. The zero
// Choice requests nothing.
type Choice struct {
	// KeyID is the id or the name of a configured key; "" for the key of
	// the rule.
	KeyID string
	// Context is added to the encryption context.
	Context map[string]string
	// CustomerKey is a key of 32 bytes that replaces the KMS key. It is
	// used during the call and not stored.
	CustomerKey []byte
	// Trust makes Rewrap accept an unbound data key (see Lease.Unbound).
	// The caller thereby vouches for the object.
	Trust bool
}

// DataKey is a new DEK: leased, and wrapped for storage with its object.
type DataKey struct {
	*Lease
	KeyID   string // of the KMS key
	Wrapped []byte
}

// Create creates a DEK for obj, which client is writing. Errors: ErrNoRule,
// ErrUnknownKey, ErrNotAllowed, ErrAudit, and those of packages kms and
// crypt.
func (k *Keyring) Create(ctx context.Context, obj Object, client string, want Choice) (*DataKey, error) {
	k = k.Snapshot()
	if want.CustomerKey != nil {
		return k.createForCustomer(ctx, obj, client, want.CustomerKey)
	}

	rule, key, service, err := k.keyFor(ctx, obj, client, want.KeyID)
	if err != nil {
		return nil, k.auditUnopened(ctx, obj, ActionCreate, err)
	}
	defer key.letGo()

	l := &Lease{key: key, service: service, obj: obj, wrapped: crypt.WrappedKey{Context: want.Context}}
	if rule.Reuse != nil && len(want.Context) == 0 {
		return k.createFromBucketKey(ctx, l, *rule.Reuse)
	}

	mark, a := k.cfg.Cache.Mark(), &useTrace{}
	var dek []byte
	err = k.call(ctx, key, key.rest, OpGenerate, a, func(ctx context.Context) (err error) {
		dek, l.wrapped.Blob, err = kms.Generate(ctx, service.wrapper, encryptionContext(obj, l.wrapped))
		return err
	})
	defer clear(dek)

	if err := k.audit(ctx, l, ActionCreate, a, err); err != nil {
		return nil, fmt.Errorf("making a data key: %w", err)
	}
	return k.leaseNewDEK(l, mark, dek)
}

// Rewrap wraps the DEK of a lease for another object, dst, so that a stored
// body can be copied without re-encryption. Otherwise it is like Create. An
// unbound data key stays unbound. If it cannot, Rewrap fails with
// ErrUnbound, unless want.Trust is set.
func (k *Keyring) Rewrap(ctx context.Context, l *Lease, dst Object, client string, want Choice) (*DataKey, error) {
	k = k.Snapshot()
	if err := l.Check(ctx); err != nil {
		return nil, err
	}

	unbound := l.Unbound() && !want.Trust
	if want.CustomerKey != nil {
		if unbound {
			return nil, ErrUnbound
		}
		return k.wrapForCustomer(ctx, dst, client, want.CustomerKey, l.DEK())
	}

	_, key, service, err := k.keyFor(ctx, dst, client, want.KeyID)
	if err != nil {
		return nil, k.auditUnopened(ctx, dst, ActionCreate, err)
	}
	defer key.letGo()
	if unbound {
		if key != l.key {
			return nil, fmt.Errorf("%w, and a wrapping by key %q would hide that", ErrUnbound, key.Name)
		}
		ctx = kms.KeepUnbound(ctx)
	}

	copied := &Lease{key: key, service: service, obj: dst, wrapped: crypt.WrappedKey{Context: want.Context}}
	mark, a := k.cfg.Cache.Mark(), &useTrace{}
	err = k.call(ctx, key, key.rest, OpWrap, a, func(ctx context.Context) (err error) {
		copied.wrapped.Blob, err = kms.Wrap(ctx, service.wrapper, l.DEK(), encryptionContext(dst, copied.wrapped))
		return err
	})
	if err := k.audit(ctx, copied, ActionCreate, a, err); err != nil {
		return nil, fmt.Errorf("wrapping a data key: %w", err)
	}

	return k.leaseNewDEK(copied, mark, l.DEK())
}

// leaseNewDEK starts the lease of a DEK that has just been wrapped.
func (k *Keyring) leaseNewDEK(l *Lease, mark dekcache.Mark, dek []byte) (*DataKey, error) {
	l.id = cacheID(l)
	k.joinPart(l)
	entry := k.cfg.Cache.Put(l.id, l.part.group, mark, dek)
	l.recordSample(encryptionContext(l.obj, l.wrapped))
	return k.dataKeyOf(l, entry, Created)
}

// dataKeyOf starts a lease with a cache entry and returns its DataKey. The
// lease must already have joined its part.
func (k *Keyring) dataKeyOf(l *Lease, entry dekcache.Entry, use Use) (*DataKey, error) {
	given, err := l.wrapped.Bytes()
	if err != nil {
		clear(entry.DEK)
		l.leavePart()
		return nil, err
	}

	if err := k.startLease(l, entry); err != nil {
		l.leavePart()
		return nil, err
	}

	k.cfg.Observer.Used(l.key.Name, l.id, use)
	// Wrapped is a copy, so that the caller may modify it.
	return &DataKey{Lease: l, KeyID: l.service.id, Wrapped: bytes.Clone(given)}, nil
}

// Open returns the DEK of a stored object, from the cache or the KMS. keyID
// and wrapped come from the object's envelope. Errors: ErrUnknownKey if no
// configured key has that id, ErrNotOpen, ErrNotRead, ErrKeyName, ErrTenant,
// ErrAudit, and those of packages kms, dekcache and crypt. For objects under a
// customer's key, use OpenForCustomer.
func (k *Keyring) Open(ctx context.Context, obj Object, keyID string, wrapped []byte) (*Lease, error) {
	k = k.Snapshot()
	key, err := k.findToRead(ctx, obj, keyID, k.openTenant)
	if err != nil {
		return nil, k.auditUnopened(ctx, obj, ActionOpen, err)
	}
	defer key.letGo()
	return k.openLease(ctx, obj, key, wrapped, k.fetchToOpen)
}

// OpenCached is like Open but never asks the KMS. If the DEK is not in the
// cache, it returns ErrNotCached.
func (k *Keyring) OpenCached(ctx context.Context, obj Object, keyID string, wrapped []byte) (*Lease, error) {
	k = k.Snapshot()
	key, err := k.findToRead(ctx, obj, keyID, k.openedTenant)
	if err != nil {
		return nil, err
	}
	defer key.letGo()
	return k.openLease(ctx, obj, key, wrapped, k.peek)
}

// OpenAnyKey is like Open, but also accepts a key that no rule for the
// object names. Anyone who may use that key can have made the object.
func (k *Keyring) OpenAnyKey(ctx context.Context, obj Object, keyID string, wrapped []byte) (*Lease, error) {
	k = k.Snapshot()
	key, err := k.findAny(ctx, obj, keyID)
	if err != nil {
		return nil, k.auditUnopened(ctx, obj, ActionOpen, err)
	}
	defer key.letGo()
	return k.openLease(ctx, obj, key, wrapped, k.fetchToOpen)
}

// OpenMoved is Open for an object that was written as obj and that an
// operator has found at another name. The rules for either name may name the
// key: a client that may use a key of the old name made the object, and one that
// may use a key of the new name can make objects there in any case.
func (k *Keyring) OpenMoved(ctx context.Context, obj, at Object, keyID string, wrapped []byte) (*Lease, error) {
	k = k.Snapshot()
	key, err := k.findToRead(ctx, obj, keyID, k.openTenant)
	if err != nil && at != obj {
		if other, otherErr := k.findToRead(ctx, at, keyID, k.openTenant); otherErr == nil {
			key, err = other, nil
		}
	}
	if err != nil {
		return nil, k.auditUnopened(ctx, obj, ActionOpen, err)
	}
	defer key.letGo()
	return k.openLease(ctx, obj, key, wrapped, k.fetchToOpen)
}

// fetchFunc gets the DEK of a lease.
type fetchFunc func(context.Context, *Lease) (dekcache.Entry, *useTrace, error)

func (k *Keyring) fetchToOpen(ctx context.Context, l *Lease) (dekcache.Entry, *useTrace, error) {
	return k.fetch(ctx, l, OpUnwrap)
}

// peek gets the DEK of a lease from the cache only.
func (k *Keyring) peek(_ context.Context, l *Lease) (dekcache.Entry, *useTrace, error) {
	a := &useTrace{}
	a.cached.Store(true)
	entry, ok := k.cfg.Cache.Peek(l.id, l.part.group)
	if !ok {
		return entry, a, ErrNotCached
	}
	return entry, a, nil
}

func (k *Keyring) openLease(
	ctx context.Context, obj Object, key *keyState, wrapped []byte, get fetchFunc,
) (*Lease, error) {
	parsed, err := crypt.ParseWrappedKey(bytes.Clone(wrapped)) // the lease outlives the caller's buffer
	if err != nil {
		return nil, err
	}

	l := &Lease{key: key, service: key.kms.Load(), obj: obj, wrapped: parsed}
	l.id = cacheID(l)
	k.joinPart(l)
	entry, a, err := get(ctx, l)
	if errors.Is(err, ErrNotCached) { // not a use of the key, so not audited
		l.leavePart()
		return nil, err
	}

	if err := k.audit(ctx, l, ActionOpen, a, err); err != nil {
		clear(entry.DEK)
		l.leavePart()
		return nil, fmt.Errorf("opening a data key: %w", err)
	}
	if err := k.startLease(l, entry); err != nil {
		l.leavePart()
		return nil, err
	}

	k.cfg.Observer.Used(key.Name, l.id, Opened)
	return l, nil
}

// fetch gets the DEK of a lease through the cache.
func (k *Keyring) fetch(ctx context.Context, l *Lease, op string) (dekcache.Entry, *useTrace, error) {
	a := &useTrace{}
	if l.key.isRetired() { // the tenant that has the object now may have cached it
		_, end, err := k.replacement(ctx, l)
		if err != nil {
			a.cached.Store(true)
			return dekcache.Entry{}, a, err
		}
		end()
	}

	unwrap := func(ctx context.Context) (dek []byte, err error) {
		by, end, err := k.replacement(ctx, l)
		if err != nil {
			return nil, err
		}
		defer end()

		ec := encryptionContext(l.obj, l.wrapped)
		err = k.call(ctx, by.key, by.part, op, a, func(ctx context.Context) (err error) {
			dek, err = kms.Unwrap(ctx, by.wrapper, l.wrapped.Blob, ec)
			return err
		})
		if err == nil {
			l.recordSample(ec)
		}

		return dek, err
	}

	entry, err := k.cfg.Cache.Get(ctx, l.id, l.part.group, unwrap)
	if entry.Hit {
		a.cached.Store(true)
	}

	return entry, a, err
}

// call makes a KMS call about a part of a key. If a probe has found the
// whole key unusable, call returns that error, because only probes ask
// about such a key.
func (k *Keyring) call(
	ctx context.Context, key *keyState, p *part, op string, a *useTrace, run func(context.Context) error,
) error {
	if key.isRetired() {
		a.cached.Store(true)
		return fmt.Errorf("%w: key %q: %w", ErrNotOpen, key.Name, ErrRetired)
	}
	if err := k.refusal(ctx, key); err != nil {
		a.cached.Store(true)
		return err
	}
	a.kms.Store(true)
	ctx, span := tracing.StartKMS(ctx, tracing.KMSCall{Key: key.Name, Provider: key.Provider, Operation: op})
	err := k.ask(kms.WithTrace(ctx, &a.Trace), key, p, op, k.timeout(key), run)
	span.End(failureOf(err), a.RequestID())
	return err
}

// failureOf returns the kind of an error of a KMS call; "" for a success.
func failureOf(err error) string {
	if err == nil {
		return ""
	}
	if failure, ok := errors.AsType[*kms.Error](err); ok {
		return failure.Kind.String()
	}
	return "error"
}

func (k *Keyring) ask(
	ctx context.Context, key *keyState, p *part, op string, timeout time.Duration, run func(context.Context) error,
) error {
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	start := k.now()
	err := run(bounded)
	now := k.now()

	key.recordAnswer(now, p, op, err)
	k.cfg.Observer.KMSCall(ctx, key.Name, op, now.Sub(start), err)

	return err
}

func (k *Keyring) timeout(key *keyState) time.Duration {
	return min(cmp.Or(time.Duration(key.callLimit.Load()), k.cfg.Timeout), k.cfg.Cache.TTL()/2)
}

func (k *Keyring) now() time.Time { return k.cfg.Cache.Now() }

// Purge removes all DEKs of the named key from the cache and ends its
// leases, which ask the KMS again at their next check. It returns the
// number of DEKs that were cached. Error: ErrUnknownKey.
func (k *Keyring) Purge(keyName string) (int, error) {
	key := k.set().byName[keyName]
	switch {
	case key == nil:
		return k.purgeTenant(keyName)
	case key.isTemplate():
		return k.purgeTenants(key), nil
	}

	service := key.kms.Load()
	if service == nil {
		return 0, nil
	}

	return k.cfg.Cache.Purge(service.id), nil
}

// PurgeAll purges all keys.
func (k *Keyring) PurgeAll() int { return k.cfg.Cache.PurgeAll() }

// encryptionContext returns the encryption context that binds a data key to
// its object. It is part of the format.
func encryptionContext(obj Object, w crypt.WrappedKey) kms.EncryptionContext {
	ec := kms.EncryptionContext{"bucket": obj.Bucket}
	if w.Salt == nil {
		ec["key"] = obj.Key
	}
	maps.Copy(ec, w.Context)
	return ec
}

// cacheID hashes everything that determines the result of unwrapping a
// blob. Each field is preceded by its length.
func cacheID(l *Lease) dekcache.ID {
	// On the stack: enough for the longest object key, and for the blobs of
	// all providers.
	b := make([]byte, 0, 1536)
	key := l.obj.Key

	if l.wrapped.Salt != nil {
		key = "" // a bucket key does not depend on the object key
	}

	for _, s := range [...]string{l.key.Provider, l.service.id, l.obj.Bucket, key} {
		b = appendPart(b, s)
	}

	b = binary.BigEndian.AppendUint64(b, uint64(len(l.wrapped.Context)))
	if len(l.wrapped.Context) > 0 {
		for _, name := range slices.Sorted(maps.Keys(l.wrapped.Context)) {
			b = appendPart(appendPart(b, name), l.wrapped.Context[name])
		}
	}

	return sha256.Sum256(append(b, l.wrapped.Blob...))
}

func appendPart(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
	return append(b, s...)
}

// noObserver ignores all events.
type noObserver struct{}

func (noObserver) KMSCall(context.Context, string, string, time.Duration, error) {}
func (noObserver) Revoked(Revocation)                                            {}
func (noObserver) Used(string, [32]byte, Use)                                    {}

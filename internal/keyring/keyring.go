// Package keyring decides which KMS key protects which object, and rules the
// life of the data keys (DEKs).
//
// Every DEK that leaves this package does so in a Lease, and a Lease is in
// force for a bounded time: until the TTL of the cache is over, counted from
// before the KMS was asked, or until its key is purged. A stream checks its
// lease as it goes, and has it watched, so that a stream that is stuck does
// not outlive it either; when the lease is over, the KMS is asked again. If it
// says no, the stream is cut; if it cannot be reached, the stream waits for a
// while, and no byte passes. So the time from revoking a key to the last byte
// of plaintext is bounded, for running transfers too: see Status.Window.
//
//	keyring.go    Keyring: making, opening and rewrapping data keys
//	rules.go      which key an object gets, and which it can be read under
//	defaults.go   keys that clients have chosen for buckets
//	bucketkey.go  one wrapped key for many objects
//	customer.go   keys that clients bring (SSE-C)
//	lease.go      Lease: the use of a data key, its renewal, the cut
//	key.go        what is known of each KMS key
//	part.go       the parts of a KMS key that the KMS can refuse one by one
//	probe.go      asking the KMS about keys in use
//	status.go     the state of each key
//	audit.go      writing down each use
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
)

// DefaultTimeout bounds a KMS call where Config names no timeout. It leaves
// room for the provider's own.
const DefaultTimeout = 6 * time.Second

// DefaultProbeTimeout bounds a probe of a key that names no timeout of its own.
const DefaultProbeTimeout = 2 * time.Second

// The operations that Observer.KMSCall is told of.
const (
	OpGenerate = "generate" // a new DEK
	OpWrap     = "wrap"     // a DEK of an object that is copied
	OpUnwrap   = "unwrap"   // a DEK of a stored object
	OpRenew    = "renew"    // the same, for a lease that has run out
	OpProbe    = "probe"    // whether the key is still ours to use
)

var (
	// ErrUnknownKey says that no configured key has this id or name.
	ErrUnknownKey = errors.New("keyring: unknown key")
	// ErrNotCached says that a DEK is not in the cache, or may not be used any
	// more.
	ErrNotCached = errors.New("keyring: not in the cache")
	// ErrNotOpen says that a key which is needed, or may be, could not be
	// opened yet. It passes.
	ErrNotOpen = errors.New("keyring: not open yet")
	// ErrNoRule says that no rule covers the object and client. It is refused.
	ErrNoRule = errors.New("keyring: no rule covers this object")
	// ErrNotAllowed says that the rule for the object does not allow what the
	// client asks for.
	ErrNotAllowed = errors.New("keyring: not allowed by the rule for this object")
	// ErrNotRead says that no rule for the object names the key that it is
	// under.
	ErrNotRead = errors.New("keyring: no rule for this object names the key that it is under")
	// ErrKeyName says that a rule has prefixes, and the key of the object has a
	// segment . or .., so that the store may take it for another key.
	ErrKeyName = errors.New("keyring: a key with a segment . or .. has no place among prefixes")
	// ErrUnbound says that nothing proves who has made a data key, and that it
	// was to be wrapped so that something would.
	ErrUnbound = errors.New("keyring: nothing proves who has made this data key: its blob is of form 1")
	// ErrReleased says that a lease was used after its Release.
	ErrReleased = errors.New("keyring: lease was released")
	// ErrChanged says that the KMS unwrapped the same blob to another DEK than
	// before.
	ErrChanged = errors.New("keyring: the KMS answered with another DEK")
)

// Config configures a Keyring.
type Config struct {
	// Keys are the KMS keys. Names must be unique. Of keys with one id, the
	// first opens what names that id; see Twins.
	Keys []Key
	// Rules choose the key of a new object; the first that matches wins. What
	// no rule matches is refused. See SetRules.
	Rules []Rule
	// LiteralKeys says that the store takes . and .. in an object's key for
	// nothing but themselves. False: see ErrKeyName.
	LiteralKeys bool
	// Cache keeps the DEKs. Required. Its clock is the keyring's.
	Cache *dekcache.Cache
	// RevocationProbe is how often Run asks the KMS about each key in use. 0:
	// never; only the TTL bounds a revocation. See SetProbe.
	RevocationProbe time.Duration
	// Timeout bounds each KMS call of a key that has no Timeout of its own. 0:
	// DefaultTimeout.
	Timeout time.Duration
	// OutageWait is how long a stream whose lease has run out waits for a KMS
	// that cannot be reached or throttles. No byte of it passes meanwhile. 0:
	// it is cut at the first such answer. See SetOutageWait.
	OutageWait time.Duration
	// Observer, if not nil, is told what happens.
	Observer Observer
	// Defaults, if not nil, are keys that were chosen for buckets, and take
	// the place of the rules' keys.
	Defaults *Defaults
	// Auditor, if not nil, writes down each use of a key, and keeps from being
	// done what it cannot write down. A renewal that cannot be written down
	// counts as one that the KMS did not answer.
	Auditor Auditor
}

// Observer is told what happens to keys. Its methods must not block.
type Observer interface {
	// KMSCall tells of a call to the KMS: the name of the key, one of the Op
	// constants, how long it took, and its error. ctx has the values of the
	// request that caused it.
	KMSCall(ctx context.Context, key, op string, took time.Duration, err error)
	// Revoked tells that a probe found a key revoked, or a part of what it
	// protects; once, until a probe finds it usable again.
	Revoked(r Revocation)
	// Used tells of an event in the life of a DEK, which id stands for.
	Used(key string, id [32]byte, use Use)
}

// Revocation is what a probe has found.
type Revocation struct {
	Key    string // its name
	Part   string // of what the key protects, in words; "" for all of it
	Err    error  // what the KMS said
	Purged int    // how many DEKs were purged
}

// Use is an event in the life of a DEK. Each Created and each Opened is
// followed by one Released.
type Use int

// The events.
const (
	Created  Use = iota // a new DEK was made, for a stream
	Opened              // the DEK of a stored object was given to a stream
	Renewed             // its lease ran out, and the KMS allowed it to go on
	Cut                 // its lease ran out, and the stream was cut
	Released            // the stream has ended
)

// Key is a KMS key under the name that the rules use.
type Key struct {
	Name string
	// Provider is the kind of KMS. Ids of different providers may be alike.
	Provider string
	// Successor is the name of the key that took the place of this one: this
	// one opens what names its id, and whoever asks for it by that id or its
	// name gets the successor for new objects. Empty: it has none.
	Successor string
	// Wrapper is the key. Nil: it could not be opened yet, and what needs it
	// fails with Unavailable; see Provide.
	Wrapper     kms.Wrapper
	Unavailable error
	// Timeout bounds each call with all its attempts. Half the TTL does too, as
	// an answer that comes late is of little use. 0: Config.Timeout.
	Timeout time.Duration
	// ProbeTimeout bounds a probe, which is one attempt: it is what the
	// revocation window has on top of the interval. 0: DefaultProbeTimeout.
	ProbeTimeout time.Duration
	// Probe is the same key for the probes, past whatever makes calls through
	// Wrapper wait in a queue. Nil: Wrapper.
	Probe kms.Wrapper
}

// Object is the name of an object, which its DEK is bound to.
type Object = crypt.Object

// Keyring is safe for concurrent use.
type Keyring struct {
	cfg    Config
	keys   []*keyState
	byName map[string]*keyState
	byID   atomic.Pointer[map[string]*keyState] // by ids and canonical ids; replaced as a whole
	rules  atomic.Pointer[[]Rule]

	probe      atomic.Int64 // the interval in nanoseconds
	outageWait atomic.Int64 // nanoseconds

	bucketKeys *lru.Cache[bucketKeyName, *bucketKey] // bucket keys in use
	customer   *keyState                             // stands for all keys that clients bring

	providing sync.Mutex
}

// New checks cfg and returns its keyring.
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

	k := &Keyring{cfg: cfg, byName: make(map[string]*keyState), bucketKeys: newBucketKeys(), customer: newCustomer()}
	k.byID.Store(new(map[string]*keyState))
	k.probe.Store(int64(cfg.RevocationProbe))
	k.outageWait.Store(int64(cfg.OutageWait))

	for _, c := range cfg.Keys {
		if err := k.add(c); err != nil {
			return nil, err
		}
	}

	for _, key := range k.keys {
		if key.Successor != "" && (k.byName[key.Successor] == nil || k.byName[key.Successor].Successor != "") {
			return nil, fmt.Errorf("keyring: the successor of key %q: %w %q", key.Name, ErrUnknownKey, key.Successor)
		}
	}

	if err := k.SetRules(cfg.Rules); err != nil {
		return nil, err
	}
	return k, nil
}

func (k *Keyring) add(c Key) error {
	if c.Name == "" || c.Wrapper == nil && c.Unavailable == nil {
		return errors.New("keyring: a key without name or KMS")
	}
	if k.byName[c.Name] != nil {
		return fmt.Errorf("keyring: two keys are named %q", c.Name)
	}

	added := newKey(c)
	k.byName[c.Name] = added
	k.keys = append(k.keys, added)

	if c.Wrapper == nil {
		return nil
	}
	return k.Provide(c.Name, c.Wrapper, c.Probe)
}

// Provide opens a key that was unavailable. probe may be nil, as Key.Probe.
func (k *Keyring) Provide(name string, w, probe kms.Wrapper) error {
	k.providing.Lock()
	defer k.providing.Unlock()

	opened := k.byName[name]
	if opened == nil {
		return fmt.Errorf("%w %q", ErrUnknownKey, name)
	}

	id := w.KeyID()
	if id == "" {
		return fmt.Errorf("keyring: key %q has no id", name)
	}
	if probe == nil {
		probe = w
	}

	opened.rest.group.KeyID = id
	opened.kms.Store(&service{id: id, wrapper: w, probe: probe})
	k.index()
	return nil
}

// index notes which key opens what names an id. A key that names the id itself
// comes before one with the same canonical id, a key that is in use before one
// that has a successor, and else the one that is first in the configuration.
func (k *Keyring) index() {
	byID := make(map[string]*keyState)
	add := func(id string, key *keyState) {
		if byID[id] == nil {
			byID[id] = key
		}
	}

	var used, earlier []*keyState
	for _, key := range k.keys {
		switch {
		case key.kms.Load() == nil:
		case key.Successor == "":
			used = append(used, key)
		default:
			earlier = append(earlier, key)
		}
	}

	for _, key := range used {
		add(key.kms.Load().id, key)
	}

	for _, key := range used {
		add(kms.CanonicalID(key.kms.Load().id), key)
	}

	ours := maps.Clone(byID)
	for _, key := range earlier {
		id := key.kms.Load().id
		if ours[kms.CanonicalID(id)] == nil { // else a key in use opens it
			add(id, key)
			add(kms.CanonicalID(id), key)
		}
	}

	k.byID.Store(&byID)
}

// lookup returns the key that opens what names an id, or nil.
func (k *Keyring) lookup(id string) *keyState {
	byID := *k.byID.Load()
	if key := byID[id]; key != nil {
		return key
	}
	return byID[kms.CanonicalID(id)]
}

// Twins returns the names of keys that are one key in the KMS, two for each
// pair: the one that opens what names its id, and the other. Keys that have a
// successor do not count.
func (k *Keyring) Twins() (pairs [][2]string) {
	for _, key := range k.keys {
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

// find returns the key whose id an envelope names.
func (k *Keyring) find(id string) (*keyState, error) {
	if key := k.lookup(id); key != nil {
		return key, nil
	}
	if err := k.unopenedError(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%w %q", ErrUnknownKey, id)
}

// unopenedError returns the error for an id that no open key has. The id of a
// key is not known before the key is opened, so an id is unknown for certain
// only when all keys are open. It returns nil then.
func (k *Keyring) unopenedError() error {
	for _, key := range k.keys {
		switch {
		case key.kms.Load() != nil:
		case transient(key.Unavailable):
			return fmt.Errorf("%w: key %q: %w", ErrNotOpen, key.Name, key.Unavailable)
		default: // a no to this key is no answer about the id
			return fmt.Errorf("%w: key %q: %s", ErrNotOpen, key.Name, key.Unavailable.Error())
		}
	}
	return nil
}

// Choice is what a client asks for in place of what the rules say. The zero
// Choice asks for nothing.
type Choice struct {
	// KeyID is the id or the name of a configured key; "" for the one of the
	// rule.
	KeyID string
	// Context is added to the encryption context.
	Context map[string]string
	// CustomerKey, 32 bytes, takes the place of a KMS key. It is used here and
	// now, and kept nowhere.
	CustomerKey []byte
	// Trust has Rewrap take a data key for genuine that nothing proves to be,
	// see Lease.Unbound: whoever asks for that vouches for the object.
	Trust bool
}

// DataKey is a new DEK: leased, and wrapped to be stored with its object.
type DataKey struct {
	*Lease
	KeyID   string // of the KMS key
	Wrapped []byte
}

// Create makes a new DEK for obj, which client writes. Errors: ErrNoRule,
// ErrUnknownKey, ErrNotAllowed, ErrAudit, and those of packages kms and crypt.
func (k *Keyring) Create(ctx context.Context, obj Object, client string, want Choice) (*DataKey, error) {
	if want.CustomerKey != nil {
		return k.createForCustomer(ctx, obj, client, want.CustomerKey)
	}

	rule, key, service, err := k.keyFor(obj, client, want.KeyID)
	if err != nil {
		return nil, err
	}

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
// body can be copied as it is. All else is as with Create. What is unbound
// stays unbound, or fails with ErrUnbound where that cannot be, unless want
// says Trust.
func (k *Keyring) Rewrap(ctx context.Context, l *Lease, dst Object, client string, want Choice) (*DataKey, error) {
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

	_, key, service, err := k.keyFor(dst, client, want.KeyID)
	if err != nil {
		return nil, err
	}
	if unbound {
		if key != l.key {
			return nil, fmt.Errorf("%w, and key %q would vouch for it", ErrUnbound, key.Name)
		}
		ctx = kms.KeepUnbound(ctx)
	}

	copied, mark, a := &Lease{
		key: key, service: service, obj: dst,
		wrapped: crypt.WrappedKey{Context: want.Context},
	}, k.cfg.Cache.Mark(), &useTrace{}

	err = k.call(ctx, key, key.rest, OpWrap, a, func(ctx context.Context) (err error) {
		copied.wrapped.Blob, err = kms.Wrap(ctx, service.wrapper, l.DEK(), encryptionContext(dst, copied.wrapped))
		return err
	})
	if err := k.audit(ctx, copied, ActionCreate, a, err); err != nil {
		return nil, fmt.Errorf("wrapping a data key: %w", err)
	}

	return k.leaseNewDEK(copied, mark, l.DEK())
}

// leaseNewDEK begins the lease of a DEK that was wrapped just now.
func (k *Keyring) leaseNewDEK(l *Lease, mark dekcache.Mark, dek []byte) (*DataKey, error) {
	l.id = cacheID(l)
	k.joinPart(l)
	entry := k.cfg.Cache.Put(l.id, l.part.group, mark, dek)
	l.recordSample(encryptionContext(l.obj, l.wrapped))
	return k.dataKeyOf(l, entry, Created)
}

// dataKeyOf is the wrapped DEK of a lease that begins with what the KMS gave.
// The lease has joined its part.
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
	return &DataKey{Lease: l, KeyID: l.service.id, Wrapped: bytes.Clone(given)}, nil // the caller may do with it as he likes
}

// Open returns the DEK of a stored object, from the cache or by the KMS. keyID
// and wrapped are those of its envelope. Errors: ErrUnknownKey if no
// configured key has that id, ErrNotOpen, ErrNotRead and ErrKeyName, ErrAudit,
// and those of packages kms, dekcache and crypt. What is under a customer's
// key is for OpenForCustomer.
func (k *Keyring) Open(ctx context.Context, obj Object, keyID string, wrapped []byte) (*Lease, error) {
	key, err := k.findToRead(obj, keyID)
	if err != nil {
		return nil, err
	}
	return k.openLease(ctx, obj, key, wrapped, k.fetchToOpen)
}

// OpenCached is Open for a DEK that is in the cache. It asks no KMS: the error
// is ErrNotCached in its place.
func (k *Keyring) OpenCached(ctx context.Context, obj Object, keyID string, wrapped []byte) (*Lease, error) {
	key, err := k.findToRead(obj, keyID)
	if err != nil {
		return nil, err
	}
	return k.openLease(ctx, obj, key, wrapped, k.peek)
}

// OpenAnyKey is Open, also with a key that no rule for the object names. What
// it opens may have been made by whoever may use that key.
func (k *Keyring) OpenAnyKey(ctx context.Context, obj Object, keyID string, wrapped []byte) (*Lease, error) {
	key, err := k.find(keyID)
	if err != nil {
		return nil, err
	}
	return k.openLease(ctx, obj, key, wrapped, k.fetchToOpen)
}

// findToRead returns the key whose id an envelope names, if a rule lets it be
// read there.
func (k *Keyring) findToRead(obj Object, keyID string) (*keyState, error) {
	key, err := k.find(keyID)
	if err == nil {
		err = k.mayRead(obj, key)
	}
	return key, err
}

// fetchFunc gets the DEK of a lease, by whatever way.
type fetchFunc func(context.Context, *Lease) (dekcache.Entry, *useTrace, error)

func (k *Keyring) fetchToOpen(ctx context.Context, l *Lease) (dekcache.Entry, *useTrace, error) {
	return k.fetch(ctx, l, OpUnwrap)
}

// peek gets the DEK of a lease if it is in the cache.
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
	if errors.Is(err, ErrNotCached) { // no use of a key, and nothing to write down
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
	unwrap := func(ctx context.Context) (dek []byte, err error) {
		ec := encryptionContext(l.obj, l.wrapped)
		err = k.call(ctx, l.key, l.part, op, a, func(ctx context.Context) (err error) {
			dek, err = kms.Unwrap(ctx, l.wrapper(), l.wrapped.Blob, ec)
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

// call makes a KMS call about a part of a key, with the timeout, and reports
// it. A key that a probe has found to be gone is asked about by probes only.
func (k *Keyring) call(
	ctx context.Context, key *keyState, p *part, op string, a *useTrace, run func(context.Context) error,
) error {
	if err := k.refusal(ctx, key); err != nil {
		a.cached.Store(true)
		return err
	}
	a.kms.Store(true)
	return k.ask(kms.WithTrace(ctx, &a.Trace), key, p, op, k.timeout(key), run)
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
	return min(cmp.Or(key.Timeout, k.cfg.Timeout), k.cfg.Cache.TTL()/2)
}

func (k *Keyring) now() time.Time { return k.cfg.Cache.Now() }

// Purge forgets all DEKs of the key of that name and ends its leases, which
// ask the KMS again at their next check. It returns how many DEKs were cached.
// Error: ErrUnknownKey.
func (k *Keyring) Purge(keyName string) (int, error) {
	key := k.byName[keyName]
	if key == nil {
		return 0, fmt.Errorf("%w %q", ErrUnknownKey, keyName)
	}
	service := key.kms.Load()
	if service == nil {
		return 0, nil
	}
	return k.cfg.Cache.Purge(service.id), nil
}

// PurgeAll is Purge for every key.
func (k *Keyring) PurgeAll() int { return k.cfg.Cache.PurgeAll() }

// encryptionContext is what the KMS binds a data key to. It is part of the
// format.
func encryptionContext(obj Object, w crypt.WrappedKey) kms.EncryptionContext {
	ec := kms.EncryptionContext{"bucket": obj.Bucket}
	if w.Salt == nil {
		ec["key"] = obj.Key
	}
	maps.Copy(ec, w.Context)
	return ec
}

// cacheID hashes all that decides what a blob unwraps to, each part after its
// length.
func cacheID(l *Lease) dekcache.ID {
	b := make([]byte, 0, 1536) // on the stack; enough for the longest object key and the blobs of all providers
	key := l.obj.Key

	if l.wrapped.Salt != nil {
		key = "" // a bucket key is one for all of the bucket
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

// noObserver is nobody.
type noObserver struct{}

func (noObserver) KMSCall(context.Context, string, string, time.Duration, error) {}
func (noObserver) Revoked(Revocation)                                            {}
func (noObserver) Used(string, [32]byte, Use)                                    {}

// Package keyring decides which KMS key protects which object, and rules the life of the data keys (DEKs).
//
// Every DEK that leaves this package does so in a Lease, and a Lease is in force for a bounded time: until the TTL of
// the cache is over, counted from before the KMS was asked, or until its key is purged. A stream checks its lease as
// it goes; when the lease is over, the check asks the KMS again, and fails if the KMS says no or cannot be reached.
// So the time from revoking a key to the last byte of plaintext is bounded by Keyring.Window, for running transfers
// too.
package keyring

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// DefaultTimeout bounds a KMS call where Config names no timeout. It leaves room for the provider's own.
const DefaultTimeout = 6 * time.Second

// The operations that OnKMSCall reports.
const (
	OpGenerate = "generate" // a new DEK
	OpWrap     = "wrap"     // a DEK of an object that is copied
	OpUnwrap   = "unwrap"   // a DEK of a stored object, or the renewal of a lease
	OpProbe    = "probe"    // whether the key is still ours to use
)

var (
	// ErrUnknownKey says that no configured key has this id or name.
	ErrUnknownKey = errors.New("keyring: unknown key")
	// ErrNoRule says that no rule covers the object and client. It is refused.
	ErrNoRule = errors.New("keyring: no rule covers this object")
	// ErrReleased says that a lease was used after its Release.
	ErrReleased = errors.New("keyring: lease was released")
	// ErrChanged says that the KMS unwrapped the same blob to another DEK than before.
	ErrChanged = errors.New("keyring: the KMS answered with another DEK")
)

// Config configures a Keyring.
type Config struct {
	// Keys are the KMS keys. Names and ids must be unique.
	Keys []Key
	// Rules choose the key of a new object; the first that matches wins. What no rule matches is refused.
	Rules []Rule
	// Cache keeps the DEKs. Required. Its TTL must be longer than Timeout, or answers would come too late to be used.
	// Its clock is the keyring's.
	Cache *dekcache.Cache
	// RevocationProbe is how often Run asks the KMS about each key in use. 0: never; only the TTL bounds a revocation.
	RevocationProbe time.Duration
	// Timeout bounds each KMS call. 0: DefaultTimeout.
	Timeout time.Duration
	// OnKMSCall, if not nil, is told of every KMS call: the name of the key, one of the Op constants, how long it
	// took, and its error. ctx has the values of the request that caused the call. It must not block.
	OnKMSCall func(ctx context.Context, key, op string, d time.Duration, err error)
	// OnRevoked, if not nil, is told when a probe found a key revoked and purged n DEKs of it; once, until a probe
	// finds the key usable again. It must not block.
	OnRevoked func(key string, err error, n int)
}

// Key is a KMS key under the name that the rules use.
type Key struct {
	Name    string
	Wrapper kms.Wrapper
}

// Object is the name of an object, which its DEK is bound to.
type Object = crypt.Object

// Keyring is safe for concurrent use.
type Keyring struct {
	cfg    Config
	keys   []*key
	byName map[string]*key
	byID   map[string]*key
}

// key is a Key and what is known of its use.
type key struct {
	Key
	id     string
	leases atomic.Int64
	recent atomic.Pointer[sample]

	refused bool // by the last probe that had an answer; of the probing goroutine
}

// sample is a blob that the KMS itself made or unwrapped, so that a refusal of it is about the key.
type sample struct {
	wrapped []byte
	ec      kms.EncryptionContext
}

// New checks cfg and returns its keyring.
func New(cfg Config) (*Keyring, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Cache == nil {
		return nil, errors.New("keyring: no cache")
	}
	if cfg.Cache.TTL() <= cfg.Timeout {
		return nil, fmt.Errorf("keyring: the TTL of DEKs, %v, must be longer than the KMS timeout, %v",
			cfg.Cache.TTL(), cfg.Timeout)
	}
	k := &Keyring{cfg: cfg, byName: make(map[string]*key), byID: make(map[string]*key)}
	for _, c := range cfg.Keys {
		if err := k.add(c); err != nil {
			return nil, err
		}
	}
	for i, r := range cfg.Rules {
		if k.byName[r.Key] == nil {
			return nil, fmt.Errorf("keyring: rule %d: %w %q", i+1, ErrUnknownKey, r.Key)
		}
	}
	return k, nil
}

func (k *Keyring) add(c Key) error {
	if c.Name == "" || c.Wrapper == nil {
		return errors.New("keyring: a key without name or KMS")
	}
	added := &key{Key: c, id: c.Wrapper.KeyID()}
	if added.id == "" {
		return fmt.Errorf("keyring: key %q has no id", c.Name)
	}
	if k.byName[c.Name] != nil {
		return fmt.Errorf("keyring: two keys are named %q", c.Name)
	}
	if other := k.byID[added.id]; other != nil {
		return fmt.Errorf("keyring: keys %q and %q are one key, %s", other.Name, c.Name, added.id)
	}
	k.byName[c.Name], k.byID[added.id] = added, added
	k.keys = append(k.keys, added)
	return nil
}

// Sealed is a new DEK: leased, and wrapped to be stored with its object.
type Sealed struct {
	*Lease
	KeyID   string // of the KMS key
	Wrapped []byte
}

// Create makes a new DEK for obj, which client writes. requestedKeyID is what the client asks for: the id or the name
// of a configured key, or "" for the key of the rule. Errors: ErrNoRule, ErrUnknownKey, and those of package kms.
func (k *Keyring) Create(ctx context.Context, obj Object, client, requestedKeyID string) (*Sealed, error) {
	key, err := k.keyFor(obj, client, requestedKeyID)
	if err != nil {
		return nil, err
	}
	mark := k.cfg.Cache.Mark(key.id)
	var dek, wrapped []byte
	err = k.call(ctx, key, OpGenerate, func(ctx context.Context) (err error) {
		dek, wrapped, err = kms.Generate(ctx, key.Wrapper, encryptionContext(obj))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making a data key: %w", err)
	}
	defer clear(dek)
	return k.seal(key, obj, mark, dek, wrapped), nil
}

// Rewrap wraps the DEK of a lease for another object, dst, so that a stored body can be copied as it is. All else is
// as with Create.
func (k *Keyring) Rewrap(ctx context.Context, l *Lease, dst Object, client, requestedKeyID string) (*Sealed, error) {
	key, err := k.keyFor(dst, client, requestedKeyID)
	if err != nil {
		return nil, err
	}
	if err := l.Check(ctx); err != nil {
		return nil, err
	}
	mark := k.cfg.Cache.Mark(key.id)
	var wrapped []byte
	err = k.call(ctx, key, OpWrap, func(ctx context.Context) (err error) {
		wrapped, err = kms.Wrap(ctx, key.Wrapper, l.DEK(), encryptionContext(dst))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("wrapping a data key: %w", err)
	}
	return k.seal(key, dst, mark, l.DEK(), wrapped), nil
}

func (k *Keyring) seal(key *key, obj Object, mark dekcache.Mark, dek, wrapped []byte) *Sealed {
	entry := k.cfg.Cache.Put(cacheID(obj, key.id, wrapped), mark, dek)
	kept := bytes.Clone(wrapped)
	key.recent.Store(&sample{kept, encryptionContext(obj)})
	return &Sealed{Lease: k.lease(key, obj, kept, entry), KeyID: key.id, Wrapped: wrapped}
}

// Open returns the DEK of a stored object, from the cache or by the KMS. keyID and wrapped are those of its envelope.
// Errors: ErrUnknownKey if no configured key has that id, and those of packages kms and dekcache.
func (k *Keyring) Open(ctx context.Context, obj Object, keyID string, wrapped []byte) (*Lease, error) {
	key := k.byID[keyID]
	if key == nil {
		return nil, fmt.Errorf("%w %q", ErrUnknownKey, keyID)
	}
	wrapped = bytes.Clone(wrapped) // the lease outlives the caller's buffer
	entry, err := k.fetch(ctx, key, obj, wrapped)
	if err != nil {
		return nil, fmt.Errorf("opening a data key: %w", err)
	}
	return k.lease(key, obj, wrapped, entry), nil
}

// fetch gets a DEK through the cache.
func (k *Keyring) fetch(ctx context.Context, key *key, obj Object, wrapped []byte) (dekcache.Entry, error) {
	unwrap := func(ctx context.Context) (dek []byte, err error) {
		ec := encryptionContext(obj)
		err = k.call(ctx, key, OpUnwrap, func(ctx context.Context) (err error) {
			dek, err = kms.Unwrap(ctx, key.Wrapper, wrapped, ec)
			return err
		})
		if err == nil {
			key.recent.Store(&sample{wrapped, ec})
		}
		return dek, err
	}
	return k.cfg.Cache.Get(ctx, cacheID(obj, key.id, wrapped), key.id, unwrap)
}

// call makes a KMS call with the timeout, and reports it.
func (k *Keyring) call(ctx context.Context, key *key, op string, run func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	start := time.Now()
	err := run(bounded)
	if k.cfg.OnKMSCall != nil {
		k.cfg.OnKMSCall(ctx, key.Name, op, time.Since(start), err)
	}
	return err
}

// Purge forgets all DEKs of the key of that name and ends its leases, which ask the KMS again at their next check. It
// returns how many DEKs were cached. Error: ErrUnknownKey.
func (k *Keyring) Purge(keyName string) (int, error) {
	key := k.byName[keyName]
	if key == nil {
		return 0, fmt.Errorf("%w %q", ErrUnknownKey, keyName)
	}
	return k.cfg.Cache.Purge(key.id), nil
}

// PurgeAll is Purge for every key.
func (k *Keyring) PurgeAll() int { return k.cfg.Cache.PurgeAll() }

// encryptionContext is what a DEK is bound to. It is part of the format.
func encryptionContext(obj Object) kms.EncryptionContext {
	return kms.EncryptionContext{"bucket": obj.Bucket, "key": obj.Key}
}

// cacheID hashes all that decides what a blob unwraps to, each part after its length.
func cacheID(obj Object, keyID string, wrapped []byte) dekcache.ID {
	b := make([]byte, 0, 1536) // on the stack; enough for the longest object key and the blobs of all providers
	for _, s := range [...]string{keyID, obj.Bucket, obj.Key} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	return sha256.Sum256(append(b, wrapped...))
}

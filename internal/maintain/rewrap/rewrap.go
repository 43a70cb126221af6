// Package rewrap moves stored objects to another KMS key, or to the newest
// version of the one they are under.
//
// Of an object that was put whole only the envelope changes: its data key is
// unwrapped by the old KMS key and wrapped by the new one, and the body stays
// as it is. An object in parts, each of which has a header of its own in the
// body, is read, verified and uploaded anew with the same parts.
//
// An envelope is the only way to its object. So a new one is written only
// after the KMS has unwrapped it again, and only over the very object that it
// was made for: by a condition that the store holds to, see inplace.Abilities.
// What a client stores meanwhile stays.
//
//	rewrap.go  one object, and what is to be done with it
//	single.go  those that were put whole
//	parts.go   those in parts
package rewrap

import (
	"context"
	"net/http"
	"sync"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// Config is what a Mover works with.
type Config struct {
	inplace.Config
	// To is the name or id of the key to move to; "" for the one of the rules.
	To string
	// All moves objects that are under the key already too, unless
	// kms.VersionOf tells that they are under its newest version.
	All bool
	// Bind moves also what nothing proves to be genuine, see
	// keyring.Lease.Unbound: whoever sets it vouches for the objects.
	Bind bool
	// Method is how an object that was put whole gets its envelope. It must be
	// set, unless DryRun is.
	Method Method
}

// Method is how an object that was put whole gets its new envelope.
type Method int

// The methods.
const (
	NoMethod Method = iota
	Copy            // the store copies the object onto itself; the body does not leave it
	Put             // the stored body is read and sent back
)

func (m Method) String() string {
	return [...]string{"none", "copy", "put"}[m]
}

// Safest is the method by which nothing is lost that clients write meanwhile,
// the cheaper one of two. NoMethod if there is none.
func Safest(a inplace.Abilities) Method {
	switch {
	case a.CopyIfMatch:
		return Copy
	case a.PutIfMatch:
		return Put
	default:
		return NoMethod
	}
}

// Mover moves objects. It is safe for concurrent use.
type Mover struct {
	cfg    Config
	store  *inplace.Store
	reader *stored.Reader
	check  *stored.Reader // the same through Config.Check

	mu     sync.Mutex
	newest map[string][]byte // what the keys that were moved to have wrapped
}

// New returns a Mover.
func New(cfg Config) *Mover {
	store := cfg.Store()
	open := func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
		lease, err := cfg.Keys.Open(ctx, obj, keyID, wrapped)
		if err != nil {
			return nil, err
		}
		if lease.Unbound() && !cfg.Bind { // it is read to be sealed under a new data key
			lease.Release()
			return nil, keyring.ErrUnbound
		}

		return lease, nil
	}

	return &Mover{
		cfg:    cfg,
		store:  store,
		reader: cfg.Reader(store, open),
		check:  cfg.Reader(store, cfg.Check),
		newest: make(map[string][]byte),
	}
}

// Move moves the object of a listing's entry.
func (m *Mover) Move(ctx context.Context, bucket string, e stored.Entry) walk.Result {
	obj := crypt.Object{Bucket: bucket, Key: e.Key}
	return inplace.Insist(
		ctx,
		e,
		m.cfg.Away,
		func(ctx context.Context) (walk.Result, error) { return m.attempt(ctx, obj) },
	)
}

// attempt looks at an object and does with it what it takes. All that it
// supposes of the object is a condition of what it writes, so that it can be
// called again whatever has happened.
func (m *Mover) attempt(ctx context.Context, obj crypt.Object) (walk.Result, error) {
	q := request(obj)
	seen, err := m.reader.Look(ctx, q)
	if stored.StatusOf(err) == http.StatusNotFound {
		return walk.Result{Outcome: walk.Gone}, err
	}
	if err != nil {
		return walk.Result{}, err
	}

	if seen.Plaintext {
		return walk.Result{Outcome: walk.Plaintext}, nil
	}
	if seen.KeyID() == crypt.CustomerKeyID {
		return walk.Result{Outcome: walk.Customer}, nil
	}

	current, err := m.current(ctx, q, seen)
	if current || err != nil {
		return walk.Result{Outcome: walk.Current}, err
	}

	size, err := seen.Size()
	if err != nil {
		return walk.Result{}, err
	}
	r := walk.Result{Outcome: walk.Done, Size: size}

	if seen.Envelope == nil {
		r.Parts = seen.Parts
	}
	if m.cfg.DryRun {
		return r, nil
	}

	if m.cfg.Wait != nil {
		if err := m.cfg.Wait(ctx); err != nil {
			return r, err
		}
	}

	if seen.Envelope != nil {
		return r, m.moveSingle(ctx, obj, seen)
	}
	layout, err := m.moveParts(ctx, obj, seen)
	r.Size = layout.Size()
	return r, err
}

// current reports whether all of an object is under the key that it is to be
// under.
func (m *Mover) current(ctx context.Context, q stored.Request, seen *stored.Seen) (bool, error) {
	target, err := m.cfg.Keys.KeyID(q.Object, m.cfg.Client, m.cfg.To)
	if err != nil {
		return false, err
	}
	if e := seen.Envelope; e != nil {
		return m.under(ctx, q.Object, target, e.KeyID, e.WrappedDEK)
	}

	for part, err := range m.reader.PartHeaders(ctx, q, seen) {
		if err != nil {
			return false, err
		}
		if ok, err := m.under(ctx, q.Object, target, part.KeyID, part.WrappedDEK); !ok || err != nil {
			return false, err
		}
	}

	return true, nil
}

// under reports whether a wrapped data key is as it would be if it were
// wrapped now.
func (m *Mover) under(ctx context.Context, obj crypt.Object, target, keyID string, wrapped []byte) (bool, error) {
	same := kms.SameKey(keyID, target)
	switch {
	case same && m.cfg.Bind && m.cfg.Keys.Unbound(keyID, wrapped):
		return false, nil
	case !same || !m.cfg.All:
		return same, nil
	}

	of := kms.WrappingOf
	if m.cfg.Keys.Unbound(keyID, wrapped) {
		of = kms.VersionOf // it stays unbound
	}

	version := of(keyID, wrapped)
	if version == "" {
		return false, nil
	}
	newest, err := m.newestWrapped(ctx, obj, target)
	return err == nil && version == of(target, newest), err
}

// newestWrapped is a data key that a key has wrapped now. Its version is the
// newest.
func (m *Mover) newestWrapped(ctx context.Context, obj crypt.Object, target string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if wrapped, ok := m.newest[target]; ok {
		return wrapped, nil
	}
	sealed, err := m.cfg.Keys.Create(ctx, obj, m.cfg.Client, keyring.Choice{KeyID: target})
	if err != nil {
		return nil, err
	}
	defer sealed.Release()
	m.newest[target] = sealed.Wrapped
	return m.newest[target], nil
}

// request is one for all of an object, which must be encrypted.
func request(obj crypt.Object) stored.Request {
	return stored.Request{Object: obj, Plaintext: func() error { return inplace.ErrChanged }}
}

// onlyIf is a request that fails if the object is no longer the one with that
// ETag.
func onlyIf(obj crypt.Object, etag string) stored.Request {
	q := request(obj)
	q.Header = http.Header{"If-Match": {etag}}
	return q
}

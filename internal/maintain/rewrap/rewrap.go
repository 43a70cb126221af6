// Package rewrap moves stored objects to another KMS key, or to the newest
// version of their key.
//
// For a single-PUT object, only the envelope changes: the old KMS key unwraps
// its data key, the new one wraps it, and the body stays as it is. A multipart
// object has a header in each part of its body. It is read, verified, and
// uploaded again with the same parts.
//
// Without its envelope, an object is lost. So a new envelope is written only
// after the KMS has unwrapped its data key, and only over the object for which
// it was made. The store must honor a condition for that; see
// inplace.Abilities. A concurrent write of a client is kept.
//
// It also adopts objects that were moved or copied within the store: they are
// bound to an old name, and get an envelope for the name that they have now.
//
//	rewrap.go  one object, and what to do with it
//	adopt.go   which name an object is bound to
//	single.go  single-PUT objects
//	parts.go   multipart objects
//
// There is no example: it needs a store. docs/rewrap.md shows the command.
package rewrap

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// Config configures a Mover.
type Config struct {
	inplace.Config
	// To is the name or id of the key to move to; "" for the key of the
	// rules.
	To string
	// All also moves objects that are already under the key, unless
	// kms.VersionOf shows that they are under its newest version.
	All bool
	// Bind also moves objects that nothing proves to be genuine; see
	// keyring.Lease.Unbound. The operator vouches for them.
	Bind bool
	// Method is how a single-PUT object gets its new envelope. It is
	// required, unless DryRun is set.
	Method Method
	// Recovery, if not nil, opens data keys that are wrapped to it, instead
	// of their KMS keys.
	Recovery kms.Wrapper
	// OldName, if not nil, adopts objects instead of moving them to another
	// key: it returns the name under which the object with this name was
	// written. The operator vouches for each such pair.
	OldName func(obj crypt.Object) (crypt.Object, error)
}

// Method is how a single-PUT object gets its new envelope.
type Method int

// The methods.
const (
	NoMethod Method = iota
	Copy            // the store copies the object onto itself, so the body does not leave the store
	Put             // the stored body is read and sent back
)

func (m Method) String() string {
	return [...]string{"none", "copy", "put"}[m]
}

// Safest returns the method that loses no concurrent write of a client. If
// both do, it returns the cheaper one; if neither does, NoMethod.
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
	reader *stored.Reader // without Open, which is for one object; see found
	check  *stored.Reader // the same, but uses Config.Check

	mu     sync.Mutex
	newest map[string][]byte // a data key wrapped by each target key in this run
}

// New returns a Mover.
func New(cfg Config) *Mover {
	store := cfg.Store()
	reader := cfg.Reader(store, nil)        // without Open; see open
	reader.NoPartCount = cfg.OldName != nil // a copy may have been cut into other parts

	return &Mover{
		cfg:    cfg,
		store:  store,
		reader: reader,
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
		func(ctx context.Context) (walk.Result, error) {
			r, err := m.attempt(ctx, obj)
			if inplace.IsDamage(err) || isOtherName(err) || errors.Is(err, ErrLost) {
				err = inplace.Confirm(ctx, err)
			}
			return r, err
		},
	)
}

// attempt moves an object, if necessary. Every assumption about the object
// is a condition of the write, so attempt can be repeated after any failure.
func (m *Mover) attempt(ctx context.Context, obj crypt.Object) (walk.Result, error) {
	seen, err := m.reader.Look(ctx, request(obj))
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

	f := m.found(obj, seen)
	current := m.current
	if m.cfg.OldName != nil {
		current = m.findName
	}
	if done, err := current(ctx, f); done || err != nil {
		return walk.Result{Outcome: walk.Current}, err
	}

	r, err := m.planned(f)
	if err != nil {
		return walk.Result{}, err
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
		return r, m.moveSingle(ctx, f)
	}
	layout, err := m.moveParts(ctx, f)
	r.Size = layout.Size()
	return r, err
}

// planned returns the result for an object that is to be moved.
func (m *Mover) planned(f *found) (r walk.Result, err error) {
	r.Outcome = walk.Done
	if m.cfg.OldName != nil {
		r.Parts, r.Size = f.parts, f.size
		return r, nil
	}

	if f.seen.Envelope == nil {
		r.Parts = f.seen.Parts
	}
	r.Size, err = f.seen.Size()
	return r, err
}

// found is an object in the store.
type found struct {
	obj    crypt.Object // its name, for which the new envelope is made
	was    crypt.Object // the name to which it is bound: obj, or the old name
	seen   *stored.Seen
	reader *stored.Reader

	// Set by findName.
	parts int   // number of parts of a multipart object, with an appended one
	size  int64 // size of the plaintext in bytes
}

// found returns an object that is bound to its own name.
func (m *Mover) found(obj crypt.Object, seen *stored.Seen) *found {
	f := &found{obj: obj, was: obj, seen: seen}
	reader := *m.reader // shares the cache
	reader.Open = func(ctx context.Context, was crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
		lease, err := m.open(ctx, was, obj, keyID, wrapped)
		if err != nil {
			return nil, err
		}
		if lease.Unbound() && !m.cfg.Bind { // reading it means to seal it under a new data key
			lease.Release()
			return nil, keyring.ErrUnbound
		}

		return lease, nil
	}
	f.reader = &reader

	return f
}

// open opens the data key of an object that was written as was and is now
// obj: with the recovery key, if there is one and the object has a wrap to it.
func (m *Mover) open(ctx context.Context, was, obj crypt.Object, keyID string, wrapped []byte) (*keyring.Lease, error) {
	if m.cfg.Recovery != nil {
		_, recovery := kms.KeysOf(keyID, wrapped)
		if slices.Contains(recovery, m.cfg.Recovery.KeyID()) {
			return m.cfg.Keys.OpenRecovered(ctx, was, wrapped, m.cfg.Recovery)
		}
	}
	return m.cfg.Keys.OpenMoved(ctx, was, obj, keyID, wrapped)
}

// request returns a request for the object, which fails if the object has
// changed since it was seen.
func (f *found) request() stored.Request {
	q := request(f.was)
	q.At = f.obj
	q.Header = http.Header{"If-Match": {f.seen.ETag}}
	return q
}

// current reports whether the whole object is already under the target key.
func (m *Mover) current(ctx context.Context, f *found) (bool, error) {
	target, err := m.cfg.Keys.KeyID(ctx, f.obj, m.cfg.Client, m.cfg.To)
	if err != nil {
		return false, err
	}
	format := m.format(f)
	if format.SealMetadata && f.seen.Metadata() == nil {
		return false, nil
	}
	if e := f.seen.Envelope; e != nil {
		if e.Version < format.Version {
			return false, nil
		}
		return m.under(ctx, f.obj, target, e.KeyID, e.WrappedDEK)
	}

	if f.seen.Mark.Version < format.Version {
		return false, nil
	}
	for part, err := range f.reader.PartHeaders(ctx, f.request(), f.seen) {
		if err != nil {
			return false, err
		}
		if part.Version() < format.Version {
			return false, nil
		}
		if ok, err := m.under(ctx, f.obj, target, part.KeyID, part.WrappedDEK); !ok || err != nil {
			return false, err
		}
	}

	return true, nil
}

// format returns how an object is written. What is sealed stays sealed.
func (m *Mover) format(f *found) keyring.Format {
	format := m.cfg.Keys.Format(f.obj, m.cfg.Client)
	if f.seen.Metadata() != nil {
		format = keyring.Format{Version: crypt.Newest, SealMetadata: true}
	}
	return format
}

// under reports whether a wrapped data key needs no rewrapping.
func (m *Mover) under(ctx context.Context, obj crypt.Object, target, keyID string, wrapped []byte) (bool, error) {
	same := kms.SameKey(keyID, target)
	switch {
	case same && m.cfg.Bind && m.cfg.Keys.Unbound(keyID, wrapped):
		return false, nil
	case !same || !m.hasRecipients(target, wrapped):
		return false, nil
	case !m.cfg.All:
		return true, nil
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

// hasRecipients reports whether a data key under the key with this id is
// wrapped to its recovery key and, if it consists of several, by all of them.
func (m *Mover) hasRecipients(keyID string, wrapped []byte) bool {
	keys, recovery := kms.KeysOf(keyID, wrapped)
	wantKeys, wantRecovery := m.cfg.Keys.Recipients(keyID)
	return slices.Equal(recovery, wantRecovery) && (len(wantKeys) < 2 || slices.Equal(keys, wantKeys))
}

// newestWrapped returns a data key that a key has wrapped in this run, so
// its version is the newest.
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

// request returns a request for the whole object, which must be encrypted.
func request(obj crypt.Object) stored.Request {
	return stored.Request{Object: obj, Plaintext: func(int64) error { return inplace.ErrChanged }}
}

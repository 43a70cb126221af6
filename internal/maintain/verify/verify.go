// Package verify reads stored objects to the last byte. For objects that
// fail, it reports whether the object, the key or the store is at fault.
//
// There is no example: it needs a store. docs/migration.md shows the
// command.
package verify

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync/atomic"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// Fault is the cause of a failure.
type Fault string

// The faults. Only the first three are faults of the object.
const (
	Integrity      Fault = "integrity"       // the stored object was altered
	Name           Fault = "name"            // the object is intact, but was put under another name; see NameError
	Plaintext      Fault = "plaintext"       // the object is not encrypted, but must be
	KeyRevoked     Fault = "key-revoked"     // the KMS refuses the key: disabled, denied, destroyed
	KeyUnknown     Fault = "key-unknown"     // no configured key has the id that the envelope names
	KeyUnavailable Fault = "key-unavailable" // the KMS cannot be reached, or does not answer
	KeyRule        Fault = "key-rule"        // no rule for the object allows the key in its envelope
	Store          Fault = "store"           // the store cannot be reached, or refuses
)

// Faults are all faults, in the order of reports.
var Faults = []Fault{Integrity, Name, Plaintext, KeyRevoked, KeyUnknown, KeyUnavailable, KeyRule, Store}

// ErrPlaintext means that an object has no envelope.
var ErrPlaintext = errors.New("it has no encryption envelope: cmekproxy did not store it, or its envelope was removed")

// errCustomer means that the object is under a customer key, which only the
// client has.
var errCustomer = errors.New("under a customer key")

// Config configures a Verifier.
type Config struct {
	// Send sends a request to the store; see stored.Reader.Send.
	Send func(*http.Request) (*http.Response, error)
	// Open unwraps data keys.
	Open inplace.Open
	// OpenEnd is stored.Reader.OpenEnd.
	OpenEnd bool
	// AllowPlaintext reports whether an object may be plaintext.
	AllowPlaintext func(obj crypt.Object) bool
	// LiteralKeys means that the store keeps keys as they are. Otherwise,
	// Verify looks for the name under which an object was put if it fails
	// under its listed name.
	LiteralKeys bool
	// Wait, if not nil, is called before each object is read, to limit the
	// rate.
	Wait func(context.Context) error
	// Away is the parameter away of inplace.Insist.
	Away func(error)
}

// Verifier reads objects. It is safe for concurrent use.
type Verifier struct {
	cfg    Config
	store  *inplace.Store
	futile atomic.Int64 // objects in a row for which no other name was found
}

// New returns a Verifier.
func New(cfg Config) *Verifier { return &Verifier{cfg: cfg, store: &inplace.Store{Send: cfg.Send}} }

// Verify reads the object of a listing's entry.
func (v *Verifier) Verify(ctx context.Context, bucket string, e stored.Entry) walk.Result {
	r := inplace.Insist(ctx, e, v.cfg.Away, func(ctx context.Context) (walk.Result, error) {
		if v.cfg.Wait != nil {
			if err := v.cfg.Wait(ctx); err != nil {
				return walk.Result{}, err
			}
		}
		q := stored.Request{Object: crypt.Object{Bucket: bucket, Key: e.Key}, Version: e.Version}
		r, err := v.read(ctx, q, v.store.Do)
		if isOwn(FaultOf(err)) {
			err = inplace.Confirm(ctx, err)
		}
		return r, err
	})
	if r.Outcome == walk.Failed {
		r = v.findName(ctx, bucket, e, r)
		r.Own = isOwn(FaultOf(r.Err))
	}
	return r
}

// isOwn reports whether a fault is one of the object.
func isOwn(f Fault) bool { return f == Integrity || f == Name || f == Plaintext }

func (v *Verifier) read(ctx context.Context, q stored.Request, send inplace.Sender) (walk.Result, error) {
	var keys, recovery []string
	s := &stored.Reader{
		Send: send, OpenEnd: v.cfg.OpenEnd,
		Cache: stored.NewCache(), // an empty cache: everything is read from the store
		Open: func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
			_, recoverable := kms.KeysOf(keyID, wrapped)
			if len(keys) == 0 {
				recovery = recoverable
			}
			recovery = slices.DeleteFunc(recovery, func(id string) bool { return !slices.Contains(recoverable, id) })
			if !slices.Contains(keys, keyID) {
				keys = append(keys, keyID)
			}
			if keyID == crypt.CustomerKeyID {
				return nil, errCustomer
			}
			return v.cfg.Open(ctx, obj, keyID, wrapped)
		},
	}

	q.Plaintext = func(int64) error {
		if v.cfg.AllowPlaintext(q.Object) {
			return nil
		}
		return ErrPlaintext
	}

	o, err := s.Get(ctx, q)
	if stored.StatusOf(err) == http.StatusNotFound {
		return walk.Result{Outcome: walk.Gone}, err
	}

	r := walk.Result{KeyIDs: keys}
	if errors.Is(err, errCustomer) {
		r.Outcome = walk.Customer
		return r, nil
	}
	if err != nil {
		return r, err
	}
	defer o.Close()
	r.Size = o.Size

	if o.Plaintext {
		r.Outcome = walk.Plaintext
		return r, nil // there is nothing to verify
	}

	for {
		_, err := o.Next(ctx)
		r.KeyIDs, r.Recovery = keys, recovery
		if err == io.EOF { //nolint:errorlint // Next returns io.EOF unwrapped
			return r, nil
		}

		if errors.Is(err, errCustomer) {
			r.Outcome = walk.Customer
			return r, nil
		}
		if err != nil {
			return r, err
		}
	}
}

// rules are the errors of objects that the rules do not cover, or not under
// their keys. Neither the store nor the KMS has anything to do with them.
var rules = []error{keyring.ErrNotRead, keyring.ErrNoRule, keyring.ErrKeyName, keyring.ErrNoTenant}

// FaultOf returns the fault for an error. An error that is not about the
// object itself is never Integrity.
func FaultOf(err error) Fault {
	var key *kms.Error
	var name *NameError
	switch {
	case errors.As(err, &name):
		return Name
	case errors.Is(err, keyring.ErrNotOpen):
		return KeyUnavailable
	case errors.As(err, &key):
		return keyFault(key)
	case errors.Is(err, keyring.ErrUnknownKey), errors.Is(err, keyring.ErrTenant):
		return KeyUnknown
	case slices.ContainsFunc(rules, func(r error) bool { return errors.Is(err, r) }):
		return KeyRule
	case errors.Is(err, keyring.ErrChanged):
		return KeyUnavailable
	case errors.Is(err, inplace.ErrUnanswered), stored.StatusOf(err) != 0:
		return Store
	case errors.Is(err, ErrPlaintext):
		return Plaintext
	case inplace.IsDamage(err):
		return Integrity
	default:
		return Store
	}
}

func keyFault(err *kms.Error) Fault {
	switch {
	// The key works, but did not wrap this for the object.
	case err.Kind == kms.InvalidCiphertext:
		return Integrity
	case err.Revoked():
		return KeyRevoked
	default:
		return KeyUnavailable
	}
}

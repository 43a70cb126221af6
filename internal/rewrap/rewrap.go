// Package rewrap moves stored objects to another KMS key, or to the newest version of the one they are under.
//
// Of an object that was put whole only the envelope changes: its data key is unwrapped by the old KMS key and wrapped by
// the new one, and the body stays as it is. An object in parts, each of which has a header of its own in the body, is read,
// verified and uploaded anew with the same parts.
//
// An envelope is the only way to its object. So a new one is written only after the KMS has unwrapped it again, and only
// over the very object that it was made for: by a condition that the store holds to, see Abilities. What a client stores
// meanwhile stays.
//
//	rewrap.go  one object, and what is to be done with it
//	single.go  those that were put whole
//	parts.go   those in parts
//	carry.go   what of an object is carried over beside its body
//	probe.go   what the store can do
//	walk.go    all objects of a listing, and how far it has come
package rewrap

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// Config is what a Mover works with.
type Config struct {
	// Send sends a request to the store, as stored.Store.Send.
	Send func(*http.Request) (*http.Response, error)
	// Keys unwraps data keys and wraps them anew. Its rules choose the key, unless To does.
	Keys *keyring.Keyring
	// Check unwraps what was wrapped anew, before it is written and after. It must ask the KMS, and not remember what Keys
	// has just wrapped.
	Check func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error)
	// Client is in whose name the rules are asked; "" is a client that no rule names.
	Client string
	// To is the name or id of the key to move to; "" for the one of the rules.
	To string
	// All moves objects that are under the key already too, unless Version tells that they are under its newest version.
	All bool
	// Version names the version of the KMS key in a wrapped data key, "" if that cannot be told.
	Version func(keyID string, wrapped []byte) string
	// OpenEnd is that of stored.Store.
	OpenEnd bool
	// Method is how an object that was put whole gets its envelope. It must be set, unless DryRun is.
	Method Method
	// Abilities is what the store can do.
	Abilities Abilities
	// DryRun finds out what would be moved, and writes nothing.
	DryRun bool
	// Wait, if not nil, is called before an object is moved, and holds it up.
	Wait func(context.Context) error
	// Random is the source of salts and the like.
	Random io.Reader
}

// Outcome is what became of an object.
type Outcome int

// The outcomes.
const (
	Moved     Outcome = iota // or would be, in a dry run
	Current                  // it is where it should be already
	Plaintext                // it was never encrypted
	Gone                     // it was deleted since it was listed
	Failed                   // it is as it was, unless the error says otherwise
)

// Result is what became of an object, and why.
type Result struct {
	Key     string
	Outcome Outcome
	Size    int64 // of the plaintext, in bytes, of one that was moved
	Parts   int   // of a multipart one that was moved
	Err     error // of one that failed
}

// Mover moves objects. It is safe for concurrent use.
type Mover struct {
	cfg    Config
	reader *stored.Store
	check  *stored.Store // the same through Config.Check

	mu     sync.Mutex
	newest map[string]string // versions of the keys that were moved to
}

// New returns a Mover.
func New(cfg Config) *Mover {
	m := &Mover{cfg: cfg, newest: make(map[string]string)}
	m.reader = &stored.Store{
		Send: m.send, OpenEnd: cfg.OpenEnd, Cache: stored.NewCache(),
		Open: func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
			return cfg.Keys.Open(ctx, obj, keyID, wrapped)
		},
	}
	m.check = &stored.Store{Send: m.send, OpenEnd: cfg.OpenEnd, Cache: stored.NewCache(), Open: cfg.Check}
	return m
}

var (
	// errChanged says that the object is another one than a moment ago.
	errChanged = errors.New("the object has changed")
	// errUnanswered says that the store could not be reached or broke off.
	errUnanswered = errors.New("the store does not answer")
)

// tries is how often an object is tried that changes meanwhile or whose store falters; pause is the first one between.
const (
	tries = 4
	pause = 250 * time.Millisecond
)

// Move moves one object.
func (m *Mover) Move(ctx context.Context, obj crypt.Object) Result {
	var r Result
	var err error
	for i := range tries {
		if r, err = m.move(ctx, obj); r.Outcome == Gone || !again(err) || ctx.Err() != nil {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause << i):
		}
	}
	r.Key = obj.Key
	if status(err) == http.StatusNotFound && r.Outcome == Gone {
		err = nil
		if strings.ContainsRune(obj.Key, '\uFFFD') {
			err = errors.New("not found by the name that the listing gives, which has characters that XML cannot hold")
		}
	}
	if err != nil {
		r = Result{Key: obj.Key, Outcome: Failed, Err: err}
	}
	return r
}

// again reports whether an error may pass, or the object be another one now. Not found, but for the first look at it, is
// what was deleted meanwhile.
func again(err error) bool {
	switch status(err) {
	case http.StatusNotFound, http.StatusPreconditionFailed, http.StatusConflict, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return errors.Is(err, errChanged) || errors.Is(err, stored.ErrOverwritten) || errors.Is(err, errUnanswered)
}

// move looks at an object and does with it what it takes. All that it supposes of the object is a condition of what it
// writes, so that it can be called again whatever has happened.
func (m *Mover) move(ctx context.Context, obj crypt.Object) (Result, error) {
	q := request(obj)
	seen, err := m.reader.Look(ctx, q)
	if status(err) == http.StatusNotFound {
		return Result{Outcome: Gone}, err
	}
	if err != nil {
		return Result{}, err
	}
	if seen.Plaintext {
		return Result{Outcome: Plaintext}, nil
	}
	current, err := m.current(ctx, q, seen)
	if current || err != nil {
		return Result{Outcome: Current}, err
	}
	size, err := seen.Size()
	if err != nil {
		return Result{}, err
	}
	r := Result{Outcome: Moved, Size: size}
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

// current reports whether all of an object is under the key that it is to be under.
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

// under reports whether a wrapped data key is as it would be if it were wrapped now.
func (m *Mover) under(ctx context.Context, obj crypt.Object, target, keyID string, wrapped []byte) (bool, error) {
	if keyID != target || !m.cfg.All {
		return keyID == target, nil
	}
	version := m.cfg.Version(keyID, wrapped)
	if version == "" {
		return false, nil
	}
	newest, err := m.newestVersion(ctx, obj, target)
	return version == newest, err
}

// newestVersion finds out which version of a key wraps now, by having it wrap something.
func (m *Mover) newestVersion(ctx context.Context, obj crypt.Object, target string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if version, ok := m.newest[target]; ok {
		return version, nil
	}
	sealed, err := m.cfg.Keys.Create(ctx, obj, m.cfg.Client, keyring.Choice{KeyID: target})
	if err != nil {
		return "", err
	}
	defer sealed.Release()
	m.newest[target] = m.cfg.Version(sealed.KeyID, sealed.Wrapped)
	return m.newest[target], nil
}

// proves has the KMS unwrap what it has just wrapped, and compares.
func (m *Mover) proves(ctx context.Context, obj crypt.Object, sealed *keyring.Sealed) error {
	lease, err := m.cfg.Check(ctx, obj, sealed.KeyID, sealed.Wrapped)
	if err != nil {
		return fmt.Errorf("the new key wraps and does not unwrap: %w", err)
	}
	defer lease.Release()
	if subtle.ConstantTimeCompare(lease.DEK(), sealed.DEK()) != 1 {
		return errors.New("the new key unwraps another data key than it has wrapped")
	}
	return nil
}

// request is one for all of an object, which must be encrypted.
func request(obj crypt.Object) stored.Request {
	return stored.Request{Object: obj, Plaintext: func() error { return errChanged }}
}

// onlyIf is a request that fails if the object is no longer the one with that ETag.
func onlyIf(obj crypt.Object, etag string) stored.Request {
	q := request(obj)
	q.Header = http.Header{"If-Match": {etag}}
	return q
}

// send tells a store that has not answered from one that has said no.
func (m *Mover) send(r *http.Request) (*http.Response, error) {
	resp, err := m.cfg.Send(r)
	if err != nil && status(err) == 0 {
		return nil, fmt.Errorf("%w: %w", errUnanswered, err)
	}
	if err == nil {
		resp.Body = &answer{resp.Body}
	}
	return resp, err
}

// answer is a body that tells a connection that broke from a stored object that is too short. The cause is not wrapped:
// an unexpected EOF is what readers take for the latter.
type answer struct{ io.ReadCloser }

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // bare, as every io.Reader must say it
		err = fmt.Errorf("%w: it broke off: %s", errUnanswered, err.Error())
	}
	return n, err
}

// status is the store's answer, 0 if there is none.
func status(err error) int {
	var answered interface{ Status() int }
	if errors.As(err, &answered) {
		return answered.Status()
	}
	return 0
}

package inplace

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// Abilities are what a store can do; package storecheck finds it out. Most are
// conditions that it holds to: whether it refuses to write, with 412, when the
// object that would be overwritten does not have the ETag of If-Match.
// x-amz-copy-source-if-match is not one of them: it is about what is read, and
// a store may look at it long before it writes.
type Abilities struct {
	CopyIfMatch     bool // CopyObject
	PutIfMatch      bool // PutObject
	CompleteIfMatch bool // CompleteMultipartUpload
	// ETagIsMD5: the ETag of what is put, and of a part, is the MD5 of its
	// bytes.
	ETagIsMD5 bool
}

// Config is what objects are written with. It is a part of the Config of each
// package that does.
type Config struct {
	// Send sends a request to the store, as stored.Store.Send.
	Send Sender
	// Keys makes data keys, or wraps those that it has unwrapped anew. Its
	// rules choose the KMS key.
	Keys *keyring.Keyring
	// Check unwraps what was wrapped, before anything is written and after. It
	// must ask the KMS, and not remember what Keys has just wrapped.
	Check Open
	// Client is in whose name the rules are asked; "" is a client that no rule
	// names.
	Client string
	// OpenEnd is that of stored.Store.
	OpenEnd bool
	// Abilities is what the store can do. It must be set, unless DryRun is.
	Abilities Abilities
	// DryRun finds out what would be written, and writes nothing.
	DryRun bool
	// Wait, if not nil, is called before an object is written, and holds it up.
	Wait func(context.Context) error
	// Away is that of Insist.
	Away func(error)
	// Random is the source of salts and the like.
	Random io.Reader
}

// Open returns the data key of an object, as stored.Store.Open.
type Open = func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error)

// Store is the store behind.
func (c *Config) Store() *Store { return &Store{Send: c.Send, ETagIsMD5: c.Abilities.ETagIsMD5} }

// Reader reads from a store with data keys from open.
func (c *Config) Reader(s *Store, open Open) *stored.Reader {
	return &stored.Reader{Send: s.Do, Open: open, OpenEnd: c.OpenEnd, Cache: stored.NewCache()}
}

// Key is a new data key of an object, and the same one as the KMS has
// unwrapped it again: as whoever reads the object will get it.
type Key struct {
	*keyring.DataKey
	Proof stored.Lease
}

// Release ends the use of both.
func (k *Key) Release() {
	k.Proof.Release()
	k.DataKey.Release()
}

// NewKey makes a data key; see keyring.Keyring.Create.
func (c *Config) NewKey(ctx context.Context, obj crypt.Object, want keyring.Choice) (*Key, error) {
	sealed, err := c.Keys.Create(ctx, obj, c.Client, want)
	if err != nil {
		return nil, err
	}
	proof, err := c.Prove(ctx, obj, sealed)
	if err != nil {
		sealed.Release()
		return nil, err
	}
	return &Key{sealed, proof}, nil
}

// Prove has the KMS unwrap what it has just wrapped, and compares. The lease
// is of the data key as whoever reads the object will get it.
func (c *Config) Prove(ctx context.Context, obj crypt.Object, sealed *keyring.DataKey) (stored.Lease, error) {
	lease, err := c.Check(ctx, obj, sealed.KeyID, sealed.Wrapped)
	if err != nil {
		return nil, fmt.Errorf("the new key wraps and does not unwrap: %w", err)
	}
	if subtle.ConstantTimeCompare(lease.DEK(), sealed.DEK()) != 1 {
		lease.Release()
		return nil, errors.New("the new key unwraps another data key than it has wrapped")
	}
	return lease, nil
}

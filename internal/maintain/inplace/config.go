package inplace

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// Abilities are what a store can do; package storecheck tests it. Most are
// conditions that the store honors: it refuses a write with 412 if the
// object that would be overwritten does not have the ETag in If-Match.
//
// x-amz-copy-source-if-match is not among them. It is a condition on what is
// read, and a store may check it long before it writes.
type Abilities struct {
	CopyIfMatch     bool // CopyObject
	PutIfMatch      bool // PutObject
	BareETag        bool // it compares with an ETag without quotes
	CompleteIfMatch bool // CompleteMultipartUpload
	// ETagIsMD5 means that the ETag of a single-PUT object, and of a part,
	// is the MD5 of its bytes.
	ETagIsMD5 bool
}

// AbilitiesOf returns what matters here of what a store can do. What is
// unknown counts as missing.
func AbilitiesOf(set capability.Set) Abilities {
	quoted, bare := set[capability.PutIfMatch] == capability.Yes, set[capability.PutIfMatchBare] == capability.Yes
	return Abilities{
		CopyIfMatch:     set[capability.CopyIfMatch] == capability.Yes,
		PutIfMatch:      quoted || bare,
		BareETag:        bare && !quoted,
		CompleteIfMatch: set[capability.CompleteIfMatch] == capability.Yes,
		ETagIsMD5:       set[capability.MD5ETags] == capability.Yes,
	}
}

// IfMatch returns the value of If-Match in a PutObject that must overwrite the
// object with this ETag.
func (a Abilities) IfMatch(etag string) string {
	if a.BareETag {
		return strings.Trim(etag, `"`)
	}
	return etag
}

// Config is what the packages that write objects have in common. Each of
// them embeds it.
type Config struct {
	// Send sends a request to the store; see stored.Reader.Send.
	Send Sender
	// Keys creates data keys, and rewraps existing ones. Its rules choose
	// the KMS key.
	Keys *keyring.Keyring
	// Check unwraps a wrapped data key, before and after the write. It must
	// ask the KMS, and must not use a key that Keys has just cached.
	Check Open
	// Client is the client for which the rules are evaluated; "" for a
	// client that no rule names.
	Client string
	// OpenEnd is stored.Reader.OpenEnd.
	OpenEnd bool
	// Abilities is what the store can do. It is required, unless DryRun is
	// set.
	Abilities Abilities
	// DryRun finds out what would be written, and writes nothing.
	DryRun bool
	// Wait, if not nil, is called before each write, to limit the rate.
	Wait func(context.Context) error
	// Away is the parameter away of Insist.
	Away func(error)
	// Random is the source of salts and nonces.
	Random io.Reader
}

// Open returns the data key of an object; see stored.Reader.Open.
type Open = func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error)

// Store returns the store.
func (c *Config) Store() *Store { return &Store{Send: c.Send, ETagIsMD5: c.Abilities.ETagIsMD5} }

// Reader returns a reader of the store that gets data keys from open.
func (c *Config) Reader(s *Store, open Open) *stored.Reader {
	return &stored.Reader{Send: s.Do, Open: open, OpenEnd: c.OpenEnd, Cache: stored.NewCache()}
}

// Key is a new data key of an object. Proof is the same key as the KMS has
// unwrapped it, which is how readers will get it.
type Key struct {
	*keyring.DataKey
	Proof stored.Lease
}

// Release releases both leases.
func (k *Key) Release() {
	k.Proof.Release()
	k.DataKey.Release()
}

// NewKey creates a data key; see keyring.Keyring.Create.
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

// Prove makes the KMS unwrap what it has just wrapped, and compares the two.
// It returns the lease of the unwrapped data key.
func (c *Config) Prove(ctx context.Context, obj crypt.Object, sealed *keyring.DataKey) (stored.Lease, error) {
	lease, err := c.Check(ctx, obj, sealed.KeyID, sealed.Wrapped)
	if err != nil {
		return nil, fmt.Errorf("the new key can wrap, but not unwrap: %w", err)
	}
	if subtle.ConstantTimeCompare(lease.DEK(), sealed.DEK()) != 1 {
		lease.Release()
		return nil, errors.New("the new key unwraps to another data key than it wrapped")
	}
	return lease, nil
}

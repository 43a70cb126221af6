package s3api

import (
	"context"
	"errors"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

// maxUploads bounds how many uploads are remembered, of about 1 KiB each.
const maxUploads = 4096

// uploadKeys remembers the wrapped DEK that this process uses for the parts of
// an upload, so that a part costs no KMS request. Nothing depends on it:
// another replica, or this one after a restart, makes a DEK of its own. It
// holds no key; unwrapped DEKs are the cache's, and age there.
type uploadKeys struct {
	entries *lru.Cache[uploadID, *uploadKey]
	sums    *lru.Cache[string, objectSum] // of parts, by the store's upload id and its ETag of the part
	given   *lru.Cache[string, bool]      // the store's ids of uploads that were created here
}

// maxGiven bounds how many upload ids are remembered as given, of about 100
// bytes each.
const maxGiven = 16_384

// maxSums bounds how many checksums of parts are remembered, of about 200
// bytes each.
const maxSums = 65_536

type uploadID struct{ bucket, key, upload, client string }

// uploadKey is empty until somebody who holds the turn has filled it.
type uploadKey struct {
	turn    chan struct{}
	keyID   string
	wrapped []byte
	created bool      // here; fixed, as sum
	sum     objectSum // that the upload was created with
}

func newUploadKeys() *uploadKeys {
	entries, err := lru.New[uploadID, *uploadKey](maxUploads)
	if err != nil {
		panic(err) // only for sizes below 1
	}
	sums, err := lru.New[string, objectSum](maxSums)
	if err != nil {
		panic(err) // as above
	}
	given, err := lru.New[string, bool](maxGiven)
	if err != nil {
		panic(err) // as above
	}
	return &uploadKeys{entries, sums, given}
}

// keepSum remembers the checksum of a part, to find a list that has another
// one. A list that another replica is given is not looked at like this.
func (u *uploadKeys) keepSum(upload, etag string, sums *checksums) {
	if sums.digest != nil {
		u.sums.Add(upload+" "+unquote(etag), objectSum{algorithm: sums.algorithm, digest: string(sums.digest)})
	}
}

// partSum is the checksum of a part, if it is known: the one that it came
// with, or that was computed as it came.
func (u *uploadKeys) partSum(upload, etag string) (objectSum, bool) {
	return u.sums.Get(upload + " " + etag)
}

func (c *call) uploadID() uploadID {
	return uploadID{c.bucket, c.key, c.upload.shown, c.client.Name}
}

// errGivenBefore is for a store that gives one id to two uploads. It could then
// mix their parts, as the id is what binds a part to its upload.
var errGivenBefore = &Error{
	Code: "ServiceUnavailable", Message: "The store answered with the id of an earlier upload. Please try again.", RetryAfter: retryAfter,
	cause: errors.New("the store has given the upload id before: see docs/threat-model.md"),
}

// isNew reports whether the store has not given an id to an upload before, as
// far as this replica knows, and remembers it.
func (u *uploadKeys) isNew(id string) bool {
	before, _ := u.given.ContainsOrAdd(id, true)
	return !before
}

// put remembers the DEK of a new upload.
func (u *uploadKeys) put(id uploadID, sealed *keyring.DataKey, sum objectSum) {
	u.entries.Add(
		id,
		&uploadKey{turn: make(chan struct{}, 1), keyID: sealed.KeyID, wrapped: sealed.Wrapped, created: true, sum: sum},
	)
}

// sum is the checksum that the upload was created with, as far as this replica
// knows.
func (u *uploadKeys) sum(id uploadID) objectSum {
	if entry, ok := u.entries.Peek(id); ok {
		return entry.sum
	}
	return objectSum{}
}

// listed is what ListParts says of the checksum that the upload was created
// with: nothing where that is not known.
func (u *uploadKeys) listed(id uploadID) []byte {
	entry, ok := u.entries.Peek(id)
	switch {
	case !ok || !entry.created:
		return nil
	case entry.sum.algorithm == nil: // in S3's word
		return []byte("<ChecksumAlgorithm>null</ChecksumAlgorithm><ChecksumType>null</ChecksumType>")
	default:
		return entry.sum.listed()
	}
}

func (u *uploadKeys) entry(id uploadID) *uploadKey {
	fresh := &uploadKey{turn: make(chan struct{}, 1)}
	if old, ok, _ := u.entries.PeekOrAdd(id, fresh); ok {
		u.entries.Get(id) // it is in use
		return old
	}
	return fresh
}

// partKey returns the DEK for a part of the call's upload. The call ends when
// the DEK may not be used any more.
func (s *Server) partKey(c *call) (*keyring.DataKey, error) {
	sealed, err := s.uploadKey(c)
	if err != nil {
		return nil, err
	}
	c.watch(sealed.Lease)
	return sealed, nil
}

// uploadKey returns the DEK for a part of the call's upload. Parts that come
// at the same time wait for the one that asks the KMS first.
func (s *Server) uploadKey(c *call) (*keyring.DataKey, error) {
	ctx := c.Context()
	entry := s.uploads.entry(c.uploadID())
	select {
	case entry.turn <- struct{}{}:
		defer func() { <-entry.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}

	if entry.wrapped == nil && c.upload.sealed != nil {
		entry.keyID, entry.wrapped = crypt.CustomerKeyID, c.upload.sealed
	}

	if entry.wrapped != nil {
		lease, err := s.openUploadKey(c, entry)
		if !errors.Is(err, keyring.ErrUnknownKey) {
			if err != nil {
				return nil, err
			}
			return &keyring.DataKey{Lease: lease, KeyID: entry.keyID, Wrapped: entry.wrapped}, nil
		}
	}

	sealed, err := s.Keys.Create(ctx, c.object(), c.client.Name, c.uploadChoice())
	if err != nil {
		return nil, err
	}
	entry.keyID, entry.wrapped = sealed.KeyID, sealed.Wrapped
	return sealed, nil
}

// uploadChoice is what the client asks for in place of the rules' key, for a
// part.
func (c *call) uploadChoice() keyring.Choice {
	choice := c.upload.wanted
	choice.CustomerKey = c.customerKey
	return choice
}

// openUploadKey opens the DEK of an upload, as far as it is known here. The
// key that a client brings must be the one that it has created the upload
// with, as with S3.
func (s *Server) openUploadKey(c *call, entry *uploadKey) (*keyring.Lease, error) {
	switch underCustomer := entry.keyID == crypt.CustomerKeyID; {
	case underCustomer && c.customerKey == nil:
		return nil, badRequest(
			"InvalidRequest",
			"The multipart upload initiate requested encryption. Subsequent part requests must include the appropriate encryption parameters.",
		)
	case !underCustomer && c.customerKey != nil:
		return nil, badRequest("InvalidRequest", "The encryption parameters are not applicable to this object.")
	case !underCustomer:
		return s.Keys.Open(c.Context(), c.object(), entry.keyID, entry.wrapped)
	}

	if err := s.Keys.CheckCustomerKeys(c.object(), c.client.Name); err != nil { // it may be a DEK that the upload id has brought
		return nil, err
	}

	lease, err := s.Keys.OpenForCustomer(c.Context(), c.object(), entry.wrapped, c.customerKey)
	if errors.Is(err, crypt.ErrCustomerKey) {
		return nil, &Error{
			Code:    "InvalidRequest",
			Message: "The provided encryption parameters did not match the ones used originally.",
			cause:   err,
		}
	}

	return lease, err
}

// endKey returns the DEK for the part that is appended. It is a KMS key's
// where the request does not bring the customer's key: S3 does not ask for it
// when an upload is completed.
func (s *Server) endKey(c *call) (*keyring.DataKey, error) {
	if c.customerKey != nil || !s.uploads.forCustomer(c) {
		return s.partKey(c)
	}
	sealed, err := s.Keys.Create(c.Context(), c.object(), c.client.Name, keyring.Choice{})
	if err != nil {
		return nil, err
	}
	c.watch(sealed.Lease)
	return sealed, nil
}

// forCustomer reports whether the call's upload is known to be under a
// customer's key.
func (u *uploadKeys) forCustomer(c *call) bool {
	if c.upload.sealed != nil {
		return true
	}
	entry, ok := u.entries.Peek(c.uploadID())
	if !ok {
		return false
	}

	select {
	case entry.turn <- struct{}{}:
		defer func() { <-entry.turn }()
		return entry.keyID == crypt.CustomerKeyID
	case <-c.Context().Done():
		return false
	}
}

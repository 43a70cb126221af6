package s3api

import (
	"context"
	"errors"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

// maxUploads limits how many uploads are remembered. Each takes about 1 KiB.
const maxUploads = 4096

// uploadKeys remembers the wrapped data key that this process uses for the
// parts of an upload, so that a part needs no KMS request. It is only a
// cache: another replica, or this one after a restart, creates its own data
// key. It has no plaintext keys; these are in the data key cache.
type uploadKeys struct {
	entries *lru.Cache[uploadID, *uploadKey]
	sums    *lru.Cache[string, objectSum] // sums of parts, by the store's upload id and the store's ETag of the part
	tags    *lru.Cache[string, crypt.Tag] // tags of parts, as sums
	given   *lru.Cache[string, givenID]   // by the store's ids of uploads that were created here
}

// givenID is the id that a client got for an upload.
type givenID struct{ shown, client string }

// maxGiven limits how many upload ids are remembered. Each takes about 300
// bytes.
const maxGiven = 16_384

// maxSums limits how many checksums of parts are remembered, and how many
// tags. Each takes about 200 bytes.
const maxSums = 65_536

type uploadID struct{ bucket, key, upload, client string }

// uploadKey is empty until a goroutine that holds the turn fills it.
type uploadKey struct {
	turn    chan struct{}
	keyID   string
	wrapped []byte
	created bool      // the upload was created here; fixed, like sum
	sum     objectSum // checksum algorithm and type of the upload
}

func newUploadKeys() *uploadKeys {
	entries, err := lru.New[uploadID, *uploadKey](maxUploads)
	if err != nil {
		panic(err) // only for sizes below 1
	}
	sums, err := lru.New[string, objectSum](maxSums)
	if err != nil {
		panic(err) // only for sizes below 1
	}
	tags, err := lru.New[string, crypt.Tag](maxSums)
	if err != nil {
		panic(err) // only for sizes below 1
	}
	given, err := lru.New[string, givenID](maxGiven)
	if err != nil {
		panic(err) // only for sizes below 1
	}
	return &uploadKeys{entries, sums, tags, given}
}

// keepSum remembers the checksum of a part, to detect a completion with a
// different one. Other replicas cannot do that.
func (u *uploadKeys) keepSum(upload, etag string, sums *checksums) {
	if sums.digest != nil {
		sum := objectSum{algorithm: sums.algorithm, digest: string(sums.digest), implied: sums.implied}
		u.sums.Add(upload+" "+unquote(etag), sum)
	}
}

// keepTag remembers the tag of a part.
func (u *uploadKeys) keepTag(upload, etag string, tag crypt.Tag) {
	u.tags.Add(upload+" "+unquote(etag), tag)
}

// partTag returns the tag of a part, if it was sealed here.
func (u *uploadKeys) partTag(upload, etag string) (crypt.Tag, bool) {
	return u.tags.Get(upload + " " + etag)
}

// impliedMark follows the upload id for the default checksum of a part that has
// one of the client's too.
const impliedMark = " default"

// partSum returns the checksum of a part, if it is known: the client sent
// it, or the proxy computed it.
func (u *uploadKeys) partSum(upload, etag string) (objectSum, bool) {
	return u.sums.Get(upload + " " + etag)
}

// impliedSum returns the default checksum of a part, if it is known.
func (u *uploadKeys) impliedSum(upload, etag string) (objectSum, bool) {
	if sum, ok := u.partSum(upload, etag); ok && sum.algorithm == defaultAlgorithm {
		return sum, true
	}
	return u.partSum(upload+impliedMark, etag)
}

func (c *call) uploadID() uploadID {
	return uploadID{c.bucket, c.key, c.upload.shown, c.client.Name}
}

// errGivenBefore is the error for a store that uses one id for two uploads.
// The store could then mix their parts, because only the id binds a part to
// its upload.
var errGivenBefore = &Error{
	Code:       "ServiceUnavailable",
	Message:    "The store answered with the id of an earlier upload. Please try again.",
	RetryAfter: retryAfter,
	cause:      errors.New("the store has given the upload id before: see docs/threat-model.md"),
}

// isNew reports whether this replica has not seen the store's upload id
// before, and remembers it.
func (u *uploadKeys) isNew(id string) bool {
	before, _ := u.given.ContainsOrAdd(id, givenID{})
	return !before
}

// shown returns the id that this client got for an upload with this id in the
// store, or the store's id if it is not known.
func (u *uploadKeys) shown(stored, client string) string {
	if id, ok := u.given.Peek(stored); ok && id.client == client && id.shown != "" {
		return id.shown
	}
	return stored
}

// put remembers a new upload and its data key.
func (u *uploadKeys) put(id uploadID, ref uploadRef, sealed *keyring.DataKey, sum objectSum) {
	u.given.Add(ref.stored, givenID{ref.shown, id.client})
	u.entries.Add(
		id,
		&uploadKey{turn: make(chan struct{}, 1), keyID: sealed.KeyID, wrapped: sealed.Wrapped, created: true, sum: sum},
	)
}

// sum returns the checksum algorithm and type of an upload, if this replica
// knows them.
func (u *uploadKeys) sum(id uploadID) objectSum {
	if entry, ok := u.entries.Peek(id); ok {
		return entry.sum
	}
	return objectSum{}
}

// listed returns the checksum elements for ListParts; nothing if they are
// not known.
func (u *uploadKeys) listed(id uploadID) []byte {
	entry, ok := u.entries.Peek(id)
	switch {
	case !ok || !entry.created:
		return nil
	case entry.sum.implied: // S3's word
		return []byte("<ChecksumAlgorithm>null</ChecksumAlgorithm><ChecksumType>null</ChecksumType>")
	default:
		return entry.sum.listed()
	}
}

func (u *uploadKeys) entry(id uploadID) *uploadKey {
	fresh := &uploadKey{turn: make(chan struct{}, 1)}
	if old, ok, _ := u.entries.PeekOrAdd(id, fresh); ok {
		u.entries.Get(id) // marks it as recently used
		return old
	}
	return fresh
}

// partKey returns the data key for a part of the call's upload. The call is
// cut when the data key may no longer be used.
func (s *Server) partKey(c *call) (*keyring.DataKey, error) {
	sealed, err := s.uploadKey(c)
	if err != nil {
		return nil, err
	}
	c.watch(sealed.Lease)
	return sealed, nil
}

// uploadKey returns the data key for a part of the call's upload. Concurrent
// parts wait for the first one to ask the KMS.
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

	sealed, err := c.keys.Create(ctx, c.object(), c.client.Name, c.uploadChoice())
	if err != nil {
		return nil, err
	}
	entry.keyID, entry.wrapped = sealed.KeyID, sealed.Wrapped
	return sealed, nil
}

// uploadChoice returns what the client asks for instead of the rules' key,
// for a part.
func (c *call) uploadChoice() keyring.Choice {
	choice := c.upload.wanted
	choice.CustomerKey = c.customerKey
	return choice
}

// openUploadKey opens the data key of an upload, if this replica knows it. A
// customer key must be the one with which the upload was created, as in S3.
func (s *Server) openUploadKey(c *call, entry *uploadKey) (*keyring.Lease, error) {
	switch underCustomer := entry.keyID == crypt.CustomerKeyID; {
	case underCustomer && c.customerKey == nil:
		return nil, badRequest(
			"InvalidRequest",
			"The multipart upload initiate requested encryption. "+
				"Subsequent part requests must include the appropriate encryption parameters.",
		)
	case !underCustomer && c.customerKey != nil:
		return nil, badRequest("InvalidRequest", "The encryption parameters are not applicable to this object.")
	case !underCustomer:
		return c.keys.Open(c.Context(), c.object(), entry.keyID, entry.wrapped)
	}

	// The data key may come from the client's upload id, so check it again.
	if err := c.keys.CheckCustomerKeys(c.object(), c.client.Name); err != nil {
		return nil, err
	}

	lease, err := c.keys.OpenForCustomer(c.Context(), c.object(), entry.wrapped, c.customerKey)
	if errors.Is(err, crypt.ErrCustomerKey) {
		return nil, &Error{
			Code:    "InvalidRequest",
			Message: "The provided encryption parameters did not match the ones used originally.",
			cause:   err,
		}
	}

	return lease, err
}

// endKey returns the data key for the appended final part. Without the
// customer key in the request, it is a data key under a KMS key: S3 does not
// require the customer key for CompleteMultipartUpload.
func (s *Server) endKey(c *call) (*keyring.DataKey, error) {
	if c.customerKey != nil || !s.uploads.forCustomer(c) {
		return s.partKey(c)
	}
	sealed, err := c.keys.Create(c.Context(), c.object(), c.client.Name, keyring.Choice{})
	if err != nil {
		return nil, err
	}
	c.watch(sealed.Lease)
	return sealed, nil
}

// forCustomer reports whether the call's upload is known to be under a
// customer key.
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

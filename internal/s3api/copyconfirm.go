package s3api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// When the store copies an object, the body comes from the store and the
// envelope from the proxy. They fit only if the source is still the object
// that the proxy has seen. A store may ignore the condition that says so, or
// check it some time before it copies. So the copy is looked at before it is
// reported: docs/adr/0016-copies-are-verified.md has the races.

// flaw is a copy of the store that is not what was asked for.
type flaw struct {
	etag    string // the store's; "" if it is not known
	version string // "" if the bucket keeps no versions
	why     error
	gone    bool // another object is there now
}

var (
	errMixed    = errors.New("the store put the envelope on another body: it was overwritten while it was copied")
	errMetadata = errors.New("the store did not give the copy its envelope")
	errTags     = errors.New("the store did not give the copy its tags")
)

// confirmTimeout limits the requests that verify or remove a copy. They do
// not end with the client.
const confirmTimeout = 30 * time.Second

// confirmCopy checks what the store has made. The first bytes of a body are
// random for each body, and the envelope has them too. So one small read
// shows whether the two belong together. version is that of the copy, if
// the store has sent it.
//
// If the copy has a flaw, the error is errCopyAgain: the next attempt reads
// the source and overwrites the copy.
func (s *Server) confirmCopy(c *objectCopy, e *crypt.Envelope, version string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), confirmTimeout)
	defer cancel()

	q := stored.Request{Object: c.object(), Version: version}
	have, err := c.reader.Peek(ctx, q, crypt.HeaderSize)
	if stored.StatusOf(err) == http.StatusRequestedRangeNotSatisfiable { // it is empty
		have, err = c.reader.Look(ctx, q)
	}

	switch {
	case stored.StatusOf(err) == http.StatusNotFound:
		return nil // another client has removed it since
	case errors.Is(err, crypt.ErrEnvelope), errors.Is(err, crypt.ErrVersion):
		c.flaw = &flaw{version: version, why: fmt.Errorf("%w: %w", errMetadata, err)}
	case err != nil:
		return fmt.Errorf("the copy was made, but could not be verified: %w", err)
	default:
		c.flaw, err = c.flawOf(ctx, q, e, have)
	}

	if c.flaw != nil {
		return fmt.Errorf("%w: %w", errCopyAgain, c.flaw.why)
	}
	return err
}

// flawOf returns what is wrong with the object at the destination; nil for a
// good copy, and for what another client has written there since.
func (c *objectCopy) flawOf(
	ctx context.Context,
	q stored.Request,
	e *crypt.Envelope,
	have *stored.Seen,
) (*flaw, error) {
	found := &flaw{etag: have.ETag, version: have.Header.Get("X-Amz-Version-Id")}
	sameBody := bytes.Equal(have.First, e.Header[:])

	if !sameEnvelope(have.Envelope, e) {
		// Only the copy can have the version id that the store sent for it,
		// or the source's body without an envelope for it.
		if q.Version != "" || sameBody && (have.Plaintext || sameEnvelope(have.Envelope, c.seen.Envelope)) {
			found.why = errMetadata
			return found, nil
		}
		return nil, nil
	}

	if !sameBody || !crypt.Fits(e.Size, have.Stored) {
		found.why = errMixed
		return found, nil
	}

	kept, err := c.keepsTags(ctx, q, have)
	if err != nil || kept {
		return nil, err
	}
	found.why = errTags
	return found, nil
}

func sameEnvelope(a, b *crypt.Envelope) bool {
	if a == nil || b == nil {
		return false
	}
	has, err := a.Metadata()
	if err != nil {
		return false
	}
	wants, err := b.Metadata()
	return err == nil && maps.Equal(has, wants)
}

// keepsTags reports whether the copy has as many tags as it must have. A
// store that sends no count is asked for the tags.
func (c *objectCopy) keepsTags(ctx context.Context, q stored.Request, have *stored.Seen) (bool, error) {
	wanted := c.wantedTags()
	if wanted == 0 {
		return true, nil
	}
	if count := have.Header.Get(stored.TagCount); count != "" {
		return count == strconv.Itoa(wanted), nil
	}

	tags, err := c.reader.Tags(ctx, q)
	if err != nil {
		return false, fmt.Errorf("the copy was made, but could not be verified: %w", err)
	}
	return countTags(tags) == wanted, nil
}

// wantedTags returns how many tags the copy must have, as far as the client
// or the store has said so.
func (c *objectCopy) wantedTags() int {
	if c.replaces("Tagging") {
		return countTags(c.Header.Get("X-Amz-Tagging"))
	}
	n, err := strconv.Atoi(c.seen.Header.Get(stored.TagCount))
	if err != nil {
		return 0
	}
	return n
}

// countTags returns the number of tags in the syntax of x-amz-tagging.
func countTags(tags string) int {
	all, err := url.ParseQuery(tags)
	if err != nil {
		return 0 // the store judges it
	}
	return len(all)
}

// withdraw removes a flawed copy, and returns the error of the whole copy.
// Only a version that is known to be the copy's is removed: without
// versions, another client may have written the object that is there now,
// and not all stores honor a condition on DELETE. An unversioned copy is
// overwritten by a good one; if that fails, the error says so.
func (s *Server) withdraw(c *objectCopy, failure error) error {
	if c.flaw == nil || c.flaw.version == "" && c.flaw.gone {
		return failure
	}

	left := c.flaw.why
	if c.flaw.version != "" && c.flaw.version != nullVersion {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), confirmTimeout)
		defer cancel()
		query := url.Values{"versionId": {c.flaw.version}}
		r := c.originRequestTo(http.MethodDelete, query, make(http.Header), nil, 0)
		resp, err := s.send(c.call, r.WithContext(ctx))
		if err == nil {
			closeBody(resp)
			return failure
		}
		left = errors.Join(left, fmt.Errorf("removing version %s of it: %w", c.flaw.version, err))
	}

	if failure == nil {
		return nil
	}
	return &Error{
		Code: "InternalError",
		Message: "The store's copy is not a good one, and it could not be replaced. " +
			"The destination may be unreadable. Please copy again.",
		cause: errors.Join(left, failure),
	}
}

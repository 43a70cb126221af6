package s3api

import (
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// isLeftToStore reports whether the store is to copy the object by itself.
// What cannot be verified or mended afterwards is read and sealed again:
//
//   - An object without an envelope of its own. Some stores do not copy
//     directory markers either.
//   - A copy onto itself. If another client overwrites the object before the
//     store copies it, the new body would lose its envelope.
//   - A copy that the store has refused, or made something else of, or whose
//     source is overwritten all the time.
//   - Tags at RGW, which drops them from a copy with new metadata.
//   - A copy to a storage class from which it cannot be read at once.
//   - A copy with a condition on the object that it overwrites, unless the
//     store honors it. More stores honor that of PutObject.
func (c *objectCopy) isLeftToStore() bool {
	class := c.Header.Get("X-Amz-Storage-Class")
	switch {
	case c.seen.Envelope == nil, c.seen.Stored == 0, c.isOntoItself():
		return false
	case c.flaw != nil, c.refused, c.attempt >= storeAttempts:
		return false
	case stored.IsRGW(c.seen.Header) && c.wantedTags() > 0, class == "GLACIER", class == "DEEP_ARCHIVE":
		return false
	case c.hasCondition():
		return c.able(capability.CopyIfMatch) == capability.Yes
	}
	return true
}

// copyInStore makes the store copy a single-PUT object, with a new envelope
// for its new name.
func (s *Server) copyInStore(c *objectCopy) error {
	fresh := *c.seen.Envelope
	lease, err := s.openKey(c.Context(), c.call, c.source.Object, fresh.KeyID, fresh.WrappedDEK)
	if err != nil {
		return err
	}
	defer lease.Release()

	if err := fresh.Verify(lease.DEK(), c.source.Object); err != nil {
		return err
	}
	if err := readEnds(c, fresh.Size); err != nil {
		return err
	}

	sealed, err := c.keys.Rewrap(c.Context(), lease, c.object(), c.client.Name, c.choice)
	if err != nil {
		return err
	}
	defer sealed.Release()
	c.watch(sealed.Lease)
	fresh.KeyID, fresh.WrappedDEK = sealed.KeyID, sealed.Wrapped

	c.setSealedHeaders(sealed)

	stop := s.keepAlive(c.call)
	answer, result, err := s.sendEnvelope(c, &fresh, lease)
	if err == nil {
		err = s.confirmCopy(c, &fresh, answer.Get("X-Amz-Version-Id"))
	}
	stop()

	if err != nil {
		return err
	}
	return c.answerCopied(answer, result)
}

// readEnds verifies the first and the last segment of a source that the
// store copies. Damage between them is found when the copy is read.
func readEnds(c *objectCopy, size int64) error {
	ends := []int64{0}
	if size > crypt.SegmentSize {
		ends = append(ends, size-1)
	}

	for _, at := range ends {
		var first *stored.Range
		if size > 0 {
			first = stored.Bytes(at, 1)
		}
		o, err := c.readSource(first)
		if err != nil {
			return err
		}

		if count := o.Header.Get(stored.TagCount); count != "" { // Amazon S3 documents it for GET only
			c.seen.Header.Set(stored.TagCount, count)
		}
		_, err = o.Next(c.Context())
		o.Close()
		if err != nil && err != io.EOF { //nolint:errorlint // Next returns io.EOF unwrapped
			return err
		}
	}

	return nil
}

// sendEnvelope signs the envelope of the copy, and makes the store copy the
// source with it.
func (s *Server) sendEnvelope(c *objectCopy, e *crypt.Envelope, lease *keyring.Lease) (http.Header, copyResult, error) {
	result := copyResult{kind: fullObject}
	var err error
	if result.sums, err = crypt.OpenChecksums(e.Sum, lease.DEK()); err != nil {
		return nil, result, err
	}

	if c.wanted != nil {
		if result.sums, err = wantedSums(c, result.sums); err != nil {
			return nil, result, err
		}
		if e.Sum, err = crypt.SealChecksums(result.sums, lease.DEK(), s.Random); err != nil {
			return nil, result, err
		}
	}

	have, err := stored.Reveal(c.seen.Header, c.seen.Envelope.Meta, lease.DEK())
	if err != nil {
		return nil, result, err
	}
	header, err := s.copiedHeader(c, have, e, lease.DEK())
	if err != nil {
		return nil, result, err
	}
	header.Set("X-Amz-Copy-Source", copySourceHeader(c.source.Object, c.source.Version))
	header.Set("X-Amz-Copy-Source-If-Match", c.seen.ETag)
	if stored.IsRGW(c.seen.Header) {
		header.Set("X-Amz-Copy-If-Match", c.seen.ETag) // under this name RGW honors it
	}
	header.Set("X-Amz-Metadata-Directive", "REPLACE") // the envelope is metadata

	if c.replaces("Tagging") {
		header.Set("X-Amz-Tagging-Directive", "REPLACE")
	}

	answer, body, err := s.sendCopy(c.call, header)
	etag, _, _ := element(body, "ETag")
	modified, _, _ := element(body, "LastModified")
	result.etag, result.modified = string(etag), string(modified)

	// RGW does not copy what is encrypted with a key of its own KMS. And it
	// does not see the encryption that a CopyObject asks for when a bucket
	// policy demands it; it does so for PutObject.
	if hasCode(err, "NotImplemented") || hasCode(err, "AccessDenied") && stored.IsRGW(c.seen.Header) {
		c.refused = true
		return answer, result, fmt.Errorf("%w: %w", errCopyAgain, err)
	}
	return answer, result, c.writeError(err)
}

// copySourceHeader returns x-amz-copy-source for the store.
func copySourceHeader(src crypt.Object, version string) string {
	source := sigv4.EscapePath(pathOf(src))
	if version != "" {
		source += "?versionId=" + url.QueryEscape(version)
	}
	return source
}

// sendCopy makes the store copy an object, and returns the headers and the
// document of its answer.
func (s *Server) sendCopy(c *call, header http.Header) (http.Header, []byte, error) {
	resp, err := s.send(c, c.originRequest(http.MethodPut, header, 0))
	if err != nil {
		return nil, nil, err
	}
	defer closeBody(resp)

	body, err := readAnswer(resp)
	if err != nil {
		return nil, nil, err
	}

	_, start, _ := element(body, "ETag")
	if start < 0 {
		return nil, nil, lateError(body)
	}
	return resp.Header, body, nil
}

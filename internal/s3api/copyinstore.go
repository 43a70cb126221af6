package s3api

import (
	"io"
	"net/http"
	"net/url"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

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

	sealed, err := s.Keys.Rewrap(c.Context(), lease, c.object(), c.client.Name, c.choice)
	if err != nil {
		return err
	}
	defer sealed.Release()
	c.watch(sealed.Lease)
	fresh.KeyID, fresh.WrappedDEK = sealed.KeyID, sealed.Wrapped

	c.setSealedHeaders(sealed)

	stop := s.keepAlive(c.call)
	answer, result, err := s.sendEnvelope(c, &fresh, lease)
	stop()
	if err != nil {
		return err
	}
	return c.answerCopied(answer, result)
}

// readEnds verifies the first and the last segment of a source that the
// store copies. Damage between them is found when the copy is read.
func readEnds(c *objectCopy, size int64) error {
	q, ends := c.source, []int64{0}
	if size > crypt.SegmentSize {
		ends = append(ends, size-1)
	}

	for _, at := range ends {
		if size > 0 {
			q.Range = stored.Bytes(at, 1)
		}
		o, err := c.reader.Get(c.Context(), q)
		if err != nil {
			return err
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

	if err := e.Sign(lease.DEK(), c.object()); err != nil {
		return nil, result, err
	}

	header, err := c.copiedHeader(c.seen.Header, e)
	if err != nil {
		return nil, result, err
	}
	header.Set("X-Amz-Copy-Source", copySourceHeader(c.source.Object, c.source.Version))
	header.Set("X-Amz-Copy-Source-If-Match", c.seen.ETag)
	header.Set("X-Amz-Metadata-Directive", "REPLACE") // the envelope is metadata

	if c.replaces("Tagging") {
		header.Set("X-Amz-Tagging-Directive", "REPLACE")
	}

	answer, body, err := s.sendCopy(c.call, header)
	etag, _, _ := element(body, "ETag")
	modified, _, _ := element(body, "LastModified")
	result.etag, result.modified = string(etag), string(modified)
	return answer, result, err
}

// copySourceHeader returns x-amz-copy-source for the store.
func copySourceHeader(src crypt.Object, version string) string {
	source := sigv4.EscapePath("/" + src.Bucket + "/" + src.Key)
	if version != "" {
		source += "?versionId=" + url.QueryEscape(version)
	}
	return source
}

// sendCopy makes the store copy an object, and returns the headers and the
// document of its answer.
func (s *Server) sendCopy(c *call, header http.Header) (http.Header, []byte, error) {
	resp, err := s.send(c, c.originRequest(http.MethodPut, header, nil, 0))
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

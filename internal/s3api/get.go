package s3api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// getObject decrypts an object, or a range or part of it, and sends it to
// the client.
//
// The response begins only after the first bytes are verified, so a small
// object that was tampered with gets a regular error response. If a later
// byte fails, the connection is closed.
func (s *Server) getObject(c *call) error {
	q, err := s.reading(c)
	if err != nil {
		return err
	}

	o, err := c.reader.Get(c.Context(), q)
	if err != nil {
		return err
	}
	defer o.Close()

	if o.NotModified {
		return c.notModified(o)
	}
	if err := c.checkCustomerKey(o); err != nil {
		return err
	}

	text, err := o.Next(c.Context())
	if err != nil && err != io.EOF { //nolint:errorlint // Next returns io.EOF unwrapped
		return err
	}
	if err := s.answer(c, o); err != nil {
		return err
	}

	for err == nil {
		if _, err = c.w.Write(text); err != nil {
			return err
		}
		text, err = o.Next(c.Context())
	}

	if err != io.EOF { //nolint:errorlint // Next returns io.EOF unwrapped
		return err
	}
	return nil
}

// headObject returns the size of the plaintext, which is computed from the
// stored size without a key. So a HEAD repeats what the store says, unless the
// envelope is verified: with VerifyHead, if the data key is cached, for a
// customer key, or if the client asks for checksums.
func (s *Server) headObject(c *call) error {
	q, err := s.reading(c)
	if err != nil {
		return err
	}

	o, err := c.reader.Head(c.Context(), q)
	if err != nil {
		return err
	}
	if o.NotModified {
		return c.notModified(o)
	}

	if err := s.proveCustomerKey(c, q, o); err != nil {
		return err
	}
	if err := s.proveHead(c, q, o); err != nil {
		return err
	}

	if c.wantsChecksum() {
		// The record of a multipart object has its checksum. A GET does not
		// read the record: every SDK asks for checksums by default, and a
		// GET should be one request to the store.
		if err := c.reader.Survey(c.Context(), q, o); err != nil {
			return err
		}
	}

	return s.answer(c, o)
}

// proveHead verifies the envelope of a HEAD: always if VerifyHead is set,
// otherwise only if the data key is cached. In any case, the object must be that
// of a tenant if it is in a rule for tenants.
func (s *Server) proveHead(c *call, q stored.Request, o *stored.Object) error {
	if err := c.keys.CheckTenant(q.Object); err != nil {
		return err
	}

	switch {
	case o.CustomerKey: // verified by proveCustomerKey
		return nil
	case c.settings.VerifyHead:
		return c.reader.Prove(c.Context(), q, o)
	}
	return c.reader.ProveCached(o, func(keyID string, wrapped []byte) (stored.Lease, error) {
		return asLease(c.keys.OpenCached(c.Context(), q.Object, keyID, wrapped))
	})
}

// reading returns the read that the client asks for.
func (s *Server) reading(c *call) (stored.Request, error) {
	q := stored.Request{
		Object: c.object(), Version: c.query.Get("versionId"), Query: make(url.Values), Header: c.requestHeader(),
		Range: stored.ParseRange(c.Header.Get("Range")), Plaintext: s.admitPlaintext(c, c.object()),
	}

	for name, values := range c.query {
		if overrideNames.has(name) {
			q.Query[name] = values
		}
	}

	if !c.query.Has("partNumber") {
		return q, nil
	}
	var err error
	if q.Part, err = partNumber(c.query.Get("partNumber")); err == nil && q.Range != nil {
		err = badRequest("InvalidRequest", "Cannot specify both Range header and partNumber query parameter")
	}

	return q, err
}

// admitPlaintext returns a function that refuses objects without an
// envelope, unless the rules allow them. Otherwise anyone who removes an
// envelope could have the proxy return the bytes. A directory marker has no
// bytes, and some stores keep no envelope of it.
func (s *Server) admitPlaintext(c *call, obj crypt.Object) func(size int64) error {
	return func(size int64) error {
		if c.keys.AllowPlaintext(obj, c.client.Name) || size == 0 && s.dropsMetadata(c, obj) {
			return nil
		}
		return &Error{
			Code: "PlaintextObject",
			Message: "The object has no encryption envelope: it was stored without the proxy, or its envelope was " +
				"removed. The proxy is configured not to read such objects (plaintext_objects: deny).",
		}
	}
}

func (c *call) notModified(o *stored.Object) error {
	c.copyHeader(o.Header)
	c.w.WriteHeader(http.StatusNotModified)
	return nil
}

// acceptRanges is the value of Accept-Ranges, shared by all responses.
var acceptRanges = []string{"bytes"}

// answer writes the status and the headers of a GET or HEAD.
func (s *Server) answer(c *call, o *stored.Object) error {
	c.copyHeader(o.Header)
	h := c.w.Header()
	if !o.Plaintext {
		c.setEncryptionHeaders(o.KeyID)
		if o.BucketKey {
			c.setBucketKeyHeader()
		}
	}

	h.Set("Content-Length", strconv.FormatInt(o.Length, 10))
	h["Accept-Ranges"] = acceptRanges
	h.Del("Content-Range")
	if o.Parts > 0 {
		h.Set("X-Amz-Mp-Parts-Count", strconv.Itoa(o.Parts))
	}

	status := http.StatusOK
	if o.Partial {
		status = http.StatusPartialContent
		h.Set("Content-Range", stored.ContentRange(o.Offset, o.Length, o.Size))
	} else if err := s.setObjectChecksum(c, o); err != nil {
		return err
	}
	c.w.WriteHeader(status)

	return nil
}

func (c *call) wantsChecksum() bool { return c.Header.Get("X-Amz-Checksum-Mode") == "ENABLED" }

// setObjectChecksum returns the checksum that was stored with the object, if
// the client asks for it.
func (s *Server) setObjectChecksum(c *call, o *stored.Object) error {
	if !c.wantsChecksum() || o.Plaintext {
		return nil
	}
	sum, err := o.Checksum(c.Context())
	if err != nil {
		return err
	}

	for _, a := range checksum.All {
		if digest, ok := sum.Digests[a.ID]; ok {
			h := c.w.Header()
			h.Set(a.Header(), checksumText(digest, sum.Type, sum.Parts))
			h.Set(checksumPrefix+"Type", checksumTypes[sum.Type])
		}
	}

	return nil
}

// newReader returns the reader of stored objects for one call.
func (s *Server) newReader(c *call) stored.Reader {
	return stored.Reader{
		Send: func(r *http.Request) (*http.Response, error) { return s.send(c, r) },
		Open: func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
			return asLease(s.openKey(ctx, c, obj, keyID, wrapped))
		},
		Cache:   s.layouts,
		OpenEnd: s.UniformParts,
	}
}

// asLease converts a lease to the interface. If err is not nil, the
// interface is nil, instead of holding a nil *keyring.Lease.
func asLease(lease *keyring.Lease, err error) (stored.Lease, error) {
	if err != nil {
		return nil, err
	}
	return lease, nil
}

// readError converts the errors of package stored to S3 errors. ok is false
// for all other errors.
func readError(err error) (answer *Error, ok bool) {
	outside := (*stored.RangeError)(nil)
	switch {
	case errors.As(err, &outside):
		size := strconv.FormatInt(outside.Size, 10)
		return &Error{
			Code: "InvalidRange", Message: "The requested range is not satisfiable",
			Details: [][2]string{{"ActualObjectSize", size}},
			Header:  http.Header{"Content-Range": {"bytes */" + size}}, cause: err,
		}, true
	case errors.Is(err, stored.ErrPartNumber):
		return &Error{
			Code:    "InvalidPartNumber",
			Message: "The requested partnumber is not satisfiable.",
			cause:   err,
		}, true
	case errors.Is(err, stored.ErrOverwritten):
		return &Error{
			Code:       "ServiceUnavailable",
			Message:    "The object was overwritten repeatedly while it was read. Please try again.",
			RetryAfter: retryAfter,
			cause:      err,
		}, true
	default:
		return nil, false
	}
}

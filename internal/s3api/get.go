package s3api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

// getObject decrypts an object, or a range of it, on its way to the client.
//
// One request to the store: a range is asked for in whole segments, and the store's Content-Range tells the rest. The
// answer begins only when the first bytes have verified, so a small object that was tampered with gets a clean error; a
// later failure ends the connection.
func (s *Server) getObject(c *call) error {
	wanted := parseRange(c.Header.Get("Range"))
	header := c.requestHeader()
	if wanted != nil {
		header.Set("Range", wanted.stored())
	}
	resp, err := s.send(c, c.originRequest(http.MethodGet, header, nil, 0))
	if outside := (*Error)(nil); wanted != nil && errors.As(err, &outside) && outside.Status() == http.StatusRequestedRangeNotSatisfiable {
		return s.outOfRange(c)
	}
	if err != nil {
		return err
	}
	defer closeBody(resp)
	if resp.StatusCode == http.StatusNotModified {
		c.copyHeader(resp.Header)
		c.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	envelope, err := envelopeOf(resp.Header)
	if errors.Is(err, crypt.ErrNoEnvelope) {
		return s.getPlaintext(c, resp, wanted)
	}
	if err != nil {
		return err
	}
	lease, err := s.unlock(c, envelope)
	if err != nil {
		return err
	}
	defer lease.Release()
	part, err := locatePart(resp, envelope.Size, wanted)
	if err != nil {
		return err
	}
	return s.decrypt(c, resp, envelope, lease, part)
}

// unlock gets the DEK and makes sure that the envelope is this object's.
func (s *Server) unlock(c *call, e *crypt.Envelope) (*keyring.Lease, error) {
	c.keyID = e.KeyID
	lease, err := s.Keys.Open(c.Context(), c.object(), e.KeyID, e.WrappedDEK)
	if err != nil {
		return nil, err
	}
	if err := e.Verify(lease.DEK(), c.object()); err != nil {
		lease.Release()
		return nil, err
	}
	return lease, nil
}

// part is what the client gets of an object: length bytes from offset, which need the stored bytes of window. The store
// sends skip bytes ahead of them.
type part struct {
	offset, length int64
	window         crypt.Window
	skip           int64
	partial        bool // 206
}

// locatePart compares what the store says of its body with the envelope's size, and both with the range.
func locatePart(resp *http.Response, size int64, wanted *byteRange) (part, error) {
	start, total := int64(0), resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		var ok bool
		if start, total, ok = parseContentRange(resp.Header.Get("Content-Range")); !ok || wanted == nil {
			return part{}, fmt.Errorf("%w: Content-Range %q was not asked for", errOrigin, resp.Header.Get("Content-Range"))
		}
	}
	if total != crypt.StoredSize(size) {
		return part{}, fmt.Errorf("%w: %d stored bytes for a plaintext of %d", errIntegrity, total, size)
	}
	if resp.StatusCode != http.StatusPartialContent {
		return part{length: size, window: crypt.Whole(size)}, nil // no range, or the store found If-Range not to hold
	}
	offset, length, ok := wanted.of(size)
	if !ok {
		return part{}, invalidRange(size)
	}
	window, err := crypt.Cover(size, offset, length)
	if err != nil {
		return part{}, err
	}
	if window.Start < start {
		return part{}, fmt.Errorf("%w sent bytes from %d, not from %d", errOrigin, start, window.Start)
	}
	return part{offset: offset, length: length, window: window, skip: window.Start - start, partial: true}, nil
}

// decrypt sends the part. Every byte of it has verified, and was under a lease in force when it was sent.
func (s *Server) decrypt(c *call, resp *http.Response, e *crypt.Envelope, lease *keyring.Lease, p part) error {
	body := &storeBody{src: resp.Body, idle: c.idle}
	if _, err := io.CopyN(io.Discard, body, p.skip); err != nil {
		return err
	}
	opener, err := crypt.NewOpener(body, p.window, lease.DEK(), e.Header)
	if err != nil {
		return err
	}
	defer opener.Close()
	text, err := opener.Next()
	if err != nil && err != io.EOF { //nolint:errorlint // bare: Next says so
		return err
	}
	if err := c.answer(resp, e, lease, p); err != nil {
		return err
	}
	for err == nil {
		if err = lease.Check(c.Context()); err != nil {
			return err
		}
		if _, err = c.w.Write(text); err != nil {
			return err
		}
		text, err = opener.Next()
	}
	if err != io.EOF { //nolint:errorlint // bare: Next says so
		return err
	}
	return nil
}

// answer writes the status and the headers.
func (c *call) answer(resp *http.Response, e *crypt.Envelope, lease *keyring.Lease, p part) error {
	c.copyHeader(resp.Header)
	c.sayEncrypted(e.KeyID)
	h := c.w.Header()
	h.Set("Content-Length", strconv.FormatInt(p.length, 10))
	h.Set("Accept-Ranges", "bytes")
	status := http.StatusOK
	if p.partial {
		status = http.StatusPartialContent
		h.Set("Content-Range", contentRange(p.offset, p.length, e.Size))
	} else if err := c.sayChecksums(e, lease); err != nil {
		return err
	}
	c.w.WriteHeader(status)
	return nil
}

// wantsChecksums reports whether the client asked for the object's checksums.
func (c *call) wantsChecksums() bool { return c.Header.Get("X-Amz-Checksum-Mode") == "ENABLED" }

// sayChecksums gives back what the client that stored the object said of it, if this client asks.
func (c *call) sayChecksums(e *crypt.Envelope, lease *keyring.Lease) error {
	if !c.wantsChecksums() {
		return nil
	}
	digests, err := crypt.OpenChecksums(e.Sum, lease.DEK())
	if err != nil {
		return err
	}
	for i := range algorithms {
		if digest, ok := digests[algorithms[i].id]; ok {
			setChecksum(c.w.Header(), &algorithms[i], digest)
		}
	}
	return nil
}

// headObject answers with the plaintext's size, which needs arithmetic and no key, unless checksums are asked for.
// Without the key the envelope is not verified: a HEAD says what the store says.
func (s *Server) headObject(c *call) error {
	resp, err := s.send(c, c.originRequest(http.MethodHead, c.requestHeader(), nil, 0))
	if err != nil {
		return err
	}
	defer closeBody(resp)
	c.copyHeader(resp.Header)
	if resp.StatusCode == http.StatusNotModified {
		c.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	size := resp.ContentLength
	envelope, err := envelopeOf(resp.Header)
	switch {
	case errors.Is(err, crypt.ErrNoEnvelope):
		if err := s.admitPlaintext(c); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if size != crypt.StoredSize(envelope.Size) {
			return fmt.Errorf("%w: %d stored bytes for a plaintext of %d", errIntegrity, size, envelope.Size)
		}
		size = envelope.Size
		c.sayEncrypted(envelope.KeyID)
		if err := s.headChecksums(c, envelope); err != nil {
			return err
		}
	}
	return c.answerHead(size)
}

func (s *Server) headChecksums(c *call, e *crypt.Envelope) error {
	if !c.wantsChecksums() || len(e.Sum) == 0 {
		return nil
	}
	lease, err := s.unlock(c, e)
	if err != nil {
		return err
	}
	defer lease.Release()
	return c.sayChecksums(e, lease)
}

func (c *call) answerHead(size int64) error {
	h := c.w.Header()
	h.Set("Accept-Ranges", "bytes")
	status, length := http.StatusOK, size
	if wanted := parseRange(c.Header.Get("Range")); wanted != nil {
		offset, n, ok := wanted.of(size)
		if !ok {
			return invalidRange(size)
		}
		status, length = http.StatusPartialContent, n
		h.Set("Content-Range", contentRange(offset, n, size))
	}
	h.Set("Content-Length", strconv.FormatInt(length, 10))
	c.w.WriteHeader(status)
	return nil
}

// admitPlaintext refuses an object without an envelope, unless the rules allow it: stripping the envelope off an object
// must not turn into a read.
func (s *Server) admitPlaintext(c *call) error {
	if s.Keys.AllowPlaintext(c.object(), c.client.Name) {
		return nil
	}
	return &Error{Code: "PlaintextObject", Message: "The object has no encryption envelope: it was stored past the proxy, or its envelope was removed. The proxy is configured not to read such objects (plaintext_objects: deny)."}
}

// getPlaintext passes an object through that was never encrypted. A range was asked for in ciphertext terms, so it is
// asked for again, of the same object.
func (s *Server) getPlaintext(c *call, resp *http.Response, wanted *byteRange) error {
	if err := s.admitPlaintext(c); err != nil {
		return err
	}
	if wanted != nil {
		header := c.requestHeader()
		header.Set("Range", c.Header.Get("Range"))
		header.Set("If-Match", resp.Header.Get("Etag"))
		again, err := s.send(c, c.originRequest(http.MethodGet, header, nil, 0))
		if err != nil {
			return err
		}
		defer closeBody(again)
		if _, err := envelopeOf(again.Header); !errors.Is(err, crypt.ErrNoEnvelope) {
			return fmt.Errorf("%w: the object was overwritten while it was read", errOrigin)
		}
		resp = again
	}
	return c.pass(resp)
}

// pass copies the store's answer to the client unchanged.
func (c *call) pass(resp *http.Response) error {
	c.copyHeader(resp.Header)
	if resp.ContentLength >= 0 {
		c.w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	c.w.WriteHeader(resp.StatusCode)
	_, err := io.Copy(onlyWriter{c.w}, &storeBody{src: resp.Body, idle: c.idle})
	return err
}

// outOfRange answers a range that lies behind the stored body, with the size that the plaintext has.
func (s *Server) outOfRange(c *call) error {
	header := c.requestHeader()
	resp, err := s.send(c, c.originRequest(http.MethodHead, header, nil, 0))
	if err != nil {
		return err
	}
	defer closeBody(resp)
	envelope, err := envelopeOf(resp.Header)
	switch {
	case errors.Is(err, crypt.ErrNoEnvelope):
		if err := s.admitPlaintext(c); err != nil {
			return err
		}
		return invalidRange(resp.ContentLength)
	case err != nil:
		return err
	}
	return invalidRange(envelope.Size)
}

func invalidRange(size int64) *Error {
	return &Error{
		Code: "InvalidRange", Message: "The requested range is not satisfiable",
		Details: [][2]string{{"ActualObjectSize", strconv.FormatInt(size, 10)}},
		Header:  http.Header{"Content-Range": {fmt.Sprintf("bytes */%d", size)}},
	}
}

// storeBody reads the store's body. Its errors are the store's, and each read restarts the idle clock.
type storeBody struct {
	src  io.Reader
	idle *idle
}

func (b *storeBody) Read(p []byte) (int, error) {
	b.idle.moved()
	n, err := b.src.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // bare, as every io.Reader must say it
		err = fmt.Errorf("%w: reading: %w", errOrigin, err)
	}
	return n, err
}

// onlyWriter keeps io.Copy from going around response.Write.
type onlyWriter struct{ io.Writer }

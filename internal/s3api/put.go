package s3api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

// maxPeek is the longest body, in bytes, that is read whole before the
// envelope is written, so that a checksum that only comes behind the body can
// be kept in it.
const maxPeek = 1 << 20

// objectSize is the header in which a store may say the size of a new object:
// of ciphertext.
const objectSize = "X-Amz-Object-Size"

// putObject stores the payload.
func (s *Server) putObject(c *call) error {
	if err := s.sealObject(c); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// sealObject encrypts the payload on its way to the store, and sets the header
// of the answer.
//
// The envelope goes ahead of the body, as metadata. The last segment goes out
// only once signature, length and checksums have all been verified; until then
// the store has a body shorter than its Content-Length, which it must not
// keep.
func (s *Server) sealObject(c *call) error {
	wanted, err := c.encryption()
	if err != nil {
		return err
	}
	if err := checkMetadata(c.Header, nil); err != nil {
		return err
	}

	lease, err := s.Keys.Create(c.Context(), c.object(), c.client.Name, wanted)
	if err != nil {
		return err
	}
	defer lease.Release()
	c.watch(lease.Lease)
	lease.Wrote(c.auth.DecodedLength())

	if err := c.peek(); err != nil {
		return err
	}
	size := c.auth.DecodedLength()

	sealer, err := crypt.NewSealer(c.payload, size, lease.DEK(), s.Random)
	if err != nil {
		return err
	}

	header, err := s.putHeader(c, lease, sealer.Header())
	if err != nil {
		return errors.Join(err, sealer.Close())
	}

	resp, err := s.sendSealed(
		c,
		header,
		&upload{sealer: sealer, c: c, lease: lease.Lease, size: crypt.StoredSize(size)},
	)
	if err != nil {
		return err
	}
	defer closeBody(resp)

	c.copyHeader(resp.Header)
	if resp.Header.Get(objectSize) != "" { // of stores that say so
		c.w.Header().Set(objectSize, strconv.FormatInt(size, 10))
	}
	c.setSealedHeaders(lease)
	c.checks.headers(c.w.Header())
	return nil
}

// sendSealed sends an upload to the store, and returns the store's answer if
// it is a good one to the whole of it.
func (s *Server) sendSealed(c *call, header http.Header, up *upload) (*http.Response, error) {
	body, length := io.ReadCloser(up), up.size
	if length == crypt.StoredSize(0) && crypt.IsMarker(c.object(), 0) {
		// The client's body is read all the same, as its end is verified.
		if _, err := io.Copy(io.Discard, up); err == nil {
			body, length = nil, 0
		}
	}

	resp, err := s.send(c, c.originRequest(http.MethodPut, header, body, length))
	if failure := up.failure(); failure != nil {
		if err == nil {
			closeBody(resp)
		}
		return nil, failure // the client's fault, and why the store was left with half a body
	}

	if err != nil {
		return nil, up.clientTimeout(err)
	}
	if !up.finished.Load() {
		closeBody(resp)
		return nil, fmt.Errorf("%w answered %d before it had the whole body", errOrigin, resp.StatusCode)
	}

	return resp, nil
}

// peek reads a small body to its end if a checksum is in its trailer.
func (c *call) peek() error {
	if !c.checks.trailing() || c.auth.DecodedLength() > maxPeek {
		return nil
	}
	text := make([]byte, c.auth.DecodedLength())
	if _, err := io.ReadFull(c.payload, text); err != nil {
		return bodyError(err)
	}
	var end [1]byte
	if n, err := io.ReadFull(c.payload, end[:]); n > 0 || err != io.EOF {
		return bodyError(err)
	}
	c.payload = bytes.NewReader(text)
	return nil
}

// putHeader returns the header for the store, with the signed envelope in it.
func (s *Server) putHeader(c *call, lease *keyring.DataKey, h crypt.Header) (http.Header, error) {
	envelope := crypt.Envelope{Header: h, Size: c.auth.DecodedLength()}
	if err := s.sign(c, &envelope, lease, c.checks.known()); err != nil {
		return nil, err
	}
	return withEnvelope(c.requestHeader(), c.Header, &envelope)
}

// sign completes the envelope of the call's object, which is to have these
// checksums.
func (s *Server) sign(c *call, e *crypt.Envelope, lease *keyring.DataKey, sums digests) (err error) {
	e.KeyID, e.WrappedDEK = lease.KeyID, lease.Wrapped
	if e.Sum, err = crypt.SealChecksums(sums, lease.DEK(), s.Random); err != nil {
		return err
	}
	return e.Sign(lease.DEK(), c.object())
}

// withEnvelope adds the envelope to a header for the store. own is what has
// the client's user metadata.
func withEnvelope(header, own http.Header, e *crypt.Envelope) (http.Header, error) {
	metadata, err := e.Metadata()
	if err != nil {
		return nil, err
	}
	if err := checkMetadata(own, metadata); err != nil {
		return nil, err
	}
	for name, value := range metadata {
		header.Set(metaPrefix+name, value)
	}
	return header, nil
}

// upload is the body of the store's request. It remembers why it failed, which
// the transport may not hand on, and whether it was read to the end.
type upload struct {
	sealer   io.ReadCloser
	c        *call
	lease    *keyring.Lease
	size     int64 // stored size
	failed   atomic.Pointer[error]
	waiting  atomic.Pointer[time.Time] // since when the transport waits for the next bytes; nil if it does not
	finished atomic.Bool
	sent     int64
}

// Read hands out what was sealed only under a lease in force. The look at it
// comes last, as the client may have taken its time with the plaintext.
func (u *upload) Read(p []byte) (int, error) {
	began := time.Now()
	u.waiting.Store(&began)
	n, err := u.sealer.Read(p)
	u.waiting.Store(nil)

	if n > 0 {
		if err := u.lease.Check(u.c.Context()); err != nil {
			return 0, u.fail(err)
		}
	}

	u.sent += int64(n)
	if u.sent == u.size {
		u.finished.Store(true)
	}
	if err != nil && err != io.EOF && !errors.Is(err, io.ErrClosedPipe) { // bare, as above
		return n, u.fail(bodyError(err))
	}

	return n, err
}

func (u *upload) fail(err error) error {
	u.failed.CompareAndSwap(nil, &err)
	return err
}

func (u *upload) Close() error { return u.sealer.Close() }

func (u *upload) failure() error {
	if err := u.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// bodyError names a payload that does not have its declared length. Other
// errors name themselves.
func bodyError(err error) error {
	if errors.Is(err, errOrigin) { // the payload is an object that is copied
		return err
	}
	if err == nil || errors.Is(err, crypt.ErrTrailing) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) {
		return &Error{
			Code:    "IncompleteBody",
			Message: "You did not provide the number of bytes specified by the Content-Length HTTP header.",
			cause:   err,
		}
	}
	return err
}

package s3api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

// maxPeek is the longest body, in bytes, that is buffered so that its checksum
// can be stored in the envelope: the one in its trailer, or the default one.
const maxPeek = 1 << 20

// objectSize is the header in which a store may report the size of a new
// object. The size is the ciphertext's.
const objectSize = "X-Amz-Object-Size"

// putObject handles PutObject.
func (s *Server) putObject(c *call) error {
	if err := s.sealObject(c); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// sealObject encrypts the payload, sends it to the store, and sets the
// headers of the response.
//
// The envelope is sent first, as metadata. The last segment is sent only
// after the signature, the length and all checksums are verified. Until then
// the body is shorter than its Content-Length, so the store must not keep
// it.
func (s *Server) sealObject(c *call) error {
	wanted, err := c.encryption()
	if err != nil {
		return err
	}
	if err := checkMetadata(c.Header, nil); err != nil {
		return err
	}
	if err := s.checkMarker(c, c.auth.DecodedLength()); err != nil {
		return err
	}

	lease, err := c.keys.Create(c.Context(), c.object(), c.client.Name, wanted)
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

	up := &upload{sealer: sealer, c: c, lease: lease.Lease, size: crypt.StoredSize(size)}
	resp, err := s.sendSealed(c, nil, header, up)
	if c.peeked != nil {
		up.stop() // a transport may read on for a moment after the answer
		c.peeked.free()
		c.peeked = nil
	}
	if err != nil {
		return err
	}
	defer closeBody(resp)

	c.copyHeader(resp.Header)
	if resp.Header.Get(objectSize) != "" { // only some stores send it
		c.w.Header().Set(objectSize, strconv.FormatInt(size, 10))
	}
	c.setSealedHeaders(lease)
	c.checks.headers(c.w.Header())
	return nil
}

// sendSealed sends an upload to the store. It returns the store's answer if
// the store has accepted the whole body.
func (s *Server) sendSealed(c *call, query url.Values, header http.Header, up *upload) (*http.Response, error) {
	body, length := io.ReadCloser(up), up.size
	if length == crypt.StoredSize(0) && crypt.IsMarker(c.object(), 0) {
		// A directory marker has an empty body in the store. The client's
		// body is read anyway, to verify its end.
		if _, err := io.Copy(io.Discard, up); err == nil {
			body, length = nil, 0
		}
	}

	resp, err := s.send(c, c.originRequestTo(http.MethodPut, query, header, body, length))
	if c.route.flags&readsSource != 0 {
		up.stop() // the caller closes the source
	}
	if failure := up.failure(); failure != nil {
		if err == nil {
			closeBody(resp)
		}
		// Any error of the transport is only the result of this one.
		return nil, failure
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

// peek reads a small body into memory if the envelope cannot have its
// checksum otherwise: it is in the trailer, or it is computed here.
func (c *call) peek() error {
	lacking := c.checks.lacking()
	if !lacking && !c.checks.trailing() || c.auth.DecodedLength() > maxPeek {
		return nil
	}

	c.peeked = newPeeked(int(c.auth.DecodedLength()))
	text := c.peeked.text
	if _, err := io.ReadFull(c.payload, text); err != nil {
		return bodyError(err)
	}
	var end [1]byte
	if n, err := io.ReadFull(c.payload, end[:]); n > 0 || err != io.EOF {
		return bodyError(err)
	}

	if lacking {
		c.checks.takeDefault(text)
	}
	c.payload = bytes.NewBuffer(text) // the Sealer does not copy it
	return nil
}

// peeked is a body in memory. Its buffer is used again for other bodies.
type peeked struct {
	text  []byte
	class int
}

// peekSizes are the sizes of the buffers in bytes, each with its own pool.
var peekSizes = [...]int{16 << 10, 128 << 10, maxPeek}

var peekPools [len(peekSizes)]sync.Pool

func newPeeked(size int) *peeked {
	class := 0
	for peekSizes[class] < size {
		class++
	}
	if p, ok := peekPools[class].Get().(*peeked); ok {
		p.text = p.text[:size]
		return p
	}
	return &peeked{make([]byte, size, peekSizes[class]), class}
}

// free overwrites the body, which must not be used afterwards, and gives the
// buffer back.
func (p *peeked) free() {
	clear(p.text)
	peekPools[p.class].Put(p)
}

// putHeader returns the header for the store, with the signed envelope as
// metadata. If the client's metadata leaves no room for the default checksum,
// the object gets none.
func (s *Server) putHeader(c *call, lease *keyring.DataKey, h crypt.Header) (http.Header, error) {
	header, err := s.signedHeader(c, lease, h)
	if c.checks.implied && hasCode(err, "MetadataTooLarge") {
		c.checks.dropDefault()
		return s.signedHeader(c, lease, h)
	}
	return header, err
}

func (s *Server) signedHeader(c *call, lease *keyring.DataKey, h crypt.Header) (http.Header, error) {
	header := c.requestHeader()
	if err := c.checkPutConditions(header); err != nil {
		return nil, err
	}
	envelope := crypt.Envelope{Header: h, Size: c.auth.DecodedLength()}
	if err := s.setKey(&envelope, lease, c.checks.known()); err != nil {
		return nil, err
	}
	return s.addEnvelope(c, header, c.Header, &envelope, lease.DEK())
}

// setKey sets the data key of an envelope, and its checksums.
func (s *Server) setKey(e *crypt.Envelope, lease *keyring.DataKey, sums digests) (err error) {
	e.KeyID, e.WrappedDEK = lease.KeyID, lease.Wrapped
	e.Sum, err = crypt.SealChecksums(sums, lease.DEK(), s.Random)
	return err
}

// addEnvelope completes the envelope of the call's object, and adds it to
// header. own has the object's user metadata; S3's size limit is for both
// together.
func (s *Server) addEnvelope(c *call, header, own http.Header, e *crypt.Envelope, dek []byte) (http.Header, error) {
	format := c.keys.Format(c.object(), c.client.Name)
	e.Version, e.Meta = format.Version, nil
	var entries map[string]string
	var err error
	if format.SealMetadata {
		if entries, err = takeMetadata(header); err != nil {
			return nil, err
		}
		if e.Meta, err = crypt.SealMetadata(entries, dek, s.Random); err != nil {
			return nil, err
		}
	}

	if err := e.Sign(dek, c.object()); err != nil {
		return nil, err
	}
	metadata, err := e.Metadata()
	if err != nil {
		return nil, err
	}
	if err := checkFit(own, entries, metadata); err != nil {
		return nil, err
	}

	values := make([]string, 0, len(metadata)) // one allocation for all
	for name, value := range metadata {
		values = append(values, value)
		header[envelopeHeaders[name]] = values[len(values)-1 : len(values) : len(values)]
	}
	return header, nil
}

// envelopeHeaders has the headers of the envelope's entries, by name.
var envelopeHeaders = func() map[string]string {
	out := make(map[string]string)
	for _, name := range crypt.EntryNames() {
		out[name] = http.CanonicalHeaderKey(metaPrefix + name)
	}
	return out
}()

// upload is the body of the request to the store. It remembers whether the
// whole body was read, and why reading failed: the transport may not pass
// that error on.
type upload struct {
	sealer   io.ReadCloser
	c        *call
	lease    *keyring.Lease
	size     int64 // stored size
	failed   atomic.Pointer[error]
	waiting  atomic.Pointer[time.Time] // start of the current Read; nil between reads
	finished atomic.Bool
	sent     int64

	reading sync.Mutex // held during Read
	stopped bool       // guarded by reading
}

// Read returns sealed bytes only while the lease is valid. It checks the
// lease after reading, because the client may be slow to send the plaintext.
func (u *upload) Read(p []byte) (int, error) {
	u.reading.Lock()
	defer u.reading.Unlock()
	if u.stopped {
		return 0, io.ErrClosedPipe
	}

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
	if err != nil && err != io.EOF &&
		!errors.Is(err, io.ErrClosedPipe) { // ErrClosedPipe: the transport closed the body
		return n, u.fail(bodyError(err))
	}

	return n, err
}

// stop makes later Reads fail, and waits for the one that is under way. A store
// may answer before it has the body, and the transport then goes on reading
// for a moment. A Read that waits for a client could take long, so stop is
// only for copies.
func (u *upload) stop() {
	u.reading.Lock()
	defer u.reading.Unlock()
	u.stopped = true
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

// bodyError returns IncompleteBody if the payload did not have its declared
// length. It returns other errors unchanged.
func bodyError(err error) error {
	if errors.Is(err, errOrigin) { // from the source of a copy
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

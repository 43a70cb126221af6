package stored

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// Object is an object of the store, or a range of it, that is being read.
type Object struct {
	Header      http.Header // the store's headers
	NotModified bool        // 304: the client has the object; the fields below are empty
	Plaintext   bool        // it was never encrypted
	Partial     bool        // 206: a range of the object
	Size        int64       // size of the whole plaintext, in bytes
	Offset      int64       // start of the range, in bytes of plaintext
	Length      int64
	KeyID       string // id of the KMS key; "" for plaintext
	CustomerKey bool   // the object is under a customer key, which is not in a KMS
	// The object's data key is derived from one that many objects share. Set
	// for single-PUT objects only.
	BucketKey bool
	Parts     int // number of parts of a multipart object that was requested by part number; else 0

	source   *Reader
	object   crypt.Object
	random   crypt.UploadRandom // of a multipart object whose metadata is sealed
	proven   bool               // the envelope was verified, because the metadata is sealed in it
	envelope *crypt.Envelope
	known    *known

	body      io.Closer
	keys      *keys
	nextText  func() ([]byte, error)
	closeText func()
}

// Next returns the next verified bytes, while the lease is valid. They are
// valid until the next call. At the end it returns io.EOF, unwrapped. After
// any other error, the reading has failed.
func (o *Object) Next(ctx context.Context) ([]byte, error) {
	text, err := o.nextText()
	if err != nil {
		return nil, err
	}
	if o.keys != nil {
		if err := o.keys.check(ctx); err != nil {
			return nil, err
		}
	}
	return text, nil
}

// Close ends the reading, and releases the key.
func (o *Object) Close() {
	if o.closeText != nil {
		o.closeText()
	}
	if o.keys != nil {
		o.keys.release()
	}
	if o.body != nil {
		_ = o.body.Close()
	}
}

// Reader returns the rest of the object as an io.Reader.
func (o *Object) Reader(ctx context.Context) io.Reader {
	return &textReader{next: func() ([]byte, error) { return o.Next(ctx) }}
}

type textReader struct {
	next func() ([]byte, error)
	text []byte
}

func (r *textReader) Read(p []byte) (int, error) {
	for len(r.text) == 0 {
		var err error
		if r.text, err = r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.text)
	r.text = r.text[n:]
	return n, nil
}

// Checksum is the checksum that was stored with an object.
type Checksum struct {
	Digests map[crypt.ChecksumID][]byte
	Type    crypt.ChecksumType
	Parts   int // number of parts, for a composite checksum
}

// Checksum returns the object's checksum, which may be empty. It opens the
// data key.
func (o *Object) Checksum(ctx context.Context) (Checksum, error) {
	var sum []byte
	var keyID string
	var wrapped []byte
	out := Checksum{Type: crypt.FullObject}

	switch {
	case o.envelope != nil:
		sum, keyID, wrapped = o.envelope.Sum, o.envelope.KeyID, o.envelope.WrappedDEK
	case o.known != nil && o.known.record != nil:
		sum, keyID, wrapped = o.known.record.Sum, o.known.recordPart.KeyID, o.known.recordPart.WrappedDEK
		out.Type, out.Parts = o.known.record.ChecksumType, o.known.record.Parts
	}

	if len(sum) == 0 {
		return Checksum{}, nil
	}
	lease, err := o.source.Open(ctx, o.object, keyID, wrapped)
	if err != nil {
		return Checksum{}, err
	}
	defer lease.Release()

	if o.envelope != nil {
		if err := o.envelope.Verify(lease.DEK(), o.object); err != nil {
			return Checksum{}, err
		}
	}
	out.Digests, err = crypt.OpenChecksums(sum, lease.DEK())
	return out, err
}

// Prove verifies the size of an object that Head has returned, with a key
// that is valid now.
func (s *Reader) Prove(ctx context.Context, q Request, o *Object) error {
	err := s.verifySize(ctx, q, o)
	if errors.Is(err, errChanged) {
		return ErrOverwritten
	}
	return err
}

func (s *Reader) verifySize(ctx context.Context, q Request, o *Object) error {
	k := &keys{source: s, object: q.Object}
	defer k.release()
	switch {
	case o.Plaintext || o.NotModified || o.proven:
		return nil
	case o.envelope != nil:
		dek, err := k.open(ctx, o.envelope.KeyID, o.envelope.WrappedDEK)
		if err != nil {
			return err
		}
		return o.envelope.Verify(dek, q.Object)
	default:
		return s.verifyPartsSize(ctx, q, o, k)
	}
}

// ProveCached is Prove without the KMS and the store. If cached returns the
// data key of a single-PUT object, the MAC is verified. The size of a
// multipart object is compared with its layout, if that is known.
func (s *Reader) ProveCached(o *Object, cached func(keyID string, wrapped []byte) (Lease, error)) error {
	switch {
	case o.Plaintext || o.NotModified || o.proven:
		return nil
	case o.envelope != nil:
		lease, err := cached(o.envelope.KeyID, o.envelope.WrappedDEK)
		if err != nil {
			return nil // without a key, nothing can be verified
		}
		defer lease.Release()
		return o.envelope.Verify(lease.DEK(), o.object)
	case o.known.layout != nil && o.known.layout.Size() != o.Size:
		return fmt.Errorf("%w: %d bytes by its ETag, %d by its parts", ErrIntegrity, o.Size, o.known.layout.Size())
	default:
		return nil
	}
}

// verifyPartsSize verifies the layout from which the size is computed. The
// cached layout was verified before, but its key may have been revoked
// since, so the first part's key is opened again.
func (s *Reader) verifyPartsSize(ctx context.Context, q Request, o *Object, k *keys) error {
	found, err := s.findLayout(ctx, q, o.known)
	if err != nil {
		return err
	}
	if o.Size != found.layout.Size() {
		return fmt.Errorf("%w: %d bytes by its ETag, %d by its parts", ErrIntegrity, o.Size, found.layout.Size())
	}

	o.known = found

	first, err := s.partAt(ctx, q, found, chunk{}, 0, min(crypt.PartPrefixSize, found.size))
	if err != nil {
		return err
	}
	_, err = k.open(ctx, first.KeyID, first.WrappedDEK)
	return err
}

// setEnvelope sets the fields that come from the envelope.
func (o *Object) setEnvelope(e *crypt.Envelope) {
	o.envelope, o.KeyID, o.Size, o.CustomerKey = e, e.KeyID, e.Size, e.KeyID == crypt.CustomerKeyID
	wrapped, err := crypt.ParseWrappedKey(e.WrappedDEK)
	o.BucketKey = err == nil && wrapped.Salt != nil
}

// keys holds the lease of the data key in use. Most parts of one upload
// share a data key.
type keys struct {
	source  *Reader
	object  crypt.Object
	lease   Lease
	keyID   string
	wrapped string
}

func (k *keys) open(ctx context.Context, keyID string, wrapped []byte) ([]byte, error) {
	if k.lease != nil && k.keyID == keyID && k.wrapped == string(wrapped) {
		return k.lease.DEK(), nil
	}
	lease, err := k.source.Open(ctx, k.object, keyID, wrapped)
	if err != nil {
		return nil, err
	}
	k.release()
	k.lease, k.keyID, k.wrapped = lease, keyID, string(wrapped)
	return lease.DEK(), nil
}

func (k *keys) check(ctx context.Context) error {
	if k.lease == nil {
		return nil
	}
	return k.lease.Check(ctx)
}

func (k *keys) release() {
	if k.lease != nil {
		k.lease.Release()
		k.lease = nil
	}
}

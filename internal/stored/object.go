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
	Header      http.Header // the store's
	NotModified bool        // 304: the client has it; all below is empty
	Plaintext   bool        // it was never encrypted
	Partial     bool        // a range of it: 206
	Size        int64       // of the whole plaintext, in bytes
	Offset      int64       // of the range
	Length      int64
	KeyID       string // of the KMS key; "" for plaintext
	Parts       int    // of a multipart object that was asked for by part number; else 0

	store    *Store
	object   crypt.Object
	envelope *crypt.Envelope
	known    *known

	body  io.Closer
	keys  *keys
	next  func() ([]byte, error)
	close func()
}

// Next returns the next bytes, which have verified, under a lease in force. They are valid until the next call. At the
// end it returns io.EOF; on any other error no further byte may be used.
func (o *Object) Next(ctx context.Context) ([]byte, error) {
	text, err := o.next()
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

// Close ends the reading.
func (o *Object) Close() {
	if o.close != nil {
		o.close()
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

// Checksum is what the client that stored an object said of it.
type Checksum struct {
	Digests map[crypt.ChecksumID][]byte
	Type    crypt.ChecksumType
	Parts   int // of a composite one
}

// Checksum returns the object's checksum, which may be empty. It asks for the key, if nothing has yet.
func (o *Object) Checksum(ctx context.Context) (Checksum, error) {
	var sum []byte
	var keyID string
	var wrapped []byte
	out := Checksum{Type: crypt.FullObject}
	switch {
	case o.envelope != nil:
		sum, keyID, wrapped = o.envelope.Sum, o.envelope.KeyID, o.envelope.WrappedDEK
	case o.known != nil && o.known.record != nil:
		sum, keyID, wrapped = o.known.record.Sum, o.known.sealer.KeyID, o.known.sealer.WrappedDEK
		out.Type, out.Parts = o.known.record.ChecksumType, o.known.record.Parts
	}
	if len(sum) == 0 {
		return Checksum{}, nil
	}
	lease, err := o.store.Open(ctx, o.object, keyID, wrapped)
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

// keys holds the lease of the DEK in use. Parts of one upload mostly share one.
type keys struct {
	store   *Store
	object  crypt.Object
	lease   Lease
	keyID   string
	wrapped string
}

func (k *keys) open(ctx context.Context, keyID string, wrapped []byte) ([]byte, error) {
	if k.lease != nil && k.keyID == keyID && k.wrapped == string(wrapped) {
		return k.lease.DEK(), nil
	}
	lease, err := k.store.Open(ctx, k.object, keyID, wrapped)
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

// tries bounds how often a reading starts over because the object was overwritten in the middle of it.
const tries = 4

// Get begins to read an object.
func (s *Store) Get(ctx context.Context, q Request) (*Object, error) {
	return s.insist(ctx, q, s.try)
}

// insist starts over as long as the object changes, and without the range where that is what S3 does.
func (s *Store) insist(ctx context.Context, q Request, attempt func(context.Context, Request) (*Object, error)) (*Object, error) {
	for range tries {
		o, err := attempt(ctx, q)
		switch outside := (*RangeError)(nil); {
		case errors.Is(err, errChanged):
			s.Cache.forget(q)
		case errors.As(err, &outside) && outside.Size == 0 && q.Range != nil && q.Range.suffix > 0:
			q.Range = nil // the last bytes of an empty object are the whole of it
		default:
			return o, err
		}
	}
	return nil, ErrOverwritten
}

func (s *Store) try(ctx context.Context, q Request) (*Object, error) {
	switch {
	case q.Part > 0:
		return s.getPart(ctx, q)
	case q.Range != nil:
		return s.getRange(ctx, q)
	}
	resp, err := s.get(ctx, q, "")
	if err != nil {
		return nil, err
	}
	return s.whole(ctx, q, resp)
}

// whole reads an object from the answer to a request without a range.
func (s *Store) whole(ctx context.Context, q Request, resp *http.Response) (*Object, error) {
	o, err := s.openWhole(ctx, q, resp)
	if err != nil {
		_ = resp.Body.Close()
	}
	return o, err
}

func (s *Store) openWhole(ctx context.Context, q Request, resp *http.Response) (*Object, error) {
	if resp.StatusCode == http.StatusNotModified {
		closeBody(resp)
		return &Object{Header: resp.Header, NotModified: true}, nil
	}
	f, err := factsOf(resp.Header, resp.ContentLength)
	if err != nil {
		return nil, err
	}
	s.Cache.note(q, f)
	switch f.kind {
	case plaintext:
		return s.plain(q, resp)
	case single:
		return s.openSingle(ctx, q, resp, f.envelope, nil)
	default:
		return s.openParts(ctx, q, resp, f)
	}
}

// plain passes an object through that was never encrypted.
func (s *Store) plain(q Request, resp *http.Response) (*Object, error) {
	if err := q.Plaintext(); err != nil {
		return nil, err
	}
	o := &Object{Header: resp.Header, Plaintext: true, Size: resp.ContentLength, Length: resp.ContentLength, body: resp.Body}
	if resp.StatusCode == http.StatusPartialContent {
		var ok bool
		if o.Offset, o.Size, ok = parseContentRange(resp.Header.Get("Content-Range")); !ok {
			return nil, fmt.Errorf("%w sent Content-Range %q", ErrStore, resp.Header.Get("Content-Range"))
		}
		o.Partial = true
	}
	remains := o.Length
	buffer := make([]byte, 64<<10)
	o.next = func() ([]byte, error) {
		if remains == 0 {
			return nil, io.EOF
		}
		n, err := resp.Body.Read(buffer[:min(int64(len(buffer)), remains)])
		if remains -= int64(n); n > 0 {
			return buffer[:n], nil
		}
		if err == io.EOF { // bare, as every io.Reader must say it
			return nil, fmt.Errorf("%w: the body is cut short", ErrStore)
		}
		return nil, err
	}
	return o, nil
}

// openSingle reads an object that was put whole, or a range of it, from the answer.
func (s *Store) openSingle(ctx context.Context, q Request, resp *http.Response, e *crypt.Envelope, wanted *Range) (*Object, error) {
	o := &Object{Header: resp.Header, KeyID: e.KeyID, Size: e.Size, store: s, object: q.Object, envelope: e, body: resp.Body}
	o.keys = &keys{store: s, object: q.Object}
	opened := false
	defer func() {
		if !opened {
			o.keys.release()
		}
	}()
	dek, err := o.keys.open(ctx, e.KeyID, e.WrappedDEK)
	if err != nil {
		return nil, err
	}
	if err := e.Verify(dek, q.Object); err != nil {
		return nil, err
	}
	window, skip, err := o.locate(resp, wanted)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, resp.Body, skip); err != nil {
		return nil, err
	}
	opener, err := crypt.NewOpener(io.LimitReader(resp.Body, o.limit(resp, window)), window, dek, e.Header)
	if err != nil {
		return nil, err
	}
	opened, o.next, o.close = true, opener.Next, opener.Close
	return o, nil
}

// limit is how much of an answer is looked at: of one to a range no more than the window, as more was asked for; of a
// whole one all, so that what follows the last segment is found.
func (o *Object) limit(resp *http.Response, w crypt.Window) int64 {
	if o.Partial {
		return w.End - w.Start
	}
	return resp.ContentLength
}

// locate compares what the store says of its body with the envelope's size, and both with the range. The store sends
// skip bytes ahead of the window.
func (o *Object) locate(resp *http.Response, wanted *Range) (w crypt.Window, skip int64, err error) {
	start, total := int64(0), resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		var ok bool
		if start, total, ok = parseContentRange(resp.Header.Get("Content-Range")); !ok || wanted == nil {
			return w, 0, fmt.Errorf("%w: Content-Range %q was not asked for", ErrStore, resp.Header.Get("Content-Range"))
		}
	}
	if total != crypt.StoredSize(o.Size) {
		return w, 0, fmt.Errorf("%w: %d stored bytes for a plaintext of %d", ErrIntegrity, total, o.Size)
	}
	if resp.StatusCode != http.StatusPartialContent {
		o.Length = o.Size // no range, or the store found If-Range not to hold
		return crypt.Whole(o.Size), 0, nil
	}
	var ok bool
	if o.Offset, o.Length, ok = wanted.Of(o.Size); !ok {
		return w, 0, &RangeError{o.Size}
	}
	if w, err = crypt.Cover(o.Size, o.Offset, o.Length); err != nil {
		return w, 0, err
	}
	if w.Start < start {
		return w, 0, fmt.Errorf("%w sent bytes from %d, not from %d", ErrStore, start, w.Start)
	}
	o.Partial = true
	return w, w.Start - start, nil
}

// Head asks for an object without its body. Without the key nothing is verified: it says what the store says.
func (s *Store) Head(ctx context.Context, q Request) (*Object, error) {
	return s.insist(ctx, q, s.tryHead)
}

func (s *Store) tryHead(ctx context.Context, q Request) (*Object, error) {
	resp, err := s.request(ctx, http.MethodHead, q, q.Header)
	if err != nil {
		return nil, err
	}
	defer closeBody(resp)
	o := &Object{Header: resp.Header, store: s, object: q.Object}
	if resp.StatusCode == http.StatusNotModified {
		o.NotModified = true
		return o, nil
	}
	f, err := factsOf(resp.Header, resp.ContentLength)
	if err != nil {
		return nil, err
	}
	o.known = s.Cache.note(q, f)
	switch f.kind {
	case plaintext:
		o.Plaintext, o.Size = true, f.size
		err = q.Plaintext()
	case single:
		o.envelope, o.KeyID, o.Size = f.envelope, f.envelope.KeyID, f.envelope.Size
		if f.size != crypt.StoredSize(o.Size) {
			err = fmt.Errorf("%w: %d stored bytes for a plaintext of %d", ErrIntegrity, f.size, o.Size)
		}
	default:
		o.KeyID = f.mark.KeyID
		if o.Size, err = f.plaintextSize(); err == nil && (o.Size < 0 || q.Part > 0) {
			if o.known, err = s.withPart(ctx, q, o.known); err == nil {
				o.Size = o.known.layout.Size()
			}
		}
	}
	if err != nil {
		return nil, err
	}
	o.Length = o.Size
	return o, o.narrow(q)
}

// narrow applies a range or a part number to the whole.
func (o *Object) narrow(q Request) error {
	switch {
	case q.Part > 0:
		place, err := o.place(q.Part)
		if err != nil {
			return err
		}
		o.Offset, o.Length, o.Partial = place.Offset, place.Size, place.Size > 0
	case q.Range != nil:
		var ok bool
		if o.Offset, o.Length, ok = q.Range.Of(o.Size); !ok {
			return &RangeError{o.Size}
		}
		o.Partial = true
	}
	return nil
}

// place finds a part. An object that was put whole is its own part 1.
func (o *Object) place(number int) (crypt.Place, error) {
	if o.known == nil || o.known.layout == nil {
		if number != 1 {
			return crypt.Place{}, ErrPartNumber
		}
		return crypt.Place{Number: 1, Size: o.Size}, nil
	}
	place, ok := o.known.layout.At(number - 1)
	if !ok {
		return place, ErrPartNumber
	}
	o.Parts = o.known.layout.Parts()
	return place, nil
}

// Size returns the plaintext size of an object that a listing has with this ETag and stored size: from memory, or from
// the store. q.Plaintext is not asked.
func (s *Store) Size(ctx context.Context, q Request, etag string, size int64) (int64, error) {
	q.Plaintext = func() error { return nil }
	if k := s.Cache.look(q); k != nil && k.etag == etag && k.size == size {
		switch {
		case k.kind == plaintext:
			return size, nil
		case k.kind == single:
			return crypt.PlaintextSize(size)
		case k.layout != nil:
			return k.layout.Size(), nil
		}
	}
	o, err := s.Head(ctx, q)
	if err != nil {
		return 0, err
	}
	return o.Size, nil
}

// Survey finds out what is known of a multipart object's parts, by a few requests: their number, the checksum, and the
// layout if nothing odd is about it. It does nothing for an object that was put whole.
func (s *Store) Survey(ctx context.Context, q Request, o *Object) error {
	if o.known == nil || o.known.kind != multipart {
		return nil
	}
	k, err := s.survey(ctx, q, o.known)
	if errors.Is(err, errChanged) {
		return ErrOverwritten
	}
	if err != nil {
		return err
	}
	o.known = k
	return nil
}

// Layout returns the parts of a multipart object, each of which has been looked at or is in the record. It is nil for an
// object that was put whole.
func (s *Store) Layout(ctx context.Context, q Request, o *Object) (crypt.Layout, error) {
	if err := s.Survey(ctx, q, o); err != nil || o.known == nil {
		return nil, err
	}
	k, err := s.prove(ctx, q, o.known)
	if errors.Is(err, errChanged) {
		return nil, ErrOverwritten
	}
	if err != nil {
		return nil, err
	}
	o.known = k
	return k.layout, nil
}

// MadeBy reports whether an upload of that id made the object, of parts with these numbers. Survey must have been called.
func (o *Object) MadeBy(uploadID string, numbers []int) bool {
	if o.known == nil || o.known.upload != crypt.UploadOf(uploadID) || o.known.layout.Parts() != len(numbers) {
		return false
	}
	for i, number := range numbers {
		if at, _ := o.known.layout.At(i); at.Number != number {
			return false
		}
	}
	return true
}

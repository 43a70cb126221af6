package stored

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// Head asks for an object without its body. Without the key nothing is
// verified: it says what the store says.
func (s *Reader) Head(ctx context.Context, q Request) (*Object, error) {
	return s.retryIfOverwritten(ctx, q, s.headOnce)
}

func (s *Reader) headOnce(ctx context.Context, q Request) (*Object, error) {
	resp, err := s.request(ctx, http.MethodHead, q, q.Header)
	if err != nil {
		return nil, err
	}
	defer CloseBody(resp)
	o := &Object{Header: resp.Header, source: s, object: q.Object}

	if resp.StatusCode == http.StatusNotModified {
		o.NotModified = true
		return o, nil
	}

	f, err := factsOf(resp.Header, resp.ContentLength)
	if err != nil {
		return nil, err
	}
	o.known = s.Cache.remember(q, f)

	switch f.kind {
	case plaintext:
		o.Plaintext, o.Size = true, f.size
		err = q.Plaintext()
	case single:
		o.setEnvelope(f.envelope)
		if !crypt.Fits(o.Size, f.size) {
			err = fmt.Errorf("%w: %d stored bytes for a plaintext of %d", ErrIntegrity, f.size, o.Size)
		}
	default:
		o.KeyID, o.CustomerKey = f.mark.KeyID, f.mark.KeyID == crypt.CustomerKeyID
		if o.Size, err = f.plaintextSize(); err == nil && (o.Size < 0 || q.Part > 0) {
			if o.known, err = s.findLayoutWithPart(ctx, q, o.known); err == nil {
				o.Size = o.known.layout.Size()
			}
		}
	}

	if err != nil {
		return nil, err
	}
	o.Length = o.Size

	err = o.applyRange(q)
	if outside := (*RangeError)(nil); errors.As(err, &outside) {
		if failure := s.verifySize(ctx, q, o); failure != nil { // the error tells the size
			return nil, failure
		}
	}
	return o, err
}

// applyRange applies a range or a part number to the whole.
func (o *Object) applyRange(q Request) error {
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

// Size returns the plaintext size of an object that a listing has with this
// ETag and stored size: from memory, or from the store. q.Plaintext is not
// asked.
func (s *Reader) Size(ctx context.Context, q Request, etag string, size int64) (int64, error) {
	q.Plaintext = func() error { return nil }
	if k := s.Cache.lookup(q); k != nil && k.etag == etag && k.size == size {
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

// Survey finds out what is known of a multipart object's parts, by a few
// requests: their number, the checksum, and the layout if nothing odd is about
// it. It does nothing for an object that was put whole.
func (s *Reader) Survey(ctx context.Context, q Request, o *Object) error {
	if o.known == nil || o.known.kind != multipart {
		return nil
	}
	k, err := s.findLayout(ctx, q, o.known)
	if errors.Is(err, errChanged) {
		return ErrOverwritten
	}
	if err != nil {
		return err
	}
	o.known = k
	return nil
}

// Layout returns the parts of a multipart object, each of which has been
// looked at or is in the record. It is nil for an object that was put whole.
func (s *Reader) Layout(ctx context.Context, q Request, o *Object) (crypt.Layout, error) {
	if err := s.Survey(ctx, q, o); err != nil || o.known == nil {
		return nil, err
	}
	k, err := s.verifyParts(ctx, q, o.known)
	if errors.Is(err, errChanged) {
		return nil, ErrOverwritten
	}
	if err != nil {
		return nil, err
	}
	o.known = k
	return k.layout, nil
}

// MadeBy reports whether an upload of that id made the object, of parts with
// these numbers. Survey must have been called.
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

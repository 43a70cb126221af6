package stored

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// Head returns an object without its body. It uses no key, so nothing is
// verified, unless the object's metadata is sealed.
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

	f, err := s.facts(resp.Header, resp.ContentLength)
	if err != nil {
		return nil, err
	}

	o.known = s.Cache.remember(q, f)
	switch f.kind {
	case plaintext:
		o.Plaintext, o.Size = true, f.size
		err = q.Plaintext(f.size)
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
	if o.Header, err = s.revealed(ctx, q, resp.Header, f); err != nil {
		return nil, err
	}
	o.proven = f.envelope != nil && f.envelope.Meta != nil

	err = o.applyRange(q)
	if outside := (*RangeError)(nil); errors.As(err, &outside) {
		if failure := s.verifySize(ctx, q, o); failure != nil { // the error reveals the size
			return nil, failure
		}
	}
	return o, err
}

// applyRange sets the part of the object that a range or a part number
// selects.
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

// place returns the place of a part. A single-PUT object is its own part 1.
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

// Size returns the plaintext size of an object with this ETag and stored
// size, which come from a listing. The size comes from the cache or from the
// store. Size does not call q.Plaintext.
func (s *Reader) Size(ctx context.Context, q Request, etag string, size int64) (int64, error) {
	q.Plaintext = func(int64) error { return nil }
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

// Survey reads the layout of a multipart object and its checksum with a few
// requests. It does nothing for a single-PUT object.
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

// Layout returns the parts of a multipart object. Each part is verified by
// its header or by the record. It returns nil for a single-PUT object.
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

// MadeBy reports whether the upload with this id made the object, from parts
// with these numbers. The caller must call Survey first.
func (o *Object) MadeBy(uploadID string, numbers []int) bool {
	if o.known == nil || !o.known.upload.IsOf(uploadID) || o.known.layout.Parts() != len(numbers) {
		return false
	}
	for i, number := range numbers {
		if at, _ := o.known.layout.At(i); at.Number != number {
			return false
		}
	}
	return true
}

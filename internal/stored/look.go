package stored

import (
	"context"
	"fmt"
	"iter"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// Seen is what the store says about an object. No key is used, so nothing is
// authenticated.
type Seen struct {
	Header http.Header // the store's
	// NotModified is true for a 304. The fields below are then empty.
	NotModified bool
	ETag        string // the store's ETag
	Stored      int64  // stored size, in bytes
	Plaintext   bool   // the object has no envelope
	Envelope    *crypt.Envelope
	Mark        *crypt.Mark // of a multipart object, which has no Envelope
	// Parts is the number of parts of a multipart object, with an appended
	// final part; -1 if the ETag does not have it.
	Parts int
	First []byte // the first bytes, if requested
}

// Size returns the size of the plaintext in bytes, or -1 if only the part
// headers have it. It returns ErrIntegrity if the sizes contradict each
// other.
func (s *Seen) Size() (int64, error) {
	switch {
	case s.Plaintext:
		return s.Stored, nil
	case s.Envelope != nil:
		if !crypt.Fits(s.Envelope.Size, s.Stored) {
			return 0, fmt.Errorf("%w: %d stored bytes for a plaintext of %d", ErrIntegrity, s.Stored, s.Envelope.Size)
		}
		return s.Envelope.Size, nil
	case s.Parts < 0:
		return -1, nil
	default:
		return MultipartSize(s.Stored, s.Parts)
	}
}

// KeyID returns the id of the KMS key that the object names; "" for
// plaintext.
func (s *Seen) KeyID() string {
	switch {
	case s.Envelope != nil:
		return s.Envelope.KeyID
	case s.Mark != nil:
		return s.Mark.KeyID
	default:
		return ""
	}
}

// Version returns the version of the format that the object names; 0 for
// plaintext.
func (s *Seen) Version() crypt.Version {
	switch {
	case s.Envelope != nil:
		return s.Envelope.Version
	case s.Mark != nil:
		return s.Mark.Version
	default:
		return 0
	}
}

// Look returns what the store says about an object.
func (s *Reader) Look(ctx context.Context, q Request) (*Seen, error) {
	resp, err := s.request(ctx, http.MethodHead, q, q.Header)
	if err != nil {
		return nil, err
	}
	defer CloseBody(resp)
	if resp.StatusCode == http.StatusNotModified {
		return &Seen{Header: resp.Header, NotModified: true}, nil
	}
	return seenOf(resp.Header, resp.ContentLength)
}

// Peek is Look for an object that is not empty in the store. It also returns
// the first n stored bytes, or all bytes of a shorter object.
func (s *Reader) Peek(ctx context.Context, q Request, n int64) (*Seen, error) {
	resp, err := s.requestRange(ctx, q, fmt.Sprintf("bytes=0-%d", n-1))
	if err != nil {
		return nil, err
	}

	_, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
	if !ok {
		CloseBody(resp)
		return nil, fmt.Errorf("%w answered %d to a range", ErrStore, resp.StatusCode)
	}

	seen, err := seenOf(resp.Header, total)
	if err != nil {
		CloseBody(resp)
		return nil, err
	}
	have, err := readChunk(resp)
	seen.First = have.bytes

	return seen, err
}

func seenOf(h http.Header, size int64) (*Seen, error) {
	f, err := factsOf(h, size)
	if err != nil {
		return nil, err
	}

	s := &Seen{
		Header:    h,
		ETag:      f.etag,
		Stored:    size,
		Plaintext: f.kind == plaintext,
		Envelope:  f.envelope,
		Parts:     f.parts,
	}

	if f.kind == multipart {
		s.Mark = f.mark
	}
	return s, nil
}

// PartHeaders reads the part headers of a multipart object in order, because
// each header has the offset of the next one. They are not verified. It
// yields an error last; the error is ErrOverwritten if the object has
// changed since it was seen.
func (s *Reader) PartHeaders(ctx context.Context, q Request, seen *Seen) iter.Seq2[*crypt.Part, error] {
	return func(yield func(*crypt.Part, error) bool) {
		for at := int64(0); at < seen.Stored; {
			part, err := s.partHeader(ctx, q, seen, at)
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(part, nil) {
				return
			}
			at += part.Size + crypt.PartOverhead
		}
	}
}

func (s *Reader) partHeader(ctx context.Context, q Request, seen *Seen, at int64) (*crypt.Part, error) {
	if at+crypt.PartOverhead > seen.Stored {
		return nil, fmt.Errorf("%w: no room for a part at %d of %d", ErrIntegrity, at, seen.Stored)
	}
	b, err := s.fetch(ctx, q, seen.ETag, at, at+crypt.PartPrefixSize)
	if err == errChanged { //nolint:errorlint // fetch returns it unwrapped
		return nil, ErrOverwritten
	}

	if err != nil {
		return nil, err
	}
	part, err := crypt.ParsePart(b)
	if err == nil && at+part.Size+crypt.PartOverhead > seen.Stored {
		err = fmt.Errorf("%w: part %d is longer than the rest of the object", ErrIntegrity, part.Number)
	}

	return part, err
}

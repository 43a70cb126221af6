package stored

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// openParts reads a whole multipart object from one answer.
func (s *Reader) openParts(ctx context.Context, q Request, resp *http.Response, f facts) (*Object, error) {
	size, err := f.plaintextSize()
	if err != nil {
		return nil, err
	}

	k := s.Cache.remember(q, f)
	if size < 0 {
		if k, err = s.findLayout(ctx, q, k); err != nil {
			return nil, err
		}
		size = k.layout.Size()
	}

	o, err := s.multipartObject(ctx, q, k, resp)
	if err != nil {
		return nil, err
	}
	o.Size, o.Length = size, size
	cfg := s.config(ctx, q, o, k)
	cfg.Size = size
	r := crypt.NewPartsReader(resp.Body, cfg)
	o.nextText, o.closeText = r.Next, r.Close
	return o, nil
}

// multipartObject returns the object of an answer. Its metadata is taken from
// the same answer as the body.
func (s *Reader) multipartObject(ctx context.Context, q Request, k *known, resp *http.Response) (*Object, error) {
	o := &Object{
		Header: resp.Header, KeyID: k.mark.KeyID, CustomerKey: k.mark.KeyID == crypt.CustomerKeyID,
		source: s, object: q.Object, known: k, body: resp.Body,
		keys: &keys{source: s, object: q.Object},
	}
	if resp.Header.Get(metaHeader) == "" {
		return o, nil
	}

	f, err := factsOf(resp.Header, k.size)
	if err != nil {
		return nil, err
	}
	if f.mark == nil {
		return nil, errChanged
	}
	o.random = f.mark.Random
	o.Header, err = s.revealed(ctx, q, resp.Header, f)
	return o, err
}

func (s *Reader) config(ctx context.Context, q Request, o *Object, k *known) crypt.PartsConfig {
	return crypt.PartsConfig{
		Object: q.Object, Size: -1, OpenEnd: s.OpenEnd, Metadata: o.random,
		Unlock: func(p *crypt.Part) ([]byte, error) {
			o.KeyID = p.KeyID
			return o.keys.open(ctx, p.KeyID, p.WrappedDEK)
		},
		Record: func() (*crypt.Record, error) {
			last, err := s.partAt(ctx, q, k, chunk{}, k.size-crypt.PartOverhead, crypt.PartOverhead)
			if err != nil || !last.HasRecord() {
				return nil, err
			}
			return last.ParseRecord()
		},
		Known: func() *crypt.Record { return o.known.record },
	}
}

// getPart reads one part of an object. A single-PUT object is its own part
// 1.
func (s *Reader) getPart(ctx context.Context, q Request) (*Object, error) {
	head, err := s.headOnce(ctx, q)
	if err != nil || head.NotModified {
		return head, err
	}
	number := q.Part
	q.Part = 0

	if head.known.kind != multipart {
		return s.getOnlyPart(ctx, q)
	}
	if head.Length == 0 {
		return s.emptyPart(ctx, q, head, number)
	}
	q.Range = Bytes(head.Offset, head.Length)

	o, err := s.openStretch(ctx, q, head.known, chunk{})
	if err != nil {
		return nil, err
	}
	o.Parts = head.Parts

	if place, ok := o.known.layout.At(number - 1); !ok || place.Offset != o.Offset || place.Size != o.Length {
		o.Close()
		return nil, errChanged
	}
	return o, nil
}

// getOnlyPart reads a single-PUT object like a whole object, so that the MAC
// of an empty object is verified too.
func (s *Reader) getOnlyPart(ctx context.Context, q Request) (*Object, error) {
	resp, err := s.requestRange(ctx, q, "")
	if err != nil {
		return nil, err
	}

	o, err := s.readWhole(ctx, q, resp)
	if err != nil || o.NotModified {
		return o, err
	}
	if o.known != nil { // it has become a multipart object
		o.Close()
		return nil, errChanged
	}

	o.Partial = o.Length > 0
	return o, nil
}

// emptyPart reads a part without content. Its header is verified with a key
// that is valid now.
func (s *Reader) emptyPart(ctx context.Context, q Request, head *Object, number int) (*Object, error) {
	if err := s.verifySize(ctx, q, head); err != nil {
		return nil, err
	}
	place, ok := head.known.layout.At(number - 1)
	if !ok || place.Size != 0 {
		return nil, errChanged
	}

	head.keys = &keys{source: s, object: q.Object}
	part, err := s.partAt(
		ctx,
		q,
		head.known,
		chunk{},
		place.Stored,
		min(crypt.PartPrefixSize, head.known.size-place.Stored),
	)
	if err == nil {
		_, err = head.keys.open(ctx, part.KeyID, part.WrappedDEK)
	}

	if err == nil && (part.Size != 0 || part.Number != place.Number) {
		err = fmt.Errorf("%w: part %d is no longer empty", ErrIntegrity, place.Number)
	}
	if err != nil {
		head.keys.release()
		return nil, err
	}

	head.nextText = func() ([]byte, error) { return nil, io.EOF }
	return head, nil
}

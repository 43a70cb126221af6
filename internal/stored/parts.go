package stored

import (
	"context"
	"io"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// openParts reads a multipart object from its first byte to its last, from the one answer.
func (s *Store) openParts(ctx context.Context, q Request, resp *http.Response, f facts) (*Object, error) {
	size, err := f.plaintextSize()
	if err != nil {
		return nil, err
	}
	k := s.Cache.note(q, f)
	if size < 0 {
		if k, err = s.survey(ctx, q, k); err != nil {
			return nil, err
		}
		size = k.layout.Size()
	}
	o := s.multipartObject(q, k, resp)
	o.Size, o.Length = size, size
	cfg := s.config(ctx, q, o, k)
	cfg.Size = size
	r := crypt.NewPartsReader(resp.Body, cfg)
	o.next, o.close = r.Next, r.Close
	return o, nil
}

func (s *Store) multipartObject(q Request, k *known, resp *http.Response) *Object {
	return &Object{
		Header: resp.Header, KeyID: k.mark.KeyID, CustomerKey: k.mark.KeyID == crypt.CustomerKeyID, store: s, object: q.Object, known: k, body: resp.Body,
		keys: &keys{store: s, object: q.Object},
	}
}

func (s *Store) config(ctx context.Context, q Request, o *Object, k *known) crypt.PartsConfig {
	return crypt.PartsConfig{
		Object: q.Object, Size: -1, OpenEnd: s.OpenEnd,
		Unlock: func(p *crypt.Part) ([]byte, error) {
			o.KeyID = p.KeyID
			return o.keys.open(ctx, p.KeyID, p.WrappedDEK)
		},
		Record: func() (*crypt.Record, error) {
			last, err := s.partAt(ctx, q, k, chunk{}, k.size-crypt.PartOverhead, crypt.PartOverhead)
			if err != nil || !last.HasRecord() {
				return nil, err
			}
			return crypt.ParseRecord(last.Record)
		},
	}
}

// getPart reads one part of an object, or an object that was put whole as its own part 1.
func (s *Store) getPart(ctx context.Context, q Request) (*Object, error) {
	head, err := s.tryHead(ctx, q)
	if err != nil || head.NotModified {
		return head, err
	}
	number := q.Part
	q.Part = 0
	if head.Length == 0 {
		head.next = func() ([]byte, error) { return nil, io.EOF }
		return head, nil
	}
	if head.known.kind != multipart {
		resp, err := s.get(ctx, q, "")
		if err != nil {
			return nil, err
		}
		o, err := s.whole(ctx, q, resp)
		if err == nil {
			o.Partial = true
		}
		return o, err
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

package stored

import (
	"context"
	"errors"
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// errUneven means that the parts do not all have the same length, as the
// guess assumed.
var errUneven = errors.New("parts of several lengths")

// findLayout returns the layout of a multipart object. If all parts but the
// last have the same length, it needs the first and the last part. Otherwise
// it needs the record, or without a record the headers of all parts.
func (s *Reader) findLayout(ctx context.Context, q Request, k *known) (*known, error) {
	if k.layout != nil {
		return k, nil
	}

	var found *known
	g, err := s.guessLayout(ctx, q, k, chunk{})
	if err == nil {
		found, err = s.confirmGuess(ctx, q, g, chunk{})
	}
	if errors.Is(err, errUneven) {
		found, err = s.walkParts(ctx, q, k)
	}
	if err != nil {
		return nil, err
	}

	s.Cache.put(q, found)
	return found, nil
}

// findLayoutWithPart is findLayout, but also verifies the place of the part in
// the request.
func (s *Reader) findLayoutWithPart(ctx context.Context, q Request, k *known) (*known, error) {
	k, err := s.findLayout(ctx, q, k)
	if err != nil || k.verified || q.Part == 0 {
		return k, err
	}
	if at, ok := k.layout.At(q.Part - 1); ok {
		if err := s.checkPlace(ctx, q, k, at); err == nil || !k.mayBeWrongGuess(err) {
			return k, err
		}
	}
	return s.walkParts(ctx, q, k)
}

// checkPlace checks the header of the part at a place of the layout.
func (s *Reader) checkPlace(ctx context.Context, q Request, k *known, at crypt.Place) error {
	part, err := s.partAtPlace(ctx, q, k, chunk{}, at)
	if err != nil {
		return err
	}

	if part.Number != at.Number || part.Size != at.Size {
		return fmt.Errorf(
			"%w: part %d of %d bytes, not part %d of %d",
			crypt.ErrAuth,
			part.Number,
			part.Size,
			at.Number,
			at.Size,
		)
	}

	return nil
}

// maxHeaderRequests is the number of concurrent requests for part headers.
const maxHeaderRequests = 16

// verifyParts verifies the header of each part, unless a record has verified
// them.
func (s *Reader) verifyParts(ctx context.Context, q Request, k *known) (*known, error) {
	if k.verified || k.kind != multipart {
		return k, nil
	}

	turns := make(chan struct{}, maxHeaderRequests)
	tasks := make([]task, k.layout.Parts())
	for i := range tasks {
		at, _ := k.layout.At(i)
		turns <- struct{}{}
		tasks[i] = startTask(func() error {
			defer func() { <-turns }()
			return s.checkPlace(ctx, q, k, at)
		})
	}

	var failure error
	for _, t := range tasks {
		if err := t.wait(); err != nil {
			failure = err
		}
	}

	if failure != nil {
		if k.mayBeWrongGuess(failure) {
			return s.walkParts(ctx, q, k)
		}
		return nil, failure
	}

	out := *k
	out.verified = true
	s.Cache.put(q, &out)
	return &out, nil
}

// guessedLayout is a layout with parts of the same length. The end must
// still confirm it.
type guessedLayout struct {
	*known
	end    int64 // stored offset of the last part
	length int64 // number of stored bytes that verify the last part
}

// guessLayout assumes that all parts except the last are as long as the
// first.
func (s *Reader) guessLayout(ctx context.Context, q Request, k *known, have chunk) (guessedLayout, error) {
	first, err := s.partAt(ctx, q, k, have, 0, crypt.PartPrefixSize)
	if err != nil {
		return guessedLayout{}, err
	}
	g := guessedLayout{known: &known{facts: k.facts, upload: first.Upload}}

	size, err := k.plaintextSize()
	if err != nil {
		return guessedLayout{}, err
	}
	ahead := int64(k.parts-1) * first.Size
	rest := size - ahead

	switch {
	case k.parts < 1, first.Number != 1, rest < 0, rest > first.Size, k.parts > 1 && first.Size == 0:
		return guessedLayout{}, errUneven
	case rest == 0 && k.parts > 1: // appended, or an empty part from the client
		g.layout = crypt.Layout{{Number: 1, Count: k.parts - 1, Size: first.Size}}
		g.end, g.length = k.size-crypt.PartOverhead, crypt.PartOverhead
	default:
		if k.parts > 1 {
			g.layout = crypt.Layout{{Number: 1, Count: k.parts - 1, Size: first.Size}}
		}
		g.layout = g.layout.Add(k.parts, rest)
		g.end, g.length = k.size-rest-crypt.PartOverhead, crypt.PartPrefixSize
	}

	return g, nil
}

// confirmGuess checks the last part. It returns errUneven if there is no
// part where the guess expects it.
func (s *Reader) confirmGuess(ctx context.Context, q Request, g guessedLayout, have chunk) (*known, error) {
	last, err := s.partAt(ctx, q, g.known, have, g.end, g.length)
	if errors.Is(err, crypt.ErrEnvelope) || errors.Is(err, crypt.ErrVersion) {
		return nil, errUneven
	}
	if err != nil {
		return nil, err
	}

	out := *g.known
	switch {
	case !out.join(last):
		return nil, fmt.Errorf("%w: the last part is of another upload than the first", ErrIntegrity)
	case !last.Final && !s.OpenEnd:
		return nil, fmt.Errorf(
			"%w: %w: the last part is missing: part %d is not final",
			ErrIntegrity,
			crypt.ErrTruncated,
			last.Number,
		)
	case last.HasRecord():
		return out.withRecord(last)
	case last.Number != g.parts || g.end+last.Size+crypt.PartOverhead != g.size:
		return nil, errUneven
	case last.Size == 0 && g.parts > 1:
		out.layout = out.layout.Add(last.Number, 0)
	}

	return &out, nil
}

// withRecord takes the layout from the record, which is authoritative. It
// returns errUneven if the record does not have the layout.
func (k known) withRecord(part *crypt.Part) (*known, error) {
	record, err := part.ParseRecord()
	if err != nil {
		return nil, err
	}
	if record.Layout != nil {
		k.layout = record.Layout
	}

	if k.layout == nil || !record.Matches(k.layout) {
		return nil, errUneven
	}
	if stored := k.layout.Size() + int64(k.layout.Parts()+1)*crypt.PartOverhead; stored != k.size {
		return nil, fmt.Errorf("%w: %d stored bytes, but the parts of the record have %d", ErrIntegrity, k.size, stored)
	}
	if !k.join(part) {
		return nil, fmt.Errorf("%w: the record is of another upload than the first part", ErrIntegrity)
	}
	k.record, k.recordPart, k.verified = record, part, true

	return &k, nil
}

// walkParts finds the layout in the record at the end. Without a usable
// record, it reads the headers of all parts in order.
func (s *Reader) walkParts(ctx context.Context, q Request, k *known) (*known, error) {
	out := known{facts: k.facts}
	last, err := s.partAt(ctx, q, k, chunk{}, k.size-crypt.PartOverhead, crypt.PartOverhead)
	switch {
	case err == nil && last.HasRecord():
		found, err := out.withRecord(last)
		if !errors.Is(err, errUneven) {
			if err == nil {
				s.Cache.put(q, found)
			}
			return found, err
		}
	case err != nil && !errors.Is(err, crypt.ErrEnvelope) && !errors.Is(err, crypt.ErrVersion):
		return nil, err
	}

	for at := int64(0); at < k.size; {
		length := int64(crypt.PartPrefixSize)
		if at+crypt.PartOverhead == k.size {
			length = crypt.PartOverhead // an empty part may have a record
		}

		part, err := s.partAt(ctx, q, k, chunk{}, at, length)
		if err != nil {
			return nil, err
		}
		if err := out.addPart(part); err != nil {
			return nil, err
		}

		at += part.Size + crypt.PartOverhead
		if at > k.size {
			return nil, fmt.Errorf(
				"%w: part %d ends after the object's %d bytes",
				ErrIntegrity,
				part.Number,
				k.size,
			)
		}

		if end := at == k.size; part.Final != end && (!end || !s.OpenEnd) {
			return nil, fmt.Errorf(
				"%w: part %d ends at byte %d of %d, and is final: %t",
				ErrIntegrity,
				part.Number,
				at,
				k.size,
				part.Final,
			)
		}
	}

	if out.record == nil && !out.layout.Contiguous() {
		return nil, fmt.Errorf("%w: a part is missing: the numbers have gaps", ErrIntegrity)
	}
	out.verified = true
	s.Cache.put(q, &out)
	return &out, nil
}

// addPart adds a part to the layout, with the checks of reading the whole
// object.
func (k *known) addPart(part *crypt.Part) error {
	if !k.join(part) {
		return fmt.Errorf("%w: part %d is of another upload than the first", ErrIntegrity, part.Number)
	}

	if !part.HasRecord() {
		k.layout = k.layout.Add(part.Number, part.Size)
		return nil
	}

	record, err := part.ParseRecord()
	if err != nil {
		return err
	}
	if !record.Matches(k.layout) {
		return fmt.Errorf("%w: the parts do not match the record", ErrIntegrity)
	}

	k.record, k.recordPart = record, part
	return nil
}

// join adds what a part says about the upload. It reports whether the part is
// of the upload of the others.
func (k *known) join(part *crypt.Part) (ok bool) {
	if k.upload == (crypt.Upload{}) {
		k.upload = part.Upload
		return true
	}
	k.upload, ok = k.upload.Join(part.Upload)
	return ok
}

// partAtPlace returns the header of the part at a place of the layout, from
// the cache or the store.
func (s *Reader) partAtPlace(
	ctx context.Context,
	q Request,
	k *known,
	have chunk,
	at crypt.Place,
) (*crypt.Part, error) {
	id := partID{cacheID(q), k.etag, at.Stored}
	if p, ok := s.Cache.parts.Get(id); ok {
		return p, nil
	}
	part, err := s.partAt(ctx, q, k, have, at.Stored, crypt.PartPrefixSize)
	if err != nil {
		return nil, err
	}
	if _, ok := k.upload.Join(part.Upload); !ok {
		return nil, fmt.Errorf("%w: part %d is of another upload than the first", crypt.ErrAuth, part.Number)
	}
	return part, nil
}

// partAt returns the verified header of the part at a stored offset. It
// includes the record if length covers it.
func (s *Reader) partAt(ctx context.Context, q Request, k *known, have chunk, at, length int64) (*crypt.Part, error) {
	id := partID{cacheID(q), k.etag, at}
	if p, ok := s.Cache.parts.Get(id); ok && (!p.HasRecord() || p.Record != nil) {
		return p, nil
	}
	if at < 0 || at+length > k.size {
		return nil, fmt.Errorf("%w: no room for a part at %d of %d", crypt.ErrEnvelope, at, k.size)
	}

	b := have.slice(at, at+length)
	if b == nil {
		var err error
		if b, err = s.fetch(ctx, q, k.etag, at, at+length); err != nil {
			return nil, err
		}
	}

	part, err := crypt.ParsePart(b)
	if err != nil {
		return nil, err
	}

	lease, err := s.Open(ctx, q.Object, part.KeyID, part.WrappedDEK)
	if err != nil {
		return nil, err
	}
	defer lease.Release()

	if err := part.Verify(lease.DEK(), q.Object); err != nil {
		return nil, err
	}
	s.Cache.parts.Add(id, part)
	return part, nil
}

// task is a function that runs in another goroutine.
type task struct{ done chan error }

func startTask(run func() error) task {
	t := task{make(chan error, 1)}
	go func() {
		err := errors.New("panic")
		defer func() {
			// Outside the request's own goroutine, a panic would end the
			// process.
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v", p)
			}
			t.done <- err
		}()
		err = run()
	}()
	return t
}

// finishedTask returns a task that has ended.
func finishedTask(err error) task {
	t := task{make(chan error, 1)}
	t.done <- err
	return t
}

func (t task) wait() error { return <-t.done }

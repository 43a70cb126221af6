package stored

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// getRange reads a range. If the object is not in the cache, the first
// request is meant for a single-PUT object. If the range starts where the
// first part could have ended, the object is more likely a multipart object,
// and the first request reads the header of the first part.
func (s *Reader) getRange(ctx context.Context, q Request) (*Object, error) {
	k := s.Cache.lookup(q)
	if k != nil && k.kind == multipart && k.parts > 0 {
		return s.openRange(ctx, q, k, chunk{})
	}
	probe := k == nil && q.Range.suffix < 0 && q.Range.first >= crypt.MinPartSize
	spec := q.Range.stored(0)

	switch {
	case probe:
		spec = fmt.Sprintf("bytes=0-%d", crypt.PartPrefixSize-1)
	case k == nil:
		spec = q.Range.stored(crypt.PartOverhead)
	}

	resp, err := s.requestRange(ctx, q, spec)
	if StatusOf(err) == http.StatusRequestedRangeNotSatisfiable {
		return nil, s.outsideError(ctx, q)
	}
	if err != nil {
		return nil, err
	}

	if resp.StatusCode == http.StatusOK && resp.ContentLength == 0 && q.Range.suffix <= 0 &&
		q.Header.Get("If-Range") == "" {
		return nil, s.emptyObjectError(ctx, q, resp)
	}
	if resp.StatusCode != http.StatusPartialContent { // 304, or If-Range did not match
		return s.readWhole(ctx, q, resp)
	}

	o, err := s.continueRange(ctx, q, resp, probe)
	if err != nil {
		_ = resp.Body.Close()
	}
	return o, err
}

// outsideError returns the error for a range that seems to be after the end
// of the object.
func (s *Reader) outsideError(ctx context.Context, q Request) error {
	wanted := q.Range
	q.Range = nil
	o, err := s.Head(ctx, q)
	if err != nil {
		return err
	}
	if _, _, ok := wanted.Of(o.Size); ok {
		return errChanged
	}
	if err := s.verifySize(ctx, q, o); err != nil { // the store's word that there is nothing to read is not enough
		return err
	}
	return &RangeError{o.Size}
}

// emptyObjectError returns the error for a range of an object that the store
// says is empty. For a suffix of an empty object, stores return the whole
// object, even for a suffix of 0 bytes.
func (s *Reader) emptyObjectError(ctx context.Context, q Request, resp *http.Response) error {
	o, err := s.readWhole(ctx, q, resp)
	if err != nil {
		return err
	}
	o.Close()
	if o.Size != 0 {
		return errChanged
	}
	return &RangeError{0}
}

// continueRange reads a range from the first answer. If that answer does not
// fit the kind of object, it sends a second request.
func (s *Reader) continueRange(ctx context.Context, q Request, resp *http.Response, probe bool) (*Object, error) {
	f, err := s.rangeFacts(resp)
	if err != nil {
		return nil, err
	}

	k := s.Cache.remember(q, f)
	switch {
	case f.kind == multipart:
		have, err := readChunk(resp)
		if err != nil {
			return nil, err
		}
		return s.openRange(ctx, q, k, have)
	case f.kind == single && !probe:
		return s.openSingle(ctx, q, resp, f.envelope, q.Range)
	}

	CloseBody(resp)
	spec := q.Range.stored(0)
	if f.kind == plaintext {
		if err := q.Plaintext(f.size); err != nil {
			return nil, err
		}
		spec = q.Range.String()
	}

	again, err := s.requestRange(ctx, q, spec)
	if StatusOf(err) == http.StatusRequestedRangeNotSatisfiable {
		return nil, s.outsideError(ctx, q)
	}
	if err != nil {
		return nil, err
	}

	o, err := s.openAgain(ctx, q, again, f)
	if err != nil {
		_ = again.Body.Close()
	}
	return o, err
}

func (s *Reader) openAgain(ctx context.Context, q Request, resp *http.Response, f facts) (*Object, error) {
	now, err := s.rangeFacts(resp)
	if err != nil {
		return nil, err
	}
	if now.etag != f.etag || now.kind != f.kind {
		return nil, errChanged
	}
	if f.kind == plaintext {
		return s.openPlaintext(q, resp)
	}
	return s.openSingle(ctx, q, resp, now.envelope, q.Range)
}

func (s *Reader) rangeFacts(resp *http.Response) (facts, error) {
	_, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
	if !ok || resp.StatusCode != http.StatusPartialContent {
		return facts{}, fmt.Errorf(
			"%w answered %d, Content-Range %q",
			ErrStore,
			resp.StatusCode,
			resp.Header.Get("Content-Range"),
		)
	}
	return s.facts(resp.Header, total)
}

// openRange reads a range of a multipart object. have is what the first
// request has returned.
//
// If the layout is not known, it is guessed from the first part. Then the
// end of the object, the part header and the content are requested at the
// same time. All of them must be verified before any byte is returned.
func (s *Reader) openRange(ctx context.Context, q Request, k *known, have chunk) (*Object, error) {
	if k.layout != nil {
		return s.openStretch(ctx, q, k, have)
	}

	g, err := s.guessLayout(ctx, q, k, have)
	if errors.Is(err, errUneven) {
		if k, err = s.walkParts(ctx, q, k); err != nil {
			return nil, err
		}
		return s.openStretch(ctx, q, k, have)
	}
	if err != nil {
		return nil, err
	}

	var confirmed *known
	confirm := func() (err error) {
		confirmed, err = s.confirmGuess(ctx, q, g, have)
		return err
	}

	end := startTask(confirm)
	// The content needs the same part header, so wait for it instead of
	// requesting it twice.
	if g.isInLastPart(q.Range) {
		end = finishedTask(end.wait())
	}

	o, err := s.openStretch(ctx, q, g.known, have)
	if failure := end.wait(); failure != nil {
		if o != nil {
			o.Close()
		}
		if !errors.Is(failure, errUneven) {
			return nil, failure
		}

		if k, err = s.walkParts(ctx, q, k); err != nil {
			return nil, err
		}
		return s.openStretch(ctx, q, k, have)
	}

	s.Cache.put(q, confirmed)
	if !slices.Equal(confirmed.layout, g.layout) ||
		err != nil && confirmed.verified { // the record has corrected the guess
		if o != nil {
			o.Close()
		}
		return s.openStretch(ctx, q, confirmed, have)
	}

	if o != nil {
		o.known = confirmed
	}
	return o, err
}

// isInLastPart reports whether a range begins in the last part.
func (g guessedLayout) isInLastPart(r *Range) bool {
	offset, _, ok := r.Of(g.layout.Size())
	at, found := g.layout.Find(offset)
	return ok && found && at.Stored == g.end
}

// openStretch reads a range of an object with the layout of k. If a guessed
// layout turns out to be wrong, it reads the part headers one after the
// other.
func (s *Reader) openStretch(ctx context.Context, q Request, k *known, have chunk) (*Object, error) {
	offset, length, ok := q.Range.Of(k.layout.Size())
	if !ok {
		return nil, s.outsideError(ctx, q)
	}

	o, err := s.stretch(ctx, q, k, have, offset, length)
	if err != nil && k.mayBeWrongGuess(err) {
		if k, err = s.walkParts(ctx, q, k); err != nil {
			return nil, err
		}
		if offset, length, ok = q.Range.Of(k.layout.Size()); !ok {
			return nil, &RangeError{k.layout.Size()}
		}
		o, err = s.stretch(ctx, q, k, have, offset, length)
	}
	if err != nil {
		return nil, err
	}

	o.Size, o.Offset, o.Length, o.Partial = k.layout.Size(), offset, length, true
	s.recoverFromWrongGuess(ctx, q, o, k)
	return o, nil
}

// mayBeWrongGuess reports whether an error may come from a wrong guess of
// the layout.
func (k *known) mayBeWrongGuess(err error) bool {
	return !k.verified &&
		(errors.Is(err, crypt.ErrAuth) || errors.Is(err, crypt.ErrEnvelope) ||
			errors.Is(err, crypt.ErrVersion) || errors.Is(err, crypt.ErrSize))
}

// recoverFromWrongGuess makes the object continue with the correct layout if
// the guess turns out to be wrong after the first part.
func (s *Reader) recoverFromWrongGuess(ctx context.Context, q Request, o *Object, k *known) {
	var done int64
	next := o.nextText
	o.nextText = func() ([]byte, error) {
		text, err := next()
		if err != nil && err != io.EOF && k.mayBeWrongGuess(err) { //nolint:errorlint // Next returns io.EOF unwrapped
			if k, err = s.walkParts(ctx, q, k); err != nil {
				return nil, err
			}
			rest, err := s.stretch(ctx, q, k, chunk{}, o.Offset+done, o.Length-done)
			if err != nil {
				return nil, err
			}

			o.Close()
			o.body, o.keys, o.closeText, next = rest.body, rest.keys, rest.closeText, rest.nextText
			text, err = next()
			done += int64(len(text))
			return text, err
		}

		done += int64(len(text))
		return text, err
	}
}

// stretch requests the stored bytes of a range and, at the same time, the
// header of the part in which the range begins.
func (s *Reader) stretch(ctx context.Context, q Request, k *known, have chunk, offset, length int64) (*Object, error) {
	first, _ := k.layout.Find(offset)
	last, ok := k.layout.Find(offset + length - 1)
	if !ok {
		return nil, fmt.Errorf("%w: bytes %d+%d of %d", crypt.ErrSize, offset, length, k.layout.Size())
	}

	toEnd := offset+length == k.layout.Size()
	from, to, err := storedStretch(first, last, offset, length)
	if err != nil {
		return nil, err
	}
	if toEnd {
		to = k.size
	}

	if from >= to { // the layout and the size contradict each other
		return nil, fmt.Errorf("%w: stored bytes %d to %d of %d", crypt.ErrSize, from, to, k.size)
	}

	var part *crypt.Part
	header := startTask(func() (err error) {
		part, err = s.partAtPlace(ctx, q, k, have, first)
		return err
	})

	resp, err := s.stretchBody(ctx, q, k, have, from, to)
	if failure := header.wait(); failure != nil || err != nil {
		if err == nil {
			_ = resp.Body.Close()
			err = failure
		}
		return nil, err
	}

	o, err := s.multipartObject(ctx, q, k, resp)
	if err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	r, err := crypt.NewStretchReader(resp.Body, crypt.Stretch{
		Layout: k.layout, Place: first, Part: part, Offset: offset - first.Offset, Length: length, ToEnd: toEnd,
	}, s.config(ctx, q, o, k))
	if err != nil {
		o.Close()
		return nil, err
	}

	o.nextText, o.closeText = r.Next, r.Close
	return o, nil
}

// storedStretch returns the stored offsets of a range that begins in one
// part and ends in the same or a later one.
func storedStretch(first, last crypt.Place, offset, length int64) (from, to int64, err error) {
	begin, end := crypt.Part{Size: first.Size}, crypt.Part{Size: last.Size}
	head, err := begin.Cover(offset-first.Offset, 1)
	if err != nil {
		return 0, 0, err
	}
	tail, err := end.Cover(offset+length-1-last.Offset, 1)
	if err != nil {
		return 0, 0, err
	}
	return first.Stored + crypt.PartHeaderSize + head.Start, last.Stored + crypt.PartHeaderSize + tail.End, nil
}

// stretchBody returns stored bytes, from have if it has them, or else from
// the store.
func (s *Reader) stretchBody(
	ctx context.Context,
	q Request,
	k *known,
	have chunk,
	from, to int64,
) (*http.Response, error) {
	if b := have.slice(from, to); b != nil {
		return &http.Response{Header: have.header, Body: io.NopCloser(bytes.NewReader(b))}, nil
	}
	resp, err := s.requestRange(ctx, q, fmt.Sprintf("bytes=%d-%d", from, to-1))
	if StatusOf(err) == http.StatusRequestedRangeNotSatisfiable {
		return nil, errChanged
	}
	if err != nil {
		return nil, err
	}

	start, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
	if resp.StatusCode != http.StatusPartialContent || !ok || total != k.size || start != from ||
		resp.Header.Get("Etag") != k.etag {
		_ = resp.Body.Close()
		// It may also be a 304, or an If-Range that does not match. The
		// retry finds out.
		return nil, errChanged
	}
	return resp, nil
}

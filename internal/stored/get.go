package stored

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// maxAttempts limits how often a read starts over because the object was
// overwritten.
const maxAttempts = 4

// Get starts to read an object.
func (s *Reader) Get(ctx context.Context, q Request) (*Object, error) {
	return s.retryIfOverwritten(ctx, q, s.getOnce)
}

// retryIfOverwritten repeats an attempt if the object has changed. If the
// range is a suffix of an empty object, it repeats the attempt without the
// range, as S3 does.
func (s *Reader) retryIfOverwritten(
	ctx context.Context,
	q Request,
	attempt func(context.Context, Request) (*Object, error),
) (*Object, error) {
	for range maxAttempts {
		o, err := attempt(ctx, q)
		switch outside := (*RangeError)(nil); {
		case errors.Is(err, errChanged):
			s.Cache.forget(q)
		case errors.As(err, &outside) && outside.Size == 0 && q.Range != nil && q.Range.suffix > 0:
			q.Range = nil // the last bytes of an empty object are the whole object
		default:
			return o, err
		}
	}
	return nil, ErrOverwritten
}

func (s *Reader) getOnce(ctx context.Context, q Request) (*Object, error) {
	switch {
	case q.Part > 0:
		return s.getPart(ctx, q)
	case q.Range != nil:
		return s.getRange(ctx, q)
	}
	resp, err := s.requestRange(ctx, q, "")
	if err != nil {
		return nil, err
	}
	return s.readWhole(ctx, q, resp)
}

// readWhole reads an object from the answer to a request without a range.
func (s *Reader) readWhole(ctx context.Context, q Request, resp *http.Response) (*Object, error) {
	o, err := s.openWhole(ctx, q, resp)
	if err != nil {
		_ = resp.Body.Close()
	}
	return o, err
}

func (s *Reader) openWhole(ctx context.Context, q Request, resp *http.Response) (*Object, error) {
	if resp.StatusCode == http.StatusNotModified {
		CloseBody(resp)
		return &Object{Header: resp.Header, NotModified: true}, nil
	}

	f, err := s.facts(resp.Header, resp.ContentLength)
	if err != nil {
		return nil, err
	}
	s.Cache.remember(q, f)

	switch f.kind {
	case plaintext:
		return s.openPlaintext(q, resp)
	case single:
		return s.openSingle(ctx, q, resp, f.envelope, nil)
	default:
		return s.openParts(ctx, q, resp, f)
	}
}

// openPlaintext returns an object that was never encrypted.
func (s *Reader) openPlaintext(q Request, resp *http.Response) (*Object, error) {
	o := &Object{
		Header:    resp.Header,
		Plaintext: true,
		Size:      resp.ContentLength,
		Length:    resp.ContentLength,
		body:      resp.Body,
	}

	if resp.StatusCode == http.StatusPartialContent {
		var ok bool
		if o.Offset, o.Size, ok = parseContentRange(resp.Header.Get("Content-Range")); !ok {
			return nil, fmt.Errorf("%w sent Content-Range %q", ErrStore, resp.Header.Get("Content-Range"))
		}
		o.Partial = true
	}
	if err := q.Plaintext(o.Size); err != nil {
		return nil, err
	}

	remains := o.Length
	buffer := make([]byte, 64<<10)
	o.nextText = func() ([]byte, error) {
		if remains == 0 {
			return nil, io.EOF
		}
		n, err := resp.Body.Read(buffer[:min(int64(len(buffer)), remains)])
		if remains -= int64(n); n > 0 {
			return buffer[:n], nil
		}

		if err == io.EOF { // unwrapped, as readers return it
			return nil, fmt.Errorf("%w: the body is truncated", ErrStore)
		}
		return nil, err
	}

	return o, nil
}

// openSingle reads a single-PUT object, or a range of it, from an answer.
func (s *Reader) openSingle(
	ctx context.Context,
	q Request,
	resp *http.Response,
	e *crypt.Envelope,
	wanted *Range,
) (*Object, error) {
	o := &Object{Header: resp.Header, source: s, object: q.Object, body: resp.Body}
	o.setEnvelope(e)
	o.keys = &keys{source: s, object: q.Object}

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
	if o.Header, err = revealWith(q.Query, resp.Header, e.Meta, dek); err != nil {
		return nil, err
	}

	if resp.StatusCode == http.StatusOK && resp.ContentLength == 0 && e.Size == 0 {
		opened, o.nextText = true, func() ([]byte, error) { return nil, io.EOF } // see crypt.Fits
		return o, nil
	}

	window, skip, err := o.locate(resp, wanted)
	if err != nil {
		return nil, err
	}
	_, err = io.CopyN(io.Discard, resp.Body, skip)
	if err == io.EOF { //nolint:errorlint // unwrapped: the answer is complete, but too short
		return nil, fmt.Errorf("%w: %w", ErrIntegrity, crypt.ErrTruncated)
	}
	if err != nil {
		return nil, err
	}

	opener, err := crypt.NewOpener(io.LimitReader(resp.Body, o.readLimit(resp, window)), window, dek, e.Header)
	if err != nil {
		return nil, err
	}
	opened, o.nextText, o.closeText = true, opener.Next, opener.Close
	return o, nil
}

// readLimit returns how many bytes of an answer are used. An answer to a
// range may have more than the window, because more was requested. From an
// answer without a range, all bytes are read, to detect bytes after the last
// segment.
func (o *Object) readLimit(resp *http.Response, w crypt.Window) int64 {
	if o.Partial {
		return w.End - w.Start
	}
	return resp.ContentLength
}

// locate checks the size of the store's answer against the envelope's size
// and the range. The store sends skip bytes before the window.
func (o *Object) locate(resp *http.Response, wanted *Range) (w crypt.Window, skip int64, err error) {
	start, total := int64(0), resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		var ok bool
		if start, total, ok = parseContentRange(resp.Header.Get("Content-Range")); !ok || wanted == nil {
			return w, 0, fmt.Errorf(
				"%w: unexpected Content-Range %q",
				ErrStore,
				resp.Header.Get("Content-Range"),
			)
		}
	}

	if total != crypt.StoredSize(o.Size) {
		return w, 0, fmt.Errorf("%w: %d stored bytes for a plaintext of %d", ErrIntegrity, total, o.Size)
	}
	if resp.StatusCode != http.StatusPartialContent {
		o.Length = o.Size // no range, or If-Range did not match
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

package crypt

import (
	"bytes"
	"fmt"
	"io"
)

// PartsConfig is what a PartsReader needs to know of its object.
type PartsConfig struct {
	Object Object
	Size   int64 // of the object's plaintext, as the store's part count gives it; -1 if that is not known
	// OpenEnd accepts a last part that is not final: whether parts were cut
	// off behind it cannot be told then.
	OpenEnd bool
	// Unlock returns the DEK of a part, which has not been verified yet. It
	// stays valid until the next call.
	Unlock func(*Part) ([]byte, error)
	// Record returns the record of the object's last part, verified, or nil if
	// it has none. It is asked only when a gap in the part numbers would
	// otherwise have to be taken for a part that was cut out.
	Record func() (*Record, error)
}

// PartsReader decrypts a multipart object, or a stretch of it, a batch of
// verified segments at a time, and checks that its parts are those that were
// uploaded.
type PartsReader struct {
	cfg      PartsConfig
	src      io.Reader
	opener   *Opener
	current  *Part  // the one that is read, or was read last
	window   Window // of it
	textLeft int64  // plaintext bytes still wanted; -1 for all
	toEnd    bool   // the object's end is to be reached and checked
	done     bool

	place    Place  // of part in layout
	expected Layout // known beforehand; nil if not
	seen     Layout // the parts that were read, from the first
	record   *Record
	buf      [PartOverhead]byte
}

// NewPartsReader returns a PartsReader of a whole object, of which src yields
// the stored bytes.
func NewPartsReader(src io.Reader, cfg PartsConfig) *PartsReader {
	return &PartsReader{cfg: cfg, src: src, textLeft: -1, toEnd: true, place: Place{Index: -1}}
}

// Stretch is some bytes of the plaintext of an object whose layout is known.
type Stretch struct {
	Layout Layout
	Place  Place // of the first part that is touched
	Part   *Part // its header, verified
	Offset int64 // of the first byte in that part's plaintext
	Length int64
	ToEnd  bool // src goes on to the end of the object, which is checked
}

// NewStretchReader returns a PartsReader of a stretch. src yields the stored
// bytes from the start of the segment of the first byte; see Part.Cover.
func NewStretchReader(src io.Reader, s Stretch, cfg PartsConfig) (*PartsReader, error) {
	r := &PartsReader{cfg: cfg, src: src, textLeft: s.Length, toEnd: s.ToEnd, expected: s.Layout, place: s.Place}
	if err := r.checkPlace(s.Part, s.Place); err != nil {
		return nil, err
	}
	r.current = s.Part
	window, err := s.Part.Cover(s.Offset, min(s.Length, s.Part.Size-s.Offset))
	if err != nil {
		return nil, err
	}
	return r, r.open(src, window)
}

// Next returns the next plaintext bytes, every one of them verified; they are
// valid until the next call. At the end it returns io.EOF. On any other error,
// which is one of this package's or src's own, no further byte may be used.
func (r *PartsReader) Next() ([]byte, error) {
	for !r.done {
		if r.opener == nil {
			if err := r.openNextPart(); err != nil {
				return nil, err
			}
			continue
		}

		text, err := r.opener.Next()
		switch {
		case err == io.EOF: //nolint:errorlint // bare: Next says so
			if err := r.finishPart(); err != nil {
				return nil, err
			}

		case err != nil:
			return nil, fmt.Errorf("part %d: %w", r.current.Number, err)
		case len(text) > 0:
			return text, nil
		}
	}

	return nil, io.EOF
}

// Close gives the buffers back.
func (r *PartsReader) Close() {
	if r.opener != nil {
		r.opener.Close()
		r.opener = nil
	}
	r.done = true
}

// Part returns the header of the part that is read, nil before the first.
func (r *PartsReader) Part() *Part { return r.current }

// Layout returns the parts of the object, once a whole object was read to its
// end.
func (r *PartsReader) Layout() Layout { return r.seen }

// openNextPart reads the header of the next part, or finds that there is none.
func (r *PartsReader) openNextPart() error {
	prefix := r.buf[:PartPrefixSize]
	switch n, err := ReadFull(r.src, prefix); {
	case n == 0 && err == io.EOF: //nolint:errorlint // bare, as every io.Reader must say it
		return r.checkEnd()
	case sourceEnded(err):
		return fmt.Errorf("%w in a part header", ErrTruncated)
	case err != nil:
		return err
	}

	part, err := ParsePart(prefix)
	if err != nil {
		return err
	}

	src := r.src
	if part.HasRecord() {
		if _, err := ReadFull(r.src, r.buf[PartPrefixSize:]); err != nil {
			return fillError(err, part)
		}
		if part, err = ParsePart(r.buf[:]); err != nil {
			return err
		}

		src = bytes.NewReader(r.buf[PartPrefixSize:])
	}

	dek, err := r.cfg.Unlock(part)
	if err != nil {
		return err
	}
	if err := part.Verify(dek, r.cfg.Object); err != nil {
		return fmt.Errorf("part %d: %w", part.Number, err)
	}

	if err := r.checkOrder(part); err != nil {
		return err
	}

	window := part.Whole()
	if r.textLeft >= 0 && r.textLeft < part.Size {
		if window, err = part.Cover(0, r.textLeft); err != nil {
			return err
		}
	}

	header := bytes.NewReader(r.current.Header[:])
	return r.openWith(io.MultiReader(header, src), window, dek)
}

// checkOrder refuses a part that does not follow the one before it.
func (r *PartsReader) checkOrder(part *Part) error {
	previous := r.current
	r.current = part
	r.place.Index++

	switch {
	case previous != nil && previous.Final:
		return fmt.Errorf("%w: part %d follows the final part %d", ErrAuth, part.Number, previous.Number)
	case previous != nil && previous.Upload != part.Upload:
		return fmt.Errorf("%w: part %d is of another upload than part %d", ErrAuth, part.Number, previous.Number)

	case part.HasRecord():
		return r.checkRecord(part)
	case r.expected != nil:
		place, ok := r.expected.At(r.place.Index)
		if !ok {
			return fmt.Errorf("%w: part %d is one too many", ErrAuth, part.Number)
		}
		r.place = place
		return r.checkPlace(part, place)
	}

	r.seen = r.seen.Add(part.Number, part.Size)
	if r.seen.Contiguous() {
		return nil
	}

	return r.checkGap()
}

// checkPlace refuses a part that is not the one that the layout has there.
func (r *PartsReader) checkPlace(part *Part, at Place) error {
	if part.Number != at.Number || part.Size != at.Size {
		return fmt.Errorf("%w: part %d of %d bytes stands where part %d of %d bytes must be", ErrAuth, part.Number,
			part.Size, at.Number, at.Size)
	}
	return nil
}

// checkRecord checks that the parts read so far are those of the record.
func (r *PartsReader) checkRecord(part *Part) error {
	record, err := ParseRecord(part.Record)
	if err != nil {
		return err
	}

	r.record = record
	ahead := r.seen

	if r.expected != nil {
		ahead = r.expected
	}

	last := 0
	if n := len(ahead); n > 0 {
		last = ahead[n-1].Number + ahead[n-1].Count - 1
	}
	if !record.Matches(ahead) || part.Number <= last {
		return fmt.Errorf("%w: the parts are not those of the record", ErrAuth)
	}

	return nil
}

// checkGap asks the record whether the gap in the part numbers was there from
// the start.
func (r *PartsReader) checkGap() error {
	if r.record == nil && r.cfg.Record != nil {
		var err error
		if r.record, err = r.cfg.Record(); err != nil {
			return err
		}
	}

	gap := fmt.Errorf("%w: a part is missing before part %d", ErrAuth, r.current.Number)
	if r.record == nil {
		return gap
	}
	if r.record.Layout == nil {
		return nil // the digest tells at the end
	}

	place, ok := r.record.Layout.At(r.place.Index)
	if !ok {
		return gap
	}

	return r.checkPlace(r.current, place)
}

func (r *PartsReader) open(src io.Reader, w Window) error {
	dek, err := r.cfg.Unlock(r.current)
	if err != nil {
		return err
	}
	return r.openWith(src, w, dek)
}

func (r *PartsReader) openWith(src io.Reader, w Window, dek []byte) error {
	opener, err := NewOpener(io.LimitReader(src, w.End-w.Start), w, dek, r.current.Header)
	if err != nil {
		return err
	}
	r.opener, r.window = opener, w
	return nil
}

// finishPart ends a part of which all that is wanted was read.
func (r *PartsReader) finishPart() error {
	r.opener.Close()
	r.opener = nil

	if r.textLeft >= 0 {
		r.textLeft -= r.window.length
		if r.textLeft == 0 && !r.toEnd {
			r.done = true
			return nil
		}
	}

	if r.current.HasRecord() {
		if !allZero(r.buf[PartHeaderSize+int(r.current.streamSize())+r.current.recordSize:]) {
			return fmt.Errorf("%w: the fill of part %d", ErrAuth, r.current.Number)
		}
		return nil
	}

	fill := r.buf[:PartOverhead+r.current.Size-PartHeaderSize-r.current.streamSize()]
	if _, err := ReadFull(r.src, fill); err != nil {
		return fillError(err, r.current)
	}
	if !allZero(fill) {
		return fmt.Errorf("%w: the fill of part %d", ErrAuth, r.current.Number)
	}

	return nil
}

// checkEnd checks that the object ends where it was ended.
func (r *PartsReader) checkEnd() error {
	switch {
	case r.current == nil:
		return fmt.Errorf("%w: no part at all", ErrTruncated)
	case !r.current.Final && !r.cfg.OpenEnd:
		return fmt.Errorf("%w: the last part is missing: part %d is not final", ErrTruncated, r.current.Number)

	case r.textLeft > 0:
		return fmt.Errorf("%w: %d bytes short", ErrTruncated, r.textLeft)
	case r.expected == nil && r.cfg.Size >= 0 && r.seen.Size() != r.cfg.Size:
		return fmt.Errorf("%w: parts of %d bytes in an object of %d", ErrSize, r.seen.Size(), r.cfg.Size)

	case r.expected == nil && !r.seen.Contiguous() && !r.current.HasRecord():
		return fmt.Errorf("%w: gaps in the part numbers of an object without a record", ErrAuth)
	case r.expected != nil && !r.current.HasRecord() && r.place.Index != r.expected.Parts()-1:
		return fmt.Errorf("%w: it ends with part %d", ErrTruncated, r.current.Number)
	}

	r.done = true
	return nil
}

func fillError(err error, p *Part) error {
	if sourceEnded(err) {
		return fmt.Errorf("%w in the fill of part %d", ErrTruncated, p.Number)
	}
	return err
}

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
	// OpenEnd accepts a last part that is not final: whether parts were cut off behind it cannot be told then.
	OpenEnd bool
	// Unlock returns the DEK of a part, which has not been verified yet. It stays valid until the next call.
	Unlock func(*Part) ([]byte, error)
	// Record returns the record of the object's last part, verified, or nil if it has none. It is asked only when a
	// gap in the part numbers would otherwise have to be taken for a part that was cut out.
	Record func() (*Record, error)
}

// PartsReader decrypts a multipart object, or a stretch of it, a batch of verified segments at a time, and checks that
// its parts are those that were uploaded.
type PartsReader struct {
	cfg    PartsConfig
	src    io.Reader
	opener *Opener
	part   *Part  // the one that is read, or was read last
	window Window // of it
	wanted int64  // plaintext bytes still wanted; -1 for all
	toEnd  bool   // the object's end is to be reached and checked
	done   bool

	place  Place  // of part in layout
	layout Layout // known beforehand; nil if not
	seen   Layout // the parts that were read, from the first
	record *Record
	buf    [PartOverhead]byte
}

// NewPartsReader returns a PartsReader of a whole object, of which src yields the stored bytes.
func NewPartsReader(src io.Reader, cfg PartsConfig) *PartsReader {
	return &PartsReader{cfg: cfg, src: src, wanted: -1, toEnd: true, place: Place{Index: -1}}
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

// NewStretchReader returns a PartsReader of a stretch. src yields the stored bytes from the start of the segment of the
// first byte; see Part.Cover.
func NewStretchReader(src io.Reader, s Stretch, cfg PartsConfig) (*PartsReader, error) {
	r := &PartsReader{cfg: cfg, src: src, wanted: s.Length, toEnd: s.ToEnd, layout: s.Layout, place: s.Place}
	if err := r.matches(s.Part, s.Place); err != nil {
		return nil, err
	}
	r.part = s.Part
	window, err := s.Part.Cover(s.Offset, min(s.Length, s.Part.Size-s.Offset))
	if err != nil {
		return nil, err
	}
	return r, r.open(src, window)
}

// Next returns the next plaintext bytes, every one of them verified; they are valid until the next call. At the end it
// returns io.EOF. On any other error, which is one of this package's or src's own, no further byte may be used.
func (r *PartsReader) Next() ([]byte, error) {
	for !r.done {
		if r.opener == nil {
			if err := r.begin(); err != nil {
				return nil, err
			}
			continue
		}
		text, err := r.opener.Next()
		switch {
		case err == io.EOF: //nolint:errorlint // bare: Next says so
			if err := r.finish(); err != nil {
				return nil, err
			}
		case err != nil:
			return nil, fmt.Errorf("part %d: %w", r.part.Number, err)
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
func (r *PartsReader) Part() *Part { return r.part }

// Layout returns the parts of the object, once a whole object was read to its end.
func (r *PartsReader) Layout() Layout { return r.seen }

// begin reads the header of the next part, or finds that there is none.
func (r *PartsReader) begin() error {
	prefix := r.buf[:PartPrefixSize]
	switch n, err := ReadFull(r.src, prefix); {
	case n == 0 && err == io.EOF: //nolint:errorlint // bare, as every io.Reader must say it
		return r.end()
	case ended(err):
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
			return cut(err, part)
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
	if err := r.admit(part); err != nil {
		return err
	}
	window := part.Whole()
	if r.wanted >= 0 && r.wanted < part.Size {
		if window, err = part.Cover(0, r.wanted); err != nil {
			return err
		}
	}
	header := bytes.NewReader(r.part.Header[:])
	return r.openWith(io.MultiReader(header, src), window, dek)
}

// admit refuses a part that does not follow the one before it.
func (r *PartsReader) admit(part *Part) error {
	previous := r.part
	r.part = part
	r.place.Index++
	switch {
	case previous != nil && previous.Final:
		return fmt.Errorf("%w: part %d follows the final part %d", ErrAuth, part.Number, previous.Number)
	case previous != nil && previous.Upload != part.Upload:
		return fmt.Errorf("%w: part %d is of another upload than part %d", ErrAuth, part.Number, previous.Number)
	case part.HasRecord():
		return r.admitRecord(part)
	case r.layout != nil:
		place, ok := r.layout.At(r.place.Index)
		if !ok {
			return fmt.Errorf("%w: part %d is one too many", ErrAuth, part.Number)
		}
		r.place = place
		return r.matches(part, place)
	}
	r.seen = r.seen.Add(part.Number, part.Size)
	if r.seen.Contiguous() {
		return nil
	}
	return r.admitGap()
}

// matches refuses a part that is not the one that the layout has there.
func (r *PartsReader) matches(part *Part, at Place) error {
	if part.Number != at.Number || part.Size != at.Size {
		return fmt.Errorf("%w: part %d of %d bytes stands where part %d of %d bytes must be", ErrAuth, part.Number, part.Size, at.Number, at.Size)
	}
	return nil
}

// admitRecord checks that the parts read so far are those of the record.
func (r *PartsReader) admitRecord(part *Part) error {
	record, err := ParseRecord(part.Record)
	if err != nil {
		return err
	}
	r.record = record
	ahead := r.seen
	if r.layout != nil {
		ahead = r.layout
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

// admitGap asks the record whether the gap in the part numbers was there from the start.
func (r *PartsReader) admitGap() error {
	if r.record == nil && r.cfg.Record != nil {
		var err error
		if r.record, err = r.cfg.Record(); err != nil {
			return err
		}
	}
	gap := fmt.Errorf("%w: a part is missing before part %d", ErrAuth, r.part.Number)
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
	return r.matches(r.part, place)
}

func (r *PartsReader) open(src io.Reader, w Window) error {
	dek, err := r.cfg.Unlock(r.part)
	if err != nil {
		return err
	}
	return r.openWith(src, w, dek)
}

func (r *PartsReader) openWith(src io.Reader, w Window, dek []byte) error {
	opener, err := NewOpener(io.LimitReader(src, w.End-w.Start), w, dek, r.part.Header)
	if err != nil {
		return err
	}
	r.opener, r.window = opener, w
	return nil
}

// finish ends a part of which all that is wanted was read.
func (r *PartsReader) finish() error {
	r.opener.Close()
	r.opener = nil
	if r.wanted >= 0 {
		r.wanted -= r.window.length
		if r.wanted == 0 && !r.toEnd {
			r.done = true
			return nil
		}
	}
	if r.part.HasRecord() {
		if !zero(r.buf[PartHeaderSize+int(r.part.streamSize())+r.part.record:]) {
			return fmt.Errorf("%w: the fill of part %d", ErrAuth, r.part.Number)
		}
		return nil
	}
	fill := r.buf[:PartOverhead+r.part.Size-PartHeaderSize-r.part.streamSize()]
	if _, err := ReadFull(r.src, fill); err != nil {
		return cut(err, r.part)
	}
	if !zero(fill) {
		return fmt.Errorf("%w: the fill of part %d", ErrAuth, r.part.Number)
	}
	return nil
}

// end checks that the object ends where it was ended.
func (r *PartsReader) end() error {
	switch {
	case r.part == nil:
		return fmt.Errorf("%w: no part at all", ErrTruncated)
	case !r.part.Final && !r.cfg.OpenEnd:
		return fmt.Errorf("%w: the last part is missing: part %d is not final", ErrTruncated, r.part.Number)
	case r.wanted > 0:
		return fmt.Errorf("%w: %d bytes short", ErrTruncated, r.wanted)
	case r.layout == nil && r.cfg.Size >= 0 && r.seen.Size() != r.cfg.Size:
		return fmt.Errorf("%w: parts of %d bytes in an object of %d", ErrSize, r.seen.Size(), r.cfg.Size)
	case r.layout == nil && !r.seen.Contiguous() && !r.part.HasRecord():
		return fmt.Errorf("%w: gaps in the part numbers of an object without a record", ErrAuth)
	case r.layout != nil && !r.part.HasRecord() && r.place.Index != r.layout.Parts()-1:
		return fmt.Errorf("%w: it ends with part %d", ErrTruncated, r.part.Number)
	}
	r.done = true
	return nil
}

func cut(err error, p *Part) error {
	if ended(err) {
		return fmt.Errorf("%w in the fill of part %d", ErrTruncated, p.Number)
	}
	return err
}

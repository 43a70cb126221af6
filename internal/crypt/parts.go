package crypt

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
)

// PartsConfig configures a PartsReader for one object.
type PartsConfig struct {
	Object Object
	// Size is the plaintext size of the object, computed from the store's
	// part count. -1 if unknown.
	Size int64
	// Metadata is the random value of the object's sealed metadata; zero if
	// it is not sealed.
	Metadata UploadRandom
	// OpenEnd accepts a last part that is not final. Parts that were cut
	// off after it are not noticed then.
	OpenEnd bool
	// Unlock returns the DEK of a part that has not been verified yet. The
	// DEK must stay valid until the next call.
	Unlock func(*Part) ([]byte, error)
	// Record returns the verified record of the object's last part, or nil
	// if it has none. It is called only when the part numbers have a gap,
	// to find out whether the gap was there from the start.
	Record func() (*Record, error)
	// Known returns the record if it has been read and verified, or nil. It
	// is called after the first batch of each part was opened, and before
	// that is returned.
	Known func() *Record
}

// PartsReader decrypts a multipart object, or a stretch of one. It returns
// batches of verified segments, and checks that the parts are those of the
// upload.
type PartsReader struct {
	cfg      PartsConfig
	src      io.Reader
	opener   *Opener
	current  *Part  // the part being read, or the last one read
	window   Window // of the current part
	textLeft int64  // plaintext bytes still wanted; -1 for all
	toEnd    bool   // read and check the end of the object too
	done     bool

	upload   Upload    // of the parts read so far
	tags     hash.Hash // of the parts read so far; nil for a stretch
	checked  bool      // the current part was compared with the known record
	place    Place     // of the current part
	expected Layout    // the known layout; nil if unknown
	seen     Layout    // the parts read so far
	record   *Record
	buf      [PartOverhead]byte
}

// NewPartsReader returns a PartsReader for a whole object, whose stored
// bytes src returns.
func NewPartsReader(src io.Reader, cfg PartsConfig) *PartsReader {
	return &PartsReader{cfg: cfg, src: src, textLeft: -1, toEnd: true, tags: sha256.New(), place: Place{Index: -1}}
}

// Stretch is a range of plaintext bytes of an object with known layout.
type Stretch struct {
	Layout Layout
	Place  Place // of the first part in the range
	Part   *Part // header of that part, verified
	Offset int64 // of the first byte, in that part's plaintext
	Length int64
	ToEnd  bool // src continues to the end of the object, and the end is checked
}

// NewStretchReader returns a PartsReader for a stretch. src must return the
// stored bytes from the segment that holds the first byte; see Part.Cover.
func NewStretchReader(src io.Reader, s Stretch, cfg PartsConfig) (*PartsReader, error) {
	r := &PartsReader{cfg: cfg, src: src, textLeft: s.Length, toEnd: s.ToEnd, expected: s.Layout, place: s.Place}
	if err := r.checkPlace(s.Part, s.Place); err != nil {
		return nil, err
	}
	if err := s.Part.CheckMetadata(cfg.Metadata); err != nil {
		return nil, err
	}

	r.current, r.upload = s.Part, s.Part.Upload
	window, err := s.Part.Cover(s.Offset, min(s.Length, s.Part.Size-s.Offset))
	if err != nil {
		return nil, err
	}

	return r, r.open(src, window)
}

// Next returns the next plaintext bytes, all of them verified and valid
// until the next call. At the end it returns io.EOF. Any other error is one
// of this package or src's own; after it, the object must not be used any
// further.
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
		case err == io.EOF: //nolint:errorlint // Next returns a bare io.EOF
			if err := r.finishPart(); err != nil {
				return nil, err
			}
		case err != nil:
			return nil, fmt.Errorf("part %d: %w", r.current.Number, err)
		case len(text) > 0:
			if err := r.checkKnown(); err != nil {
				return nil, err
			}
			return text, nil
		}
	}

	return nil, io.EOF
}

// checkKnown compares the current part with the record, if that is known.
func (r *PartsReader) checkKnown() error {
	if r.checked || r.cfg.Known == nil {
		return nil
	}
	if known := r.cfg.Known(); known != nil {
		r.checked = true
		return known.checkTag(r.place.Index, r.current)
	}
	return nil
}

// Close returns the buffers to their pools.
func (r *PartsReader) Close() {
	if r.opener != nil {
		r.opener.Close()
		r.opener = nil
	}
	r.done = true
}

// Part returns the header of the current part, or nil before the first one.
func (r *PartsReader) Part() *Part { return r.current }

// Layout returns the parts of the object. It is complete once a whole
// object has been read to its end.
func (r *PartsReader) Layout() Layout { return r.seen }

// openNextPart reads the next part header, or checks the end of the object.
func (r *PartsReader) openNextPart() error {
	prefix := r.buf[:PartPrefixSize]
	switch n, err := ReadFull(r.src, prefix); {
	case n == 0 && err == io.EOF: //nolint:errorlint // io.Reader requires a bare io.EOF
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

// checkOrder returns an error if a part does not follow the previous one.
func (r *PartsReader) checkOrder(part *Part) error {
	previous := r.current
	r.current, r.checked = part, false
	r.place.Index++
	if err := part.CheckMetadata(r.cfg.Metadata); err != nil {
		return err
	}
	if err := r.joinUpload(part, previous); err != nil {
		return err
	}
	if !part.HasRecord() && r.tags != nil {
		tag := part.Tag()
		r.tags.Write(tag[:])
	}

	switch {
	case previous != nil && previous.Final:
		return fmt.Errorf("%w: part %d follows the final part %d", ErrAuth, part.Number, previous.Number)
	case part.HasRecord():
		return r.checkRecord(part)
	case r.expected != nil:
		place, ok := r.expected.At(r.place.Index)
		if !ok {
			return fmt.Errorf("%w: part %d is beyond the last part", ErrAuth, part.Number)
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

// joinUpload returns ErrAuth if a part is not of the upload of those before.
func (r *PartsReader) joinUpload(part, previous *Part) error {
	if previous == nil {
		r.upload = part.Upload
		return nil
	}
	joined, ok := r.upload.Join(part.Upload)
	if !ok {
		return fmt.Errorf("%w: part %d is from a different upload than part %d", ErrAuth, part.Number, previous.Number)
	}
	r.upload = joined
	return nil
}

// checkPlace returns ErrAuth if the layout has another part at that place.
func (r *PartsReader) checkPlace(part *Part, at Place) error {
	if part.Number != at.Number || part.Size != at.Size {
		return fmt.Errorf("%w: found part %d of %d bytes in place of part %d of %d bytes", ErrAuth, part.Number,
			part.Size, at.Number, at.Size)
	}
	return nil
}

// checkRecord checks the parts before the record against it.
func (r *PartsReader) checkRecord(part *Part) error {
	record, err := part.ParseRecord()
	if err != nil {
		return err
	}
	if r.tags != nil && record.HasTags() && record.tags != [sha256.Size]byte(r.tags.Sum(nil)) {
		return fmt.Errorf("%w: a part is from another attempt than the one in the record", ErrAuth)
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
		return fmt.Errorf("%w: the parts do not match the record", ErrAuth)
	}

	return nil
}

// checkGap consults the record: was the gap in the part numbers there from
// the start?
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
		return nil // the digest is compared at the end
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

// finishPart ends a part after the last wanted byte, and checks the fill.
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

// checkEnd checks that the object ends where its upload ended.
func (r *PartsReader) checkEnd() error {
	switch {
	case r.current == nil:
		return fmt.Errorf("%w: there are no parts", ErrTruncated)
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

package crypt

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Run is a sequence of parts with consecutive part numbers and the same
// plaintext size.
type Run struct {
	Number int   // part number of the first
	Count  int   // 1 or more
	Size   int64 // plaintext size of each part, in bytes
}

// Layout lists the parts of an object in order. It does not include the
// part that the proxy may have appended for the Record.
type Layout []Run

// Place is the position of a part in its object.
type Place struct {
	Index  int   // position among the parts, from 0
	Number int   // part number
	Size   int64 // plaintext size of the part, in bytes
	Offset int64 // where the part's plaintext starts in the object's plaintext
	Stored int64 // where the part starts in the stored object
}

// Add returns the layout with one more part at its end.
func (l Layout) Add(number int, size int64) Layout {
	if n := len(l); n > 0 && l[n-1].Size == size && l[n-1].Number+l[n-1].Count == number {
		l[n-1].Count++
		return l
	}
	return append(l, Run{number, 1, size})
}

// Parts returns the number of parts.
func (l Layout) Parts() int { return l.end().Index }

// Size returns the plaintext size of the object in bytes.
func (l Layout) Size() int64 { return l.end().Offset }

// end returns the place after the last part.
func (l Layout) end() Place {
	var at Place
	for _, run := range l {
		at = at.skip(run, run.Count)
	}
	return at
}

func (at Place) skip(run Run, n int) Place {
	at.Index += n
	at.Number, at.Size = run.Number+n, run.Size
	at.Offset += int64(n) * run.Size
	at.Stored += int64(n) * (run.Size + PartOverhead)
	return at
}

// Find returns the part that contains plaintext byte p. The end of the
// plaintext belongs to no part, unless the last part is empty.
func (l Layout) Find(p int64) (Place, bool) {
	return l.search(func(run Run, at Place) int { return int(min((p-at.Offset)/max(run.Size, 1), int64(run.Count))) })
}

// At returns the part at the given index, counted from 0.
func (l Layout) At(index int) (Place, bool) {
	return l.search(func(run Run, at Place) int { return min(index-at.Index, run.Count) })
}

// search returns the part that is step parts after the start of a run. It
// takes the first run in which step is in range.
func (l Layout) search(step func(Run, Place) int) (Place, bool) {
	var at Place
	for _, run := range l {
		n := step(run, at)
		if n >= 0 && n < run.Count {
			at = at.skip(run, n)
			at.Number = run.Number + n
			return at, true
		}

		at = at.skip(run, run.Count)
	}

	return Place{}, false
}

// Contiguous reports whether the part numbers are 1, 2, 3 and so on. An
// object without a Record must have such numbers.
func (l Layout) Contiguous() bool {
	next := 1
	for _, run := range l {
		if run.Number != next {
			return false
		}
		next += run.Count
	}

	return true
}

// digest returns the hash of all part numbers and sizes. A Record has it
// even if the object has too many runs to list.
func (l Layout) digest() [sha256.Size]byte {
	h := sha256.New()
	for _, run := range l {
		for i := range run.Count {
			part := make([]byte, 0, 10)
			part = binary.BigEndian.AppendUint16(part, uint16(run.Number+i)) //nolint:gosec // part numbers
			part = binary.BigEndian.AppendUint64(part, uint64(run.Size))     //nolint:gosec // never negative
			h.Write(part)
		}
	}

	return [sha256.Size]byte(h.Sum(nil))
}

// ChecksumType is the kind of checksum that a multipart object has.
type ChecksumType byte

// The values of S3's x-amz-checksum-type.
const (
	NoChecksum ChecksumType = 0
	FullObject ChecksumType = 1
	Composite  ChecksumType = 2
)

// Record describes the parts before the appended part that carries it.
type Record struct {
	Parts        int
	ChecksumType ChecksumType
	// Sum is the object's checksum, sealed by SealChecksums under the DEK
	// of the part that carries the record.
	Sum    []byte
	Layout Layout // nil if it did not fit

	digest [sha256.Size]byte
	kind   tagsKind
	tags   [sha256.Size]byte // digest of the tags
	list   []byte            // the beginning of each tag; empty if they did not fit
}

// tagsKind says what a record has of the tags of the parts.
type tagsKind byte

const (
	noTags tagsKind = iota
	tagsDigest
	tagsDigestAndList
)

const (
	maxRecord   = (maxSegments - 1) * TagSize // the fill of an empty part
	recordFixed = 36
	runSize     = 12
	listedTag   = 4 // bytes of a tag in the list
)

// NewRecord returns the encoded record of a layout, with the object's
// sealed checksum. tags are those of all parts, or nil if some are not known.
// What would make the record too long is left out: the list of tags, then the
// layout.
func NewRecord(v Version, l Layout, kind ChecksumType, sum []byte, tags []Tag) []byte {
	b := fixedRecord(l, kind, sum)
	if v == V1 {
		if len(b)+runSize*len(l) <= maxRecord {
			b = appendRuns(b, l)
		}
		return b
	}

	end := 1
	if len(tags) > 0 {
		end += sha256.Size
	}
	if len(b)+2+runSize*len(l)+end > maxRecord {
		l = nil
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(l))) //nolint:gosec // 10,000 at most
	return appendTags(appendRuns(b, l), tags)
}

// fixedRecord returns the fields that each record has.
func fixedRecord(l Layout, kind ChecksumType, sum []byte) []byte {
	digest := l.digest()
	b := binary.BigEndian.AppendUint16(nil, uint16(l.Parts())) //nolint:gosec // 10,000 at most
	b = append(b, byte(kind), byte(len(sum)))                  //nolint:gosec // one digest is 61 bytes at most
	b = append(b, digest[:]...)
	return append(b, sum...)
}

func appendRuns(b []byte, l Layout) []byte {
	for _, run := range l {
		b = binary.BigEndian.AppendUint16(b, uint16(run.Number)) //nolint:gosec // part numbers
		b = binary.BigEndian.AppendUint16(b, uint16(run.Count))  //nolint:gosec // part numbers
		b = binary.BigEndian.AppendUint64(b, uint64(run.Size))   //nolint:gosec // never negative
	}

	return b
}

func appendTags(b []byte, tags []Tag) []byte {
	if len(tags) == 0 {
		return append(b, byte(noTags))
	}

	all := sha256.New()
	for _, tag := range tags {
		all.Write(tag[:])
	}
	if len(b)+1+sha256.Size+listedTag*len(tags) > maxRecord {
		return all.Sum(append(b, byte(tagsDigest)))
	}

	b = all.Sum(append(b, byte(tagsDigestAndList)))
	for _, tag := range tags {
		b = append(b, tag[:listedTag]...)
	}
	return b
}

// ParseRecord decodes the record of a part whose MAC has been verified.
// Every error is an ErrEnvelope.
func (p *Part) ParseRecord() (*Record, error) {
	b := p.Record
	bad := fmt.Errorf("%w: the record of the parts", ErrEnvelope)
	if len(b) < recordFixed || len(b) < recordFixed+int(b[3]) {
		return nil, bad
	}

	runs := b[recordFixed+int(b[3]):]
	r := &Record{
		Parts:        int(binary.BigEndian.Uint16(b)),
		ChecksumType: ChecksumType(b[2]),
		Sum:          b[recordFixed : recordFixed+int(b[3])],
		digest:       [sha256.Size]byte(b[4:recordFixed]),
	}
	if p.Upload.version() >= V2 {
		var ok bool
		if runs, ok = r.parseTags(runs); !ok {
			return nil, bad
		}
	}
	if r.ChecksumType > Composite || (r.ChecksumType == NoChecksum) != (len(r.Sum) == 0) || len(runs)%runSize != 0 {
		return nil, bad
	}

	next := 1
	for ; len(runs) > 0; runs = runs[runSize:] {
		run := Run{
			Number: int(binary.BigEndian.Uint16(runs)),
			Count:  int(binary.BigEndian.Uint16(runs[2:])),
			Size:   int64(binary.BigEndian.Uint64(runs[4:])), //nolint:gosec // checked below
		}
		if run.Number < next || run.Count < 1 || run.Number+run.Count > MaxPartNumber || run.Size < 0 ||
			run.Size > MaxPartSize {
			return nil, bad
		}

		next = run.Number + run.Count
		r.Layout = append(r.Layout, run)
	}

	if r.Parts < 1 || r.Layout != nil && !r.Matches(r.Layout) {
		return nil, bad
	}
	return r, nil
}

// parseTags parses what follows the checksum in version 2, and returns the
// runs.
func (r *Record) parseTags(b []byte) (runs []byte, ok bool) {
	if len(b) < 2 {
		return nil, false
	}
	n := runSize * int(binary.BigEndian.Uint16(b))
	if b = b[2:]; len(b) < n+1 {
		return nil, false
	}

	runs, r.kind, b = b[:n], tagsKind(b[n]), b[n+1:]
	want := 0
	switch r.kind {
	case noTags:
	case tagsDigest:
		want = sha256.Size
	case tagsDigestAndList:
		want = sha256.Size + listedTag*r.Parts
	default:
		return nil, false
	}
	if len(b) != want {
		return nil, false
	}

	if r.kind != noTags {
		r.tags, r.list = [sha256.Size]byte(b), b[sha256.Size:]
	}
	return runs, true
}

// HasTags reports whether the record has the tags of the parts, so that an
// earlier attempt at a part is noticed.
func (r *Record) HasTags() bool { return r.kind != noTags }

// checkTag returns ErrAuth if the part at an index is not the one that the
// record lists.
func (r *Record) checkTag(index int, p *Part) error {
	tag := p.Tag()
	if at := listedTag * index; at+listedTag <= len(r.list) &&
		string(r.list[at:at+listedTag]) != string(tag[:listedTag]) {
		return errOtherAttempt(p.Number)
	}
	return nil
}

func errOtherAttempt(number int) error {
	return fmt.Errorf("%w: part %d is from another attempt than the one in the record", ErrAuth, number)
}

// Matches reports whether l has the parts that the record describes.
func (r *Record) Matches(l Layout) bool { return r.Parts == l.Parts() && r.digest == l.digest() }

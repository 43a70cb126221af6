package crypt

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Run is a number of parts with consecutive numbers and plaintexts of one
// length.
type Run struct {
	Number int   // of the first of them
	Count  int   // 1 or more
	Size   int64 // of the plaintext of each, in bytes
}

// Layout is the parts of an object in order, without the one that the proxy
// may have appended to them.
type Layout []Run

// Place is where a part lies in its object.
type Place struct {
	Index  int   // counted from 0
	Number int   // its part number
	Size   int64 // of its plaintext
	Offset int64 // of its plaintext in the object's
	Stored int64 // offset of the part in the stored object
}

// Add returns the layout with a part more at its end.
func (l Layout) Add(number int, size int64) Layout {
	if n := len(l); n > 0 && l[n-1].Size == size && l[n-1].Number+l[n-1].Count == number {
		l[n-1].Count++
		return l
	}
	return append(l, Run{number, 1, size})
}

// Parts is the number of parts.
func (l Layout) Parts() int { return l.end().Index }

// Size is the plaintext size of the object.
func (l Layout) Size() int64 { return l.end().Offset }

// end is the place behind the last part.
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

// Find returns the part that holds plaintext byte p. An empty last part holds
// the end.
func (l Layout) Find(p int64) (Place, bool) {
	return l.search(func(run Run, at Place) int { return int(min((p-at.Offset)/max(run.Size, 1), int64(run.Count))) })
}

// At returns the part of that index, counted from 0.
func (l Layout) At(index int) (Place, bool) {
	return l.search(func(run Run, at Place) int { return min(index-at.Index, run.Count) })
}

// search returns the part that is step parts behind the start of a run, at the
// first run in which there is one.
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

// Contiguous reports whether the part numbers are 1, 2, 3 and so on. Without a
// record they must be.
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

// digest is what a record says of the parts, whatever their number.
func (l Layout) digest() [sha256.Size]byte {
	h := sha256.New()
	for _, run := range l {
		for i := range run.Count {
			b := binary.BigEndian.AppendUint16(make([]byte, 0, 10), uint16(run.Number+i)) //nolint:gosec // part numbers
			h.Write(binary.BigEndian.AppendUint64(b, uint64(run.Size)))                   //nolint:gosec // never negative
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// ChecksumType says what a checksum of a multipart object was computed of.
type ChecksumType byte

// The values of S3's x-amz-checksum-type.
const (
	NoChecksum ChecksumType = 0
	FullObject ChecksumType = 1
	Composite  ChecksumType = 2
)

// Record is what an appended part says of the parts ahead of it.
type Record struct {
	Parts        int
	ChecksumType ChecksumType
	Sum          []byte // the object's checksum, see SealChecksums, under the DEK of the part that has the record
	Layout       Layout // nil if it did not fit

	digest [sha256.Size]byte
}

const (
	maxRecord   = (maxSegments - 1) * TagSize // the fill of an empty part
	recordFixed = 36
	runSize     = 12
)

// NewRecord returns the bytes of the record of a layout, with the object's
// checksum.
func NewRecord(l Layout, kind ChecksumType, sum []byte) []byte {
	digest := l.digest()
	b := binary.BigEndian.AppendUint16(nil, uint16(l.Parts())) //nolint:gosec // 10,000 at most
	b = append(b, byte(kind), byte(len(sum)))                  //nolint:gosec // one digest is 61 bytes at most
	b = append(b, digest[:]...)
	b = append(b, sum...)
	if len(b)+runSize*len(l) > maxRecord {
		return b
	}

	for _, run := range l {
		b = binary.BigEndian.AppendUint16(b, uint16(run.Number)) //nolint:gosec // part numbers
		b = binary.BigEndian.AppendUint16(b, uint16(run.Count))  //nolint:gosec // part numbers
		b = binary.BigEndian.AppendUint64(b, uint64(run.Size))   //nolint:gosec // never negative
	}

	return b
}

// ParseRecord reads the record of a part that has verified. It returns
// ErrEnvelope.
func ParseRecord(b []byte) (*Record, error) {
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
	if r.ChecksumType > Composite || (r.ChecksumType == NoChecksum) != (len(r.Sum) == 0) || len(runs)%runSize != 0 {
		return nil, bad
	}

	next := 1
	for ; len(runs) > 0; runs = runs[runSize:] {
		run := Run{int(binary.BigEndian.Uint16(runs)), int(binary.BigEndian.Uint16(runs[2:])), int64(binary.BigEndian.Uint64(runs[4:]))} //nolint:gosec // checked below
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

// Matches reports whether the parts are those of the record.
func (r *Record) Matches(l Layout) bool { return r.Parts == l.Parts() && r.digest == l.digest() }

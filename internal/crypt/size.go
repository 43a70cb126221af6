package crypt

import (
	"fmt"
	"math"
)

// MaxPlaintextSize is the longest plaintext of one body in bytes: 2^32 segments less the header.
const MaxPlaintextSize = int64(SegmentSize)*(math.MaxUint32+1) - HeaderSize

// StoredSize returns the size in bytes of the body of a plaintext of p bytes, 0 <= p <= MaxPlaintextSize.
func StoredSize(p int64) int64 {
	return p + HeaderSize + TagSize*(lastSegment(p)+1)
}

// PlaintextSize is the inverse of StoredSize. It returns ErrSize if no plaintext gives a body of s bytes.
func PlaintextSize(s int64) (int64, error) {
	n := max(1, (s+StoredSegmentSize-1)/StoredSegmentSize)
	p := s - HeaderSize - TagSize*n
	if p < 0 || p > MaxPlaintextSize || StoredSize(p) != s {
		return 0, fmt.Errorf("%w: %d stored bytes", ErrSize, s)
	}
	return p, nil
}

// lastSegment returns the index of the last segment of a plaintext of p bytes.
func lastSegment(p int64) int64 {
	return segmentOf(max(p-1, 0))
}

// segmentOf returns the index of the segment that holds plaintext byte p. The header counts as plaintext here: it takes
// the first bytes of segment 0's place.
func segmentOf(p int64) int64 {
	return (p + HeaderSize) / SegmentSize
}

// Window is the stretch of a body that has to be fetched to read some bytes of the plaintext: whole segments.
type Window struct {
	Start, End int64 // stored offsets, End exclusive

	size   int64 // plaintext size of the whole object
	offset int64 // first plaintext byte wanted
	length int64 // number of plaintext bytes wanted
	first  int64 // index of the segment at Start
}

// Whole is the window of a whole body with p bytes of plaintext.
func Whole(p int64) Window {
	return Window{End: StoredSize(p), size: p, length: p}
}

// Cover is the window for length bytes from offset, of a plaintext of p bytes. It returns ErrSize unless
// 0 <= offset, 0 < length and offset+length <= p.
func Cover(p, offset, length int64) (Window, error) {
	if offset < 0 || length <= 0 || length > p-offset {
		return Window{}, fmt.Errorf("%w: bytes %d+%d of %d", ErrSize, offset, length, p)
	}
	first, last := segmentOf(offset), segmentOf(offset+length-1)
	return Window{
		Start:  first * StoredSegmentSize,
		End:    min(StoredSize(p), (last+1)*StoredSegmentSize),
		size:   p,
		offset: offset,
		length: length,
		first:  first,
	}, nil
}

// skip is the number of plaintext bytes of the first segment that come before the first byte wanted.
func (w Window) skip() int {
	if w.first == 0 {
		return int(w.offset)
	}
	return int(w.offset + HeaderSize - w.first*SegmentSize)
}

// StoredFrom returns the stored offset of the segment that holds plaintext byte p, whatever the object's size.
func StoredFrom(p int64) int64 {
	return segmentOf(p) * StoredSegmentSize
}

// StoredTo returns the stored offset behind the segment that holds plaintext byte p, if that segment is a full one.
func StoredTo(p int64) int64 {
	return (segmentOf(p) + 1) * StoredSegmentSize
}

// StoredSuffix returns a number of stored bytes, counted from the end of a body of unknown size, that is sure to hold
// the segments of the last n bytes of its plaintext.
func StoredSuffix(n int64) int64 {
	n = min(n, MaxPlaintextSize)
	return n + TagSize*(n/SegmentSize+2) + StoredSegmentSize
}

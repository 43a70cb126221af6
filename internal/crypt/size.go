package crypt

import (
	"fmt"
	"math"
	"strings"
)

// MaxPlaintextSize is the largest plaintext size of one body in bytes: 2^32
// segments minus the header.
const MaxPlaintextSize = int64(SegmentSize)*(math.MaxUint32+1) - HeaderSize

// segmentBytes is a segment size: the plaintext bytes of a full segment. In
// its arithmetic the header counts as plaintext, because it takes the first
// bytes of segment 0.
type segmentBytes int64

// defaultSegment is the segment size of single-PUT objects, and of parts up
// to 32 MiB.
const defaultSegment segmentBytes = SegmentSize

// storedSegment returns the size of a full segment with its tag.
func (s segmentBytes) storedSegment() int64 { return int64(s) + TagSize }

// segmentOf returns the index of the segment that contains plaintext byte
// p.
func (s segmentBytes) segmentOf(p int64) int64 { return (p + HeaderSize) / int64(s) }

// lastSegment returns the index of the last segment of p plaintext bytes.
func (s segmentBytes) lastSegment(p int64) int64 { return s.segmentOf(max(p-1, 0)) }

// storedSize returns the stored size of a stream of p plaintext bytes.
func (s segmentBytes) storedSize(p int64) int64 { return p + HeaderSize + TagSize*(s.lastSegment(p)+1) }

// StoredSize returns the size in bytes of a body with p plaintext bytes,
// for 0 <= p <= MaxPlaintextSize.
func StoredSize(p int64) int64 { return defaultSegment.storedSize(p) }

// PlaintextSize is the inverse of StoredSize. It returns ErrSize if no body
// has s bytes.
func PlaintextSize(s int64) (int64, error) {
	n := max(1, (s+StoredSegmentSize-1)/StoredSegmentSize)
	p := s - HeaderSize - TagSize*n
	if p < 0 || p > MaxPlaintextSize || StoredSize(p) != s {
		return 0, fmt.Errorf("%w: %d stored bytes", ErrSize, s)
	}
	return p, nil
}

// Fits reports whether a single-PUT object with p plaintext bytes can have
// this stored size. An empty object may have no body; its envelope, whose
// MAC covers the size, is then all there is to verify.
func Fits(p, stored int64) bool { return stored == StoredSize(p) || p == 0 && stored == 0 }

// IsMarker reports whether an object is a directory marker: an empty object
// whose key ends in "/". Markers are stored without a body, because some
// stores do not accept one.
func IsMarker(obj Object, size int64) bool { return size == 0 && strings.HasSuffix(obj.Key, "/") }

// Window is the range of stored bytes to fetch for a range of plaintext:
// whole segments.
type Window struct {
	Start, End int64 // offsets in the body; End is exclusive

	segmentSize segmentBytes
	size        int64 // plaintext size of the whole body
	offset      int64 // first plaintext byte wanted
	length      int64 // number of plaintext bytes wanted
	first       int64 // index of the segment at Start
}

// Whole returns the window of a whole body with p plaintext bytes.
func Whole(p int64) Window { return defaultSegment.wholeWindow(p) }

// Cover returns the window for length bytes from offset in a plaintext of p
// bytes. It returns ErrSize unless 0 <= offset, 0 < length and
// offset+length <= p.
func Cover(p, offset, length int64) (Window, error) { return defaultSegment.cover(p, offset, length) }

func (s segmentBytes) wholeWindow(p int64) Window {
	return Window{End: s.storedSize(p), segmentSize: s, size: p, length: p}
}

func (s segmentBytes) cover(p, offset, length int64) (Window, error) {
	if offset < 0 || length <= 0 || length > p-offset {
		return Window{}, fmt.Errorf("%w: bytes %d+%d of %d", ErrSize, offset, length, p)
	}

	first, last := s.segmentOf(offset), s.segmentOf(offset+length-1)
	return Window{
		Start:       first * s.storedSegment(),
		End:         min(s.storedSize(p), (last+1)*s.storedSegment()),
		segmentSize: s,
		size:        p,
		offset:      offset,
		length:      length,
		first:       first,
	}, nil
}

// skip returns the number of plaintext bytes in the first segment before
// the first byte wanted.
func (w Window) skip() int {
	if w.first == 0 {
		return int(w.offset)
	}
	return int(w.offset + HeaderSize - w.first*int64(w.segmentSize))
}

// StoredFrom returns the stored offset of the segment that contains
// plaintext byte p, for any object size.
func StoredFrom(p int64) int64 {
	return defaultSegment.segmentOf(p) * StoredSegmentSize
}

// StoredTo returns the stored offset after the segment that contains
// plaintext byte p, if that segment is full.
func StoredTo(p int64) int64 {
	return (defaultSegment.segmentOf(p) + 1) * StoredSegmentSize
}

// StoredSuffix returns how many stored bytes to fetch from the end of an
// object of unknown size, so that they contain the segments of its last n
// plaintext bytes. This holds for single-PUT objects. It holds for
// multipart objects if the bytes are in the last part with plaintext, and
// that part has segments of SegmentSize.
func StoredSuffix(n int64) int64 {
	n = min(n, MaxPlaintextSize)
	return n + TagSize*(n/SegmentSize+2) + StoredSegmentSize + 2*PartOverhead
}

package crypt

import "sync"

// batch is the number of segments of SegmentSize that are read, sealed or
// opened at a time. 256 KiB reads and writes cost a quarter less CPU than 64
// KiB ones.
const batch = 4

// buffer holds the stored form of a batch of segments: segment i of it starts
// at i times the size of a stored segment.
type buffer struct {
	bytes []byte
	class int
}

// The pools: class c holds 4 * 2^c segments of SegmentSize, class 0 being a
// batch and the last one the largest segment of a part, 10 MiB.
const classes = 7

var pools [classes]sync.Pool

// newBuffer returns a buffer for at least one stored segment of the size s, and
// for a batch of them if they are small.
func newBuffer(s segmentBytes) *buffer {
	class := 0
	for classSize(class) < s.storedSegment() {
		class++
	}
	if b, ok := pools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{make([]byte, classSize(class)), class}
}

func classSize(class int) int64 { return batch * StoredSegmentSize << class }

func (b *buffer) free() { pools[b.class].Put(b) }

// batch is the number of segments of the size s that fit.
func (b *buffer) batch(s segmentBytes) int { return int(int64(len(b.bytes)) / s.storedSegment()) }

// plain holds the plaintext of a batch of several segments.
type plain [batch * SegmentSize]byte

var plainPool = sync.Pool{New: func() any { return new(plain) }}

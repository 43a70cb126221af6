package crypt

import "sync"

// batch is the number of segments of SegmentSize that are processed at a
// time. Reads and writes of 256 KiB cost a quarter less CPU than those of
// 64 KiB.
const batch = 4

// buffer holds the stored form of a batch of segments, one after another.
type buffer struct {
	bytes []byte
	class int
}

// Pool c holds buffers of batch * 2^c segments of SegmentSize. Pool 0
// serves batches; the last pool serves the largest segments of parts, 10
// MiB.
const classes = 7

var pools [classes]sync.Pool

// newBuffer returns a buffer that holds a batch of small segments, or at
// least one segment of size s.
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

// batch returns how many segments of size s fit.
func (b *buffer) batch(s segmentBytes) int { return int(int64(len(b.bytes)) / s.storedSegment()) }

// plain holds the plaintext of a batch.
type plain [batch * SegmentSize]byte

var plainPool = sync.Pool{New: func() any { return new(plain) }}

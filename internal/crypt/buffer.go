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

// classes are the sizes of buffers in bytes, each with its own pool: those
// below a batch for small objects, a batch, and up to the largest segments of
// parts, 10 MiB.
var classes = [...]int64{
	8 << 10, 32 << 10, 128 << 10,
	batchSize, batchSize << 1, batchSize << 2, batchSize << 3, batchSize << 4, batchSize << 5, batchSize << 6,
}

const batchSize = batch * StoredSegmentSize

var pools [len(classes)]sync.Pool

// newBuffer returns a buffer for a stream with so many stored bytes and
// segments of size s. It holds all of them, or a batch of small segments, or
// one segment.
func newBuffer(s segmentBytes, stored int64) *buffer {
	need := min(stored, max(batchSize, s.storedSegment()))
	class := 0
	for classes[class] < need {
		class++
	}

	if b, ok := pools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{make([]byte, classes[class]), class}
}

// BufferSize returns how many bytes of buffers the Sealer of size bytes of
// plaintext holds, unless its segments are longer than usual.
func BufferSize(size int64) int64 {
	for _, class := range classes {
		if class >= StoredSize(size) || class == batchSize {
			return class
		}
	}
	return batchSize
}

func (b *buffer) free() { pools[b.class].Put(b) }

// batch returns how many segments of size s fit; 1 if the whole stream is
// shorter.
func (b *buffer) batch(s segmentBytes) int { return int(max(1, int64(len(b.bytes))/s.storedSegment())) }

// plain holds the plaintext of a batch.
type plain [batch * SegmentSize]byte

var plainPool = sync.Pool{New: func() any { return new(plain) }}

package http1

import (
	"bufio"
	"sync"
)

// Sizes of buffers. Nearly all requests without a body fit in the first, and
// an upload of 4 KiB in the second. Long bodies are sent in pieces of
// sizePiece, which fit in the cache of a core: larger ones save system calls,
// but cost more than that elsewhere.
const (
	sizeHead  = 4 << 10
	sizeShort = 16 << 10
	sizePiece = 32 << 10
	sizeLong  = maxInline + sizeShort
)

var bufferPools = map[int]*sync.Pool{
	sizeHead: newPool(sizeHead), sizeShort: newPool(sizeShort),
	sizePiece: newPool(sizePiece), sizeLong: newPool(sizeLong),
}

func newPool(size int) *sync.Pool {
	return &sync.Pool{New: func() any { b := make([]byte, size); return &b }}
}

// takeBuffer returns an empty buffer with room for n bytes.
func takeBuffer(n int) []byte {
	for _, size := range []int{sizeHead, sizeShort, sizePiece, sizeLong} {
		if n <= size {
			return (*bufferPools[size].Get().(*[]byte))[:0] //nolint:forcetypeassert // only New puts other things
		}
	}
	return make([]byte, 0, n)
}

// returnBuffer overwrites the bytes of a buffer, and returns it to its pool.
func returnBuffer(b []byte) {
	if pool := bufferPools[cap(b)]; pool != nil {
		clear(b)
		pool.Put(&b)
	}
}

// sizeReader is enough for the head of a response and an object of 4 KiB.
const sizeReader = 8 << 10

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, sizeReader) }}

func takeReader(from *conn) *bufio.Reader {
	br := readers.Get().(*bufio.Reader) //nolint:forcetypeassert // only New puts other things
	br.Reset(from)
	return br
}

// returnReader overwrites the buffer of a reader, and returns it to the pool.
func returnReader(br *bufio.Reader) {
	br.Reset(zeros{})
	_, _ = br.Peek(sizeReader)
	br.Reset(nil)
	readers.Put(br)
}

// zeros reads zeros.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

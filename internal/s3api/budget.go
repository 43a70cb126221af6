package s3api

import (
	"net/http"
	"sync"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// budget limits the memory that running requests may hold together. It counts
// what a request of its kind may hold, and not what it holds at the moment.
type budget struct {
	size int64 // 0 means no limit

	mu   sync.Mutex
	used int64
	of   map[string]int64 // by name of the holder
}

// reservation is what a request has of a budget.
type reservation struct {
	holder string
	bytes  int64
}

func (b *budget) resize(size int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.size = size
}

// reserve reports whether there was room for a reservation. Its holder may
// have the part share/of of the budget. A first request is never refused, so
// that one that needs much runs alone.
func (b *budget) reserve(r reservation, share, of int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.size > 0 && !b.room(r, share, of) {
		return false
	}
	b.used += r.bytes
	b.of[r.holder] += r.bytes
	return true
}

func (b *budget) room(r reservation, share, of int) bool {
	most := float64(b.size) * float64(share) / float64(of)
	own := b.of[r.holder]
	return (b.used == 0 || b.used+r.bytes <= b.size) && (own == 0 || float64(own+r.bytes) <= most)
}

func (b *budget) free(r reservation) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= r.bytes
	if b.of[r.holder] -= r.bytes; b.of[r.holder] == 0 {
		delete(b.of, r.holder)
	}
}

// full reports whether there is no room for the smallest request of a holder.
func (b *budget) full(holder string, share, of int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size > 0 && !b.room(reservation{holder, baseMemory}, share, of)
}

// Memory of a request in bytes.
const (
	// baseMemory is that of each: two connections with their buffers,
	// goroutines and headers.
	baseMemory = 96 << 10
	tlsMemory  = 64 << 10
	openMemory = 256 << 10 // the plaintext that the client reads
	listMemory = 2 << 20   // a page of 1,000 objects with long keys, and its answer
	formMemory = 6 << 20   // the longest form that is kept in memory
)

// memory returns how much memory the call may hold, by its kind.
func (c *call) memory() int64 {
	n := int64(baseMemory)
	if c.TLS != nil {
		n += tlsMemory
	}
	if c.route == nil {
		return n
	}

	length := c.ContentLength
	if c.auth != nil {
		length = c.auth.DecodedLength()
	}
	switch {
	case c.route.flags&signedByForm != 0:
		return n + min(max(length, 0), formMemory)
	case c.route.flags&readsSource != 0:
		return n + 2*openMemory
	case c.Method == http.MethodHead:
		return n
	case c.route.policy == open:
		return n + openMemory
	case c.route.policy == seal && length >= 0:
		n += crypt.BufferSize(length)
		if length <= maxPeek {
			n += length
		}
		return n
	case c.Method == http.MethodGet && c.key == "" && c.route.policy == rewrite:
		return n + listMemory
	case length > 0: // a document, and what it becomes
		return n + 2*min(length, c.route.body)
	default:
		return n
	}
}

package stored

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// Range is one range of the plaintext, from a Range header (RFC 9110,
// section 14.1.2).
type Range struct {
	first  int64
	last   int64 // math.MaxInt64 for "first-"
	suffix int64 // number of bytes at the end, for "-suffix"; -1 for other ranges
}

// ParseRange parses a Range header. Like S3, it accepts one range only. For
// a malformed header or several ranges it returns nil, and the whole object
// is sent.
func ParseRange(header string) *Range {
	spec, ok := strings.CutPrefix(header, "bytes=")
	from, to, dash := strings.Cut(spec, "-")
	if !ok || !dash {
		return nil
	}

	r := &Range{last: math.MaxInt64, suffix: -1}
	if from == "" {
		if r.suffix, ok = parseDigits(to); !ok {
			return nil
		}
		return r
	}

	if r.first, ok = parseDigits(from); !ok {
		return nil
	}

	if to != "" {
		if r.last, ok = parseDigits(to); !ok || r.last < r.first {
			return nil
		}
	}
	return r
}

// Bytes returns the range of length bytes that starts at offset.
func Bytes(offset, length int64) *Range {
	return &Range{first: offset, last: offset + length - 1, suffix: -1}
}

// Closed reports whether the range has both a first and a last byte.
func (r *Range) Closed() bool { return r.suffix < 0 && r.last < math.MaxInt64 }

// Is reports whether the range is exactly length bytes from offset, which
// means that the whole range is inside the object.
func (r *Range) Is(offset, length int64) bool {
	return r.first == offset && r.last == offset+length-1
}

// parseDigits parses a number. A number that is too large becomes
// math.MaxInt64.
func parseDigits(text string) (int64, bool) {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		n = math.MaxInt64
	}
	return n, true
}

// String returns the Range header.
func (r *Range) String() string {
	switch {
	case r.suffix >= 0:
		return fmt.Sprintf("bytes=-%d", r.suffix)
	case r.last == math.MaxInt64:
		return fmt.Sprintf("bytes=%d-", r.first)
	default:
		return fmt.Sprintf("bytes=%d-%d", r.first, r.last)
	}
}

// Of returns the part of the range that is inside an object of the given
// size. ok is false if there is none.
func (r *Range) Of(size int64) (offset, length int64, ok bool) {
	switch {
	case r.suffix >= 0:
		length = min(r.suffix, size)
		return size - length, length, length > 0
	case r.first >= size:
		return 0, 0, false
	default:
		return r.first, min(r.last, size-1) - r.first + 1, true
	}
}

// stored returns the Range header for the stored segments of the range, if
// the object is a single-PUT object of any size, plus pad bytes.
func (r *Range) stored(pad int64) string {
	switch {
	case r.suffix >= 0:
		return fmt.Sprintf("bytes=-%d", crypt.StoredSuffix(r.suffix))
	case r.last >= crypt.MaxPlaintextSize:
		return fmt.Sprintf("bytes=%d-", crypt.StoredFrom(min(r.first, crypt.MaxPlaintextSize)))
	default:
		return fmt.Sprintf("bytes=%d-%d", crypt.StoredFrom(r.first), crypt.StoredTo(r.last)-1+pad)
	}
}

// ContentRange returns the Content-Range header for length bytes from
// offset.
func ContentRange(offset, length, size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", offset, offset+length-1, size)
}

// parseContentRange parses the store's Content-Range header, "bytes
// start-end/total".
func parseContentRange(header string) (start, total int64, ok bool) {
	var end int64
	n, err := fmt.Sscanf(header, "bytes %d-%d/%d", &start, &end, &total)
	return start, total, err == nil && n == 3 && start >= 0 && start <= end && end < total
}

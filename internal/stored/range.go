package stored

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// Range is one range of a Range header (RFC 9110, section 14.1.2), of the
// plaintext.
type Range struct {
	first  int64
	last   int64 // math.MaxInt64 for "first-"
	suffix int64 // number of bytes at the end, for "-suffix"; -1 otherwise
}

// ParseRange reads a Range header. Like S3 it takes one range only; a header
// that is malformed or has several is not there: nil, and the whole object is
// the answer.
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

// Bytes is the range of length bytes from offset.
func Bytes(offset, length int64) *Range {
	return &Range{first: offset, last: offset + length - 1, suffix: -1}
}

// Closed reports whether the range names its first byte and its last.
func (r *Range) Closed() bool { return r.suffix < 0 && r.last < math.MaxInt64 }

// Is reports whether the range is exactly length bytes from offset: whether no
// byte of it lies outside the object.
func (r *Range) Is(offset, length int64) bool {
	return r.first == offset && r.last == offset+length-1
}

// parseDigits reads a number; one that is too large is as good as the largest.
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

// String is the range as a Range header.
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

// Of returns where the range lies in size bytes. ok is false if it lies
// outside.
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

// stored returns the Range header that fetches the segments of the range in an
// object that was put whole, whatever its size, and pad bytes more.
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

// ContentRange is the header that says where length bytes from offset lie.
func ContentRange(offset, length, size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", offset, offset+length-1, size)
}

// parseContentRange reads the store's "bytes start-end/total".
func parseContentRange(header string) (start, total int64, ok bool) {
	var end int64
	n, err := fmt.Sscanf(header, "bytes %d-%d/%d", &start, &end, &total)
	return start, total, err == nil && n == 3 && start >= 0 && start <= end && end < total
}

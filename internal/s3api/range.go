package s3api

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// byteRange is one range of a Range header (RFC 9110, section 14.1.2), of the plaintext.
type byteRange struct {
	first  int64
	last   int64 // math.MaxInt64 for "first-"
	suffix int64 // number of bytes at the end, for "-suffix"; -1 otherwise
}

// parseRange reads a Range header. Like S3 it takes one range only; a header that is malformed or has several is not
// there: nil, and the whole object is the answer.
func parseRange(header string) *byteRange {
	spec, ok := strings.CutPrefix(header, "bytes=")
	from, to, dash := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok || !dash {
		return nil
	}
	r := &byteRange{last: math.MaxInt64, suffix: -1}
	if from == "" {
		if r.suffix, ok = digits(to); !ok {
			return nil
		}
		return r
	}
	if r.first, ok = digits(from); !ok {
		return nil
	}
	if to != "" {
		if r.last, ok = digits(to); !ok || r.last < r.first {
			return nil
		}
	}
	return r
}

// digits reads a number; one that is too large is as good as the largest.
func digits(text string) (int64, bool) {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		n = math.MaxInt64
	}
	return n, true
}

// of returns where the range lies in size bytes. ok is false if it lies outside.
func (r *byteRange) of(size int64) (offset, length int64, ok bool) {
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

// stored returns the Range header that fetches the segments of the range, whatever the object's size.
func (r *byteRange) stored() string {
	switch {
	case r.suffix >= 0:
		return fmt.Sprintf("bytes=-%d", crypt.StoredSuffix(r.suffix))
	case r.last >= crypt.MaxPlaintextSize:
		return fmt.Sprintf("bytes=%d-", crypt.StoredFrom(min(r.first, crypt.MaxPlaintextSize)))
	default:
		return fmt.Sprintf("bytes=%d-%d", crypt.StoredFrom(r.first), crypt.StoredTo(r.last)-1)
	}
}

// contentRange is the header that says where length bytes from offset lie.
func contentRange(offset, length, size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", offset, offset+length-1, size)
}

// parseContentRange reads the store's "bytes start-end/total".
func parseContentRange(header string) (start, total int64, ok bool) {
	var end int64
	n, err := fmt.Sscanf(header, "bytes %d-%d/%d", &start, &end, &total)
	return start, total, err == nil && n == 3 && start >= 0 && start <= end && end < total
}

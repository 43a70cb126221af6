package encrypt

import (
	"context"
	"net/http"
	"strconv"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

const (
	// maxPut is S3's limit for a single PUT, in stored bytes.
	maxPut = 5 << 30
	// usualPart is the smallest length of parts that this package chooses,
	// in bytes. Lengths are multiples of mib.
	usualPart = 8 * mib
	mib       = 1 << 20
)

// layout returns the parts in which to upload an object: the parts that it
// has, if the store reports them. It returns nil for a single-PUT object
// that can stay one.
func (e *Encrypter) layout(ctx context.Context, obj crypt.Object, seen *stored.Seen) (crypt.Layout, error) {
	if seen.Parts < 0 {
		if crypt.StoredSize(seen.Stored) <= maxPut {
			return nil, nil
		}
		return Equal(seen.Stored, 0), nil
	}

	layout, err := e.partsOf(ctx, obj, seen)
	if err != nil {
		return nil, err
	}
	if layout == nil {
		layout = Equal(seen.Stored, seen.Parts)
	}

	return layout, nil
}

// partsOf asks the store for the parts of an object. It returns nil if the
// store does not report them, or if they are not allowed: another store may
// have accepted shorter parts.
func (e *Encrypter) partsOf(ctx context.Context, obj crypt.Object, seen *stored.Seen) (crypt.Layout, error) {
	first, err := e.partSize(ctx, obj, seen, 1)
	if err != nil || first < 0 {
		return nil, err
	}
	n := int64(seen.Parts)
	rest := seen.Stored - (n-1)*first
	var layout crypt.Layout

	if n > 1 && rest > 0 && rest <= first { // all parts but the last have the same length
		layout = crypt.Layout{{Number: 1, Count: seen.Parts - 1, Size: first}}.Add(seen.Parts, rest)
	} else {
		layout = layout.Add(1, first)
		for number := 2; number <= seen.Parts; number++ {
			size, err := e.partSize(ctx, obj, seen, number)
			if err != nil || size < 0 {
				return nil, err
			}
			layout = layout.Add(number, size)
		}
	}

	if layout.Size() != seen.Stored || !possible(layout) {
		return nil, nil
	}
	return layout, nil
}

// possible reports whether S3 allows an upload with these parts.
func possible(l crypt.Layout) bool {
	last := l.Parts() - 1
	for i := range l.Parts() {
		if at, _ := l.At(i); at.Size > crypt.MaxPartSize || i < last && at.Size < crypt.MinPartSize {
			return false
		}
	}
	return true
}

// partSize asks for the length of a part; it returns -1 if the store does
// not report it.
func (e *Encrypter) partSize(ctx context.Context, obj crypt.Object, seen *stored.Seen, number int) (int64, error) {
	query := "partNumber=" + strconv.Itoa(number)
	resp, err := e.store.Do(
		inplace.NewRequest(ctx, http.MethodHead, obj, query, http.Header{"If-Match": {seen.ETag}}, nil),
	)
	switch stored.StatusOf(err) {
	case http.StatusBadRequest, http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented:
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	defer resp.Body.Close()
	if resp.Header.Get("Etag") != seen.ETag {
		return -1, inplace.ErrChanged
	}

	if resp.Header.Get("X-Amz-Mp-Parts-Count") != strconv.Itoa(seen.Parts) {
		return -1, nil
	}
	return resp.ContentLength, nil
}

// Equal returns parts of equal length, except for the last. It returns the
// given number of parts if that is possible. Otherwise the parts have 8 MiB
// or more, so that one part number remains for the final part.
func Equal(size int64, parts int) crypt.Layout {
	length := max(usualPart, up(size, crypt.MaxPartNumber-1))
	length = up(length, mib) * mib
	if parts > 0 {
		exact := max(1, up(size, int64(parts)))
		if round := up(exact, mib) * mib; up(size, round) == int64(parts) {
			exact = round
		}
		if parts == 1 && exact <= crypt.MaxPartSize ||
			exact >= crypt.MinPartSize && exact <= crypt.MaxPartSize && up(size, exact) == int64(parts) {
			length = exact
		}
	}

	var l crypt.Layout
	n := int(max(1, up(size, max(length, 1))))
	if n > 1 {
		l = crypt.Layout{{Number: 1, Count: n - 1, Size: length}}
	}
	return l.Add(n, size-int64(n-1)*length)
}

// up returns a/b, rounded up.
func up(a, b int64) int64 { return (a + b - 1) / b }

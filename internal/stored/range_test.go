package stored

import (
	"math"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

func FuzzRangeHeader(f *testing.F) {
	for _, header := range []string{
		"bytes=0-1", "bytes=-5", "bytes=7-", "bytes=9-2", "bytes=99999999999999999999-", "bytes=--1", "x",
	} {
		f.Add(header, int64(100))
	}

	f.Fuzz(func(t *testing.T, header string, size int64) {
		r := ParseRange(header)
		if r == nil || size < 0 || size > crypt.MaxPlaintextSize {
			return
		}
		if !strings.HasPrefix(r.stored(0), "bytes=") {
			t.Fatal("no range for the store")
		}

		offset, length, ok := r.Of(size)
		if !ok {
			return
		}
		if offset < 0 || length <= 0 || length > size-offset {
			t.Fatalf("%s of %d is %d+%d", header, size, offset, length)
		}

		w, err := crypt.Cover(size, offset, length)
		if err != nil {
			t.Fatal(err)
		}

		stored := ParseRange(r.stored(0))
		if stored == nil {
			t.Fatalf("%s asks the store for %s", header, r.stored(0))
		}

		from, n, ok := stored.Of(crypt.StoredSize(size))
		if !ok || from > w.Start || from+n < w.End {
			t.Fatalf(
				"%s of %d asks the store for %s, which lacks part of %d to %d",
				header,
				size,
				r.stored(0),
				w.Start,
				w.End,
			)
		}
	})
}

func TestHugeRangesDoNotOverflow(t *testing.T) {
	r := ParseRange("bytes=9223372036854775807-9223372036854775807")
	if r == nil || r.first != math.MaxInt64 || !strings.HasPrefix(r.stored(0), "bytes=") ||
		strings.Contains(r.stored(0), "=-") {
		t.Errorf("%+v asks for %s", r, r.stored(0))
	}
	if r := ParseRange("bytes=-9223372036854775807"); strings.Contains(r.stored(0), "--") {
		t.Errorf("asks for %s", r.stored(0))
	}
}

package crypt_test

import (
	"crypto/rand"
	"fmt"
	"io"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// longestStored is S3's limit for a part, and largestStored for an object: 10,000
// such parts, 48.8 TiB.
const (
	longestStored = int64(5 << 30)
	largestStored = crypt.MaxPartNumber * longestStored
	largest       = crypt.MaxPartNumber * crypt.MaxPartSize
)

func TestLargestObject(t *testing.T) {
	if crypt.MaxPartSize+crypt.PartOverhead != longestStored || largestStored != 53_687_091_200_000 {
		t.Errorf("the longest part has %d bytes", crypt.MaxPartSize)
	}

	var layout crypt.Layout
	for number := 1; number <= crypt.MaxPartNumber; number++ {
		layout = layout.Add(number, crypt.MaxPartSize)
	}
	if layout.Parts() != crypt.MaxPartNumber || layout.Size() != largest || !layout.Contiguous() || len(layout) != 1 {
		t.Errorf("%d parts, %d bytes, %d runs", layout.Parts(), layout.Size(), len(layout))
	}

	for name, row := range map[string]struct {
		at     int64
		number int // 0: behind the end
	}{
		"first byte":                     {0, 1},
		"last byte of the first part":    {crypt.MaxPartSize - 1, 1},
		"first byte of the second part":  {crypt.MaxPartSize, 2},
		"beyond 32 bits":                 {1 << 32, 1},
		"beyond 5 TiB":                   {5 << 40, 1025},
		"last byte of the part before":   {9999*crypt.MaxPartSize - 1, 9999},
		"first byte of the last part":    {9999 * crypt.MaxPartSize, 10_000},
		"last byte":                      {largest - 1, 10_000},
		"behind the last":                {largest, 0},
		"behind the largest stored size": {largestStored, 0},
	} {
		t.Run(name, func(t *testing.T) {
			place, ok := layout.Find(row.at)
			if ok != (row.number > 0) || ok && (place.Number != row.number || place.Index != row.number-1 ||
				place.Offset != int64(row.number-1)*crypt.MaxPartSize || place.Stored != int64(row.number-1)*longestStored) {
				t.Errorf("%+v, %v", place, ok)
			}
		})
	}
}

// The last part of the largest object has any size, and 10,000 is the last
// number.
func TestLastPartOfTheLargestObject(t *testing.T) {
	for _, size := range []int64{0, 1, crypt.MinPartSize, crypt.MaxPartSize} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			layout := crypt.Layout{{Number: 1, Count: 9999, Size: crypt.MaxPartSize}}.Add(10_000, size)
			at, ok := layout.At(9999)
			if !ok || at.Number != 10_000 || at.Size != size || at.Stored != 9999*longestStored {
				t.Errorf("%+v, %v", at, ok)
			}
			if layout.Size() != 9999*crypt.MaxPartSize+size || !crypt.IsFinal(at.Number, size) {
				t.Errorf("%d bytes", layout.Size())
			}
		})
	}
	if _, ok := (crypt.Layout{{Number: 1, Count: 10_000, Size: crypt.MaxPartSize}}).At(10_000); ok {
		t.Error("there is a part 10,001")
	}
}

// Ranges of the longest part, at its ends and across a segment.
func TestRangesOfTheLongestPart(t *testing.T) {
	part := crypt.Part{Number: 10_000, Size: crypt.MaxPartSize}
	whole := part.Whole()
	if whole.End+crypt.PartHeaderSize > longestStored {
		t.Errorf("its stream ends at %d", whole.End)
	}
	for name, row := range map[string]struct{ offset, length int64 }{
		"first byte": {0, 1}, "last byte": {crypt.MaxPartSize - 1, 1}, "all": {0, crypt.MaxPartSize},
		"beyond 32 bits": {1<<32 - 1, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := part.Cover(row.offset, row.length)
			if err != nil || w.Start < 0 || w.End > whole.End || w.End-w.Start < row.length {
				t.Errorf("%+v, %v", w, err)
			}
			if row.length < 10 && w.End-w.Start > 3*(160<<16+crypt.TagSize) {
				t.Errorf("%d bytes are fetched for %d", w.End-w.Start, row.length)
			}
		})
	}
	if _, err := part.Cover(crypt.MaxPartSize, 1); err == nil {
		t.Error("a range behind the end")
	}
}

// The header of the largest part, and the record of 9,999 of them, come back
// as they were. No body of this size is made.
func TestHeadersOfTheLargestObject(t *testing.T) {
	dek, obj := dekOf("d"), crypt.Object{Bucket: "b", Key: "k"}
	layout := crypt.Layout{{Number: 1, Count: 9999, Size: crypt.MaxPartSize}}
	for name, p := range map[string]crypt.Part{
		"longest":  {Number: 10_000, Size: crypt.MaxPartSize, Final: true},
		"appended": {Number: 10_000, Final: true, Record: crypt.NewRecord(crypt.V1, layout, crypt.NoChecksum, nil, nil)},
	} {
		t.Run(name, func(t *testing.T) {
			p.KeyID, p.WrappedDEK = "k", []byte("w")
			sealer, err := crypt.NewPartSealer(io.LimitReader(zeros{}, p.Size), &p, obj, dek, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			defer sealer.Close()
			head := make([]byte, crypt.PartPrefixSize)
			if _, err := io.ReadFull(sealer, head); err != nil {
				t.Fatal(err)
			}

			got, err := crypt.ParsePart(head)
			if err != nil || got.Number != 10_000 || got.Size != p.Size || !got.Final {
				t.Fatalf("%+v, %v", got, err)
			}
			if p.Record == nil {
				if err := got.Verify(dek, obj); err != nil {
					t.Error(err)
				}
			}
		})
	}

	record, err := parseRecord(crypt.V1, crypt.NewRecord(crypt.V1, layout, crypt.NoChecksum, nil, nil))
	if err != nil || record.Parts != 9999 || record.Layout.Size() != layout.Size() || !record.Matches(layout) {
		t.Errorf("%+v, %v", record, err)
	}
}

// zeros has any number of them.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

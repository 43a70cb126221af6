package crypt_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// edges are plaintext sizes around all boundaries: empty, segments and
// batches.
var edges = []int64{
	0, 1, 15, 16, 40, 65495, 65496, 65497, 65535, 65536, 65537,
	131031, 131032, 131033, 4*65536 - 41, 4*65536 - 40, 4*65536 - 39, 1 << 20,
}

func newDEK(t testing.TB) []byte {
	t.Helper()
	dek := make([]byte, crypt.DEKSize)
	rand.Read(dek)
	return dek
}

func randomText(n int64) []byte {
	text := make([]byte, n)
	rand.Read(text)
	return text
}

func seal(t testing.TB, dek, text []byte) ([]byte, crypt.Header) {
	t.Helper()
	s, err := crypt.NewSealer(bytes.NewReader(text), int64(len(text)), dek, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	body, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}

	return body, s.Header()
}

// open returns what was released before the error or before io.EOF.
func open(body []byte, w crypt.Window, dek []byte, h crypt.Header) ([]byte, error) {
	return openFrom(bytes.NewReader(body), w, dek, h)
}

func openFrom(src io.Reader, w crypt.Window, dek []byte, h crypt.Header) ([]byte, error) {
	o, err := crypt.NewOpener(src, w, dek, h)
	if err != nil {
		return nil, err
	}
	defer o.Close()

	var out []byte
	for {
		text, err := o.Next()
		if errors.Is(err, io.EOF) && err == io.EOF { //nolint:errorlint // io.EOF must come bare
			return out, nil
		}
		if err != nil {
			return out, err
		}

		out = append(out, text...)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, size := range edges {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dek, text := newDEK(t), randomText(size)
			body, h := seal(t, dek, text)
			if int64(len(body)) != crypt.StoredSize(size) {
				t.Fatalf("body has %d bytes, StoredSize says %d", len(body), crypt.StoredSize(size))
			}
			if size >= 16 && bytes.Contains(body, text[:16]) {
				t.Fatal("plaintext in the body")
			}

			got, err := open(body, crypt.Whole(size), dek, h)
			if err != nil || !bytes.Equal(got, text) {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
		})
	}
}

func TestSealerReadsInAnyPieces(t *testing.T) {
	dek, text := newDEK(t), randomText(300_000)
	for name, src := range map[string]io.Reader{
		"one byte at a time": iotest.OneByteReader(bytes.NewReader(text)),
		"data with EOF":      iotest.DataErrReader(bytes.NewReader(text)),
		"from memory":        bytes.NewBuffer(bytes.Clone(text)),
	} {
		t.Run(name, func(t *testing.T) {
			s, err := crypt.NewSealer(src, int64(len(text)), dek, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}

			body, err := io.ReadAll(iotest.HalfReader(s))
			if err != nil {
				t.Fatal(err)
			}

			got, err := openFrom(iotest.OneByteReader(bytes.NewReader(body)), crypt.Whole(int64(len(text))), dek,
				s.Header())
			if err != nil || !bytes.Equal(got, text) {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
		})
	}
}

// Whoever gave the text may still need it.
func TestSealerDoesNotChangeTextInMemory(t *testing.T) {
	text := randomText(300_000)
	own := bytes.Clone(text)
	s, err := crypt.NewSealer(bytes.NewBuffer(own), int64(len(own)), newDEK(t), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, s); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if !bytes.Equal(own, text) {
		t.Error("the text has changed")
	}
}

// If a source does not have the declared size, or fails instead of
// returning io.EOF, the body must lack its last segment, so that no store
// can take it for complete.
func TestSealerNeverFinishesABadSource(t *testing.T) {
	errSource := errors.New("checksum mismatch")
	dek := newDEK(t)

	for _, size := range edges {
		text := randomText(size)
		for name, row := range map[string]struct {
			src  io.Reader
			want error
		}{
			"longer": {io.MultiReader(bytes.NewReader(text), bytes.NewReader([]byte{1})), crypt.ErrTrailing},
			"failing at the end": {
				io.MultiReader(bytes.NewReader(text), iotest.ErrReader(errSource)), errSource,
			},
			"shorter":           {bytes.NewReader(text[:max(size-1, 0)]), io.ErrUnexpectedEOF},
			"longer in memory":  {bytes.NewBuffer(append(bytes.Clone(text), 1)), crypt.ErrTrailing},
			"shorter in memory": {bytes.NewBuffer(text[:max(size-1, 0)]), io.ErrUnexpectedEOF},
		} {
			t.Run(name, func(t *testing.T) {
				if strings.HasPrefix(name, "shorter") && size == 0 {
					return
				}

				s, err := crypt.NewSealer(row.src, size, dek, rand.Reader)
				if err != nil {
					t.Fatal(err)
				}

				body, err := io.ReadAll(s)
				if !errors.Is(err, row.want) {
					t.Errorf("%d bytes, %s: error %v, want %v", size, name, err, row.want)
				}
				if int64(len(body)) > crypt.StoredSize(size)-crypt.TagSize-1 {
					t.Errorf("%d bytes, %s: %d stored bytes came out, the last segment among them", size, name,
						len(body))
				}

				s.Close()
			})
		}
	}
}

func TestOpenRefusesEveryCut(t *testing.T) {
	dek, text := newDEK(t), randomText(2*65536+77)
	body, h := seal(t, dek, text)
	w := crypt.Whole(int64(len(text)))

	for _, cut := range cuts(len(body)) {
		got, err := open(body[:cut], w, dek, h)
		if !errors.Is(err, crypt.ErrTruncated) {
			t.Fatalf("cut to %d of %d: error %v, want ErrTruncated", cut, len(body), err)
		}
		if !bytes.HasPrefix(text, got) {
			t.Fatalf("cut to %d: released bytes that are not the plaintext", cut)
		}
	}
}

// The store may truncate the body and change the size in the metadata
// accordingly. A reader that trusts this size must still notice: the last
// flag in the nonce does it.
func TestOpenRefusesEveryCutWithAMatchingSize(t *testing.T) {
	dek, text := newDEK(t), randomText(2*65536+77)
	body, h := seal(t, dek, text)
	for _, cut := range cuts(len(body)) {
		size, err := crypt.PlaintextSize(int64(cut))
		if err != nil {
			continue
		}
		if _, err := open(body[:cut], crypt.Whole(size), dek, h); !errors.Is(err, crypt.ErrAuth) {
			t.Fatalf("cut to %d of %d with size %d: error %v, want ErrAuth", cut, len(body), size, err)
		}
	}
}

// cuts returns every length near a boundary, and a sample of the rest.
func cuts(length int) []int {
	var out []int
	for cut := range length {
		near := min(cut%crypt.StoredSegmentSize, crypt.StoredSegmentSize-cut%crypt.StoredSegmentSize)
		if near <= 57 || length-cut <= 57 || cut%997 == 0 {
			out = append(out, cut)
		}
	}
	return out
}

func TestOpenRefusesAlteredBodies(t *testing.T) {
	const n = crypt.StoredSegmentSize
	dek, text := newDEK(t), randomText(4*65536)
	body, h := seal(t, dek, text)
	other, otherHeader := seal(t, dek, randomText(4*65536))
	seg := func(b []byte, i int) []byte { return b[i*n : min((i+1)*n, len(b))] }
	for name, altered := range map[string][]byte{
		"swapped segments": bytes.Join([][]byte{
			seg(body, 0), seg(body, 2), seg(body, 1), seg(body, 3),
			seg(body, 4),
		}, nil),
		"duplicated segment": bytes.Join([][]byte{
			seg(body, 0), seg(body, 1), seg(body, 1), seg(body, 3),
			seg(body, 4),
		}, nil),
		"segment of another stream": bytes.Join([][]byte{
			seg(body, 0), seg(other, 1), seg(body, 2), seg(body, 3),
			seg(body, 4),
		}, nil),
		"last segment of other stream": bytes.Join([][]byte{body[:4*n], seg(other, 4)}, nil),
		"another stream":               other,
		"all zero":                     make([]byte, len(body)),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := open(altered, crypt.Whole(4*65536), dek, h); !errors.Is(err, crypt.ErrAuth) {
				t.Errorf("error %v, want ErrAuth", err)
			}
		})
	}

	dropped := append(bytes.Clone(body[:n]), body[2*n:]...)
	if _, err := open(dropped, crypt.Whole(4*65536), dek, h); !errors.Is(err, crypt.ErrAuth) &&
		!errors.Is(err, crypt.ErrTruncated) {
		t.Errorf("dropped segment: error %v", err)
	}
	if _, err := open(body, crypt.Whole(4*65536), dek, otherHeader); !errors.Is(err, crypt.ErrAuth) {
		t.Errorf("another header: error %v, want ErrAuth", err)
	}

	for _, size := range edges {
		text := randomText(size)
		body, h := seal(t, dek, text)
		if _, err := open(append(body, 0), crypt.Whole(size), dek, h); !errors.Is(err, crypt.ErrTrailing) {
			t.Errorf("%d bytes and a trailing byte: error %v, want ErrTrailing", size, err)
		}
	}
}

func TestOpenRefusesEveryFlippedBit(t *testing.T) {
	dek, text := newDEK(t), randomText(200)
	body, h := seal(t, dek, text)
	for i := range body {
		for bit := range 8 {
			altered := bytes.Clone(body)
			altered[i] ^= 1 << bit
			got, err := open(altered, crypt.Whole(200), dek, h)
			if !errors.Is(err, crypt.ErrAuth) || len(got) != 0 {
				t.Fatalf("byte %d bit %d: %d bytes came out, error %v", i, bit, len(got), err)
			}
		}
	}

	for i := range h {
		altered := h
		altered[i] ^= 1
		if _, err := open(body, crypt.Whole(200), dek, altered); !errors.Is(err, crypt.ErrAuth) {
			t.Fatalf("envelope header byte %d: error %v", i, err)
		}
	}
}

func TestWrongKeys(t *testing.T) {
	dek, text := newDEK(t), randomText(70_000)
	body, h := seal(t, dek, text)
	if _, err := open(body, crypt.Whole(70_000), newDEK(t), h); !errors.Is(err, crypt.ErrAuth) {
		t.Errorf("another DEK opens: %v", err)
	}

	for name, bad := range map[string][]byte{
		"zero": make([]byte, 32), "short": dek[:31],
		"long": append(dek[:32:32], 1), "none": nil,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := open(body, crypt.Whole(70_000), bad, h); !errors.Is(err, crypt.ErrDEK) {
				t.Errorf("%s DEK opens: %v", name, err)
			}
			if _, err := crypt.NewSealer(bytes.NewReader(text), 70_000, bad, rand.Reader); !errors.Is(err,
				crypt.ErrDEK) {
				t.Errorf("%s DEK seals: %v", name, err)
			}
		})
	}
}

func TestEveryStreamIsFresh(t *testing.T) {
	dek, text := newDEK(t), randomText(100)
	a, ha := seal(t, dek, text)
	b, hb := seal(t, dek, text)
	if ha == hb || bytes.Equal(a[crypt.HeaderSize:], b[crypt.HeaderSize:]) {
		t.Fatal("two streams under one DEK are alike")
	}
	if _, err := crypt.NewSealer(bytes.NewReader(text), 100, dek,
		iotest.ErrReader(errors.New("no entropy"))); err == nil {
		t.Fatal("sealed without randomness")
	}
}

func TestOpenReportsTheSourcesError(t *testing.T) {
	errNet := errors.New("connection reset")
	dek, text := newDEK(t), randomText(300_000)
	body, h := seal(t, dek, text)
	for _, at := range []int{0, 39, 65552, 270_000, len(body)} {
		t.Run(fmt.Sprintf("at byte %d", at), func(t *testing.T) {
			src := io.MultiReader(bytes.NewReader(body[:at]), iotest.ErrReader(errNet))
			if _, err := openFrom(src, crypt.Whole(300_000), dek, h); !errors.Is(err, errNet) {
				t.Errorf("failure at %d: error %v", at, err)
			}
		})
	}
}

// Any range must equal the slice of the plaintext, and fetch only the
// segments that it touches.
func TestAnyRangeIsTheSlice(t *testing.T) {
	r := mrand.New(mrand.NewPCG(1, 2))
	dek := newDEK(t)

	for _, size := range append(edges[1:len(edges):len(edges)], 777_777) {
		text := randomText(size)
		body, h := seal(t, dek, text)

		for range 60 {
			offset := r.Int64N(size)
			if r.IntN(3) == 0 { // near a boundary
				offset = min(size-1, max(0, (r.Int64N(size/65536+1)+1)*65536-40+r.Int64N(5)-2))
			}

			length := 1 + r.Int64N(min(size-offset, 1<<uint(r.IntN(21))))
			w, err := crypt.Cover(size, offset, length)
			if err != nil {
				t.Fatal(err)
			}

			got, err := open(body[w.Start:w.End], w, dek, h)
			if err != nil || !bytes.Equal(got, text[offset:offset+length]) {
				t.Fatalf("size %d, %d+%d: got %d bytes, %v", size, offset, length, len(got), err)
			}
			if w.End-w.Start > length+2*crypt.StoredSegmentSize+(length/65536+2)*16 {
				t.Fatalf("size %d, %d+%d: fetches %d bytes", size, offset, length, w.End-w.Start)
			}

			if w.Start != crypt.StoredFrom(offset) || w.End != min(crypt.StoredTo(offset+length-1), int64(len(body))) {
				t.Fatalf("StoredFrom and StoredTo disagree with Cover")
			}
			if s := crypt.StoredSuffix(size - offset); int64(len(body))-s > w.Start {
				t.Fatalf("StoredSuffix(%d) = %d leaves out the segment at %d of %d", size-offset, s, w.Start, len(body))
			}
		}
	}
}

func TestCoverRefuses(t *testing.T) {
	for _, row := range [][3]int64{
		{10, -1, 1},
		{10, 0, 0},
		{10, 10, 1},
		{10, 5, 6},
		{0, 0, 1},
		{10, 0, -1},
		{10, 1 << 62, 1 << 62},
	} {
		t.Run(fmt.Sprint(row), func(t *testing.T) {
			if _, err := crypt.Cover(row[0], row[1], row[2]); !errors.Is(err, crypt.ErrSize) {
				t.Errorf("Cover(%v): %v", row, err)
			}
		})
	}
}

func TestSizes(t *testing.T) {
	valid := make(map[int64]int64)
	for p := range int64(200_000) {
		valid[crypt.StoredSize(p)] = p
	}

	if len(valid) != 200_000 {
		t.Fatal("two plaintext sizes have one stored size")
	}

	for s := int64(-1); s < 200_000; s++ {
		p, err := crypt.PlaintextSize(s)
		want, ok := valid[s]
		if ok != (err == nil) || p != want {
			t.Fatalf("PlaintextSize(%d) = %d, %v; want %d, valid %v", s, p, err, want, ok)
		}
	}

	r := mrand.New(mrand.NewPCG(3, 4))
	for range 100_000 {
		p := r.Int64N(crypt.MaxPlaintextSize + 1)
		if got, err := crypt.PlaintextSize(crypt.StoredSize(p)); err != nil || got != p {
			t.Fatalf("PlaintextSize(StoredSize(%d)) = %d, %v", p, got, err)
		}
	}

	if _, err := crypt.PlaintextSize(crypt.StoredSize(crypt.MaxPlaintextSize) + 1); !errors.Is(err, crypt.ErrSize) {
		t.Error("a body of 2^32+1 segments has a size")
	}
	if _, err := crypt.NewSealer(nil, crypt.MaxPlaintextSize+1, newDEK(t), rand.Reader); !errors.Is(err,
		crypt.ErrSize) {
		t.Error("a plaintext too long for the counter is sealed")
	}
}

func FuzzRange(f *testing.F) {
	f.Add(int64(70_000), int64(65_496), int64(10))
	f.Add(int64(0), int64(0), int64(0))
	f.Add(int64(1), int64(0), int64(1))
	dek := newDEK(f)
	text := randomText(1 << 19)
	f.Fuzz(func(t *testing.T, size, offset, length int64) {
		if size < 0 || size > int64(len(text)) {
			return
		}

		w, err := crypt.Cover(size, offset, length)
		if err != nil {
			if offset >= 0 && length > 0 && offset < size && length <= size-offset {
				t.Fatalf("Cover(%d, %d, %d): %v", size, offset, length, err)
			}
			return
		}

		body, h := seal(t, dek, text[:size])
		got, err := open(body[w.Start:w.End], w, dek, h)
		if err != nil || !bytes.Equal(got, text[offset:offset+length]) {
			t.Fatalf("%d %d+%d: %v", size, offset, length, err)
		}
	})
}

// FuzzOpen looks for an altered body from which a wrong plaintext byte is
// released.
func FuzzOpen(f *testing.F) {
	dek := bytes.Repeat([]byte{7}, 32)
	text := bytes.Repeat([]byte("plaintext "), 7000)
	body, h := seal(f, dek, text)
	f.Add(body[:100], int64(60))
	f.Add(body, int64(len(text)))
	f.Add([]byte{}, int64(0))

	f.Fuzz(func(t *testing.T, altered []byte, size int64) {
		if size < 0 || size > crypt.MaxPlaintextSize {
			return
		}

		got, err := open(altered, crypt.Whole(size), dek, h)
		if !bytes.HasPrefix(text, got) {
			t.Fatal("released bytes that were never sealed")
		}
		if err == nil && !bytes.Equal(altered, body) {
			t.Fatal("an altered body opens")
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	dek := newDEK(b)
	for _, size := range []int64{4 << 10, 1 << 20, 64 << 20} {
		text := make([]byte, size)
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()

			for b.Loop() {
				s, err := crypt.NewSealer(bytes.NewReader(text), size, dek, rand.Reader)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, onlyReader{s}); err != nil {
					b.Fatal(err)
				}

				s.Close()
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	dek := newDEK(b)
	for _, size := range []int64{4 << 10, 1 << 20, 64 << 20} {
		body, h := seal(b, dek, make([]byte, size))
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()

			for b.Loop() {
				o, err := crypt.NewOpener(bytes.NewReader(body), crypt.Whole(size), dek, h)
				if err != nil {
					b.Fatal(err)
				}

				for err == nil {
					_, err = o.Next()
				}

				if !errors.Is(err, io.EOF) {
					b.Fatal(err)
				}
				o.Close()
			}
		})
	}
}

type onlyReader struct{ io.Reader }

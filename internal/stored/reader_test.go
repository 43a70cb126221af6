package stored_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

func TestGetWhole(t *testing.T) {
	for _, o := range objects {
		t.Run(o.name, func(t *testing.T) {
			b := newBench(t)
			obj := crypt.Object{Bucket: "bucket", Key: keyOf(o.name)}
			b.putObject(t, obj, o)
			r := b.reader()

			for range 2 { // the second time from the cache
				got, data, err := read(t, r, requestFor(obj))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(data, o.plaintext) {
					t.Errorf("read %d bytes that differ from the %d stored", len(data), len(o.plaintext))
				}

				if size := int64(len(o.plaintext)); got.Size != size || got.Length != size || got.Partial ||
					got.Plaintext {
					t.Errorf(
						"size %d, length %d, partial %t, plaintext %t",
						got.Size,
						got.Length,
						got.Partial,
						got.Plaintext,
					)
				}
			}
		})
	}
}

func TestGetRange(t *testing.T) {
	ranges := []struct{ name, header string }{
		{"the first byte", "bytes=0-0"},
		{"within a segment", "bytes=10-1000"},
		{"across segments and parts", "bytes=65000-210000"},
		{"open end", "bytes=120000-"},
		{"the last byte", "bytes=-1"},
		{"the last bytes", "bytes=-100001"},
		{"all, and more", "bytes=0-99999999"},
		{"outside", "bytes=5242880-5242889"},
		{"far outside", "bytes=99999999999-"},
	}

	for _, o := range objects {
		for _, c := range ranges {
			t.Run(o.name+"/"+c.name, func(t *testing.T) {
				b := newBench(t)
				obj := crypt.Object{Bucket: "bucket", Key: keyOf(o.name)}
				b.putObject(t, obj, o)
				r := b.reader()
				q := requestFor(obj)

				for range 2 { // the second time from the cache
					q.Range = stored.ParseRange(c.header)
					got, data, err := read(t, r, q)
					checkRange(t, o.plaintext, q.Range, got, data, err)
				}
			})
		}
	}
}

// checkRange compares the result with net/http's interpretation of the
// range.
func checkRange(t *testing.T, plaintext []byte, wanted *stored.Range, got *stored.Object, data []byte, err error) {
	t.Helper()
	offset, length, ok := wanted.Of(int64(len(plaintext)))
	var outside *stored.RangeError

	switch {
	case len(plaintext) == 0 && err == nil: // the last bytes of an empty object are the whole object
		if len(data) > 0 || got.Partial {
			t.Errorf("%d bytes of an empty object, partial: %t", len(data), got.Partial)
		}
	case !ok:
		if !errors.As(err, &outside) || outside.Size != int64(len(plaintext)) {
			t.Errorf("error %v, want a RangeError of %d bytes", err, len(plaintext))
		}
	case err != nil:
		t.Error(err)
	case !bytes.Equal(data, plaintext[offset:offset+length]):
		t.Errorf("read %d bytes that differ from the %d stored at %d", len(data), length, offset)
	case !got.Partial || got.Offset != offset || got.Length != length || got.Size != int64(len(plaintext)):
		t.Errorf("partial %t, %d+%d of %d; want %d+%d of %d",
			got.Partial, got.Offset, got.Length, got.Size, offset, length, len(plaintext))
	}
}

func TestGetPart(t *testing.T) {
	b := newBench(t)
	obj := crypt.Object{Bucket: "bucket", Key: "key"}
	for _, c := range []struct {
		name, object string
		part         int
		want         []byte
		err          error
	}{
		{"first of equal parts", "equal parts", 1, text(400_000, 5)[:150_000], nil},
		{"last of equal parts", "equal parts", 3, text(400_000, 5)[300_000:], nil},
		{"of several sizes", "parts of several sizes", 2, text(300_000, 6)[100:150_100], nil},
		{"by its place, not its number", "gaps in the part numbers", 2, text(300_000, 8)[100_000:200_000], nil},
		{"an empty part", "an empty last part", 3, nil, nil},
		{"of a single-PUT object", "five segments", 1, text(300_000, 3), nil},
		{"behind the last", "equal parts", 4, nil, stored.ErrPartNumber},
		{"second of a single-PUT object", "five segments", 2, nil, stored.ErrPartNumber},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.putObject(t, obj, objectNamed(t, c.object))
			q := requestFor(obj)
			q.Part = c.part
			_, data, err := read(t, b.reader(), q)
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}

			if !bytes.Equal(data, c.want) {
				t.Errorf("read %d bytes that differ from the %d of the part", len(data), len(c.want))
			}
		})
	}
}

func TestHead(t *testing.T) {
	for _, o := range objects {
		t.Run(o.name, func(t *testing.T) {
			b := newBench(t)
			obj := crypt.Object{Bucket: "bucket", Key: keyOf(o.name)}
			b.putObject(t, obj, o)
			r := b.reader()

			got, err := r.Head(t.Context(), requestFor(obj))
			if err != nil {
				t.Fatal(err)
			}
			if got.Size != int64(len(o.plaintext)) {
				t.Errorf("size %d, want %d", got.Size, len(o.plaintext))
			}

			if err := r.Prove(t.Context(), requestFor(obj), got); err != nil {
				t.Error(err)
			}
			layout, err := r.Layout(t.Context(), requestFor(obj), got)
			if err != nil {
				t.Fatal(err)
			}

			if layout.Parts() != len(o.parts) {
				t.Fatalf("%d parts, want %d", layout.Parts(), len(o.parts))
			}

			for i, p := range o.parts {
				if at, _ := layout.At(i); at.Number != p.number || at.Size != int64(p.size) {
					t.Errorf("part %d of %d bytes, want part %d of %d", at.Number, at.Size, p.number, p.size)
				}
			}
		})
	}
}

func TestGetPlaintext(t *testing.T) {
	b := newBench(t)
	obj := crypt.Object{Bucket: "bucket", Key: "key"}
	b.put(obj, nil, []byte("never encrypted"), 0)

	t.Run("refused", func(t *testing.T) {
		if _, _, err := read(t, b.reader(), requestFor(obj)); !errors.Is(err, errPlaintext) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("allowed", func(t *testing.T) {
		q := stored.Request{Object: obj, Plaintext: func(int64) error { return nil }}
		o, data, err := read(t, b.reader(), q)
		if err != nil || string(data) != "never encrypted" || !o.Plaintext || o.KeyID != "" {
			t.Errorf("%q, %+v, %v", data, o, err)
		}
	})

	t.Run("a range", func(t *testing.T) {
		q := stored.Request{Object: obj, Plaintext: func(int64) error { return nil }, Range: stored.Bytes(6, 9)}
		o, data, err := read(t, b.reader(), q)
		if err != nil || string(data) != "encrypted" || !o.Partial || o.Size != 15 {
			t.Errorf("%q, %+v, %v", data, o, err)
		}
	})
}

func TestGetOfErrors(t *testing.T) {
	b := newBench(t)
	obj := crypt.Object{Bucket: "bucket", Key: "key"}
	b.putObject(t, obj, objectNamed(t, "five segments"))

	t.Run("no such object", func(t *testing.T) {
		_, _, err := read(t, b.reader(), requestFor(crypt.Object{Bucket: "bucket", Key: "another"}))
		if stored.StatusOf(err) != http.StatusNotFound {
			t.Errorf("error %v", err)
		}
	})
	t.Run("not modified", func(t *testing.T) {
		q := requestFor(obj)
		q.Header = http.Header{"If-None-Match": {b.get(obj).header.Get("Etag")}}
		o, err := b.reader().Get(t.Context(), q)
		if err != nil || !o.NotModified {
			t.Errorf("%+v, %v", o, err)
		}
	})

	t.Run("revoked key", func(t *testing.T) {
		if err := os.Remove(b.keyFile); err != nil {
			t.Fatal(err)
		}
		b.keys.PurgeAll()
		if _, data, err := read(t, b.reader(), requestFor(obj)); !kms.IsRevoked(err) || len(data) > 0 {
			t.Errorf("%d bytes, error %v", len(data), err)
		}
	})
}

// TestGetTampered: whatever the store does to an object, only bytes of the
// plaintext are returned, and the read ends with an error.
func TestGetTampered(t *testing.T) {
	for _, c := range tampered {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			obj := crypt.Object{Bucket: "bucket", Key: "key"}
			o := objectNamed(t, c.object)
			b.putObject(t, obj, o)
			genuine := b.get(obj)
			altered := memoryObject{maps.Clone(genuine.header), slices.Clone(genuine.body)}
			c.tamper(&altered)

			b.set(obj, altered)

			q := requestFor(obj)
			_, data, err := read(t, b.reader(), q)
			checkTampered(t, "whole", o.plaintext, data, err)
			if c.wholeOnly {
				return
			}
			q.Range = stored.Bytes(0, int64(len(o.plaintext)))

			_, data, err = read(t, b.reader(), q)
			checkTampered(t, "all as a range", o.plaintext, data, err)
		})
	}
}

func checkTampered(t *testing.T, what string, plaintext, data []byte, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error, %d bytes", what, len(data))
	}
	if !bytes.HasPrefix(plaintext, data) {
		t.Errorf("%s: bytes came out that were not stored", what)
	}
}

const equalPart = 150_000 + crypt.PartOverhead // stored size of a part of "equal parts"

var tampered = []struct {
	name, object string
	tamper       func(o *memoryObject)
	wholeOnly    bool // a range may not read what was altered
}{
	{"header", "five segments", func(o *memoryObject) { o.body[5] ^= 1 }, false},
	{"first segment", "five segments", func(o *memoryObject) { o.body[1000] ^= 1 }, false},
	{"last byte", "five segments", func(o *memoryObject) { o.body[len(o.body)-1] ^= 1 }, false},
	{"cut within a segment", "five segments", func(o *memoryObject) { o.body = o.body[:len(o.body)-10] }, false},
	{"cut between segments", "five segments", func(o *memoryObject) {
		o.body = o.body[:4*crypt.StoredSegmentSize]
	}, false},
	{"all of the body gone", "one byte", func(o *memoryObject) { o.body = nil }, false},
	{"a byte more", "five segments", func(o *memoryObject) { o.body = append(o.body, 0) }, false},
	{"segments swapped", "five segments", func(o *memoryObject) {
		first, second := crypt.StoredSegmentSize, 2*crypt.StoredSegmentSize
		o.body = slices.Concat(o.body[:first], o.body[second:second+first], o.body[first:second], o.body[second+first:])
	}, false},
	{"another size in the envelope", "five segments", func(o *memoryObject) {
		o.header.Set("X-Amz-Meta-Cmek-Size", "299999")
	}, false},
	{"cut, with the size that fits", "five segments", func(o *memoryObject) {
		o.body = o.body[:crypt.StoredSize(200_000)]
		o.header.Set("X-Amz-Meta-Cmek-Size", "200000")
	}, false},
	{"no MAC", "five segments", func(o *memoryObject) { o.header.Del("X-Amz-Meta-Cmek-Mac") }, false},
	{"no envelope", "five segments", func(o *memoryObject) { o.header = http.Header{"Etag": o.header["Etag"]} }, false},
	{"a part header", "equal parts", func(o *memoryObject) { o.body[equalPart+20] ^= 1 }, false},
	{"a byte of a part", "equal parts", func(o *memoryObject) { o.body[equalPart+2000] ^= 1 }, false},
	{"a part missing", "equal parts", func(o *memoryObject) {
		o.body = slices.Delete(o.body, equalPart, 2*equalPart)
	}, false},
	{"parts swapped", "equal parts", func(o *memoryObject) {
		o.body = slices.Concat(o.body[equalPart:2*equalPart], o.body[:equalPart], o.body[2*equalPart:])
	}, false},
	{"the last part missing", "equal parts", func(o *memoryObject) { o.body = o.body[:2*equalPart] }, false},
	{"a part of a record's missing", "gaps in the part numbers", func(o *memoryObject) {
		size := 100_000 + crypt.PartOverhead
		o.body = slices.Delete(o.body, size, 2*size)
	}, false},
	{"the record missing", "gaps in the part numbers", func(o *memoryObject) {
		o.body = o.body[:len(o.body)-crypt.PartOverhead]
	}, false},
	{"the fill of a part", "equal parts", func(o *memoryObject) { o.body[equalPart-1] ^= 1 }, true},
}

// TestGetMoved: an object fails verification under another name, even if its
// key can be opened there.
func TestGetMoved(t *testing.T) {
	for _, name := range []string{"five segments", "equal parts"} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			from, to := crypt.Object{Bucket: "bucket", Key: "from"}, crypt.Object{Bucket: "bucket", Key: "to"}
			b.putObject(t, from, objectNamed(t, name))
			b.set(to, b.get(from))
			if _, data, err := read(t, b.reader(), requestFor(to)); err == nil || len(data) > 0 {
				t.Errorf("%d bytes, error %v", len(data), err)
			}
		})
	}
}

// TestGetOverwritten: a read during an overwrite returns the old object or
// the new one, and never a mix.
func TestGetOverwritten(t *testing.T) {
	before, after := objectNamed(t, "equal parts"), objectNamed(t, "gaps in the part numbers")
	single := objectNamed(t, "five segments")
	const offset, length = 100_000, 120_000
	for _, c := range []struct {
		name     string
		old, new object
	}{
		{"parts by parts", before, after},
		{"parts with a record by parts", after, before},
		{"parts by a single PUT", before, single},
		{"a single PUT by parts", single, before},
		{"uneven parts by parts", objectNamed(t, "parts of several sizes"), before},
	} {
		for request := 1; request <= 6; request++ {
			for _, kind := range []string{"fresh", "warm"} {
				t.Run(fmt.Sprintf("%s/%s/at request %d", c.name, kind, request), func(t *testing.T) {
					b := newBench(t)
					obj := crypt.Object{Bucket: "bucket", Key: "key"}
					b.putObject(t, obj, c.new)
					replacement := b.get(obj)
					b.putObject(t, obj, c.old)
					r := b.reader()
					q := requestFor(obj)

					q.Range = stored.Bytes(offset, length)
					if kind == "warm" {
						if _, _, err := read(t, r, q); err != nil {
							t.Fatal(err)
						}
					}

					b.beforeEach(func(n int) {
						if n == request {
							b.set(obj, replacement)
						}
					})

					_, data, err := read(t, r, q)
					if err != nil {
						t.Fatal(err)
					}

					isOld := bytes.Equal(data, c.old.plaintext[offset:offset+length])
					isNew := bytes.Equal(data, c.new.plaintext[offset:offset+length])
					if !isOld && !isNew {
						t.Error("neither the old object nor the new one")
					}
				})
			}
		}
	}
}

func TestGetOverwrittenAgainAndAgain(t *testing.T) {
	b := newBench(t)
	obj := crypt.Object{Bucket: "bucket", Key: "key"}
	o := objectNamed(t, "equal parts")

	var versions []memoryObject
	for range 50 {
		b.putObject(t, obj, o)
		versions = append(versions, b.get(obj))
	}
	b.beforeEach(func(n int) { b.set(obj, versions[n%len(versions)]) })

	q := requestFor(obj)
	q.Range = stored.Bytes(100_000, 120_000)
	if _, _, err := read(t, b.reader(), q); !errors.Is(err, stored.ErrOverwritten) {
		t.Errorf("error %v", err)
	}
}

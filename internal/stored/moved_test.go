package stored_test

import (
	"bytes"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// An object that was moved is read under the name under which it was
// written, and under no other. The cache of one name does not vouch for
// another.
func TestGetAt(t *testing.T) {
	from := crypt.Object{Bucket: "bucket", Key: "from"}
	to := crypt.Object{Bucket: "replica", Key: "to"}
	for _, o := range objects {
		t.Run(o.name, func(t *testing.T) {
			b := newBench(t)
			b.putObject(t, from, o)
			moved := b.get(from)
			moved.header = moved.header.Clone()
			b.set(to, moved)
			b.set(from, memoryObject{})
			r := b.reader()

			q := requestFor(from)
			q.At = to
			size := int64(len(o.plaintext))

			for range 2 { // the second time from the cache
				got, data, err := read(t, r, q)
				if err != nil || !bytes.Equal(data, o.plaintext) || got.Size != size {
					t.Errorf("%d bytes of %d, %v", len(data), size, err)
				}

				part := q
				part.Range = stored.Bytes(size/2, max(1, size/3))
				got, data, err = read(t, r, part)
				checkRange(t, o.plaintext, part.Range, got, data, err)
			}

			for name, wrong := range map[string]stored.Request{
				"its place":         {Object: to},
				"its place, twice":  {Object: to, At: to},
				"another old name":  {Object: crypt.Object{Bucket: "bucket", Key: "other"}, At: to},
				"another bucket":    {Object: crypt.Object{Bucket: "other", Key: "from"}, At: to},
				"the other way":     {Object: to, At: from},
				"the old name only": {Object: from},
			} {
				wrong.Plaintext = func(int64) error { return errPlaintext }
				if _, data, err := read(t, r, wrong); err == nil || len(data) > 0 {
					t.Errorf("%s: %d bytes, error %v", name, len(data), err)
				}
			}
		})
	}
}

// A tool that copies an object in other parts changes the number at the end
// of its ETag.
func TestNoPartCount(t *testing.T) {
	for _, o := range objects {
		if o.parts == nil {
			continue
		}
		for _, etag := range []string{`"00112233445566778899aabbccddeeff-77"`, `"00112233445566778899aabbccddeeff"`} {
			t.Run(o.name+etag, func(t *testing.T) {
				b := newBench(t)
				obj := crypt.Object{Bucket: "bucket", Key: keyOf(o.name)}
				b.putObject(t, obj, o)
				b.get(obj).header.Set("Etag", etag)

				r, size := b.reader(), int64(len(o.plaintext))
				r.NoPartCount = true
				head, err := r.Head(t.Context(), requestFor(obj))
				if err != nil || head.Size != size {
					t.Fatalf("%+v, %v", head, err)
				}

				got, data, err := read(t, r, requestFor(obj))
				if err != nil || !bytes.Equal(data, o.plaintext) || got.Size != size {
					t.Errorf("%d bytes of %d, %v", len(data), size, err)
				}

				q := requestFor(obj)
				q.Range = stored.Bytes(size/2, size/3)
				got, data, err = read(t, r, q)
				checkRange(t, o.plaintext, q.Range, got, data, err)
			})
		}
	}
}

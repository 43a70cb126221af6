package crypt_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

const vectorFileV2 = "testdata/vectors-v2.json"

type vectorsV2 struct {
	Comment   []string    `json:"comment"`
	Objects   []vector    `json:"objects"`
	Multipart partVectors `json:"multipart"`
}

var someMetadata = map[string]string{
	"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", "x-amz-meta-case": "Müller ./. Maier",
	"x-amz-meta-empty": "",
}

func makeVectorsV2(t *testing.T) vectorsV2 {
	t.Helper()
	plain := crypt.Object{Bucket: "bucket", Key: "key"}
	bare := newUpload(t, crypt.V1, "a bare part", []int64{100, 200, 50}, nil, false)
	mixed := newUpload(t, crypt.V2, "a bare part", []int64{100, 200, 50}, nil, false)
	mixed.parts[1] = bare.parts[1]
	again := newUpload(t, crypt.V2, "record with tags", []int64{100, 100}, nil, true)
	earlier := again.seal(t, crypt.Part{
		Number: 2, Size: 100, WrappedDEK: []byte("wrapped 1 of record with tags"),
	}, pattern(100), seed("earlier"))
	withEarlier := *again
	withEarlier.parts = [][]byte{again.parts[0], earlier, again.parts[2]}
	sealed := sealedUpload(t, "sealed metadata", []int64{100, 200}, true)
	stripped := makePartObject(t, sealed, "without its sealed metadata")
	elsewhere := *sealed
	elsewhere.random[0]++
	other := makePartObject(t, sealed, "with the metadata of another upload")
	other.Metadata, other.Sealed = sealedObject(t, &elsewhere, "").Metadata, someMetadata
	two := *mixed
	twice := *mixed
	twice.random[15]++
	two.parts = [][]byte{mixed.parts[0], twice.seal(t, crypt.Part{
		Number: 2, Size: 200, WrappedDEK: []byte("wrapped 1 of a bare part"),
	}, pattern(200), seed("twice")), mixed.parts[2]}

	return vectorsV2{
		Comment: []string{
			"Vectors of docs/format.md, version 2. They never change. The fields are those of vectors.json and " +
				"part-vectors.json.",
			"sealed_metadata: what is in cmek-meta. metadata of a multipart object: its entries, if they are sealed.",
		},
		Objects: []vector{
			makeVectorOf(t, crypt.V2, "one byte", plain, 1, true, nil),
			makeVectorOf(t, crypt.V2, "no entries", plain, 0, false, map[string]string{}),
			makeVectorOf(t, crypt.V2, "sealed metadata", plain, 70000, true, someMetadata),
		},
		Multipart: partVectors{
			Objects: []partObject{
				makePartObject(t, newUpload(t, crypt.V2, "three parts", []int64{100, 200, 50}, nil, false), "three parts"),
				makePartObject(t, again, "record with tags"),
				makePartObject(t, newUpload(t, crypt.V2, "gaps", []int64{10, 10, 11}, []int{2, 5, 9}, true), "gaps"),
				makePartObject(t, mixed, "a part of version 1 among those of version 2"),
				sealedObject(t, sealed, "sealed metadata"),
				makePartObject(t, &withEarlier, "an earlier attempt"), makePartObject(t, &two, "two random values"), stripped, other,
			},
			Refused: []refusal{
				{"an earlier attempt at a part", "an earlier attempt", []int{0, 1, 2}, -1},
				{"parts with two random values", "two random values", []int{0, 1, 2}, -1},
				{"sealed metadata removed", "without its sealed metadata", []int{0, 1, 2}, -1},
				{"sealed metadata of another upload", "with the metadata of another upload", []int{0, 1, 2}, -1},
				{"random bytes altered", "three parts", []int{0, 1, 2}, 32},
				{"hash of the upload altered", "three parts", []int{0, 1, 2}, 48},
				{"version altered", "three parts", []int{0, 1, 2}, 8},
				{"tags of the record altered", "record with tags", []int{0, 1, 2}, int64(len(again.parts[0])*2 + 1140)},
				{"flag of sealed metadata removed", "sealed metadata", []int{0, 1, 2}, 10},
			},
		},
	}
}

// sealedUpload is newUpload for an upload with sealed metadata.
func sealedUpload(t *testing.T, name string, sizes []int64, appended bool) *upload {
	t.Helper()
	u := newUpload(t, crypt.V2, name, nil, nil, false)
	u.sealedMeta = true
	u.fill(t, name, sizes, nil, appended, seed(name))
	return u
}

func newMark(t *testing.T, u *upload, wrapped string) *crypt.Mark {
	t.Helper()
	m := &crypt.Mark{KeyID: "test-key", WrappedDEK: []byte(wrapped), Random: u.random}
	var err error
	if m.Meta, err = crypt.SealMetadata(someMetadata, dekOf(wrapped), seed("metadata")); err != nil {
		t.Fatal(err)
	}
	if err := m.Sign(dekOf(wrapped), u.obj); err != nil {
		t.Fatal(err)
	}
	return m
}

func sealedObject(t *testing.T, u *upload, name string) partObject {
	t.Helper()
	o := makePartObject(t, u, name)
	wrapped := strings.Replace(u.obj.Key, "key of ", "wrapped 0 of ", 1)
	entries, err := newMark(t, u, wrapped).Metadata()
	if err != nil {
		t.Fatal(err)
	}
	o.Metadata, o.Sealed = entries, someMetadata
	return o
}

func TestVectorsV2(t *testing.T) {
	kept := keptVectors(t, vectorFileV2, makeVectorsV2(t))
	for _, v := range kept.Objects {
		checkVector(t, v)
	}

	refused := kept.Multipart.Objects[5:]
	checkPartVectors(t, partVectors{Objects: kept.Multipart.Objects[:5]})
	for _, row := range kept.Multipart.Refused {
		if _, err := readVector(t, kept.Multipart, row.Of, row.Parts, row.Flip); err == nil {
			t.Errorf("%s: read to its end", row.Name)
		}
	}
	if len(refused) != 4 {
		t.Error("objects that must be refused")
	}
}

// readWith reads an object of which one part was replaced.
func readWith(u *upload, i int, part []byte) error {
	parts := append([][]byte(nil), u.parts...)
	parts[i] = part
	_, err := readAll(crypt.NewPartsReader(bytes.NewReader(bytes.Join(parts, nil)), u.config()))
	return err
}

func TestWhichPartsBelongTogether(t *testing.T) {
	u := newUpload(t, crypt.V2, "u", []int64{100, 100, 50}, nil, false)
	second := crypt.Part{Number: 2, Size: 100, WrappedDEK: []byte("w")}
	for _, row := range []struct {
		name   string
		change func(*upload)
		ok     bool
	}{
		{"another attempt", func(*upload) {}, true},
		{"version 1 of the same upload id", func(u *upload) { u.random = crypt.UploadRandom{} }, true},
		{"version 1 of another upload id", func(u *upload) { u.random, u.id = crypt.UploadRandom{}, "other" }, false},
		{"other random bytes", func(u *upload) { u.random[0]++ }, false},
		{"another upload id", func(u *upload) { u.id = "other" }, false},
		{"sealed metadata", func(u *upload) { u.sealedMeta = true }, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			from := *u
			row.change(&from)
			err := readWith(u, 1, from.seal(t, second, pattern(100), rand.Reader))
			if row.ok != (err == nil) || !row.ok && !errors.Is(err, crypt.ErrAuth) {
				t.Error(err)
			}
		})
	}
}

// Two random values are refused even with a part between them that has none.
func TestTwoRandomsAroundABarePart(t *testing.T) {
	u := newUpload(t, crypt.V2, "u", []int64{100, 100, 50}, nil, false)
	bare, other := *u, *u
	bare.random = crypt.UploadRandom{}
	other.random[3]++
	u.parts[1] = bare.seal(t, crypt.Part{Number: 2, Size: 100, WrappedDEK: []byte("w")}, pattern(100), rand.Reader)
	last := crypt.Part{Number: 3, Size: 50, Final: true, WrappedDEK: []byte("w")}
	if err := readWith(u, 2, other.seal(t, last, pattern(50), rand.Reader)); !errors.Is(err, crypt.ErrAuth) {
		t.Error(err)
	}
}

// An earlier attempt at a part has the same number, length, upload and key.
func TestEarlierAttempts(t *testing.T) {
	u := newUpload(t, crypt.V2, "u", []int64{70000, 70000, 70000}, nil, true)
	earlier := u.seal(t, crypt.Part{Number: 2, Size: 70000, WrappedDEK: []byte("wrapped 1 of u")},
		pattern(70000), rand.Reader)
	if err := readWith(u, 1, earlier); !errors.Is(err, crypt.ErrAuth) {
		t.Errorf("a whole read: %v", err)
	}

	record, err := u.record()
	if err != nil || !record.HasTags() {
		t.Fatal(err)
	}
	for _, row := range []struct {
		offset, length int64
		ok             bool
	}{{0, 70000, true}, {0, 70001, false}, {70000, 1, false}, {139_999, 2, false}, {140_000, 10, true}} {
		t.Run(fmt.Sprintf("%d+%d", row.offset, row.length), func(t *testing.T) {
			changed := *u
			stored := bytes.Join([][]byte{u.parts[0], earlier, u.parts[2], u.parts[3]}, nil)
			changed.known = record
			if _, err := readStretch(t, &changed, stored, row.offset, row.length, false); row.ok != (err == nil) {
				t.Error(err)
			}
		})
	}
}

// A record has as much of the tags as fits into it.
func TestTagsThatFit(t *testing.T) {
	for _, row := range []struct {
		parts int
		list  bool
	}{{1, true}, {2014, true}, {2015, false}, {9999, false}} {
		t.Run(fmt.Sprint(row.parts), func(t *testing.T) {
			tags := make([]crypt.Tag, row.parts)
			layout := crypt.Layout{{Number: 1, Count: row.parts, Size: 5 << 20}}
			b := crypt.NewRecord(crypt.V2, layout, crypt.FullObject, make([]byte, 37), tags)
			r, err := parseRecord(crypt.V2, b)
			if err != nil || !r.HasTags() || !r.Matches(layout) || len(r.Layout) != 1 || len(b) > 8176 {
				t.Fatalf("%d bytes, %v", len(b), err)
			}
			if row.list != (len(b) > 8000 || row.parts == 1 && len(b) == 124) {
				t.Errorf("%d bytes", len(b))
			}
			for n := range len(b) {
				if cut, err := parseRecord(crypt.V2, b[:n]); err == nil {
					t.Fatalf("cut to %d bytes: %+v", n, cut)
				}
			}
			if _, err := parseRecord(crypt.V2, append(b, 0)); err == nil {
				t.Error("a byte more")
			}
		})
	}
}

func TestSealedMetadata(t *testing.T) {
	dek := newDEK(t)
	for name, entries := range map[string]map[string]string{
		"none": {}, "some": someMetadata,
		"62 bytes": {"expires": strings.Repeat("x", 51)}, "63 bytes": {"expires": strings.Repeat("x", 52)},
		"long": {"x-amz-meta-a": strings.Repeat("x", 8000)},
	} {
		t.Run(name, func(t *testing.T) {
			sealed, err := crypt.SealMetadata(entries, dek, rand.Reader)
			if err != nil || len(sealed) != crypt.SealedMetadataSize(entries) || (len(sealed)-28)%64 != 0 {
				t.Fatalf("%d bytes, %v", len(sealed), err)
			}
			if got, err := crypt.OpenMetadata(sealed, dek); err != nil || !maps.Equal(got, entries) {
				t.Errorf("%q, %v", got, err)
			}
			if _, err := crypt.OpenMetadata(sealed, newDEK(t)); !errors.Is(err, crypt.ErrAuth) {
				t.Error(err)
			}
			for i := range min(len(sealed), 200) {
				altered := bytes.Clone(sealed)
				altered[i] ^= 1
				if _, err := crypt.OpenMetadata(altered, dek); !errors.Is(err, crypt.ErrAuth) {
					t.Fatalf("byte %d: %v", i, err)
				}
			}
		})
	}
}

func TestSealMetadataRefuses(t *testing.T) {
	for _, entries := range []map[string]string{
		{"etag": "x"},
		{"content-length": "1"},
		{"Content-Type": "a/b"},
		{"x-amz-meta-": "x"},
		{"x-amz-meta-cmek-v": "1"},
		{"x-amz-meta-A": "x"},
		{"x-amz-meta-a b": "x"},
		{"x-amz-storage-class": "x"},
		{"": ""},
		{"x-amz-meta-a": strings.Repeat("x", 8192)},
		{"x-amz-meta-a": "b\r\nc: d"},
		{"expires": "\x00"},
	} {
		t.Run(fmt.Sprintf("%.40q", entries), func(t *testing.T) {
			if _, err := crypt.SealMetadata(entries, newDEK(t), rand.Reader); !errors.Is(err, crypt.ErrEnvelope) {
				t.Error(err)
			}
		})
	}
}

func TestMarkWithSealedMetadata(t *testing.T) {
	u := sealedUpload(t, "u", []int64{100}, false)
	m := newMark(t, u, "w")
	entries, err := m.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	got, err := crypt.ParseMark(entries)
	if err != nil || got.Verify(dekOf("w"), u.obj) != nil || got.Random != u.random {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := crypt.ParseEnvelope(entries); !errors.Is(err, crypt.ErrMultipart) {
		t.Error(err)
	}

	other := *u
	other.random[0]++
	theirs, err := newMark(t, &other, "w2").Metadata()
	if err != nil {
		t.Fatal(err)
	}
	for name := range entries {
		t.Run(name, func(t *testing.T) {
			mixed := maps.Clone(entries)
			delete(mixed, name)
			if _, err := crypt.ParseMark(mixed); err == nil {
				t.Error("it can be taken away")
			}
			if mixed[name] = theirs[name]; mixed[name] == entries[name] {
				return
			}
			m, err := crypt.ParseMark(mixed)
			if err != nil || !errors.Is(m.Verify(dekOf(string(m.WrappedDEK)), u.obj), crypt.ErrAuth) {
				t.Errorf("that of another upload is taken: %v", err)
			}
		})
	}
	for name, value := range map[string]string{
		"cmek-v": "1", "cmek-upload": "AAAAAAAAAAAAAAAAAAAAAA==", "cmek-meta": "", "cmek-sum": "AA==", "cmek-size": "1",
	} {
		t.Run(name+" "+value, func(t *testing.T) {
			bad := maps.Clone(entries)
			bad[name] = value
			if _, err := crypt.ParseMark(bad); err == nil {
				t.Error("it is taken")
			}
		})
	}
	if err := got.Verify(dekOf("w"), crypt.Object{Bucket: u.obj.Bucket, Key: "other"}); !errors.Is(err, crypt.ErrAuth) {
		t.Errorf("another object: %v", err)
	}
}

func FuzzOpenMetadata(f *testing.F) {
	dek := dekOf("fuzz")
	f.Add([]byte("\x00\x07expires\x00\x01x\x00\x00"))
	f.Add([]byte("\x00\x0ex-amz-meta-cmek"))
	f.Fuzz(func(t *testing.T, text []byte) {
		sealed := crypt.SealText(t, text, dek)
		entries, err := crypt.OpenMetadata(sealed, dek)
		if err != nil {
			return
		}
		again, err := crypt.SealMetadata(entries, dek, bytes.NewReader(sealed))
		if err != nil || !bytes.Equal(again, sealed) {
			t.Errorf("%q has another form: %v", entries, err)
		}
	})
}

package crypt_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/tink-crypto/tink-go/v2/streamingaead/subtle"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

const partVectorFile = "testdata/part-vectors.json"

// partVectors contains multipart objects. Existing vectors never change.
type partVectors struct {
	Comment []string     `json:"comment"`
	Objects []partObject `json:"objects"`
	Refused []refusal    `json:"refused"`
}

type partObject struct {
	Name     string            `json:"name"`
	Bucket   string            `json:"bucket"`
	Key      string            `json:"key"`
	UploadID string            `json:"upload_id"`
	DEKs     map[string]string `json:"deks"` // by wrapped DEK
	Size     int64             `json:"plaintext_size"`
	SHA256   string            `json:"plaintext_sha256"`
	Stored   string            `json:"stored_sha256"`
	Parts    []storedPart      `json:"parts"`
	Checksum string            `json:"checksum,omitempty"`
	// Of an object with sealed metadata.
	Random   string            `json:"random,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Sealed   map[string]string `json:"sealed_metadata,omitempty"`
}

type storedPart struct {
	Number int    `json:"number"`
	Size   int64  `json:"plaintext_size"`
	Bytes  string `json:"bytes,omitempty"` // without the zeros at its end; none for large parts
}

// refusal is an object that must be refused: the parts of another object in
// this order, with the lowest bit of one byte flipped.
type refusal struct {
	Name  string `json:"name"`
	Of    string `json:"of"`
	Parts []int  `json:"parts"`
	Flip  int64  `json:"flip"` // offset in the object; -1 for none
}

// seed returns a deterministic source of randomness.
func seed(name string) io.Reader {
	return mathrand.NewChaCha8(sha256.Sum256([]byte(name)))
}

func dekOf(wrapped string) []byte {
	dek := sha256.Sum256([]byte("dek of " + wrapped))
	return dek[:]
}

// upload is a multipart object made by a test.
type upload struct {
	version    crypt.Version
	obj        crypt.Object
	id         string
	random     crypt.UploadRandom
	sealedMeta bool
	layout     crypt.Layout
	text       []byte
	parts      [][]byte // stored
	tags       []crypt.Tag
	known      *crypt.Record
}

// newUpload seals parts of these sizes. If numbers is nil, part numbers are
// 1, 2, 3 and so on. Only the last part is final; if appended is set, that
// is an additional empty part with a record.
func newUpload(
	t testing.TB, v crypt.Version, name string, sizes []int64, numbers []int, appended bool,
) *upload {
	t.Helper()
	u := &upload{version: v, obj: crypt.Object{Bucket: "bucket", Key: "key of " + name}, id: "upload " + name}
	random := seed(name)
	if v == crypt.V2 {
		u.random = crypt.UploadRandom([]byte("random bytes of " + name + "                ")[len("random bytes of "):])
	}
	u.fill(t, name, sizes, numbers, appended, random)
	return u
}

func (u *upload) fill(t testing.TB, name string, sizes []int64, numbers []int, appended bool, random io.Reader) {
	t.Helper()
	var total int64

	for i, size := range sizes {
		number := i + 1
		if numbers != nil {
			number = numbers[i]
		}
		u.layout = u.layout.Add(number, size)
		total += size
	}

	u.text = pattern(total)
	rest := u.text

	for i, size := range sizes {
		at, _ := u.layout.At(i)
		p := crypt.Part{
			Number: at.Number, Size: size, Final: i == len(sizes)-1 && !appended,
			WrappedDEK: []byte(fmt.Sprintf("wrapped %d of %s", i%2, name)),
		}

		u.parts = append(u.parts, u.seal(t, p, rest[:size], random))
		u.tags = append(u.tags, tagOf(t, u.parts[i]))
		rest = rest[size:]
	}

	if appended {
		p := crypt.Part{Final: true, WrappedDEK: []byte("wrapped 0 of " + name)}
		last, _ := u.layout.At(len(sizes) - 1)
		p.Number = last.Number + 1
		digest := sha256.Sum256(u.text)
		sum, err := crypt.SealChecksums(map[crypt.ChecksumID][]byte{crypt.SHA256: digest[:]},
			dekOf(string(p.WrappedDEK)), random)
		if err != nil {
			t.Fatal(err)
		}

		p.Record = crypt.NewRecord(u.version, u.layout, crypt.FullObject, sum, u.tags)
		u.parts = append(u.parts, u.seal(t, p, nil, random))
	}
}

func (u *upload) seal(t testing.TB, p crypt.Part, text []byte, random io.Reader) []byte {
	t.Helper()
	p.KeyID, p.Upload, p.SealedMeta = "test-key", crypt.UploadOf(u.random, u.id), u.sealedMeta
	s, err := crypt.NewPartSealer(bytes.NewReader(text), &p, u.obj, dekOf(string(p.WrappedDEK)), random)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	stored, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(stored)) != p.Size+crypt.PartOverhead {
		t.Fatalf("a part of %d bytes takes %d", p.Size, len(stored))
	}

	return stored
}

func tagOf(t testing.TB, stored []byte) crypt.Tag {
	t.Helper()
	p, err := crypt.ParsePart(stored)
	if err != nil {
		t.Fatal(err)
	}
	return p.Tag()
}

func (u *upload) stored() []byte { return bytes.Join(u.parts, nil) }

func (u *upload) config() crypt.PartsConfig {
	cfg := crypt.PartsConfig{
		Object: u.obj, Size: int64(len(u.text)),
		Unlock: func(p *crypt.Part) ([]byte, error) { return dekOf(string(p.WrappedDEK)), nil },
		Record: func() (*crypt.Record, error) { return u.record() },
	}
	if u.sealedMeta {
		cfg.Metadata = u.random
	}
	if u.known != nil {
		cfg.Known = func() *crypt.Record { return u.known }
	}
	return cfg
}

// versions runs a test for each version of the format.
func versions(t *testing.T, test func(*testing.T, crypt.Version)) {
	for _, v := range []crypt.Version{crypt.V1, crypt.V2} {
		t.Run(fmt.Sprintf("version %d", v), func(t *testing.T) { test(t, v) })
	}
}

func (u *upload) record() (*crypt.Record, error) {
	p, err := crypt.ParsePart(u.parts[len(u.parts)-1])
	if err != nil || !p.HasRecord() {
		return nil, err
	}
	if err := p.Verify(dekOf(string(p.WrappedDEK)), u.obj); err != nil {
		return nil, err
	}
	return p.ParseRecord()
}

func readAll(r *crypt.PartsReader) ([]byte, error) {
	defer r.Close()
	var out []byte
	for {
		text, err := r.Next()
		if err == io.EOF { //nolint:errorlint // bare: Next says so
			return out, nil
		}
		if err != nil {
			return out, err
		}

		out = append(out, text...)
	}
}

func TestPartsRoundTrip(t *testing.T) { versions(t, testPartsRoundTrip) }

func testPartsRoundTrip(t *testing.T, v crypt.Version) {
	for _, row := range []struct {
		name     string
		sizes    []int64
		numbers  []int
		appended bool
	}{
		{"sole empty", []int64{0}, nil, false},
		{"sole byte", []int64{1}, nil, false},
		{"segment boundaries", []int64{65495, 65496, 65497, 131_032, 131_033}, nil, false},
		{"uniform, appended", []int64{70000, 70000, 70000}, nil, true},
		{"gaps", []int64{10, 10, 11}, []int{2, 5, 9}, true},
		{"larger segments", []int64{32<<20 - 40, 32<<20 - 39, 100}, nil, false},
		{"much larger segments", []int64{140 << 20}, nil, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			u := newUpload(t, v, row.name, row.sizes, row.numbers, row.appended)
			r := crypt.NewPartsReader(bytes.NewReader(u.stored()), u.config())
			got, err := readAll(r)
			if err != nil || !bytes.Equal(got, u.text) {
				t.Errorf("%d of %d bytes, %v", len(got), len(u.text), err)
			}

			if !reflect.DeepEqual(r.Layout(), u.layout) {
				t.Errorf("layout %v, want %v", r.Layout(), u.layout)
			}
		})
	}
}

// Any stretch of any layout must equal the slice of the plaintext, and need
// only the bytes that Cover returns.
func TestStretches(t *testing.T) { versions(t, testStretches) }

func testStretches(t *testing.T, v crypt.Version) {
	random := mathrand.New(mathrand.NewPCG(3, 4))
	for _, u := range []*upload{
		newUpload(t, v, "a", []int64{70000, 70000, 5}, nil, false),
		newUpload(t, v, "b", []int64{100, 65496, 131_033, 1}, nil, true),
		newUpload(t, v, "c", []int64{10, 10, 11}, []int{2, 5, 9}, true),
		newUpload(t, v, "d", []int64{32<<20 + 5, 9}, nil, false),
	} {
		t.Run(fmt.Sprint(u.layout), func(t *testing.T) {
			stored := u.stored()
			for range 60 {
				offset := random.Int64N(int64(len(u.text)))
				length := 1 + random.Int64N(min(int64(len(u.text))-offset, 1+random.Int64N(300_000)))
				toEnd := offset+length == int64(len(u.text))
				got, err := readStretch(t, u, stored, offset, length, toEnd)
				if err != nil || !bytes.Equal(got, u.text[offset:offset+length]) {
					t.Fatalf("%s: %d+%d of %d: %d bytes, %v", u.obj.Key, offset, length, len(u.text), len(got), err)
				}
			}
		})
	}
}

func readStretch(t *testing.T, u *upload, stored []byte, offset, length int64, toEnd bool) ([]byte, error) {
	t.Helper()
	place, ok := u.layout.Find(offset)
	if !ok {
		t.Fatalf("no part holds byte %d", offset)
	}

	part, err := crypt.ParsePart(stored[place.Stored:])
	if err != nil {
		t.Fatal(err)
	}

	window, err := part.Cover(offset-place.Offset, min(length, part.Size-(offset-place.Offset)))
	if err != nil {
		t.Fatal(err)
	}

	src := bytes.NewReader(stored[place.Stored+crypt.PartHeaderSize+window.Start:])
	r, err := crypt.NewStretchReader(src,
		crypt.Stretch{
			Layout: u.layout, Place: place, Part: part, Offset: offset - place.Offset, Length: length,
			ToEnd: toEnd,
		}, u.config())
	if err != nil {
		return nil, err
	}

	return readAll(r)
}

// Anything that a store can do to a multipart object must end in an error,
// and the bytes released before must be a piece of the plaintext.
func TestPartsTampering(t *testing.T) { versions(t, testPartsTampering) }

func testPartsTampering(t *testing.T, v crypt.Version) {
	u := newUpload(t, v, "u", []int64{70000, 70000, 70000, 50}, nil, false)
	end := newUpload(t, v, "u", []int64{70000, 70000, 70000}, nil, true)
	odd := newUpload(t, v, "u", []int64{70000, 70001, 70000}, nil, true)
	gaps := newUpload(t, v, "u", []int64{100, 100, 100}, []int{2, 5, 9}, true)
	other := newUpload(t, v, "other", []int64{70000, 70000, 70000, 50}, nil, false)
	again := *u // another upload of the same key
	again.id = "another upload"
	foreign := again.seal(t, crypt.Part{Number: 2, Size: 70000, WrappedDEK: []byte("w")}, pattern(70000), rand.Reader)
	at := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	flip := func(b []byte, i int) []byte { c := bytes.Clone(b); c[(i+len(b))%len(b)] ^= 1; return c }
	p, e, o, g := u.parts, end.parts, odd.parts, gaps.parts
	for _, row := range []struct {
		name   string
		of     *upload
		stored []byte
	}{
		{"no part at all", u, nil},
		{"last part missing", u, at(p[0], p[1], p[2])},
		{"appended part missing", end, at(e[0], e[1], e[2])},
		{"first part missing", u, at(p[1], p[2], p[3])},
		{"middle part missing", u, at(p[0], p[2], p[3])},
		{"middle part missing before an appended one", end, at(e[0], e[2], e[3])},
		{"part missing among gaps", gaps, at(g[0], g[2], g[3])},
		{"last client part missing before an appended one", gaps, at(g[0], g[1], g[3])},
		{"swapped", u, at(p[1], p[0], p[2], p[3])},
		{"duplicated", u, at(p[0], p[0], p[2], p[3])},
		{"a part behind the final one", u, at(p[0], p[1], p[2], p[3], p[2])},
		{"the final part twice", end, at(e[0], e[1], e[2], e[3], e[3])},
		{"part of another object", u, at(p[0], other.parts[1], p[2], p[3])},
		{"part of another upload of the key", u, at(p[0], foreign, p[2], p[3])},
		{"another object", u, other.stored()},
		{"appended part of other parts", odd, at(o[0], o[1], o[2], e[3])},
		{"cut in a header", u, at(p[0], p[1][:500])},
		{"cut behind a header", u, at(p[0], p[1][:984])},
		{"cut in a segment", u, at(p[0], p[1][:30000])},
		{"cut at a segment's end", u, at(p[0], p[1][:984+65552])},
		{"cut in the fill", u, at(p[0], p[1][:len(p[1])-1])},
		{"cut in the last fill", u, at(p[0], p[1], p[2], p[3][:len(p[3])-1])},
		{"cut in the record", end, at(e[0], e[1], e[2], e[3][:1050])},
		{"trailing byte", u, append(u.stored(), 0)},
		{"fill altered", u, at(p[0], flip(p[1], -1), p[2], p[3])},
		{"last fill altered", u, at(p[0], p[1], p[2], flip(p[3], -1))},
		{"record altered", end, at(e[0], e[1], e[2], flip(e[3], 1041))},
		{"fill behind the record altered", end, at(e[0], e[1], e[2], flip(e[3], -1))},
		{"final mark forged", u, at(p[0], flip(p[1], 10), p[2], p[3])},
		{"final mark forged at a cut", u, at(p[0], flip(p[1], 10))},
		{"final mark removed", u, at(p[0], p[1], p[2], flip(p[3], 10))},
		{"first segment altered", u, at(flip(p[0], 2000), p[1], p[2], p[3])},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := readAll(crypt.NewPartsReader(bytes.NewReader(row.stored), row.of.config()))
			if err == nil {
				t.Error("read without an error")
			}
			if !bytes.HasPrefix(row.of.text, got) {
				t.Errorf("%d bytes that are not the plaintext's", len(got))
			}
		})
	}

	for i := range 8 * crypt.PartPrefixSize { // every bit of the header is authenticated
		bad := bytes.Clone(p[1][:crypt.PartPrefixSize])
		bad[i/8] ^= 1 << (i % 8)
		part, err := crypt.ParsePart(bad)
		if err == nil && part.Verify(dekOf(string(part.WrappedDEK)), u.obj) == nil {
			t.Fatalf("bit %d of byte %d of a part header can be altered", i%8, i/8)
		}
	}
}

func TestStretchTampering(t *testing.T) { versions(t, testStretchTampering) }

func testStretchTampering(t *testing.T, v crypt.Version) {
	u := newUpload(t, v, "u", []int64{70000, 70000, 70000}, nil, true)
	p := u.parts
	for _, row := range []struct {
		name           string
		stored         []byte
		offset, length int64
	}{
		{"end missing", bytes.Join([][]byte{p[0], p[1], p[2]}, nil), 209_000, 1000},
		{"next part another", bytes.Join([][]byte{p[0], p[0], p[2], p[3]}, nil), 69_000, 2000},
		{"next part missing", p[0], 69_000, 2000},
		{
			"fill between parts altered", func() []byte { s := u.stored(); s[len(p[0])-1] ^= 1; return s }(), 69_000,
			2000,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := readStretch(t, u, row.stored, row.offset, row.length,
				row.offset+row.length == int64(len(u.text)))
			if err == nil || !bytes.HasPrefix(u.text[row.offset:], got) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}

	place, _ := u.layout.At(1)
	part, err := crypt.ParsePart(p[0]) // a header for another place
	if err != nil {
		t.Fatal(err)
	}
	if _, err := crypt.NewStretchReader(bytes.NewReader(p[1]),
		crypt.Stretch{Layout: u.layout, Place: place, Part: part, Length: 1},
		u.config()); !errors.Is(err, crypt.ErrAuth) {
		t.Errorf("the header of another part is taken: %v", err)
	}
}

// No part opens with a wrong key, bucket, object key or DEK.
func TestPartBinding(t *testing.T) { versions(t, testPartBinding) }

func testPartBinding(t *testing.T, v crypt.Version) {
	u := newUpload(t, v, "u", []int64{100}, nil, false)
	for name, change := range map[string]func(*crypt.PartsConfig){
		"another bucket": func(c *crypt.PartsConfig) { c.Object.Bucket = "b" },
		"another key":    func(c *crypt.PartsConfig) { c.Object.Key = "k" },
		"another DEK": func(c *crypt.PartsConfig) {
			c.Unlock = func(*crypt.Part) ([]byte,
				error,
			) {
				return dekOf("x"), nil
			}
		},
		"a zero DEK": func(c *crypt.PartsConfig) {
			c.Unlock = func(*crypt.Part) ([]byte, error) { return make([]byte, 32), nil }
		},
		"another size": func(c *crypt.PartsConfig) { c.Size = 99 },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := u.config()
			change(&cfg)
			if got, err := readAll(crypt.NewPartsReader(bytes.NewReader(u.stored()), cfg)); err == nil ||
				len(got) > 0 && name != "another size" {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// If a part is sent twice, the two bodies share neither salt nor nonce nor
// ciphertext.
func TestPartSentAgain(t *testing.T) {
	u := newUpload(t, crypt.V2, "u", []int64{100}, nil, false)
	p := crypt.Part{Number: 1, Size: 70000, Final: true, WrappedDEK: []byte("w")}
	a, b := u.seal(t, p, pattern(70000), rand.Reader), u.seal(t, p, pattern(70000), rand.Reader)
	if bytes.Equal(a[985:985+39], b[985:985+39]) || bytes.Equal(a[1024:1040], b[1024:1040]) {
		t.Error("salt, nonce or ciphertext are those of the first attempt")
	}
}

func TestPartLimits(t *testing.T) {
	dek := dekOf("d")
	for name, p := range map[string]crypt.Part{
		"number 0":         {Number: 0, KeyID: "k", WrappedDEK: []byte("w")},
		"number 10,001":    {Number: 10_001, KeyID: "k", WrappedDEK: []byte("w")},
		"too long":         {Number: 1, Size: crypt.MaxPartSize + 1, KeyID: "k", WrappedDEK: []byte("w")},
		"no key id":        {Number: 1, WrappedDEK: []byte("w")},
		"no DEK":           {Number: 1, KeyID: "k"},
		"too much to hold": {Number: 1, KeyID: "k", WrappedDEK: make([]byte, 888)},
		"record, not empty": {
			Number: 2, Size: 1, Final: true, KeyID: "k", WrappedDEK: []byte("w"),
			Record: crypt.NewRecord(crypt.V1, crypt.Layout{{1, 1, 1}}, 0, nil, nil),
		},
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := crypt.NewPartSealer(bytes.NewReader(nil), &p, crypt.Object{}, dek, rand.Reader); err == nil {
				if _, err := io.ReadAll(s); err == nil {
					t.Error("sealed")
				}
			}
		})
	}

	for size, want := range map[int64]int64{
		0: 65536, 32<<20 - 40: 65536, 32<<20 - 39: 131_072,
		64<<20 - 40: 131_072, crypt.MaxPartSize: 160 << 16,
	} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			p := crypt.Part{Size: size}
			w := p.Whole()
			if n := (w.End - size - 40) / 16; n > 512 || (size+40+want-1)/want != max(n, 1) {
				t.Errorf("a part of %d bytes has %d segments", size, n)
			}
		})
	}

	if !crypt.IsFinal(1, 5<<20-1) || crypt.IsFinal(1, 5<<20) || !crypt.IsFinal(10_000, 5<<30) {
		t.Error("IsFinal")
	}
}

// The stream of a part is a Tink stream with the part's segment size.
func TestPartIsTink(t *testing.T) {
	for _, size := range []int64{0, 70000, 32<<20 + 1} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			u := newUpload(t, crypt.V2, "tink", []int64{size}, nil, false)
			segment := 65536 * max(1, (size+40+32<<20-1)/(32<<20))
			aead, err := subtle.NewAESGCMHKDF(dekOf("wrapped 0 of tink"), "SHA256", 32, int(segment)+16, 0)
			if err != nil {
				t.Fatal(err)
			}

			n := max(1, (size+40+segment-1)/segment)
			r, err := aead.NewDecryptingReader(bytes.NewReader(u.parts[0][984:984+size+40+16*n]),
				[]byte("cmekproxy v1 body"))
			if err != nil {
				t.Fatal(err)
			}

			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, u.text) {
				t.Errorf("%d bytes: Tink reads %d, %v", size, len(got), err)
			}
		})
	}
}

func parseRecord(v crypt.Version, b []byte) (*crypt.Record, error) {
	p := crypt.Part{Record: b}
	if v == crypt.V2 {
		p.Upload.Random[0] = 1
	}
	return p.ParseRecord()
}

func TestRecords(t *testing.T) { versions(t, testRecords) }

func testRecords(t *testing.T, v crypt.Version) {
	var long crypt.Layout // more runs than fit
	for i := range 9999 {
		long = long.Add(i+1, int64(i%2))
	}

	for _, l := range []crypt.Layout{
		{{1, 1, 5 << 20}},
		{{1, 9999, 5 << 20}},
		{{2, 1, 5}, {5, 2, 5}, {9000, 3, 7}},
		long,
	} {
		t.Run(fmt.Sprintf("%d parts in %d runs", l.Parts(), len(l)), func(t *testing.T) {
			b := crypt.NewRecord(v, l, crypt.NoChecksum, nil, nil)
			r, err := parseRecord(v, b)
			if err != nil || r.Parts != l.Parts() || !r.Matches(l) {
				t.Fatalf("%d runs: %v", len(l), err)
			}
			if fits := len(l) < 600; fits != (r.Layout != nil) || fits && !reflect.DeepEqual(r.Layout, l) ||
				len(b) > 8176 {
				t.Errorf("%d runs: %d bytes, layout %v", len(l), len(b), r.Layout != nil)
			}

			if r.Matches(append(slices.Clone(l), crypt.Run{Number: 9999, Count: 1, Size: 1})) {
				t.Error("a part more matches")
			}

			for i := range min(len(b), 200) {
				bad := bytes.Clone(b)
				bad[i] ^= 1
				if r, err := parseRecord(v, bad); err == nil && r.Matches(l) {
					t.Errorf("byte %d can be altered", i)
				}
			}
		})
	}
}

func FuzzParsePart(f *testing.F) {
	u := newUpload(f, crypt.V2, "fuzz", []int64{10, 10}, []int{2, 5}, true)
	for _, p := range u.parts {
		f.Add(p)
		f.Add(p[:crypt.PartPrefixSize])
	}

	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := crypt.ParsePart(b)
		if err != nil {
			return
		}
		if err := p.Verify(dekOf(string(p.WrappedDEK)), u.obj); err == nil {
			for _, own := range u.parts {
				if bytes.HasPrefix(own, b[:crypt.PartPrefixSize]) {
					return
				}
			}
			t.Error("a header that was never signed verifies")
		}

		if _, err := p.ParseRecord(); err == nil && len(p.Record) < 36 {
			t.Error("a record that is too short")
		}
	})
}

// No wrong plaintext byte is released, and no altered object can be read to
// its end.
func FuzzPartsReader(f *testing.F) {
	u := newUpload(f, crypt.V2, "fuzz", []int64{70000, 10}, []int{1, 3}, true)
	stored := u.stored()
	f.Add(stored, 0)
	f.Add(stored[:80000], 500)
	f.Add(append(bytes.Clone(u.parts[1]), u.parts[2]...), 9000)

	f.Fuzz(func(t *testing.T, b []byte, flip int) {
		if flip > 0 && flip < len(b) {
			b = bytes.Clone(b)
			b[flip] ^= 0x10
		}

		got, err := readAll(crypt.NewPartsReader(bytes.NewReader(b), u.config()))
		if !bytes.HasPrefix(u.text, got) {
			t.Error("bytes that were never sealed")
		}
		if err == nil && !bytes.Equal(b, stored) {
			t.Error("an altered object reads to its end")
		}
	})
}

func makePartObject(t *testing.T, u *upload, name string) partObject {
	t.Helper()
	v := partObject{
		Name: name, Bucket: u.obj.Bucket, Key: hex.EncodeToString([]byte(u.obj.Key)), UploadID: u.id,
		DEKs: make(map[string]string),
		Size: int64(len(u.text)), SHA256: hexSum(u.text), Stored: hexSum(u.stored()),
	}

	for _, b := range u.parts {
		p, err := crypt.ParsePart(b)
		if err != nil {
			t.Fatal(err)
		}

		v.DEKs[hex.EncodeToString(p.WrappedDEK)] = hex.EncodeToString(dekOf(string(p.WrappedDEK)))
		part := storedPart{Number: p.Number, Size: p.Size}

		if p.Size < 1<<20 {
			part.Bytes = base64.StdEncoding.EncodeToString(bytes.TrimRight(b, "\x00"))
		}

		v.Parts = append(v.Parts, part)
		if p.HasRecord() {
			v.Checksum = "FULL_OBJECT 5 " + hexSum(u.text)
		}
	}

	return v
}

func makePartVectors(t *testing.T) partVectors {
	t.Helper()
	three := newUpload(t, crypt.V1, "three parts, two DEKs", []int64{100, 66000, 50}, nil, false)
	gaps := newUpload(t, crypt.V1, "gaps and a record", []int64{10, 10, 11}, []int{2, 5, 9}, true)
	flip := func(u *upload, part, offset int) int64 { return int64(len(bytes.Join(u.parts[:part], nil)) + offset) }
	return partVectors{
		Comment: []string{
			"Vectors of docs/format.md, section 8. They never change.",
			"Object keys, DEKs and wrapped DEKs are in hex, bytes of parts in base64, without the zeros at " +
				"the end of each part, which is plaintext_size + 9216 bytes long.",
			"Plaintext byte i of an object is (i*131 + (i>>8)*17) mod 256. checksum: type, id of section 4, digest.",
			"refused: the parts of an object in that order (counted from 0), then the lowest bit of the byte " +
				"at offset flip flipped, if that is not -1. They must not be read to their end without an error.",
		},
		Objects: []partObject{
			makePartObject(t, newUpload(t, crypt.V1, "sole empty part", []int64{0}, nil, false), "sole empty part"),
			makePartObject(t, three, "three parts, two DEKs"),
			makePartObject(t, newUpload(t, crypt.V1, "two equal parts and a record", []int64{1000, 1000}, nil, true),
				"two equal parts and a record"),
			makePartObject(t, gaps, "gaps and a record"),
			makePartObject(t, newUpload(t, crypt.V1, "segments of 131,072 bytes", []int64{32<<20 - 39}, nil, false),
				"segments of 131,072 bytes"),
		},
		Refused: []refusal{
			{"last part missing", "three parts, two DEKs", []int{0, 1}, -1},
			{"first part missing", "three parts, two DEKs", []int{1, 2}, -1},
			{"middle part missing", "three parts, two DEKs", []int{0, 2}, -1},
			{"parts swapped", "three parts, two DEKs", []int{1, 0, 2}, -1},
			{"part behind the final one", "three parts, two DEKs", []int{0, 1, 2, 2}, -1},
			{"final mark forged", "three parts, two DEKs", []int{0}, 10},
			{"fill altered", "three parts, two DEKs", []int{0, 1, 2}, flip(three, 1, -1)},
			{"last fill altered", "three parts, two DEKs", []int{0, 1, 2}, flip(three, 3, -1)},
			{"part number altered", "three parts, two DEKs", []int{0, 1, 2}, flip(three, 1, 13)},
			{"upload altered", "three parts, two DEKs", []int{0, 1, 2}, flip(three, 1, 40)},
			{"segment altered", "three parts, two DEKs", []int{0, 1, 2}, flip(three, 1, 70000)},
			{"filling of a header altered", "three parts, two DEKs", []int{0, 1, 2}, flip(three, 1, 983)},
			{"appended part missing", "gaps and a record", []int{0, 1, 2}, -1},
			{"part missing among gaps", "gaps and a record", []int{0, 2, 3}, -1},
			{"record altered", "gaps and a record", []int{0, 1, 2, 3}, flip(gaps, 3, 1041)},
			{"fill behind a record altered", "gaps and a record", []int{0, 1, 2, 3}, flip(gaps, 4, -1)},
		},
	}
}

func TestPartVectors(t *testing.T) {
	kept := keptVectors(t, partVectorFile, makePartVectors(t))
	checkPartVectors(t, kept)
}

func checkPartVectors(t *testing.T, kept partVectors) {
	t.Helper()
	for _, row := range kept.Refused {
		if _, err := readVector(t, kept, row.Of, row.Parts, row.Flip); err == nil {
			t.Errorf("%s: read to its end", row.Name)
		}
	}

	for _, v := range kept.Objects {
		if v.Parts[0].Bytes == "" {
			continue
		}

		all := make([]int, len(v.Parts))
		for i := range all {
			all[i] = i
		}

		if got, err := readVector(t, kept, v.Name, all, -1); err != nil || hexSum(got) != v.SHA256 {
			t.Errorf("%s: %d bytes, %v", v.Name, len(got), err)
		}
	}
}

// checkMark verifies the sealed metadata of a vector, if it has any, and
// returns the random bytes of its upload.
func checkMark(t *testing.T, o partObject, obj crypt.Object) (random crypt.UploadRandom) {
	t.Helper()
	if o.Metadata == nil {
		return random
	}

	mark, err := crypt.ParseMark(o.Metadata)
	if err != nil {
		t.Fatal(err)
	}
	dek := unhex(t, o.DEKs[hex.EncodeToString(mark.WrappedDEK)])
	if err := mark.Verify(dek, obj); err != nil {
		t.Error(err)
	}
	if got, err := crypt.OpenMetadata(mark.Meta, dek); err != nil || !maps.Equal(got, o.Sealed) {
		t.Errorf("metadata %q, %v", got, err)
	}
	return mark.Random
}

// readVector reads an object using only what is in the vectors file.
func readVector(t *testing.T, v partVectors, name string, parts []int, flip int64) ([]byte, error) {
	t.Helper()
	o := v.Objects[slices.IndexFunc(v.Objects, func(o partObject) bool { return o.Name == name })]
	var stored []byte

	for _, i := range parts {
		b, err := base64.StdEncoding.DecodeString(o.Parts[i].Bytes)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, append(b, make([]byte, o.Parts[i].Size+crypt.PartOverhead-int64(len(b)))...)...)
	}

	if flip >= 0 {
		stored[flip] ^= 1
	}

	key, err := hex.DecodeString(o.Key)
	if err != nil {
		t.Fatal(err)
	}

	u := &upload{
		obj: crypt.Object{Bucket: o.Bucket, Key: string(key)}, parts: [][]byte{stored[len(stored)-crypt.PartOverhead:]},
	}

	return readAll(crypt.NewPartsReader(bytes.NewReader(stored), crypt.PartsConfig{
		Object: u.obj, Size: -1, Record: u.record, Metadata: checkMark(t, o, u.obj),
		Unlock: func(p *crypt.Part) ([]byte,
			error,
		) {
			return hex.DecodeString(o.DEKs[hex.EncodeToString(p.WrappedDEK)])
		},
	}))
}

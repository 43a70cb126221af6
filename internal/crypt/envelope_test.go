package crypt_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

var object = crypt.Object{Bucket: "records", Key: "2026/a b+c//ü.pdf"}

func newEnvelope(t testing.TB, dek []byte) *crypt.Envelope {
	t.Helper()
	_, h := seal(t, dek, []byte("text"))
	e := &crypt.Envelope{
		KeyID: "arn:aws:kms:eu-central-1:111122223333:key/1234", WrappedDEK: []byte("wrapped"), Header: h, Size: 4,
	}

	var err error
	if e.Sum, err = crypt.SealChecksums(map[crypt.ChecksumID][]byte{crypt.CRC32: {1, 2, 3, 4}}, dek,
		rand.Reader); err != nil {
		t.Fatal(err)
	}
	if e.Meta, err = crypt.SealMetadata(map[string]string{"content-type": "a/b"}, dek, rand.Reader); err != nil {
		t.Fatal(err)
	}
	if err := e.Sign(dek, object); err != nil {
		t.Fatal(err)
	}

	return e
}

func metadata(t testing.TB, e *crypt.Envelope) map[string]string {
	t.Helper()
	m, err := e.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestEnvelopeRoundTrip(t *testing.T) {
	dek := newDEK(t)
	m := metadata(t, newEnvelope(t, dek))
	m["color"] = "blue" // the client's own metadata is not part of the envelope
	e, err := crypt.ParseEnvelope(m)
	if err != nil {
		t.Fatal(err)
	}

	if err := e.Verify(dek, object); err != nil {
		t.Fatal(err)
	}
	if e.Size != 4 || string(e.WrappedDEK) != "wrapped" {
		t.Fatalf("read %+v", e)
	}

	sums, err := crypt.OpenChecksums(e.Sum, dek)
	if err != nil || !bytes.Equal(sums[crypt.CRC32], []byte{1, 2, 3, 4}) || len(sums) != 1 {
		t.Fatalf("checksums %v, %v", sums, err)
	}
}

func TestEnvelopeIsBoundToItsObjectAndKey(t *testing.T) {
	dek := newDEK(t)
	e := newEnvelope(t, dek)

	for name, obj := range map[string]crypt.Object{
		"another key":          {Bucket: object.Bucket, Key: "2026/other.pdf"},
		"another bucket":       {Bucket: "recordz", Key: object.Key},
		"shifted border":       {Bucket: object.Bucket + "2", Key: object.Key[1:]},
		"empty":                {},
		"key in another form":  {Bucket: object.Bucket, Key: "2026/a b+c/ü.pdf"},
		"bucket and key alike": {Bucket: object.Key, Key: object.Bucket},
	} {
		t.Run(name, func(t *testing.T) {
			if err := e.Verify(dek, obj); !errors.Is(err, crypt.ErrAuth) {
				t.Error(err)
			}
		})
	}

	if err := e.Verify(newDEK(t), object); !errors.Is(err, crypt.ErrAuth) {
		t.Errorf("another DEK: %v", err)
	}
	if err := e.Verify(make([]byte, 32), object); !errors.Is(err, crypt.ErrDEK) {
		t.Errorf("zero DEK: %v", err)
	}

	if err := e.Sign(make([]byte, 32), object); !errors.Is(err, crypt.ErrDEK) {
		t.Errorf("signing with the zero DEK: %v", err)
	}
}

// Every MAC covers the version, so an envelope is not valid as one of the
// other.
func TestVersionsCannotBeExchanged(t *testing.T) {
	dek := newDEK(t)
	for _, v := range []crypt.Version{crypt.V1, crypt.V2} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			e := newEnvelope(t, dek)
			e.Version, e.Meta = v, nil
			if err := e.Sign(dek, object); err != nil {
				t.Fatal(err)
			}
			m := metadata(t, e)
			if m["cmek-v"] != fmt.Sprint(v) {
				t.Errorf("written as version %s", m["cmek-v"])
			}

			m["cmek-v"] = fmt.Sprint(3 - v)
			e, err := crypt.ParseEnvelope(m)
			if err != nil || !errors.Is(e.Verify(dek, object), crypt.ErrAuth) {
				t.Errorf("%v, and it verifies", err)
			}
		})
	}
}

// The MAC covers every entry: a valid entry from another envelope does not
// verify.
func TestEnvelopeEntriesCannotBeMixed(t *testing.T) {
	dek := newDEK(t)
	e := newEnvelope(t, dek)
	mine := metadata(t, e)
	other := newEnvelope(t, dek)
	other.KeyID, other.WrappedDEK, other.Size = "other", []byte("other"), 5

	if err := other.Sign(dek, object); err != nil {
		t.Fatal(err)
	}

	theirs := metadata(t, other)
	for name := range mine {
		if mine[name] == theirs[name] {
			continue // the version and the suite
		}

		mixed := maps.Clone(mine)
		mixed[name] = theirs[name]
		e, err := crypt.ParseEnvelope(mixed)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}

		if err := e.Verify(dek, object); !errors.Is(err, crypt.ErrAuth) {
			t.Errorf("%s of another envelope: %v", name, err)
		}
	}

	for _, name := range []string{"cmek-sum", "cmek-meta"} {
		without := maps.Clone(mine)
		delete(without, name)
		if e, err := crypt.ParseEnvelope(without); err != nil || !errors.Is(e.Verify(dek, object), crypt.ErrAuth) {
			t.Errorf("%s can be taken away", name)
		}
	}
}

func TestParseEnvelopeRefuses(t *testing.T) {
	valid := metadata(t, newEnvelope(t, newDEK(t)))
	set := func(name, value string) map[string]string {
		m := maps.Clone(valid)
		m[name] = value
		return m
	}

	without := func(name string) map[string]string {
		m := maps.Clone(valid)
		delete(m, name)
		return m
	}

	b64 := base64.StdEncoding.EncodeToString
	for _, row := range []struct {
		name string
		m    map[string]string
		want error
	}{
		{"nothing", nil, crypt.ErrNoEnvelope},
		{
			"only the client's own",
			map[string]string{"color": "blue", "cmek": "x", "x-cmek-v": "1"},
			crypt.ErrNoEnvelope,
		},
		{"only the version", map[string]string{"cmek-v": "1"}, crypt.ErrEnvelope},
		{"version 0", set("cmek-v", "0"), crypt.ErrVersion},
		{"version 3", set("cmek-v", "3"), crypt.ErrVersion},
		{"version 01", set("cmek-v", "01"), crypt.ErrVersion},
		{"empty version", set("cmek-v", ""), crypt.ErrVersion},
		{"suite 2", set("cmek-suite", "2"), crypt.ErrVersion},
		{"no version", without("cmek-v"), crypt.ErrEnvelope},
		{"no suite", without("cmek-suite"), crypt.ErrEnvelope},
		{"no key", without("cmek-key"), crypt.ErrEnvelope},
		{"no dek", without("cmek-dek"), crypt.ErrEnvelope},
		{"no header", without("cmek-header"), crypt.ErrEnvelope},
		{"no size", without("cmek-size"), crypt.ErrEnvelope},
		{"no mac", without("cmek-mac"), crypt.ErrEnvelope},
		{"unknown entry", set("cmek-extra", "1"), crypt.ErrEnvelope},
		{"prefix alone", set("cmek-", "1"), crypt.ErrEnvelope},
		{"empty key", set("cmek-key", ""), crypt.ErrEnvelope},
		{"key with a line break", set("cmek-key", "a\nb"), crypt.ErrEnvelope},
		{"key with a space", set("cmek-key", "a b"), crypt.ErrEnvelope},
		{"key not ASCII", set("cmek-key", "ü"), crypt.ErrEnvelope},
		{"key too long", set("cmek-key", strings.Repeat("k", 513)), crypt.ErrEnvelope},
		{"empty dek", set("cmek-dek", ""), crypt.ErrEnvelope},
		{"dek too long", set("cmek-dek", b64(make([]byte, 1025))), crypt.ErrEnvelope},
		{"dek not base64", set("cmek-dek", "***"), crypt.ErrEnvelope},
		{"dek without padding", set("cmek-dek", "d3JhcHBlZA"), crypt.ErrEnvelope},
		{"dek with stray bits", set("cmek-dek", "d3JhcHBlZB=="), crypt.ErrEnvelope},
		{"dek with a line break", set("cmek-dek", "d3Jh\ncHBlZA=="), crypt.ErrEnvelope},
		{"short header", set("cmek-header", b64(make([]byte, 39))), crypt.ErrEnvelope},
		{"long header", set("cmek-header", b64(make([]byte, 41))), crypt.ErrEnvelope},
		{"short mac", set("cmek-mac", b64(make([]byte, 31))), crypt.ErrEnvelope},
		{"empty mac", set("cmek-mac", ""), crypt.ErrEnvelope},
		{"negative size", set("cmek-size", "-1"), crypt.ErrEnvelope},
		{"size with a sign", set("cmek-size", "+4"), crypt.ErrEnvelope},
		{"size with a zero", set("cmek-size", "04"), crypt.ErrEnvelope},
		{"hex size", set("cmek-size", "0x4"), crypt.ErrEnvelope},
		{"huge size", set("cmek-size", "99999999999999999999"), crypt.ErrEnvelope},
		{"size past the counter", set("cmek-size", "281474976710617"), crypt.ErrEnvelope},
		{"empty sum", set("cmek-sum", ""), crypt.ErrEnvelope},
		{"huge sum", set("cmek-sum", b64(make([]byte, 1025))), crypt.ErrEnvelope},
		{"empty meta", set("cmek-meta", ""), crypt.ErrEnvelope},
		{"short meta", set("cmek-meta", b64(make([]byte, 91))), crypt.ErrEnvelope},
		{"huge meta", set("cmek-meta", b64(make([]byte, 8193))), crypt.ErrEnvelope},
		{"meta in version 1", map[string]string{
			"cmek-v": "1", "cmek-suite": "1", "cmek-key": valid["cmek-key"], "cmek-dek": valid["cmek-dek"],
			"cmek-header": valid["cmek-header"], "cmek-size": "4", "cmek-mac": valid["cmek-mac"],
			"cmek-meta": b64(make([]byte, 92)),
		}, crypt.ErrEnvelope},
		{"upload of a mark", set("cmek-upload", b64(make([]byte, 16))), crypt.ErrEnvelope},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, err := crypt.ParseEnvelope(row.m); !errors.Is(err, row.want) {
				t.Errorf("%v, want %v", err, row.want)
			}
		})
	}
}

func TestMetadataRefusesWhatCannotBeReadBack(t *testing.T) {
	e := newEnvelope(t, newDEK(t))
	e.KeyID = "key with spaces"
	if _, err := e.Metadata(); !errors.Is(err, crypt.ErrEnvelope) {
		t.Error(err)
	}
	e = newEnvelope(t, newDEK(t))
	e.Size = -1
	if _, err := e.Metadata(); !errors.Is(err, crypt.ErrEnvelope) {
		t.Error(err)
	}
}

// S3 allows 2 KB of user metadata. The envelope promises to stay below 700
// bytes with AWS KMS, even if a store counts the x-amz-meta- prefix of each
// name.
func TestEnvelopeIsSmall(t *testing.T) {
	dek := newDEK(t)
	e := newEnvelope(t, dek)
	e.KeyID = "arn:aws:kms:ap-southeast-2:111122223333:key/12345678-1234-1234-1234-123456789012"
	e.WrappedDEK = make([]byte, 184)
	e.Size = 5 << 30
	var total int
	e.Sum, e.Meta = nil, nil

	for name, value := range metadata(t, e) {
		total += len("x-amz-meta-") + len(name) + len(value)
	}

	if total >= 700 {
		t.Errorf("the envelope takes %d bytes", total)
	}
	t.Logf("the envelope takes %d bytes", total)
}

func TestChecksumsAreSealed(t *testing.T) {
	dek := newDEK(t)
	all := map[crypt.ChecksumID][]byte{
		crypt.CRC32: make([]byte, 4), crypt.CRC32C: make([]byte, 4), crypt.CRC64NVME: make([]byte, 8),
		crypt.SHA1: make([]byte, 20), crypt.SHA256: make([]byte, 32),
	}

	sealed, err := crypt.SealChecksums(all, dek, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}

	again, err := crypt.SealChecksums(all, dek, rand.Reader)
	if err != nil || bytes.Equal(sealed, again) {
		t.Error("equal checksums are sealed alike")
	}
	if got, err := crypt.OpenChecksums(sealed, dek); err != nil || len(got) != 5 {
		t.Errorf("%v, %v", got, err)
	}

	if _, err := crypt.OpenChecksums(sealed, newDEK(t)); !errors.Is(err, crypt.ErrAuth) {
		t.Errorf("another DEK: %v", err)
	}

	for i := range sealed {
		altered := bytes.Clone(sealed)
		altered[i] ^= 0x80
		if _, err := crypt.OpenChecksums(altered, dek); !errors.Is(err, crypt.ErrAuth) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}

	for n := range sealed {
		if _, err := crypt.OpenChecksums(sealed[:n], dek); err == nil && n > 0 {
			t.Fatalf("cut to %d opens", n)
		}
	}

	if _, err := crypt.SealChecksums(map[crypt.ChecksumID][]byte{crypt.CRC32: {1}}, dek,
		rand.Reader); !errors.Is(err, crypt.ErrSize) {
		t.Errorf("a digest of the wrong length: %v", err)
	}
	if sealed, err := crypt.SealChecksums(nil, dek, rand.Reader); sealed != nil || err != nil {
		t.Error("no checksums give something")
	}
}

func FuzzEnvelope(f *testing.F) {
	m := metadata(f, newEnvelope(f, bytes.Repeat([]byte{9}, 32)))
	f.Add(m["cmek-v"], m["cmek-suite"], m["cmek-key"], m["cmek-dek"], m["cmek-header"], m["cmek-size"],
		m["cmek-sum"], m["cmek-mac"])

	f.Add("2", "1", "k", "AA==", "", "007", "", "")
	f.Fuzz(func(t *testing.T, v, suite, key, dek, header, size, sum, mac string) {
		m := map[string]string{
			"cmek-v": v, "cmek-suite": suite, "cmek-key": key, "cmek-dek": dek,
			"cmek-header": header, "cmek-size": size, "cmek-sum": sum, "cmek-mac": mac,
		}

		e, err := crypt.ParseEnvelope(m)
		if err != nil {
			return
		}

		// There is only one valid form: writing the envelope again gives
		// the same entries.
		if again := metadata(t, e); !maps.Equal(m, again) {
			t.Fatalf("%v became %v", m, again)
		}
	})
}

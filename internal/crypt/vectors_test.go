package crypt_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"reflect"
	"testing"

	"github.com/tink-crypto/tink-go/v2/streamingaead/subtle"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// The vectors are part of the format and never change once released.
// -write-vectors creates the file if it does not exist.
var writeVectors = flag.Bool("write-vectors", false, "write testdata/vectors.json if it does not exist")

const vectorFile = "testdata/vectors.json"

type vectors struct {
	Comment []string `json:"comment"`
	Objects []vector `json:"objects"`
}

// vector is one object. Binary values are in hex.
type vector struct {
	Name       string            `json:"name"`
	DEK        string            `json:"dek"`
	Bucket     string            `json:"bucket"`
	Key        string            `json:"key"`
	Size       int64             `json:"plaintext_size"`
	SHA256     string            `json:"plaintext_sha256"`
	Header     string            `json:"header"`
	Body       string            `json:"body,omitempty"` // up to 4 KiB
	BodySHA256 string            `json:"body_sha256"`
	Metadata   map[string]string `json:"metadata"`
	Checksums  map[string]string `json:"checksums,omitempty"` // by id
	Sealed     map[string]string `json:"sealed_metadata,omitempty"`
}

// pattern is the plaintext of the vectors: byte i is (i*131 + (i>>8)*17) mod
// 256.
func pattern(n int64) []byte {
	text := make([]byte, n)
	for i := range text {
		text[i] = byte(i*131 + (i>>8)*17)
	}
	return text
}

func makeVector(t *testing.T, name string, obj crypt.Object, size int64, withSum bool) vector {
	t.Helper()
	return makeVectorOf(t, crypt.V1, name, obj, size, withSum, nil)
}

func makeVectorOf(
	t *testing.T, version crypt.Version, name string, obj crypt.Object, size int64, withSum bool,
	meta map[string]string,
) vector {
	t.Helper()
	dek, text := sha256.Sum256([]byte("dek of "+name)), pattern(size)
	random := sha256.Sum256([]byte("randomness of " + name))
	s, err := crypt.NewSealer(bytes.NewReader(text), size, dek[:], bytes.NewReader(append(random[:], random[:]...)))
	if err != nil {
		t.Fatal(err)
	}

	body, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}

	header := s.Header()
	e := crypt.Envelope{
		Version:    version,
		KeyID:      "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
		WrappedDEK: []byte("wrapped " + name), Header: header, Size: size,
	}

	v := vector{
		Name: name, DEK: hex.EncodeToString(dek[:]), Bucket: obj.Bucket, Key: hex.EncodeToString([]byte(obj.Key)),
		Size:   size,
		SHA256: hexSum(text), Header: hex.EncodeToString(header[:]), BodySHA256: hexSum(body),
	}

	if len(body) <= 4096 {
		v.Body = hex.EncodeToString(body)
	}
	if withSum {
		digest := sha256.Sum256(text)
		v.Checksums = map[string]string{"5": hex.EncodeToString(digest[:])}
		sums := map[crypt.ChecksumID][]byte{crypt.SHA256: digest[:]}
		if e.Sum, err = crypt.SealChecksums(sums, dek[:], bytes.NewReader(random[:])); err != nil {
			t.Fatal(err)
		}
	}

	if meta != nil {
		if len(meta) > 0 { // none is left out in JSON
			v.Sealed = meta
		}
		if e.Meta, err = crypt.SealMetadata(meta, dek[:], bytes.NewReader(random[12:])); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Sign(dek[:], obj); err != nil {
		t.Fatal(err)
	}
	v.Metadata = metadata(t, &e)
	return v
}

func makeVectors(t *testing.T) vectors {
	t.Helper()
	plain := crypt.Object{Bucket: "bucket", Key: "key"}
	odd := crypt.Object{Bucket: "a.b-c", Key: "a//b/../c +%2F\u00fc\n"}
	return vectors{
		Comment: []string{
			"Vectors of docs/format.md, version 1, suite 1. They never change.",
			"Binary values and object keys are in hex. Plaintext byte i is (i*131 + (i>>8)*17) mod 256.",
		},
		Objects: []vector{
			makeVector(t, "empty", plain, 0, false),
			makeVector(t, "one byte", plain, 1, true),
			makeVector(t, "odd key", odd, 1000, true),
			makeVector(t, "one segment, full", plain, 65496, false),
			makeVector(t, "two segments", plain, 65497, true),
			makeVector(t, "four segments, full", plain, 4*65536-40, false),
			makeVector(t, "1 MiB and a byte", plain, 1<<20+1, true),
		},
	}
}

func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// keptVectors reads a file of vectors. They must be what is made now.
func keptVectors[V any](t *testing.T, file string, made V) (kept V) {
	t.Helper()
	if _, err := os.Stat(file); *writeVectors && errors.Is(err, os.ErrNotExist) {
		data, err := json.MarshalIndent(made, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(data, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &kept); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(made, kept) {
		t.Error("what is written now is not what the vectors hold: the format has changed")
	}
	return kept
}

func TestVectors(t *testing.T) {
	kept := keptVectors(t, vectorFile, makeVectors(t))
	for _, v := range kept.Objects {
		checkVector(t, v)
	}
}

// checkVector reads a vector using only the vectors file.
func checkVector(t *testing.T, v vector) {
	t.Helper()
	dek, key := unhex(t, v.DEK), unhex(t, v.Key)
	e, err := crypt.ParseEnvelope(v.Metadata)
	if err != nil {
		t.Fatalf("%s: %v", v.Name, err)
	}

	if err := e.Verify(dek, crypt.Object{Bucket: v.Bucket, Key: string(key)}); err != nil {
		t.Errorf("%s: %v", v.Name, err)
	}
	if e.Meta != nil {
		if got, err := crypt.OpenMetadata(e.Meta, dek); err != nil || !maps.Equal(got, v.Sealed) {
			t.Errorf("%s: metadata %q, %v", v.Name, got, err)
		}
	}
	if v.Body != "" {
		text, err := open(unhex(t, v.Body), crypt.Whole(e.Size), dek, e.Header)
		if err != nil || !bytes.Equal(text, pattern(v.Size)) {
			t.Errorf("%s: %v", v.Name, err)
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	data, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Tink must open what this package seals, and the other way round.
func TestTinkInteroperates(t *testing.T) {
	aad := []byte("cmekproxy v1 body")
	for _, size := range edges {
		dek, text := newDEK(t), randomText(size)
		tink, err := subtle.NewAESGCMHKDF(dek, "SHA256", 32, crypt.StoredSegmentSize, 0)
		if err != nil {
			t.Fatal(err)
		}

		body, _ := seal(t, dek, text)
		r, err := tink.NewDecryptingReader(bytes.NewReader(body), aad)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%d bytes: Tink reads %d bytes of ours, %v", size, len(got), err)
		}

		var sealed bytes.Buffer
		w, err := tink.NewEncryptingWriter(&sealed, aad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}

		if err := w.Close(); err != nil {
			t.Fatal(err)
		}

		h := crypt.Header(sealed.Bytes()[:crypt.HeaderSize])
		if got, err := open(sealed.Bytes(), crypt.Whole(size), dek, h); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%d bytes: we read %d bytes of Tink's, %v", size, len(got), err)
		}
	}
}

// Different associated data means a different stream key: a Tink stream for
// another purpose under the same DEK is refused.
func TestTinkStreamOfAnotherPurpose(t *testing.T) {
	dek := make([]byte, 32)
	rand.Read(dek)
	tink, err := subtle.NewAESGCMHKDF(dek, "SHA256", 32, crypt.StoredSegmentSize, 0)
	if err != nil {
		t.Fatal(err)
	}

	var sealed bytes.Buffer
	w, err := tink.NewEncryptingWriter(&sealed, []byte("another purpose"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	h := crypt.Header(sealed.Bytes()[:crypt.HeaderSize])
	if _, err := open(sealed.Bytes(), crypt.Whole(0), dek, h); !errors.Is(err, crypt.ErrAuth) {
		t.Error(err)
	}
}

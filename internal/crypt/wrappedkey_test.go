package crypt_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

const keyVectorFile = "testdata/key-vectors.json"

// keyVectors are the vectors for docs/format.md, section 9. Binary values
// and object keys are in hex. They never change.
type keyVectors struct {
	Comment  []string         `json:"comment"`
	Wrapped  []wrappedVector  `json:"wrapped"`
	Customer []customerVector `json:"customer"`
}

type wrappedVector struct {
	Name    string            `json:"name"`
	Wrapped string            `json:"wrapped"`
	Salt    string            `json:"salt,omitempty"`
	Context map[string]string `json:"context,omitempty"`
	Blob    string            `json:"blob"`
	// Only with a salt: the unwrapped blob, the object, and the DEK.
	BucketKey string `json:"bucket_key,omitempty"`
	Bucket    string `json:"bucket,omitempty"`
	Key       string `json:"key,omitempty"`
	DEK       string `json:"dek,omitempty"`
}

type customerVector struct {
	Name        string `json:"name"`
	CustomerKey string `json:"customer_key"`
	Bucket      string `json:"bucket"`
	Key         string `json:"key"`
	Wrapped     string `json:"wrapped"`
	DEK         string `json:"dek"`
}

func fill(n int, from byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

func makeKeyVectors(t *testing.T) keyVectors {
	t.Helper()
	v := keyVectors{
		Comment: []string{
			"Vectors of docs/format.md, section 9. They never change.",
			"Binary values and object keys are in hex.",
		},
	}

	obj := crypt.Object{Bucket: "bucket", Key: "dir/k\xc3\xa9y"}
	for _, w := range []struct {
		name string
		crypt.WrappedKey
	}{
		{"bucket key", crypt.WrappedKey{Salt: fill(32, 1), Blob: []byte("what the KMS gave")}},
		{"context", crypt.WrappedKey{Context: map[string]string{
			"tenant": "acme", "classe": "secr\u00e8te",
			"empty": "",
		}, Blob: []byte("what the KMS gave")}},
		{"both", crypt.WrappedKey{Salt: fill(32, 9), Context: map[string]string{"a": "b"}, Blob: []byte{0}}},
	} {
		t.Run(w.name, func(t *testing.T) {
			wrapped, err := w.Bytes()
			if err != nil {
				t.Fatal(err)
			}

			out := wrappedVector{
				Name: w.name, Wrapped: hex.EncodeToString(wrapped), Salt: hex.EncodeToString(w.Salt),
				Context: w.Context, Blob: hex.EncodeToString(w.Blob),
			}

			if w.Salt != nil {
				dek, err := crypt.DeriveDEK(fill(32, 100), w.Salt, obj)
				if err != nil {
					t.Fatal(err)
				}
				out.BucketKey, out.Bucket, out.Key, out.DEK = hex.EncodeToString(fill(32,
					100)), obj.Bucket, hex.EncodeToString([]byte(obj.Key)), hex.EncodeToString(dek)
			}

			v.Wrapped = append(v.Wrapped, out)
		})
	}

	wrapped, err := crypt.WrapByCustomer(fill(32, 7), fill(32, 50), obj, bytes.NewReader(fill(32, 200)))
	if err != nil {
		t.Fatal(err)
	}

	v.Customer = append(v.Customer, customerVector{
		"customer's key", hex.EncodeToString(fill(32,
			7)), obj.Bucket, hex.EncodeToString([]byte(obj.Key)), hex.EncodeToString(wrapped),
		hex.EncodeToString(fill(32, 50)),
	})

	return v
}

func TestKeyVectors(t *testing.T) {
	if _, err := os.Stat(keyVectorFile); *writeVectors && errors.Is(err, os.ErrNotExist) {
		data, err := json.MarshalIndent(makeKeyVectors(t), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(keyVectorFile, append(data, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	data, err := os.ReadFile(keyVectorFile)
	if err != nil {
		t.Fatal(err)
	}

	var v keyVectors
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}

	for _, w := range v.Wrapped {
		got, err := crypt.ParseWrappedKey(unhex(t, w.Wrapped))
		if err != nil || hex.EncodeToString(got.Salt) != w.Salt || hex.EncodeToString(got.Blob) != w.Blob ||
			!maps.Equal(got.Context, w.Context) {
			t.Errorf("%s: %+v, %v", w.Name, got, err)
		}
		if again, err := got.Bytes(); err != nil || hex.EncodeToString(again) != w.Wrapped {
			t.Errorf("%s: written again: %x, %v", w.Name, again, err)
		}

		if w.Salt == "" {
			continue
		}

		dek, err := crypt.DeriveDEK(unhex(t, w.BucketKey), got.Salt, crypt.Object{
			Bucket: w.Bucket, Key: string(unhex(t, w.Key)),
		})
		if err != nil || hex.EncodeToString(dek) != w.DEK {
			t.Errorf("%s: DEK %x, %v", w.Name, dek, err)
		}
	}

	for _, c := range v.Customer {
		dek, err := crypt.UnwrapByCustomer(unhex(t, c.CustomerKey), unhex(t, c.Wrapped),
			crypt.Object{Bucket: c.Bucket, Key: string(unhex(t, c.Key))})
		if err != nil || hex.EncodeToString(dek) != c.DEK {
			t.Errorf("%s: DEK %x, %v", c.Name, dek, err)
		}
	}

	if len(v.Wrapped) < 3 || len(v.Customer) < 1 {
		t.Error("vectors are missing")
	}
}

// The KMS's ciphertext is stored unchanged if there is nothing to add.
func TestPlainWrappedKey(t *testing.T) {
	for _, blob := range [][]byte{{0}, []byte("vault:v1:abc"), []byte("cmekwra")} {
		t.Run(fmt.Sprintf("%q", blob), func(t *testing.T) {
			w, err := crypt.ParseWrappedKey(blob)
			if err != nil || w.Salt != nil || w.Context != nil || !bytes.Equal(w.Blob, blob) {
				t.Errorf("%q: %+v, %v", blob, w, err)
			}
			if b, err := w.Bytes(); err != nil || !bytes.Equal(b, blob) {
				t.Errorf("%q is stored as %q, %v", blob, b, err)
			}
		})
	}
}

func TestWrappedKeyRefusals(t *testing.T) {
	salt := strings.Repeat("s", 32)
	for name, wrapped := range map[string]string{
		"magic alone":            "cmekwrap",
		"no flags":               "cmekwrap\x01",
		"flags of nothing":       "cmekwrap\x01\x00blob",
		"an unknown flag":        "cmekwrap\x01\x05" + salt + "blob",
		"version 2":              "cmekwrap\x02\x01" + salt + "blob",
		"a short salt":           "cmekwrap\x01\x01" + salt[1:],
		"no blob":                "cmekwrap\x01\x01" + salt,
		"no blob, context":       "cmekwrap\x01\x02\x00\x01\x00\x01a\x00\x01b",
		"no entries":             "cmekwrap\x01\x02\x00\x00blob",
		"half a count":           "cmekwrap\x01\x02\x00",
		"an entry cut short":     "cmekwrap\x01\x02\x00\x01\x00\x09a",
		"a value cut short":      "cmekwrap\x01\x02\x00\x01\x00\x01a\x00\x09b",
		"an empty name":          "cmekwrap\x01\x02\x00\x01\x00\x00\x00\x01bblob",
		"entries out of order":   "cmekwrap\x01\x02\x00\x02\x00\x01b\x00\x00\x00\x01a\x00\x00blob",
		"a name twice":           "cmekwrap\x01\x02\x00\x02\x00\x01a\x00\x00\x00\x01a\x00\x01xblob",
		"the name bucket":        "cmekwrap\x01\x02\x00\x01\x00\x06bucket\x00\x00blob",
		"the name key":           "cmekwrap\x01\x02\x00\x01\x00\x03key\x00\x00blob",
		"a name that is no text": "cmekwrap\x01\x02\x00\x01\x00\x01\xff\x00\x00blob",
	} {
		t.Run(name, func(t *testing.T) {
			if w, err := crypt.ParseWrappedKey([]byte(wrapped)); !errors.Is(err, crypt.ErrEnvelope) {
				t.Errorf("%+v, %v", w, err)
			}
		})
	}

	for name, w := range map[string]crypt.WrappedKey{
		"an empty name":     {Context: map[string]string{"": "x"}, Blob: []byte("b")},
		"the name bucket":   {Context: map[string]string{"bucket": "x"}, Blob: []byte("b")},
		"too long":          {Context: map[string]string{"a": strings.Repeat("x", 1024)}, Blob: []byte("b")},
		"no blob":           {Salt: fill(32, 0)},
		"a salt of 31":      {Salt: fill(31, 0), Blob: []byte("b")},
		"a blob like ours":  {Blob: []byte("cmekwrap\x01\x01")},
		"a compound within": {Salt: fill(32, 0), Blob: []byte("cmekwrap")},
	} {
		t.Run(name, func(t *testing.T) {
			if b, err := w.Bytes(); !errors.Is(err, crypt.ErrEnvelope) {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

// A different object, salt or bucket key gives a different DEK. A bucket
// key of zeros is refused.
func TestDerivedDEKs(t *testing.T) {
	obj := crypt.Object{Bucket: "b", Key: "ck"}
	first, err := crypt.DeriveDEK(fill(32, 1), fill(32, 2), obj)
	if err != nil {
		t.Fatal(err)
	}

	for name, got := range map[string]func() ([]byte, error){
		"key": func() ([]byte, error) {
			return crypt.DeriveDEK(fill(32, 1), fill(32, 2), crypt.Object{Bucket: "b", Key: "cl"})
		},
		"border between them": func() ([]byte, error) {
			return crypt.DeriveDEK(fill(32, 1), fill(32, 2), crypt.Object{Bucket: "bc", Key: "k"})
		},
		"salt":       func() ([]byte, error) { return crypt.DeriveDEK(fill(32, 1), fill(32, 3), obj) },
		"bucket key": func() ([]byte, error) { return crypt.DeriveDEK(fill(32, 4), fill(32, 2), obj) },
	} {
		t.Run(name, func(t *testing.T) {
			if dek, err := got(); err != nil || bytes.Equal(dek, first) {
				t.Errorf("another %s: %x, %v", name, dek, err)
			}
		})
	}

	if _, err := crypt.DeriveDEK(make([]byte, 32), fill(32, 2), obj); !errors.Is(err, crypt.ErrDEK) {
		t.Errorf("a bucket key of zeros: %v", err)
	}
}

func TestCustomerKeyRefusals(t *testing.T) {
	key, dek, obj := fill(32, 1), fill(32, 2), crypt.Object{Bucket: "b", Key: "k"}
	wrapped, err := crypt.WrapByCustomer(key, dek, obj, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := crypt.WrapByCustomer(key, dek, obj, rand.Reader); err != nil || bytes.Equal(again, wrapped) {
		t.Errorf("wrapped twice alike: %v", err)
	}

	for name, row := range map[string]struct {
		key, wrapped []byte
		obj          crypt.Object
		want         error
	}{
		"another key":    {fill(32, 3), wrapped, obj, crypt.ErrCustomerKey},
		"another object": {key, wrapped, crypt.Object{Bucket: "b", Key: "l"}, crypt.ErrCustomerKey},
		"another bucket": {key, wrapped, crypt.Object{Bucket: "c", Key: "k"}, crypt.ErrCustomerKey},
		"a key of zeros": {make([]byte, 32), wrapped, obj, crypt.ErrDEK},
		"a short key":    {key[:31], wrapped, obj, crypt.ErrDEK},
		"cut":            {key, wrapped[:80], obj, crypt.ErrEnvelope},
		"a byte more":    {key, append(bytes.Clone(wrapped), 0), obj, crypt.ErrEnvelope},
		"empty":          {key, nil, obj, crypt.ErrEnvelope},
		"another form":   {key, append([]byte{2}, wrapped[1:]...), obj, crypt.ErrEnvelope},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := crypt.UnwrapByCustomer(row.key, row.wrapped, row.obj); !errors.Is(err, row.want) ||
				got != nil {
				t.Errorf("%x, %v", got, err)
			}
		})
	}

	for i := 1; i < len(wrapped); i++ {
		flipped := bytes.Clone(wrapped)
		flipped[i] ^= 1
		if _, err := crypt.UnwrapByCustomer(key, flipped, obj); !errors.Is(err, crypt.ErrCustomerKey) {
			t.Errorf("byte %d flipped: %v", i, err)
		}
	}

	for name, bad := range map[string][]byte{"zeros": make([]byte, 32), "short": fill(31, 1)} {
		t.Run(name, func(t *testing.T) {
			if _, err := crypt.WrapByCustomer(bad, dek, obj, rand.Reader); !errors.Is(err, crypt.ErrDEK) {
				t.Errorf("a customer key: %s: %v", name, err)
			}
			if _, err := crypt.WrapByCustomer(key, bad, obj, rand.Reader); !errors.Is(err, crypt.ErrDEK) {
				t.Errorf("a DEK: %s: %v", name, err)
			}
		})
	}
}

// Encoding a decoded wrapped key gives the same bytes, so the MAC covers
// only one form.
func FuzzWrappedKey(f *testing.F) {
	f.Add([]byte("blob"))
	f.Add([]byte("cmekwrap\x01\x01" + strings.Repeat("s", 32) + "blob"))
	f.Add([]byte("cmekwrap\x01\x02\x00\x01\x00\x01a\x00\x01bblob"))
	f.Add([]byte("cmekwrap\x01\x03" + strings.Repeat("s", 32) + "\x00\x02\x00\x01a\x00\x01b\x00\x01c\x00\x00blob"))

	f.Fuzz(func(t *testing.T, wrapped []byte) {
		w, err := crypt.ParseWrappedKey(wrapped)
		if err != nil {
			if !errors.Is(err, crypt.ErrEnvelope) {
				t.Fatal(err)
			}
			return
		}

		again, err := w.Bytes()
		if err != nil {
			return // too long, or a nested compound, which is never written
		}
		if !bytes.Equal(again, wrapped) {
			t.Fatalf("%x is written as %x", wrapped, again)
		}
	})
}

// A name that differs from a reserved one only by case is refused for new
// objects and accepted for stored ones.
func TestContextNamesByCase(t *testing.T) {
	for _, name := range []string{"Bucket", "BUCKET", "kEy", "\u212aey"} {
		t.Run(name, func(t *testing.T) {
			context := map[string]string{name: "mine"}
			if err := crypt.CheckNewContext(context); !errors.Is(err, crypt.ErrEnvelope) {
				t.Errorf("%q is taken for a new object: %v", name, err)
			}

			stored, err := crypt.WrappedKey{Blob: []byte("blob"), Context: context}.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			if back, err := crypt.ParseWrappedKey(stored); err != nil || back.Context[name] != "mine" {
				t.Errorf("%q is not read: %v, %v", name, back, err)
			}
		})
	}

	for _, name := range []string{"buckets", "k", "the key"} {
		t.Run(name, func(t *testing.T) {
			if err := crypt.CheckNewContext(map[string]string{name: "mine"}); err != nil {
				t.Error(err)
			}
		})
	}
}

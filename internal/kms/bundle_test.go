package kms_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// bundleVector is a bundle that an earlier version has made. Vectors never
// change; new ones are added with -new-bundle-vectors.
type bundleVector struct {
	Name     string            `json:"name"`
	KeyID    string            `json:"key_id"`
	Context  map[string]string `json:"context"`
	Bundle   string            `json:"bundle"`
	Keys     []string          `json:"keys"`     // ids that the bundle names
	Unwraps  map[string]string `json:"unwraps"`  // what each of them unwraps, by id
	Recovery string            `json:"recovery"` // private key; "" if it has no recovery wrap
	DEK      string            `json:"dek"`
}

const bundleVectors = "testdata/bundle-vectors.json"

var newBundleVectors = flag.Bool("new-bundle-vectors", false, "make the bundle vectors, if there are none")

func TestBundleVectors(t *testing.T) {
	if *newBundleVectors {
		makeBundleVectors(t)
	}
	text, err := os.ReadFile(bundleVectors)
	must(t, err)
	var vectors []bundleVector
	must(t, json.Unmarshal(text, &vectors))
	if len(vectors) < 5 {
		t.Fatalf("%d vectors", len(vectors))
	}

	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			blob, err := hex.DecodeString(v.Bundle)
			must(t, err)
			keys, recovery := kms.KeysOf(v.KeyID, blob)
			if !slices.Equal(keys, v.Keys) || (len(recovery) > 0) != (v.Recovery != "") {
				t.Errorf("keys %q, recovery %q", keys, recovery)
			}

			if v.Recovery != "" {
				private, err := kms.ParseRecoveryPrivateKey(v.Recovery)
				must(t, err)
				got, err := kms.RecoveredKey(private).Unwrap(t.Context(), blob, v.Context)
				if err != nil || hex.EncodeToString(got) != v.DEK {
					t.Errorf("the recovery key: %x, %v", got, err)
				}
			}

			got, err := vectorKey(t, v).Unwrap(t.Context(), blob, v.Context)
			if err != nil || hex.EncodeToString(got) != v.DEK {
				t.Errorf("the keys: %x, %v", got, err)
			}
		})
	}
}

// vectorKey returns the key of a vector. Its KMSs answer from the vector.
func vectorKey(t *testing.T, v bundleVector) kms.Wrapper {
	var members []*kms.Member
	for _, id := range v.Keys {
		m := &kms.Member{Name: id}
		m.Open(&answering{id, decodeHex(t, v.Unwraps[id])})
		members = append(members, m)
	}
	cfg := kms.MembersConfig{ID: v.KeyID, Members: members}
	switch v.KeyID {
	case "all-of:x":
		return kms.Recoverable(kms.AllOf(cfg), nil)
	case "any-of:x":
		return kms.Recoverable(kms.AnyOf(cfg), nil)
	default:
		w, err := members[0].Opened()
		must(t, err)
		return kms.Recoverable(w, nil)
	}
}

func decodeHex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	must(t, err)
	return b
}

// makeBundleVectors makes the vectors with real keys, and records what each
// of them unwraps.
func makeBundleVectors(t *testing.T) {
	if _, err := os.Stat(bundleVectors); err == nil {
		t.Fatal(bundleVectors + " exists")
	}
	one, two := &spyKey{Wrapper: first(newLocal(t))}, &spyKey{Wrapper: first(newLocal(t))}
	members := []*kms.Member{{Name: "one"}, {Name: "two"}}
	members[0].Open(one)
	members[1].Open(two)
	all := kms.AllOf(kms.MembersConfig{ID: "all-of:x", Members: members})
	anyKey := kms.AnyOf(kms.MembersConfig{ID: "any-of:x", Members: members})
	private := recoveryKey(t)

	object, bucket := map[string]string{"bucket": "b", "key": "a/ü.txt"}, map[string]string{"bucket": "b"}
	var vectors []bundleVector
	for _, row := range []struct {
		name    string
		w       kms.Wrapper
		keys    []*spyKey
		context map[string]string
		private *kms.RecoveryPrivateKey
	}{
		{"one key, and a recovery key", one, []*spyKey{one}, object, private},
		{"a bucket key, and a recovery key", one, []*spyKey{one}, bucket, private},
		{"all of two", all, []*spyKey{one, two}, object, nil},
		{"all of two, and a recovery key", all, []*spyKey{one, two}, object, private},
		{"any of two", anyKey, []*spyKey{one, two}, object, nil},
		{"any of two, and a recovery key", anyKey, []*spyKey{one, two}, object, private},
	} {
		v := bundleVector{Name: row.name, KeyID: row.w.KeyID(), Context: row.context, Unwraps: make(map[string]string)}
		w := row.w
		if row.private != nil {
			v.Recovery, w = row.private.Text(), kms.Recoverable(w, row.private.Public())
		}
		dek := kmstest.NewDEK()
		blob, err := w.Wrap(t.Context(), dek, row.context)
		must(t, err)
		v.DEK, v.Bundle = hex.EncodeToString(dek), hex.EncodeToString(blob)
		for _, k := range row.keys {
			v.Keys = append(v.Keys, k.KeyID())
			v.Unwraps[k.KeyID()] = hex.EncodeToString(k.wrapped)
		}
		vectors = append(vectors, v)
	}

	text, err := json.MarshalIndent(vectors, "", "  ")
	must(t, err)
	must(t, os.WriteFile(bundleVectors, append(text, '\n'), 0o644))
}

func first[A, B any](a A, _ B) A { return a }

// FuzzBundle parses arbitrary bytes. What is accepted must be encoded in one
// way only.
func FuzzBundle(f *testing.F) {
	text, err := os.ReadFile(bundleVectors)
	if err != nil {
		f.Fatal(err)
	}
	var vectors []bundleVector
	if err := json.Unmarshal(text, &vectors); err != nil {
		f.Fatal(err)
	}
	for _, v := range vectors {
		blob, _ := hex.DecodeString(v.Bundle)
		f.Add(blob)
		f.Add(append(blob, 0))
		f.Add(append(bytes.Clone(blob[:9]), 2, 2, 0))
	}

	f.Fuzz(func(t *testing.T, blob []byte) {
		again, ok := kms.ReencodeBundle(blob)
		if ok && !bytes.Equal(again, blob) {
			t.Fatalf("%x is encoded as %x", blob, again)
		}
	})
}

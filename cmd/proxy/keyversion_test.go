package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

func TestKeyVersion(t *testing.T) {
	azure := append([]byte{1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 16}, bytes.Repeat([]byte{0xab}, 16)...)
	azure = append(azure, make([]byte, 100)...)
	for name, row := range map[string]struct {
		id      string
		wrapped []byte
		want    string
	}{
		"local, form 1":           {"local:00", append([]byte{1}, make([]byte, 60)...), "1"},
		"local, form 2":           {"local:00", append([]byte{2, 0, 0, 1, 4}, make([]byte, 60)...), "260"},
		"local, of a wrong size":  {"local:00", append([]byte{2, 0, 0, 1, 4}, make([]byte, 61)...), ""},
		"local, of an unknown":    {"local:00", append([]byte{3}, make([]byte, 60)...), ""},
		"vault":                   {"vault:x", []byte("vault:v17:AAAA"), "17"},
		"vault, no number":        {"vault:x", []byte("vault:vx:AAAA"), ""},
		"vault, cut":              {"vault:x", []byte("vault:v17"), ""},
		"azure":                   {"https://v/keys/k", azure, strings.Repeat("ab", 16)},
		"azure, cut":              {"https://v/keys/k", azure[:20], ""},
		"aws":                     {"arn:aws:kms:eu-central-1:1:key/x", bytes.Repeat([]byte{1}, 184), ""},
		"a mark, without a blob":  {"local:00", nil, ""},
		"the blob of another key": {"arn:aws:kms:x", append([]byte{1}, make([]byte, 60)...), ""},
	} {
		if got := keyVersion(row.id, row.wrapped); got != row.want {
			t.Errorf("%s: %q", name, got)
		}
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := kms.CreateLocalKeyFile(path); err != nil {
		t.Fatal(err)
	}
	key, err := kms.NewLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	_, wrapped, err := kms.Generate(t.Context(), key, kms.EncryptionContext{"bucket": "b", "key": "k"})
	if got := keyVersion(key.KeyID(), wrapped); err != nil || got != "1" {
		t.Errorf("a real blob: %q, %v", got, err)
	}
}

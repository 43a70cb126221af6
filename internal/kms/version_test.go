package kms_test

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

func TestVersionOf(t *testing.T) {
	local, localFile := newLocal(t)
	vaultServer, azureServer := kmstest.StartVault(t), kmstest.StartAzure(t)
	vault, azure := vaultServer.NewKey(t, nil), azureServer.NewKey(t, "oct-HSM", nil)
	renamed := azureServer.NewKey(t, "RSA-2048", func(c *kms.AzureConfig) { c.EnvelopeID = "an-id-of-our-own" })
	aws := kmstest.StartTest(t).NewKey(t, nil)
	wantVersions(t, map[kms.Wrapper]string{
		local: "1", vault: "1", azure: "[0-9a-f]{32}", renamed: "[0-9a-f]{32}", aws: "",
	})

	rotate(t, localFile)
	vaultServer.RotateKey("key-1")
	wantVersions(t, map[kms.Wrapper]string{local: "2", vault: "2"})
}

// wantVersions checks the versions of blobs of these keys against patterns,
// for a blob alone and in an envelope. A truncated blob has no version.
func wantVersions(t *testing.T, want map[kms.Wrapper]string) {
	t.Helper()
	for w, pattern := range want {
		_, blob, err := kms.Generate(t.Context(), w, traced)
		if err != nil {
			t.Fatal(err)
		}

		got := kms.VersionOf(w.KeyID(), blob)
		if !regexp.MustCompile("^" + pattern + "$").MatchString(got) {
			t.Errorf("%s: %q, not %q", w.KeyID(), got, pattern)
		}

		stored, err := crypt.WrappedKey{Context: map[string]string{"team": "a"}, Blob: blob}.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if again := kms.VersionOf(w.KeyID(), stored); again != got {
			t.Errorf("%s: %q in an envelope, %q alone", w.KeyID(), again, got)
		}

		for _, cut := range [][]byte{nil, blob[:1], blob[:20], blob[:len(blob)-1], stored[:9]} {
			if got := kms.VersionOf(w.KeyID(), cut); got != "" {
				t.Errorf("%s: %q of %d bytes", w.KeyID(), got, len(cut))
			}
		}
	}
}

func TestVersionOfForms(t *testing.T) {
	azure := append([]byte{1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 16}, bytes.Repeat([]byte{0xab}, 16)...)
	azure = append(append(azure, 0, 40), make([]byte, 40+60)...)
	form1, form2 := append([]byte{1}, make([]byte, 60)...), append([]byte{2, 0, 0, 1, 4}, make([]byte, 60)...)
	vault := []byte(":" + strings.Repeat("A", 80))
	for name, row := range map[string]struct {
		id      string
		wrapped []byte
		want    string
	}{
		"local, form 1":                {"local:00", form1, "1"},
		"local, form 2":                {"local:00", form2, "260"},
		"local, of a wrong size":       {"local:00", append(slices.Clip(form2), 0), ""},
		"local, of an unknown form":    {"local:00", append([]byte{3}, make([]byte, 60)...), ""},
		"a form of another provider":   {"pkcs11:token=t", form1, ""},
		"vault":                        {"vault:x", append([]byte("vault:v17"), vault...), "17"},
		"vault, by a name of our own":  {"x", append([]byte("vault:v17"), vault...), "17"},
		"vault, no number":             {"vault:x", append([]byte("vault:vx"), vault...), ""},
		"vault, too short":             {"vault:x", []byte("vault:v17:AAAA"), ""},
		"azure, a blob of another key": {"https://v/keys/k", azure, ""},
		"aws":                          {"arn:aws:kms:eu-central-1:1:key/x", bytes.Repeat([]byte{1}, 184), ""},
		"a mark, without a blob":       {"local:00", nil, ""},
		"no wrapped key of ours":       {"local:00", []byte("cmekwrap\x02"), ""},
	} {
		if got := kms.VersionOf(row.id, row.wrapped); got != row.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

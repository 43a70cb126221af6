package kms_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

func oneLine(key []byte) []byte {
	return []byte(localPrefix + base64.StdEncoding.EncodeToString(key) + "\n")
}

// goodFile is a file of the newer form without its checksum. Versions 1 and
// 3 have keys.
const goodFile = `cmekproxy-local-key-v2
id local:27b0053ddc947ad4
state enabled
version 1 enabled - 7VW2dxNIQC/Lccmh/RLhBwBI+AuYAAsCAgvR48EfYmY=
version 2 destroyed 2026-11-24T06:11:00Z -
version 3 disabled 2026-11-24T06:11:00Z MDEyMzAxMjMwMTIzMDEyMzAxMjMwMTIzMDEyMzAxMjM=
`

func sealFile(text string) []byte {
	return fmt.Appendf([]byte(text), "checksum %x\n", sha256.Sum256([]byte(text)))
}

func TestParseLocalKeyFile(t *testing.T) {
	text := sealFile(goodFile)
	file, err := kms.ParseLocalKeyFile(text)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(file.Append(nil), text) {
		t.Errorf("it is written otherwise:\n%s", file.Append(nil))
	}

	created := time.Date(2026, 11, 24, 6, 11, 0, 0, time.UTC)
	want := []kms.LocalKeyVersion{
		{State: kms.LocalKeyEnabled}, {State: kms.LocalKeyDestroyed, Created: created}, {
			State: kms.LocalKeyDisabled, Created: created,
		},
	}
	if file.ID != goldenID || file.Disabled || file.Current() != 1 || len(file.Versions) != len(want) {
		t.Errorf("%s, disabled %v, current %d, %d versions", file.ID, file.Disabled, file.Current(), len(file.Versions))
	}

	for i, v := range file.Versions {
		if v.State != want[i].State || !v.Created.Equal(want[i].Created) {
			t.Errorf("version %d: %s, %v", i+1, v.State, v.Created)
		}
	}

	file.Disabled = true
	again, err := kms.ParseLocalKeyFile(file.Append(nil))
	if err != nil || !again.Disabled {
		t.Errorf("a disabled key: %v", err)
	}
}

func TestLocalKeyFilesOfTheNewerFormThatAreRefused(t *testing.T) {
	const key3 = "MDEyMzAxMjMwMTIzMDEyMzAxMjMwMTIzMDEyMzAxMjM="
	for _, c := range []struct{ name, old, new, want string }{
		{"header", "key-v2", "key-v3", "does not begin with"},
		{"no id", "id local:27b0053ddc947ad4\n", "", "line 2"},
		{"id of another key", "id local:2", "id local:3", "does not match version 1"},
		{"id in capitals", "7b00", "7B00", "line 2"},
		{"long id", "ad4\n", "ad44\n", "line 2"},
		{"no state", "state enabled\n", "", "line 3"},
		{"destroyed key", "state enabled", "state destroyed", "line 3"},
		{"unknown state", "version 3 disabled", "version 3 asleep", "line 6 of the key file: the state of version 3"},
		{"missing version", "version 1 ", "version 2 ", "version 1 is missing"},
		{"version 0", "version 1 ", "version 0 ", "version 1 is missing"},
		{"leading zero", "version 1 ", "version 01 ", "version 1 is missing"},
		{"version twice", "version 3 ", "version 2 ", "line 6 of the key file: version 3 is missing"},
		{"no key", " " + key3, "", "not of the form"},
		{"more fields", key3, key3 + " x", "not of the form"},
		{"two spaces", "version 3", "version  3", "not of the form"},
		{"carriage return", key3, key3 + "\r", "version 3: not 32 bytes in base64"},
		{"31 bytes", key3, base64.StdEncoding.EncodeToString(make([]byte, 31)), "version 3: not 32 bytes in base64"},
		{"key of zeros", key3, base64.StdEncoding.EncodeToString(make([]byte, 32)), "version 3: all zero"},
		{"no key of an enabled version", key3, "-", "version 3: not 32 bytes in base64"},
		{"destroyed with a key", "11:00Z -", "11:00Z " + key3, "version 2 is destroyed but has a key"},
		{"local time", "11:00Z M", "11:00+01:00 M", "creation time"},
		{"fraction of a second", "11:00Z M", "11:00.5Z M", "creation time"},
		{"no time", "2026-11-24T06:11:00Z M", "yesterday M", "creation time"},
		{"zero time", "2026-11-24T06:11:00Z M", "0001-01-01T00:00:00Z M", "creation time"},
		{"empty line", "\nversion 3", "\n\nversion 3", "not of the form"},
		{"empty line at the end", key3 + "\n", key3 + "\n\n", "not of the form"},
		{"unknown line", "version 3", "comment 3", "not of the form"},
		{"no version", goodFile[strings.Index(goodFile, "version 1"):], "", "has no id"},
		{"header alone", goodFile[strings.Index(goodFile, "id "):], "", "has no id"},
		{"too many versions", "version 3", strings.Repeat("version 3\n", 1000), "more than 1000 versions"},
		{"too long", "version 3", strings.Repeat("x", 128<<10), "longer than"},
	} {
		changed := strings.Replace(goodFile, c.old, c.new, 1)
		if changed == goodFile {
			t.Errorf("%s: nothing was changed", c.name)
		}

		file, err := kms.ParseLocalKeyFile(sealFile(changed))
		if file != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), "7VW2") || strings.Contains(err.Error(), "MDEy")) {
			t.Errorf("%s: the error quotes a key: %v", c.name, err)
		}
	}
}

// A file that was truncated, lost or gained a line, or has one wrong bit is
// refused.
func TestLocalKeyFilesThatWereDamaged(t *testing.T) {
	text := sealFile(goodFile)
	refused := func(what string, damaged []byte) {
		t.Helper()
		if _, err := kms.ParseLocalKeyFile(damaged); err == nil {
			t.Errorf("%s was taken", what)
		}
	}

	for n := range text {
		refused(fmt.Sprintf("the first %d bytes", n), text[:n])
		flipped := bytes.Clone(text)
		flipped[n] ^= 1 << (n % 8)
		refused(fmt.Sprintf("bit %d of byte %d", n%8, n), flipped)
	}

	refused("a trailing line feed", append(bytes.Clone(text), '\n'))
	refused("the file twice", append(bytes.Clone(text), text...))
	lines := bytes.SplitAfter(text, []byte("\n"))
	for i := range lines[:len(lines)-1] {
		rest := append(append([][]byte{}, lines[:i]...), lines[i+1:]...)
		refused(fmt.Sprintf("a file without line %d", i+1), bytes.Join(rest, nil))
	}
}

// FuzzParseLocalKeyFile parses text with and without a correct checksum. If
// a file is accepted, writing it gives the same text.
func FuzzParseLocalKeyFile(f *testing.F) {
	golden, err := os.ReadFile("testdata/local/v1.key")
	if err != nil {
		f.Fatal(err)
	}

	f.Add(golden)
	f.Add([]byte(goodFile))
	f.Add(sealFile(goodFile))

	f.Fuzz(func(t *testing.T, text []byte) {
		for _, text := range [][]byte{text, sealFile(string(text))} {
			before := bytes.Clone(text)
			file, err := kms.ParseLocalKeyFile(text)

			if !bytes.Equal(before, text) {
				t.Fatal("the text was changed")
			}
			if err != nil {
				continue
			}

			if len(file.Versions) == 0 || file.Current() > len(file.Versions) {
				t.Errorf("%d versions, of which %d wraps", len(file.Versions), file.Current())
			}

			written := file.Append(nil)
			if !bytes.HasPrefix(text, []byte(localPrefix)) && !bytes.Equal(written, text) {
				t.Errorf("%q is written as %q", text, written)
			}

			again, err := kms.ParseLocalKeyFile(written)
			if err != nil || !bytes.Equal(again.Append(nil), written) {
				t.Errorf("what was written is not taken: %v", err)
			}
		}
	})
}

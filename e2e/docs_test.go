package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

const compatibility = "../docs/s3-compatibility.md"

// checkSection compares a section of the documentation with the result of
// this run. Comments in the document mark the section. With E2E_UPDATE=1,
// the section is written instead.
func checkSection(t *testing.T, name, want string) {
	t.Helper()
	text, before, got, after := readSection(t, name)
	if got == want {
		return
	}
	if os.Getenv("E2E_UPDATE") == "" {
		t.Errorf("the section %s of %s is not what this run says; E2E_UPDATE=1 writes:\n%s", name, compatibility, want)
		return
	}
	if err := os.WriteFile(compatibility, []byte(text[:before]+want+text[after:]), 0o600); err != nil {
		t.Error(err)
	}
}

// readSection returns the whole text and one section, which lies between two
// comments.
func readSection(t *testing.T, name string) (text string, begin int, section string, end int) {
	t.Helper()
	data, err := os.ReadFile(compatibility)
	if err != nil {
		t.Fatal(err)
	}
	text = string(data)
	opening, closing := "<!-- "+name+" -->\n", "<!-- /"+name+" -->"
	begin, end = strings.Index(text, opening)+len(opening), strings.Index(text, closing)
	if begin < len(opening) || end < begin {
		t.Fatalf("%s has no section %s", compatibility, name)
	}
	return text, begin, text[begin:end], end
}

// docBlock returns the block of code in a document that begins with a text.
func docBlock(t *testing.T, path, begin string) string {
	t.Helper()
	_, block, found := strings.Cut(read(t, path), "\n"+begin)
	block, _, closed := strings.Cut(block, "\n```")
	if !found || !closed {
		t.Fatalf("%s has no block of code that begins with %q", path, begin)
	}
	return begin + block + "\n"
}

// moduleVersion returns the version of a Go module used in these tests, or
// of the program that run.sh built from it.
func moduleVersion(path string) string {
	for _, command := range [][]string{
		{"go", "list", "-m", "-f", "{{.Version}}", path},
		{"go", "version", "-m", os.Getenv("E2E_BIN") + path[strings.LastIndex(path, "/"):]},
	} {
		out, err := exec.Command(command[0], command[1:]...).Output()
		if err != nil {
			continue
		}
		if command[1] == "list" {
			return strings.TrimSpace(string(out))
		}
		for line := range strings.Lines(string(out)) {
			if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "mod" {
				return fields[2]
			}
		}
	}
	return "of unknown version"
}

// Package docs_test holds the documents against the code.
package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testDeclaration = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)[A-Za-z0-9_]+)\(`)
	testName        = regexp.MustCompile("`((?:Test|Fuzz|Example)[A-Za-z0-9_]+)`")
)

// declaredTests are the names of all tests of the repository.
func declaredTests(t *testing.T) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "node_modules"):
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range testDeclaration.FindAllSubmatch(text, -1) {
			names[string(m[1])] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < 100 {
		t.Fatalf("found %d tests only", len(names))
	}
	return names
}

// TestThreatModelNamesItsTests: each row of what an attacker can try names a
// test that exists, or says that it is not detected.
func TestThreatModelNamesItsTests(t *testing.T) {
	text, err := os.ReadFile("threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := declaredTests(t)
	_, attacks, found := strings.Cut(string(text), "\n## What an attacker can try\n")
	if !found {
		t.Fatal("there is no section of attacks")
	}

	rows := 0
	for line := range strings.Lines(attacks) {
		if strings.HasPrefix(line, "## ") {
			break
		}
		heading := strings.Contains(line, "…") || strings.HasPrefix(line, "|---")
		if !strings.HasPrefix(line, "|") || heading {
			continue
		}
		rows++
		names := testName.FindAllStringSubmatch(line, -1)
		if len(names) == 0 && !strings.Contains(line, "**not detected**") {
			t.Errorf("no test is named: %.120s", line)
		}
		for _, m := range names {
			if !tests[m[1]] {
				t.Errorf("there is no %s: %.120s", m[1], line)
			}
		}
	}
	if rows < 30 {
		t.Errorf("%d rows only", rows)
	}
}

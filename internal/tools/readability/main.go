// Readability measures how a page of this repository reads, and fails beyond
// the limits below: blank lines in functions, the width of comments, long
// lines, words of a dialect that a reader would need a dictionary for, and
// packages without an example.
//
//	readability [DIR...]
//
// It reads Go files that are not tests, and Markdown, in the directories and
// below, "." without any. It leaves out testdata, vendored and generated files,
// and directories whose name starts with a dot. It prints a table, names what
// is beyond a limit, and exits with status 1 if something is.
package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Limits. They change in one direction only: towards a page that reads better.
const (
	minBlank   = 4.0 // percent of the lines in functions
	maxComment = 65  // mean columns of a comment line
	maxLine    = 120 // columns of a line of code
)

func main() {
	dirs := os.Args[1:]
	if len(dirs) == 0 {
		dirs = []string{"."}
	}
	var r report
	for _, dir := range dirs {
		if err := r.readTree(dir); err != nil {
			fmt.Fprintln(os.Stderr, "readability:", err)
			os.Exit(2)
		}
	}
	if !r.print(os.Stdout) {
		os.Exit(1)
	}
}

// report is what was measured.
type report struct {
	functionLines, blankLines  int
	commentLines, commentWidth int
	long, dialect, unexplained []string // findings, as file:line: text
}

func (r *report) readTree(dir string) error {
	visit := func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != dir && skipped(d.Name()):
			return fs.SkipDir
		case d.IsDir():
			return r.findExamples(path)
		}

		text, err := readFile(path)
		if err != nil || text == "" {
			return err
		}
		if strings.HasSuffix(path, ".go") {
			return r.readGo(path, text)
		}

		r.readMarkdown(path, text)
		return nil
	}
	return filepath.WalkDir(dir, visit) //nolint:gosec // any directory may be read
}

func skipped(name string) bool {
	return strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules"
}

// readFile returns the text of a file that is measured, and "" of any other.
func readFile(path string) (string, error) {
	goFile := strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go")
	if !goFile && !strings.HasSuffix(path, ".md") {
		return "", nil
	}
	text, err := os.ReadFile(path)
	if strings.Contains(string(text), "DO NOT EDIT") {
		return "", err
	}
	return string(text), err
}

// print writes the table and the findings, and reports whether all is within
// the limits.
func (r *report) print(w io.Writer) bool {
	blank := percent(r.blankLines, r.functionLines)
	comment := r.commentWidth / max(r.commentLines, 1)
	fmt.Fprintf(w, "blank lines in functions  %5.1f %%  of %d, want %.1f or more\n", blank, r.functionLines, minBlank)
	fmt.Fprintf(w, "mean comment line         %5d    columns, want %d or less\n", comment, maxComment)
	fmt.Fprintf(w, "lines over %d columns    %5d    want 0\n", maxLine, len(r.long))
	fmt.Fprintf(w, "words of the dialect      %5d    want 0\n", len(r.dialect))
	fmt.Fprintf(w, "packages without example  %5d    that do not say why, want 0\n", len(r.unexplained))

	findings := slices.Concat(r.long, r.dialect, r.unexplained)
	if len(findings) > 0 {
		fmt.Fprintln(w, strings.Join(findings, "\n"))
	}
	return blank >= minBlank && comment <= maxComment && len(findings) == 0
}

func percent(part, whole int) float64 { return 100 * float64(part) / float64(max(whole, 1)) }

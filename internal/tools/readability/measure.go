package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strings"
	"unicode/utf8"
)

// tab is the width of a tab, in columns.
const tab = 4

func width(line string) int {
	return utf8.RuneCountInString(strings.ReplaceAll(line, "\t", strings.Repeat(" ", tab)))
}

func (r *report) readGo(path, text string) error {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path, text, parser.ParseComments)
	if err != nil {
		return err
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "//") && len(trimmed) > len("//") {
			r.commentLines++
			r.commentWidth += width(line)
		}
		if width(line) > maxLine && !isTableRow(trimmed) {
			r.long = append(r.long, fmt.Sprintf("%s:%d: %d columns", path, i+1, width(line)))
		}
		r.findDialect(path, i+1, line)
	}

	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
			first, last := fset.Position(f.Body.Lbrace).Line, fset.Position(f.Body.Rbrace).Line
			r.countBlank(lines[first:max(first, last-1)])
		}
	}
	return nil
}

func (r *report) countBlank(body []string) {
	r.functionLines += len(body)
	for _, line := range body {
		if strings.TrimSpace(line) == "" {
			r.blankLines++
		}
	}
}

// isTableRow reports whether a line is a row of data, which reads better on one
// line: a composite literal, or a string.
func isTableRow(line string) bool {
	row, _, _ := strings.Cut(line, " // ")
	return strings.HasPrefix(row, "{") && strings.HasSuffix(row, "},") ||
		strings.HasPrefix(line, `"`) || strings.Contains(line, "`")
}

func (r *report) readMarkdown(path, text string) {
	fenced := false
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		}
		if !fenced {
			r.findDialect(path, i+1, line)
		}
	}
}

// dialect are words and phrases that a reader stumbles over, each with what to
// say instead.
var dialect = []struct {
	phrase  *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`(?i)\banew\b`), "again"},
	{regexp.MustCompile(`(?i)\bwhat of\b`), "the part of … that"},
	{regexp.MustCompile(`(?i)\bone that is none\b`), "not one"},
	{regexp.MustCompile(`(?i)\bthat is none\b`), "is not one"},
	{regexp.MustCompile(`(?i)\bstands? for an?\b`), "is"},
	{regexp.MustCompile(`(?i)\bwhoever\b`), "anyone who, the client"},
	{regexp.MustCompile(`(?i)\bgoes dark\b`), "becomes unreadable"},
	{regexp.MustCompile(`(?i)\bbe it\b`), "whether"},
	{regexp.MustCompile(`(?i)\bbut for\b`), "except"},
	{regexp.MustCompile(`(?i)\bput whole\b`), "single-PUT object"},
	{regexp.MustCompile(`(?i)\b(it|that|this|which|etags?) (is|are) no (MD5|JSON|XML|error|object|key)`), "is not"},
	{regexp.MustCompile(`(?i)\bholds? to (If-Match|the condition|a condition|it)\b`), "honors"},
	{regexp.MustCompile(`(?i)\btells? of\b`), "describes, reports"},
	{regexp.MustCompile(`(?i)\bas good as\b`), "nearly"},
	{regexp.MustCompile(`(?i)\bin the works\b`), "under way"},
}

func (r *report) findDialect(path string, number int, line string) {
	if strings.HasSuffix(path, "readability/measure.go") {
		return // it has all of them
	}
	for _, d := range dialect {
		if found := d.phrase.FindString(line); found != "" {
			r.dialect = append(r.dialect, fmt.Sprintf("%s:%d: %q; say %q", path, number, found, d.instead))
		}
	}
}

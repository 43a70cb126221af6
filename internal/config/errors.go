package config

import (
	"fmt"
	"slices"
	"strings"
)

// Problem is a problem in a config file.
type Problem struct {
	File   string
	Line   int // counted from 1
	Column int // counted from 1, in characters
	Text   string
}

// String returns "file:line:column: text", like a compiler.
func (p Problem) String() string {
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Text)
}

// Error contains all problems in a config file, in file order. There is at
// least one.
type Error struct {
	Problems []Problem
}

// Error returns one line for each problem.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// didYouMean returns the end of an error message about an unknown name: the
// nearest valid name, or all valid names.
func didYouMean(name string, valid []string) string {
	if nearest := nearest(name, valid); nearest != "" {
		return fmt.Sprintf(" (did you mean %q?)", nearest)
	}
	return " (valid: " + strings.Join(valid, ", ") + ")"
}

// nearest returns the valid name that was probably meant, or "" if fewer
// than about half of the letters match.
func nearest(name string, valid []string) string {
	if len(valid) == 0 {
		return ""
	}

	n := slices.MinFunc(valid, func(a, b string) int { return distance(name, a) - distance(name, b) })
	if distance(name, n) > min(len(n)/2, max(2, len(n)/3)) {
		return ""
	}

	return n
}

// distance returns the optimal string alignment distance: the number of
// bytes to insert, delete, replace or swap with a neighbor to turn a into
// b. It compares only the first 64 bytes of each name.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	before, previous, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}

	for i := 1; i <= len(a); i++ {
		before, previous, row = previous, row, before
		row[0] = i

		for j := 1; j <= len(b); j++ {
			replace := previous[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}

			row[j] = min(replace, previous[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}

	return row[len(b)]
}

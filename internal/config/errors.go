package config

import (
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with a config file.
type Problem struct {
	File   string
	Line   int // from 1
	Column int // from 1, in characters
	Text   string
}

// String is "file:line:column: text", as compilers write it.
func (p Problem) String() string {
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Text)
}

// Error is all that is wrong with a config file, in the order of the file.
// There is at least one problem.
type Error struct {
	Problems []Problem
}

// Error gives one line for each problem.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// didYouMean is the end of a sentence about a name that is not one: the
// nearest that is, or all that there are.
func didYouMean(name string, valid []string) string {
	if nearest := nearest(name, valid); nearest != "" {
		return fmt.Sprintf(" (did you mean %q?)", nearest)
	}
	return " (valid: " + strings.Join(valid, ", ") + ")"
}

// nearest is the valid name that was probably meant, or "". Half of its
// letters must be right.
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

// distance is how many bytes to insert, delete, replace or swap with their
// neighbour turn a into b: the optimal string alignment distance. It reads no
// more than the first 64 bytes of a name.
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

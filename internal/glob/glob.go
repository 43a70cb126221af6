// Package glob matches names with patterns in which a star stands for any run
// of characters, also none. Nothing else is special. Grants and key rules
// share it, so that the two never read one pattern in two ways.
package glob

import "strings"

// Match reports whether name is pattern. The leftmost place for each piece
// between two stars is as good as any other, so that nothing is tried twice.
func Match(pattern, name string) bool {
	first, rest, wild := strings.Cut(pattern, "*")
	name, ok := strings.CutPrefix(name, first)
	if !ok || !wild {
		return ok && name == ""
	}

	for {
		piece, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(name, piece)
		}

		i := strings.Index(name, piece)
		if i < 0 {
			return false
		}

		name, rest = name[i+len(piece):], after
	}
}

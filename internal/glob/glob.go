// Package glob matches names against patterns in which "*" matches any run
// of characters, even an empty one. No other character is special. Grants
// and key rules share it, so that patterns mean the same in both.
package glob

import "strings"

// Match reports whether name matches pattern. It takes the leftmost match
// of each piece between two stars, which never prevents a match of the
// rest, so there is no backtracking.
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

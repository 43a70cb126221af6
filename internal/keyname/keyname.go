// Package keyname checks names that clients send: object keys, and ids that
// the store has issued. Some stores keep objects as files and use names as
// paths. There, a name with segments such as ".." can refer to another
// object, another bucket, or a file outside the store. This package refuses
// such names before the store sees them.
package keyname

import (
	"errors"
	"iter"
	"slices"
	"strings"
)

// Store is how a store treats object keys.
type Store string

// The kinds of stores.
const (
	Unknown Store = ""        // not configured
	Path    Store = "path"    // as paths of files
	Literal Store = "literal" // unchanged: "." and ".." have no special meaning
)

// Use is what a request uses a name for.
type Use int

// The uses of a name.
const (
	Read   Use = iota // key of an existing object, to read or delete it
	Write             // key of an object to be stored
	Listed            // a marker or a prefix, which need not be a complete key
)

// The reasons for refusing a name.
var (
	ErrLeadsOut  = errors.New("used as a path, it leads out of the bucket")
	ErrDots      = errors.New(`it has a "." or ".." segment`)
	ErrBackslash = errors.New("it has a backslash")
	ErrEmpty     = errors.New(`it begins with "/" or has an empty segment ("//")`)
	ErrID        = errors.New(`it has a "." or ".." segment, which no id has`)
)

// Check returns an error if the store must not see the name.
func (s Store) Check(name string, use Use) error {
	switch {
	case s.leadsOut(name, use):
		return ErrLeadsOut
	case s == Path && (use == Listed && HasDots(folder(name)) || use != Listed && HasDots(name)):
		return ErrDots
	case s == Path && use == Write && (strings.HasPrefix(name, "/") || strings.Contains(name, "//")):
		return ErrEmpty
	default:
		return nil
	}
}

// CheckID returns an error for an impossible id of an upload, a version or
// a configuration. Ids may contain slashes, as in base64.
func CheckID(id string) error {
	if HasDots(id) {
		return ErrID
	}
	return nil
}

// Fold returns the name under which a store that uses names as paths keeps
// an object: without empty segments, "." and "..". A "/" at the end stays. It
// returns "" if the name leads out of the bucket.
func Fold(name string) string {
	if climbs(strings.FieldsFuncSeq(name, isSlash), Write) {
		return ""
	}

	var kept []string
	for segment := range strings.FieldsFuncSeq(name, isSlash) {
		switch segment {
		case ".":
		case "..":
			kept = kept[:len(kept)-1]
		default:
			kept = append(kept, segment)
		}
	}

	folded := strings.Join(kept, "/")
	if strings.HasSuffix(name, "/") {
		folded += "/"
	}
	return folded
}

// maxUnfolded limits the names that Unfold returns.
const maxUnfolded = 16

// Unfold returns names that Fold maps to name, at most 16, and the likely
// ones first: those that a client makes when it joins two parts of a name
// with one "/" too many. Fold maps infinitely many names to one.
func Unfold(name string) []string {
	if name == "" {
		return nil
	}

	var names []string
	add := func(other string) {
		known := other == name || slices.Contains(names, other)
		if !known && len(names) < maxUnfolded && Fold(other) == name {
			names = append(names, other)
		}
	}

	doubled := strings.ReplaceAll(name, "/", "//")
	for _, other := range []string{"/" + name, doubled, "/" + doubled, "//" + name, "./" + name} {
		add(other)
	}
	for _, extra := range []string{"/", "./"} {
		for i, r := range name {
			if r == '/' {
				add(name[:i+1] + extra + name[i+1:])
			}
		}
	}
	return names
}

// Ambiguous reports whether prefixes are unreliable for a key: a store may
// treat uploads/../secret as secret, although it starts with uploads/.
func (s Store) Ambiguous(key string) bool { return s != Literal && HasDots(key) }

// HasDots reports whether a name has a segment "." or "..". A backslash
// separates segments too, as in paths of some systems.
func HasDots(name string) bool {
	for segment := range strings.FieldsFuncSeq(name, isSeparator) {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

// leadsOut reports whether a name, used as a path, leads to the bucket
// itself or out of it. Amazon S3 refuses the latter too. If the separators
// are unknown, each possibility counts.
func (s Store) leadsOut(name string, use Use) bool {
	if s == Literal {
		return climbs(strings.SplitSeq(name, "/"), use)
	}
	return climbs(strings.FieldsFuncSeq(name, isSlash), use) || climbs(strings.FieldsFuncSeq(name, isSeparator), use)
}

// climbs reports whether the segments lead above their starting folder or,
// for a complete key, back to it.
func climbs(segments iter.Seq[string], use Use) bool {
	depth := 0
	for segment := range segments {
		switch segment {
		case "..":
			if depth--; depth < 0 {
				return true
			}
		case ".":
		default:
			depth++
		}
	}

	return depth == 0 && use != Listed
}

// folder returns a prefix without its last segment, which may be
// incomplete.
func folder(prefix string) string {
	return prefix[:strings.LastIndexFunc(prefix, isSeparator)+1]
}

func isSlash(r rune) bool { return r == '/' }

func isSeparator(r rune) bool { return r == '/' || r == '\\' }

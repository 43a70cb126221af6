// Package keyname judges the names that clients send: keys of objects, and ids
// that the store gave out. Some stores keep objects as files. They join a name
// to a path, and a name with segments such as ".." then means another object,
// another bucket, or a file outside of the store. All such names are refused
// before the store sees them, by the functions of this package.
package keyname

import (
	"errors"
	"iter"
	"strings"
)

// Store says how a store takes the keys of objects.
type Store string

// The kinds of stores.
const (
	Unknown Store = ""        // nobody has said
	Path    Store = "path"    // as paths of files
	Literal Store = "literal" // as they are: "." and ".." mean nothing
)

// Use is what a request uses a name for.
type Use int

// The uses of a name.
const (
	Read   Use = iota // the key of an object that is there, also to delete it
	Write             // the key of an object that is stored
	Listed            // a marker or a prefix, which need not be a whole key
)

// The reasons to refuse a name.
var (
	ErrLeadsOut = errors.New("taken for a path, it leads out of the bucket")
	ErrDots     = errors.New("it has a segment of one or two dots alone")
	ErrEmpty    = errors.New("it has an empty segment")
	ErrID       = errors.New("it has a segment of one or two dots alone, as no id has")
)

// Check returns why the store must not see a name, or nil.
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

// CheckID returns why an id, which the store gave to an upload, a version or a
// configuration, cannot be one. An id may hold slashes, as base64 does.
func CheckID(id string) error {
	if HasDots(id) {
		return ErrID
	}
	return nil
}

// Ambiguous reports whether a prefix says nothing about a key: stores may take
// uploads/../secret for secret, although it begins with uploads/.
func (s Store) Ambiguous(key string) bool { return s != Literal && HasDots(key) }

// HasDots reports whether a segment of a name is "." or "..". A backslash
// separates segments too, as in the paths of some systems.
func HasDots(name string) bool {
	for segment := range strings.FieldsFuncSeq(name, isSeparator) {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

// leadsOut reports whether a name, taken for a path, leads to the bucket itself
// or out of it. Amazon S3 refuses the latter too. Where it is not known what
// separates segments, every answer counts.
func (s Store) leadsOut(name string, use Use) bool {
	if s == Literal {
		return climbs(strings.SplitSeq(name, "/"), use)
	}
	isSlash := func(r rune) bool { return r == '/' }
	return climbs(strings.FieldsFuncSeq(name, isSlash), use) || climbs(strings.FieldsFuncSeq(name, isSeparator), use)
}

// climbs reports whether segments lead above the folder where they begin or, if
// they are those of a whole key, back to it.
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

// folder is a prefix without its last segment, which may be the beginning of a
// longer one.
func folder(prefix string) string {
	return prefix[:strings.LastIndexFunc(prefix, isSeparator)+1]
}

func isSeparator(r rune) bool { return r == '/' || r == '\\' }

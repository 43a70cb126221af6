// Package keytemplate names KMS keys by the objects that they encrypt. A
// template is a text such as
//
//	alias/tenant-${prefix.1}
//
// with the variables ${bucket}, the name of the bucket, and ${prefix.N}, the
// N-th segment of the object key. A segment ends with "/", so the last part
// of an object key is not one: acme/cat.jpg has the segment acme, and cat.jpg
// has none.
//
// Clients choose object keys, so a value is refused unless it consists of 1
// to 64 letters, digits, "-" and "_". In particular, it cannot be a path, and
// cannot contain another variable. Values are inserted once.
package keytemplate

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Template is a text with variables. It is immutable.
type Template struct {
	pieces []piece
}

// piece is either literal text or a variable.
type piece struct {
	text    string // literal text, or the variable as it is in the template
	segment int    // N of ${prefix.N}; 0 for ${bucket}
	isVar   bool
}

// Is reports whether a text has variables, or something like one.
func Is(text string) bool { return strings.Contains(text, "${") }

// IsVariable reports whether a name, without ${ and }, is that of a variable.
// It is true for unusable variables too, such as client.
func IsVariable(name string) bool {
	return name == "bucket" || name == "client" || strings.HasPrefix(name, "prefix.")
}

// The errors of Parse.
var (
	errNoVariable = errors.New("it has no variable")
	errClient     = errors.New("${client} is not supported: an object may be read by another client than the one " +
		"that wrote it; use ${prefix.1}, or a rule for each client")
	errSeparator = errors.New("two variables need a character between them that values cannot have, such as / or .: " +
		"otherwise different values could name the same key")
)

// maxSegment is the largest N of ${prefix.N}.
const maxSegment = 9

var (
	variables   = regexp.MustCompile(`\$\{[^}]*\}?`)
	segmentForm = regexp.MustCompile(`^\$\{prefix\.([1-9])\}$`)
	valueForm   = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	separators  = regexp.MustCompile(`[^A-Za-z0-9_-]`)
)

// Parse parses a template. It refuses templates that could give the same text
// for different values.
func Parse(text string) (*Template, error) {
	t, end := &Template{}, 0
	for _, at := range variables.FindAllStringIndex(text, -1) {
		if between := text[end:at[0]]; len(t.pieces) > 0 && !separators.MatchString(between) {
			return nil, errSeparator
		}
		t.addText(text[end:at[0]])

		one := piece{text: text[at[0]:at[1]], isVar: true}
		end = at[1]
		match := segmentForm.FindStringSubmatch(one.text)
		switch {
		case one.text == "${bucket}":
		case one.text == "${client}":
			return nil, errClient
		case match != nil:
			one.segment, _ = strconv.Atoi(match[1]) // one digit
		default:
			return nil, fmt.Errorf("%q is not a variable: use ${bucket}, or ${prefix.1} to ${prefix.%d}",
				one.text, maxSegment)
		}
		t.pieces = append(t.pieces, one)
	}

	if end == 0 {
		return nil, errNoVariable
	}
	t.addText(text[end:])
	return t, nil
}

func (t *Template) addText(text string) {
	if text != "" {
		t.pieces = append(t.pieces, piece{text: text})
	}
}

// UsesKey reports whether the text depends on the object key.
func (t *Template) UsesKey() bool {
	for _, p := range t.pieces {
		if p.segment > 0 {
			return true
		}
	}
	return false
}

// Error is why a template has no text for an object.
type Error struct {
	Variable string // such as ${prefix.1}
	Missing  bool   // the object key has no such segment
}

func (e *Error) Error() string {
	if e.Missing {
		return fmt.Sprintf("the object key has no %s: it has too few segments that end with /", e.Variable)
	}
	return fmt.Sprintf("the value of %s must be 1 to 64 letters, digits, '-' and '_'", e.Variable)
}

// Expand returns the text for an object, and the values of the variables in
// it, separated by "/". Different values give different texts. The error is an
// *Error.
func (t *Template) Expand(bucket, key string) (text, values string, err error) {
	var out, list strings.Builder
	for _, p := range t.pieces {
		if !p.isVar {
			out.WriteString(p.text)
			continue
		}

		value, err := p.valueFor(bucket, key)
		if err != nil {
			return "", "", err
		}
		out.WriteString(value)
		if list.Len() > 0 {
			list.WriteByte('/')
		}
		list.WriteString(value)
	}

	return out.String(), list.String(), nil
}

func (p piece) valueFor(bucket, key string) (string, error) {
	value := bucket
	for n := 1; n <= p.segment; n++ {
		segment, rest, ended := strings.Cut(key, "/")
		switch {
		case !ended:
			return "", &Error{Variable: p.text, Missing: true}
		case segment == "": // a store that joins empty segments would count differently
			return "", &Error{Variable: p.text}
		}
		value, key = segment, rest
	}

	if !valueForm.MatchString(value) {
		return "", &Error{Variable: p.text}
	}
	return value, nil
}

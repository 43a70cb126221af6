package config

import (
	"fmt"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v4"
)

// decoder walks the nodes of a YAML document and the fields of a Config side
// by side.
type decoder struct {
	file      string
	lookupEnv func(string) (string, bool)
	offline   bool // settings that are for the server alone are skipped
	problems  []Problem
	// places says where a field was set, by the field's address: a problem
	// found after the walk has a position too. A field that is not in the file
	// has the place of the mapping where it belongs.
	places map[any]place
	// given are the fields that are in the file.
	given map[any]bool
	// failed are the fields that have a problem already. One is enough.
	failed map[any]bool
}

type place struct{ line, column int }

func newDecoder(file string, lookupEnv func(string) (string, bool)) *decoder {
	return &decoder{
		file:      file,
		lookupEnv: lookupEnv,
		places:    make(map[any]place),
		given:     make(map[any]bool),
		failed:    make(map[any]bool),
	}
}

// err is all problems, in the order of the file.
func (d *decoder) err() error {
	if len(d.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(d.problems, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return &Error{Problems: d.problems}
}

func (d *decoder) problem(at place, format string, args ...any) {
	d.problems = append(d.problems, Problem{d.file, at.line, at.column, fmt.Sprintf(format, args...)})
}

// fail reports a problem of a field, given by its address, unless the field
// has one already.
func (d *decoder) fail(field any, format string, args ...any) {
	if d.failed[field] {
		return
	}
	d.failed[field] = true
	d.problem(d.places[field], format, args...)
}

// structure fills c, and reports whether there was anything to fill it with.
func (d *decoder) structure(n *yaml.Node, c *Config) bool {
	d.mapping(n, reflect.ValueOf(c).Elem(), "")
	return !d.failed[c]
}

// mapping fills the struct v; path is its name in the words of the file, ""
// for the whole.
func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	self, at := v.Addr().Interface(), place{n.Line, n.Column}
	d.placeAll(v, at)

	if n.Kind != yaml.MappingNode {
		d.fail(self, "%s must be a mapping of keys to values, not %s", orFile(path), describe(n))
		return
	}

	fields := fieldsOf(v.Type())
	names := make([]string, len(fields))

	for i, f := range fields {
		names[i] = f.name
	}

	seen := make(map[string]int) // name to line
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !d.key(key, value, path, names) {
			continue
		}
		if line, ok := seen[key.Value]; ok {
			d.problem(place{key.Line, key.Column}, "%q is set twice; the first is on line %d", key.Value, line)
			continue
		}

		seen[key.Value] = key.Line
		field := slices.Index(names, key.Value)
		if d.skips(fields[field]) {
			continue
		}

		d.value(value, v.Field(field), join(path, key.Value), fields[field].values)
	}

	for i, f := range fields {
		_, ok := seen[f.name]
		switch field := v.Field(i); {
		case d.skips(f):
		case f.required && !ok:
			d.fail(field.Addr().Interface(), "%q is missing in %s", f.name, orFile(path))
		case f.required && field.Kind() == reflect.String && field.Len() == 0:
			d.fail(field.Addr().Interface(), "%s is empty", join(path, f.name))
		}
	}
}

// skips reports whether a field is left at its default.
func (d *decoder) skips(f field) bool { return d.offline && f.server }

// placeAll gives a field its place, and all fields within it, which may not be
// in the file, the same for now.
func (d *decoder) placeAll(v reflect.Value, at place) {
	d.places[v.Addr().Interface()] = at
	if v.Kind() == reflect.Struct {
		for i := range v.NumField() {
			d.placeAll(v.Field(i), at)
		}
	}
}

// key reports whether a key of a mapping is one of names.
func (d *decoder) key(key, value *yaml.Node, path string, names []string) bool {
	at := place{key.Line, key.Column}
	switch {
	case key.Kind == yaml.AliasNode || key.Anchor != "":
		d.problem(at, "anchors (&) and aliases (*) are not allowed")
	case key.Tag == "!!merge":
		d.problem(at, "merge keys (<<) are not allowed")
	case key.Kind != yaml.ScalarNode:
		d.problem(at, "a key must be a plain name, not %s", describe(key))
	case slices.Contains(names, key.Value):
		return true
	case value.Tag == "!!null":
		// It may be a value that has lost its key, and so be secret.
		d.problem(at, "unknown key without a value in %s", orFile(path))
	default:
		d.problem(at, "unknown key %q in %s%s", clip(key.Value), orFile(path), didYouMean(key.Value, names))
	}

	return false
}

// value fills the field v, whose name is path, from n. values is all that it
// can be, or empty.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string, values []string) {
	field := v.Addr().Interface()
	d.placeAll(v, place{n.Line, n.Column})
	d.given[field] = true

	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.fail(field, "anchors (&) and aliases (*) are not allowed; quote a value that begins with one")
		return
	case n.Style&yaml.TaggedStyle != 0:
		d.fail(field, "tags (!) are not allowed; quote a value that begins with one")
		return
	case n.Tag == "!!null":
		d.fail(field, "%s has no value; leave the key out instead", path)
		return
	}

	switch {
	case v.Kind() == reflect.Struct:
		d.mapping(n, v, path)
	case v.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		d.list(n.Content, v, path, values)
	case v.Kind() == reflect.Slice:
		d.fail(field, "%s must be a list, not %s", path, describe(n))
	default:
		d.scalar(n, v, path, values)
	}
}

// list fills the slice v. The slice has its final length before the first
// field in it is given a place: addresses must not change.
func (d *decoder) list(items []*yaml.Node, v reflect.Value, path string, values []string) {
	v.Set(reflect.MakeSlice(v.Type(), len(items), len(items)))
	for i, item := range items {
		d.value(item, v.Index(i), fmt.Sprintf("%s[%d]", path, i), values)
	}
	if len(items) == 0 {
		d.fail(v.Addr().Interface(), "%s is empty", path)
	}
}

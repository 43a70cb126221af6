package config

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v4"
)

// decoder walks the nodes of a YAML document and the fields of a Config in
// parallel.
type decoder struct {
	file      string
	lookupEnv func(string) (string, bool)
	offline   bool     // skip the settings that only the server needs
	tenant    bool     // the file is that of a tenant
	elsewhere bool     // the file is for another machine; see Validate
	absent    []string // environment variables and files that are on that machine
	secrets   []string // the files that secrets were read from
	problems  []Problem
	// places records where each field, by its address, was set, so that
	// later checks can report a position. A field that is not in the file
	// has the position of its mapping.
	places map[any]place
	// given contains the fields that are in the file.
	given map[any]bool
	// failed contains the fields that already have a problem. Only the
	// first one is reported.
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

// err returns all problems, in file order.
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

// fail reports a problem with the field at that address, unless it already
// has one.
func (d *decoder) fail(field any, format string, args ...any) {
	if d.failed[field] {
		return
	}
	d.failed[field] = true
	d.problem(d.places[field], format, args...)
}

// isElsewhere reports whether a value could not be read because it is on
// another machine. Later checks then ignore the field.
func (d *decoder) isElsewhere(field any, err error) bool {
	if !d.elsewhere {
		return false
	}

	name := ""
	if unset, ok := errors.AsType[*unsetError](err); ok {
		name = "${" + unset.name + "}"
	} else if file, ok := errors.AsType[*fs.PathError](err); ok && errors.Is(err, fs.ErrNotExist) {
		name = file.Path
	}
	if name == "" {
		return false
	}

	d.failed[field] = true
	if !slices.Contains(d.absent, name) {
		d.absent = append(d.absent, name)
	}
	return true
}

// structure decodes n into c, and reports whether n was a mapping.
func (d *decoder) structure(n *yaml.Node, c *Config) bool {
	d.mapping(n, reflect.ValueOf(c).Elem(), "")
	return !d.failed[c]
}

// mapping decodes n into the struct v. path is the setting's name, "" for
// the whole file.
func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	self, at := v.Addr().Interface(), place{n.Line, n.Column}
	d.placeAll(v, at)

	if n.Kind != yaml.MappingNode {
		d.fail(self, "%s must be a mapping of keys to values, not %s", orFile(path), describe(n))
		return
	}

	fields := fieldsOf(v.Type())
	var names []string

	for _, f := range fields {
		if !d.leavesOut(join(path, f.name)) {
			names = append(names, f.name)
		}
	}

	seen := make(map[string]int) // line by name
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
		field := slices.IndexFunc(fields, func(f field) bool { return f.name == key.Value })
		if d.skips(fields[field]) {
			continue
		}

		d.value(value, v.Field(field), join(path, key.Value), fields[field].values)
	}

	for i, f := range fields {
		_, ok := seen[f.name]
		switch field := v.Field(i); {
		case d.skips(f), d.leavesOut(join(path, f.name)), !ok && d.mayOmit(join(path, f.name)):
		case f.required && !ok:
			d.fail(field.Addr().Interface(), "%q is missing in %s", f.name, orFile(path))
		case f.required && field.Kind() == reflect.String && field.Len() == 0:
			d.fail(field.Addr().Interface(), "%s is empty", join(path, f.name))
		}
	}
}

// skips reports whether a field keeps its default.
func (d *decoder) skips(f field) bool { return d.offline && f.server }

// placeAll sets the place of a field and all fields in it, until these get
// their own.
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
		// This may be a value without its key, and therefore a secret.
		d.problem(at, "unknown key without a value in %s", orFile(path))
	default:
		d.problem(at, "unknown key %q in %s%s", clip(key.Value), orFile(path), didYouMean(key.Value, names))
	}

	return false
}

// value decodes n into the field v, whose name is path. values are the
// allowed values, or empty for any.
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
		d.fail(field, "%s has no value; omit the key instead", path)
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

// list decodes items into the slice v. It allocates the whole slice first,
// because places needs stable addresses.
func (d *decoder) list(items []*yaml.Node, v reflect.Value, path string, values []string) {
	v.Set(reflect.MakeSlice(v.Type(), len(items), len(items)))
	for i, item := range items {
		d.value(item, v.Index(i), fmt.Sprintf("%s[%d]", path, i), values)
	}
	if len(items) == 0 {
		d.fail(v.Addr().Interface(), "%s is empty", path)
	}
}

package keyname_test

import (
	"errors"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/keyname"
)

func TestCheck(t *testing.T) {
	const out, dots, empty = "out", "dots", "empty"
	reasons := map[error]string{nil: "", keyname.ErrLeadsOut: out, keyname.ErrDots: dots, keyname.ErrEmpty: empty}

	for _, row := range []struct {
		name                     string
		use                      keyname.Use
		unknown, asPath, literal string
	}{
		{"a/b", keyname.Write, "", "", ""},
		{"a/", keyname.Write, "", "", ""},
		{"...", keyname.Write, "", "", ""},
		{"a/..b/.c", keyname.Write, "", "", ""},
		{"a//b", keyname.Write, "", empty, ""},
		{"/a", keyname.Write, "", empty, ""},
		{"a//b", keyname.Read, "", "", ""},
		{"/", keyname.Read, out, out, ""},
		{"//", keyname.Read, out, out, ""},
		{"a/../b", keyname.Read, "", dots, ""},
		{`a\..\b`, keyname.Read, "", dots, ""},
		{"./a", keyname.Read, "", dots, ""},
		{"a/.", keyname.Read, "", dots, ""},
		{".", keyname.Read, out, out, out},
		{"..", keyname.Read, out, out, out},
		{"../b", keyname.Read, out, out, out},
		{"/../b", keyname.Read, out, out, ""},
		{`..\b`, keyname.Read, out, out, ""},
		{`a/..\..\b`, keyname.Read, out, out, ""},
		{"a/..", keyname.Read, out, out, out},
		{"a//..", keyname.Read, out, out, ""},
		{"a/../../b/c", keyname.Read, out, out, out},

		{"", keyname.Listed, "", "", ""},
		{".", keyname.Listed, "", "", ""},
		{"a/.", keyname.Listed, "", "", ""},
		{"a/..", keyname.Listed, "", "", ""},
		{"a/../", keyname.Listed, "", dots, ""},
		{"..", keyname.Listed, out, out, out},
		{"../b/", keyname.Listed, out, out, out},
	} {
		for store, want := range map[keyname.Store]string{
			keyname.Unknown: row.unknown, keyname.Path: row.asPath, keyname.Literal: row.literal,
		} {
			if got := reasons[store.Check(row.name, row.use)]; got != want {
				t.Errorf("%q: Check(%q, %d) says %q, want %q", store, row.name, row.use, got, want)
			}
		}
	}
}

func TestCheckID(t *testing.T) {
	for id, good := range map[string]bool{
		"": true, "a": true, "a/b+c==": true, "/": true, "a.b": true, "...": true, `a\b`: true,
		".": false, "..": false, "../a": false, `..\a`: false, "a/..": false, `a\..\b`: false, "a/./b": false,
	} {
		if err := keyname.CheckID(id); (err == nil) != good {
			t.Errorf("CheckID(%q): %v", id, err)
		}
	}
}

// Accepted names stay in their bucket even if a store uses them as paths.
func FuzzCheck(f *testing.F) {
	for _, name := range []string{
		"a", "a/../b", "../b", `..\b`, "/..", "a//..", "./.", "/", "a/.../b",
		"a/b/../../..//c",
	} {
		f.Add(name)
	}

	f.Fuzz(func(t *testing.T, name string) {
		for _, spelled := range []string{name, strings.ReplaceAll(name, `\`, "/")} {
			if keyname.Unknown.Check(name, keyname.Read) == nil &&
				!strings.HasPrefix(path.Join("/root/bucket", spelled), "/root/bucket/") {
				t.Errorf("%q leads to %q", name, path.Join("/root/bucket", spelled))
			}
			if err := keyname.CheckID(name); err == nil &&
				!strings.HasPrefix(path.Join("/root/uploads", spelled)+"/", "/root/uploads/") {
				t.Errorf("the id %q leads to %q", name, path.Join("/root/uploads", spelled))
			}
		}

		if folded := keyname.Fold(name); folded != "" &&
			strings.TrimSuffix(folded, "/") != strings.TrimPrefix(path.Clean("/"+name), "/") {
			t.Errorf("%q is folded to %q", name, folded)
		}
		if keyname.Path.Check(name, keyname.Write) == nil && strings.TrimSuffix(name, "/") != path.Clean(name) {
			t.Errorf("%q is another path than it says: %q", name, path.Clean(name))
		}
		if err := keyname.Unknown.Check(name, keyname.Read); err != nil && !errors.Is(err, keyname.ErrLeadsOut) {
			t.Errorf("%q: %v", name, err)
		}
	})
}

func TestFold(t *testing.T) {
	for name, want := range map[string]string{
		"a/b": "a/b", "a//b": "a/b", "/a": "a", "//a//b//": "a/b/", "a/": "a/", "a/./b": "a/b", "./a": "a",
		"a/../b": "b", "a/b/..": "a", "a/b/../": "a/",
		"..": "", "../a": "", "a/..": "", "/": "", "": "", ".": "",
	} {
		if got := keyname.Fold(name); got != want {
			t.Errorf("%q is folded to %q, want %q", name, got, want)
		}
	}
}

func TestUnfold(t *testing.T) {
	for name, want := range map[string][]string{
		"a":   {"/a", "//a", "./a"},
		"a/b": {"/a/b", "a//b", "/a//b", "//a/b", "./a/b", "a/./b"},
		"a/":  {"/a/", "a//", "/a//", "//a/", "./a/", "a/./"},
		"a//": nil, "/a": nil, "a/./b": nil, "": nil, // no names that a store would list
	} {
		if got := keyname.Unfold(name); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}

	deep := strings.Repeat("a/", 400) + "a"
	names := keyname.Unfold(deep)
	if len(names) != 16 {
		t.Errorf("a deep name has %d", len(names))
	}
	for _, name := range names {
		if name == deep || keyname.Fold(name) != deep {
			t.Errorf("%.20q is not folded to the name", name)
		}
	}
}

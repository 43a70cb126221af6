package keytemplate_test

import (
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/keytemplate"
)

func TestObject(t *testing.T) {
	for _, tc := range []struct {
		template, values, bucket, prefix string
		bad                              bool
	}{
		{"alias/t-${prefix.1}", "acme", "", "acme/", false},
		{"alias/${bucket}", "data", "data", "", false},
		{"alias/${bucket}/${prefix.2}", "data/acme", "data", "any/acme/", false},
		{"alias/${prefix.2}/${prefix.1}", "b/a", "", "a/b/", false},
		{"alias/${prefix.1}/${prefix.1}", "a/a", "", "a/", false},
		{"alias/${prefix.1}/${prefix.1}", "a/b", "", "", true},
		{"alias/${prefix.1}", "a/b", "", "", true},
		{"alias/${prefix.1}/${prefix.2}", "a", "", "", true},
		{"alias/${prefix.1}", "", "", "", true},
		{"alias/${prefix.1}", "..", "", "", true},
		{"alias/${prefix.1}", "a b", "", "", true},
	} {
		parsed, err := keytemplate.Parse(tc.template)
		if err != nil {
			t.Fatal(err)
		}
		bucket, prefix, err := parsed.Object(tc.values)
		if bucket != tc.bucket && !tc.bad || prefix != tc.prefix && !tc.bad || (err != nil) != tc.bad {
			t.Errorf("%s of %q: %q, %q, %v", tc.template, tc.values, bucket, prefix, err)
		}
		if tc.bad {
			continue
		}
		if _, values, err := parsed.Expand(tc.bucket, prefix+"x"); values != tc.values || err != nil {
			t.Errorf("%s: %q and back: %q, %v", tc.template, tc.values, values, err)
		}
	}
}

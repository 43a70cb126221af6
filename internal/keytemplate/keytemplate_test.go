package keytemplate_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/keytemplate"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ name, text, want string }{
		{"a segment", "alias/tenant-${prefix.1}", ""},
		{"the bucket", "/keys/${bucket}.key", ""},
		{"two with a separator", "alias/${bucket}/${prefix.2}-key", ""},
		{"no variable", "alias/x", "no variable"},
		{"client", "alias/${client}", "a rule for each client"},
		{"unknown", "alias/${tenant}", "not a variable"},
		{"not closed", "alias/${prefix.1", "not a variable"},
		{"segment 0", "alias/${prefix.0}", "not a variable"},
		{"segment 10", "alias/${prefix.10}", "not a variable"},
		{"nested", "alias/${prefix.${bucket}}", "not a variable"},
		{"together", "alias/${bucket}${prefix.1}", "the same key"},
		{"with a hyphen, which values may have", "alias/${prefix.1}-${prefix.2}", "the same key"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			_, err := keytemplate.Parse(row.text)
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("%v, not %q", err, row.want)
			}
		})
	}
}

func TestExpand(t *testing.T) {
	t.Parallel()
	const first, second, bucket = "k/${prefix.1}", "k/${prefix.2}", "k/${bucket}"
	for _, row := range []struct{ name, template, bucket, key, text, values string }{
		{"a segment", first, "data", "acme/cat.jpg", "k/acme", "acme"},
		{"only the prefix", first, "data", "acme/", "k/acme", "acme"},
		{"64 characters", first, "data", strings.Repeat("a", 64) + "/x", "k/" + strings.Repeat("a", 64), strings.Repeat("a", 64)},
		{"the second", second, "data", "x/ac_m-E9/cat", "k/ac_m-E9", "ac_m-E9"},
		{"the first may be anything", second, "data", "ü ${x}/acme/cat", "k/acme", "acme"},
		{"the bucket", bucket, "data", "cat", "k/data", "data"},
		{"both", "k/${bucket}/${prefix.1}", "data", "acme/cat", "k/data/acme", "data/acme"},

		{"no segment", first, "data", "acme", "", ""},
		{"an empty key", first, "data", "", "", ""},
		{"one segment too few", second, "data", "acme/cat", "", ""},
		{"an empty segment", first, "data", "/acme/cat", "", ""},
		{"an empty segment before it", second, "data", "/acme/cat", "", ""},
		{"an empty second segment", second, "data", "acme//cat", "", ""},
		{"dots", first, "data", "../cat", "", ""},
		{"one dot", first, "data", "./cat", "", ""},
		{"a file name", first, "data", "acme.key/cat", "", ""},
		{"an escaped slash", first, "data", "acme%2Fbeta/cat", "", ""},
		{"a backslash", first, "data", `acme\beta/cat`, "", ""},
		{"65 characters", first, "data", strings.Repeat("a", 65) + "/x", "", ""},
		{"other letters", first, "data", "äcme/cat", "", ""},
		{"letters that look the same", first, "data", "\u0430cme/cat", "", ""},
		{"a variable", first, "data", "${bucket}/cat", "", ""},
		{"a newline", first, "data", "acme\n/cat", "", ""},
		{"a NUL", first, "data", "acme\x00/cat", "", ""},
		{"a colon", first, "data", "acme:beta/cat", "", ""},
		{"a star", first, "data", "*/cat", "", ""},
		{"a bucket with a dot", bucket, "da.ta", "cat", "", ""},
		{"no bucket", bucket, "", "cat", "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			parsed, err := keytemplate.Parse(row.template)
			if err != nil {
				t.Fatal(err)
			}

			text, values, err := parsed.Expand(row.bucket, row.key)
			if text != row.text || values != row.values || (err == nil) != (row.text != "") {
				t.Errorf("%q, %q, %v", text, values, err)
			}
			if e := (*keytemplate.Error)(nil); err != nil && (!errors.As(err, &e) || !strings.Contains(row.template, e.Variable)) {
				t.Errorf("the error does not name the variable: %v", err)
			}
		})
	}
}

// FuzzExpand: different values never give the same text, and a value is never
// anything but letters, digits, "-" and "_".
func FuzzExpand(f *testing.F) {
	f.Add("data", "acme/cat", "data", "beta/cat")
	f.Add("a", "b/c", "a/b", "c/d")
	f.Add("data", "../x", "data", "${bucket}/x")
	parsed, err := keytemplate.Parse("keys/${bucket}.${prefix.1}/${prefix.2}.key")
	if err != nil {
		f.Fatal(err)
	}

	f.Fuzz(func(t *testing.T, bucket, key, otherBucket, otherKey string) {
		text, values, err := parsed.Expand(bucket, key)
		otherText, otherValues, otherErr := parsed.Expand(otherBucket, otherKey)
		if err != nil || otherErr != nil {
			return
		}
		if (text == otherText) != (values == otherValues) {
			t.Errorf("%q and %q give %q and %q", values, otherValues, text, otherText)
		}
		if strings.Count(text, "/") != 2 || strings.Count(text, ".") != 2 || strings.Contains(text, "$") {
			t.Errorf("%q", text)
		}
	})
}

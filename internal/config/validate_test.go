package config_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// A file for another machine is checked without its environment and files.
func TestValidate(t *testing.T) {
	const valid = `listen: ":9000"
origin: {endpoint: "https://${STORE}", region: eu-central-1, access_key: "${ACCESS}", secret_key: "${SECRET}"}
clients:
  - {name: app, access_key: app, secret_key: file:/no/such/secret, allow: [{buckets: [b], actions: [read]}]}
keys: [{name: main, provider: local, key_file: "/etc/${NAME}.key"}]
encryption: {rules: [{buckets: [b], key: main}]}
limits: {max_concurrent_requests: "${MANY}"}
`
	none := func(string) (string, bool) { return "", false }
	for _, row := range []struct {
		name, old, changed string
		env                func(string) (string, bool)
		want               string // "" for none
	}{
		{"valid", "", "", none, ""},
		{"an unknown setting", "listen:", "lisen:", none, `f.yaml:1:1: unknown key "lisen" in the file (did you mean "listen"?)`},
		{"an unknown key in a rule", "key: main", "key: mian", none, `did you mean "main"?`},
		{"a malformed variable", "${MANY}", "${MANY", none, "${ must be followed by"},
		{"a path that is not absolute", "file:/no/such/secret", "file:secret", none, "needs an absolute path"},
		{"a secret that is too short", "file:/no/such/secret", "short", none, "fewer than 8 characters"},
		{"a variable that is set", "", "", func(string) (string, bool) { return "x y", true }, "max_concurrent_requests must be a whole number"},
	} {
		t.Run(row.name, func(t *testing.T) {
			absent, err := config.Validate("f.yaml", []byte(strings.Replace(valid, row.old, row.changed, 1)), row.env)
			switch {
			case row.want == "" && err != nil:
				t.Error(err)
			case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
				t.Errorf("%v, want %q", err, row.want)
			}
			want := []string{"${STORE}", "${ACCESS}", "${SECRET}", "/no/such/secret", "${NAME}", "${MANY}"}
			if row.name == "valid" && !slices.Equal(absent, want) {
				t.Errorf("absent are %q, want %q", absent, want)
			}
		})
	}
}

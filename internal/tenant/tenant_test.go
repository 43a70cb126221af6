package tenant_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/tenant"
)

// dir is a directory of tenants under test.
type dir struct {
	*tenant.Dir
	path   string
	parsed int // number of files that were parsed
}

func open(t testing.TB, path string) *dir {
	t.Helper()
	cfg, err := config.Parse("c.yaml", []byte(`listen: 127.0.0.1:9000
origin: {endpoint: http://127.0.0.1:7070, region: us-east-1}
encryption: {rules: [{buckets: ["*"], tenants: true}]}
tenants_dir: /tenants
`), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	d := &dir{path: path}
	d.Dir = tenant.Open(path, func(path string, data []byte) (*config.Tenant, error) {
		d.parsed++
		return config.ParseTenant(path, data, cfg)
	})
	return d
}

// text is the file of a tenant.
func text(name string, objects ...string) string {
	if len(objects) == 0 {
		objects = []string{"{buckets: [data], prefixes: [" + name + "/]}"}
	}
	return fmt.Sprintf(`key: {provider: aws-kms, key_id: alias/%s}
objects: [%s]
clients: [{name: %s-app, access_key: AK-%s, secret_key: the-secret}]
`, name, strings.Join(objects, ", "), name, name)
}

func (d *dir) write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.path, name+".new"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(d.path, name+".new"), filepath.Join(d.path, name+".yaml")); err != nil {
		t.Fatal(err)
	}
}

func (d *dir) remove(t testing.TB, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(d.path, name+".yaml")); err != nil {
		t.Fatal(err)
	}
}

// next accepts the next State, and compares it with the names of the tenants
// that are served, and of the files with errors.
func (d *dir) next(t testing.TB, served, problems string) *tenant.State {
	t.Helper()
	s := d.Next()
	d.Accept(s)
	var files []string
	for _, p := range s.Problems {
		files = append(files, strings.TrimSuffix(filepath.Base(p.Path), ".yaml"))
	}
	if got := strings.Join(s.Names(), " "); got != served || strings.Join(files, " ") != problems || s.Err != nil {
		t.Errorf("served: %q, not %q; with errors: %q, not %q; %v", got, served, files, problems, s.Err)
	}
	return s
}

func TestConflicts(t *testing.T) {
	t.Parallel()
	const whole = "{buckets: [data]}"
	for _, row := range []struct {
		name string
		a, b string // of the tenants a and b
		want string
	}{
		{"none", text("a"), text("b"), ""},
		{"the same prefix", text("a"), text("b", "{buckets: [data], prefixes: [a/]}"), "objects in s3://data/a/"},
		{"nested", text("a"), text("b", "{buckets: [data], prefixes: [b/, a/x/y/]}"), "objects in s3://data/a/x/y/"},
		{"nested the other way", text("a", "{buckets: [data], prefixes: [b/x/]}"), text("b"), "objects in s3://data/b/x/"},
		{"the whole bucket", text("a", whole), text("b"), "objects in s3://data/b/"},
		{"the whole bucket twice", text("a", whole), text("b", whole), "objects in s3://data/"},
		{"other buckets", text("a", "{buckets: [x, y]}"), text("b", "{buckets: [z]}"), ""},
		{"one bucket of several", text("a", "{buckets: [x, y]}"), text("b", "{buckets: [y, z]}"), "objects in s3://y/"},
		{"names that begin alike", text("a", "{buckets: [data], prefixes: [acme/]}"), text("b", "{buckets: [data], prefixes: [acme-2/]}"), ""},
		{"the name of a client", text("a"), strings.Replace(text("b"), "b-app", "a-app", 1), `a client named "a-app"`},
		{"an access key", text("a"), strings.Replace(text("b"), "AK-b", "AK-a", 1), "the same access_key"},
		{"the same KMS key", text("a"), strings.Replace(text("b"), "alias/b", "alias/a", 1), ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			// At the start, none of two is served.
			d := open(t, t.TempDir())
			d.write(t, "a", row.a)
			d.write(t, "b", row.b)
			d.write(t, "other", text("other"))
			if row.want == "" {
				d.next(t, "a b other", "")
				return
			}
			if strings.Contains(row.a, whole) {
				d.write(t, "other", text("other", "{buckets: [other]}"))
			}
			s := d.next(t, "other", "a b")
			for _, p := range s.Problems {
				if err := p.Err.Error(); p.Served || !strings.Contains(err, row.want) ||
					!strings.Contains(err, "a and b") && !strings.Contains(err, "b and a") {
					t.Errorf("%+v", p)
				}
			}

			// Later, the one that is new is in error.
			d.remove(t, "b")
			d.next(t, "a other", "")
			d.write(t, "b", row.b)
			d.next(t, "a other", "b")

			// One that changes stays as it was.
			d.write(t, "b", strings.ReplaceAll(text("b", "{buckets: [free]}"), "b-app", "c-app"))
			s = d.next(t, "a b other", "")
			before := s.Tenants["b"]
			d.write(t, "b", row.b)
			if s = d.next(t, "a b other", "b"); s.Tenants["b"] != before || !s.Problems[0].Served {
				t.Errorf("%+v", s.Problems[0])
			}

			// The other one makes room.
			d.write(t, "a", text("a", "{buckets: [free-too]}"))
			if row.want[:7] == "objects" {
				d.next(t, "a b other", "")
			}
		})
	}
}

// TestExchange: two tenants exchange their objects at once, and a chain of
// tenants that depends on one with an error stays as it was.
func TestExchange(t *testing.T) {
	t.Parallel()
	at := func(name, prefix string) string { return text(name, "{buckets: [data], prefixes: ["+prefix+"/]}") }
	d := open(t, t.TempDir())
	for _, name := range []string{"a", "b", "c"} {
		d.write(t, name, text(name))
	}
	d.next(t, "a b c", "")
	d.write(t, "a", at("a", "b"))
	d.write(t, "b", at("b", "c"))
	d.write(t, "c", at("c", "a"))
	if s := d.next(t, "a b c", ""); s.Tenants["a"].Objects[0].Prefixes[0] != "b/" {
		t.Errorf("%+v", s.Tenants["a"])
	}

	d.write(t, "a", at("a", "d"))
	d.write(t, "b", at("b", "b")) // where a was
	d.write(t, "c", "key: [")     // stays at a/
	d.write(t, "d", at("d", "a"))
	s := d.next(t, "a b c", "c d")
	if s.Tenants["b"].Objects[0].Prefixes[0] != "b/" || s.Tenants["c"].Objects[0].Prefixes[0] != "a/" {
		t.Errorf("%+v", s.Tenants)
	}

	d.write(t, "a", "key: [")     // stays at d/
	d.write(t, "b", at("b", "d")) // so b stays at b/
	d.write(t, "e", at("e", "b")) // so e is not served
	s = d.next(t, "a b c", "a b c d e")
	if s.Tenants["b"].Objects[0].Prefixes[0] != "b/" {
		t.Errorf("%+v", s.Tenants)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	d := open(t, t.TempDir())
	d.write(t, "acme", text("acme"))
	d.write(t, "new", "key: [")
	first := d.next(t, "acme", "new").Tenants["acme"]

	for _, row := range []struct{ name, text string }{
		{"not YAML", "key: ["},
		{"empty", ""},
		{"binary", "\x00\x01"},
		{"an unknown field", text("acme") + "x: y\n"},
		{"too large", strings.Repeat("#\n", 40_000)},
	} {
		t.Run(row.name, func(t *testing.T) {
			d.write(t, "acme", row.text)
			s := d.next(t, "acme", "acme new")
			if s.Tenants["acme"] != first || !s.Problems[0].Served || s.Problems[1].Served {
				t.Errorf("%+v", s.Problems)
			}
		})
	}

	// What is not a file.
	d.remove(t, "acme")
	if err := os.Mkdir(filepath.Join(d.path, "acme.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	d.next(t, "acme", "acme new")
	d.remove(t, "acme")
	if err := os.Symlink("/dev/zero", filepath.Join(d.path, "acme.yaml")); err != nil {
		t.Fatal(err)
	}
	d.next(t, "acme", "acme new")
	d.remove(t, "acme")
	if err := os.Symlink("nowhere", filepath.Join(d.path, "acme.yaml")); err != nil {
		t.Fatal(err)
	}
	d.next(t, "", "new") // as without the link
	d.remove(t, "acme")
	d.write(t, "acme", text("acme"))
	d.remove(t, "new")
	d.next(t, "acme", "")
}

// TestOnlyChangesAreParsed: not what was touched, and not what a volume has
// again with the same content.
func TestOnlyChangesAreParsed(t *testing.T) {
	t.Parallel()
	const tenants = 1000
	d := open(t, t.TempDir())
	names := make([]string, tenants)
	for i := range names {
		names[i] = fmt.Sprintf("t%04d", i)
		d.write(t, names[i], text(names[i]))
	}
	all := strings.Join(names, " ")
	start := time.Now()
	first := d.next(t, all, "")
	t.Logf("%d files: %v for the first time", tenants, time.Since(start))

	start = time.Now()
	second := d.next(t, all, "")
	t.Logf("%v without a change", time.Since(start))
	if d.parsed != tenants || !maps.Equal(first.Tenants, second.Tenants) {
		t.Errorf("%d files were parsed", d.parsed)
	}

	now := time.Now().Add(time.Hour)
	for _, name := range names {
		if err := os.Chtimes(filepath.Join(d.path, name+".yaml"), now, now); err != nil {
			t.Fatal(err)
		}
	}
	d.write(t, "added", text("added"))
	start = time.Now()
	third := d.next(t, "added "+all, "")
	t.Logf("%v with one more, and all others touched", time.Since(start))
	if d.parsed != tenants+1 || third.Tenants["t0517"] != first.Tenants["t0517"] {
		t.Errorf("%d files were parsed", d.parsed)
	}

	d.write(t, "t0517", "# a comment\n"+text("t0517"))
	if s := d.next(t, "added "+all, ""); s.Tenants["t0517"] != first.Tenants["t0517"] || d.parsed != tenants+2 {
		t.Errorf("a comment is a change, or %d files were parsed", d.parsed)
	}
}

// TestSecretsOfTenants: a secret that changes is read again, and one that is
// missing is looked for again.
func TestSecretsOfTenants(t *testing.T) {
	t.Parallel()
	d := open(t, t.TempDir())
	secret := filepath.Join(t.TempDir(), "secret")
	d.write(t, "acme", strings.Replace(text("acme"), "the-secret", "file:"+secret, 1))
	d.next(t, "", "acme")
	put := func(text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(secret+".new", []byte(text), 0o600), os.Rename(secret+".new", secret)); err != nil {
			t.Fatal(err)
		}
	}
	put("the first secret")
	for range 20 {
		d.Accept(d.Next())
	}
	if s := d.next(t, "acme", ""); s.Tenants["acme"].Clients[0].SecretKey != "the first secret" {
		t.Error("the secret is not read")
	}
	put("the second secret")
	if s := d.next(t, "acme", ""); s.Tenants["acme"].Clients[0].SecretKey != "the second secret" {
		t.Error("the new secret is not read")
	}
	put("short")
	if s := d.next(t, "acme", "acme"); s.Tenants["acme"].Clients[0].SecretKey != "the second secret" {
		t.Error("a bad secret is used")
	}
}

// TestNotAccepted: a State that is not accepted changes nothing, and Removed
// has what is removed only.
func TestNotAccepted(t *testing.T) {
	t.Parallel()
	d := open(t, t.TempDir())
	for _, name := range []string{"a", "b", "c"} {
		d.write(t, name, text(name))
	}
	before := d.next(t, "a b c", "")
	d.remove(t, "a")
	d.write(t, "b", text("b", "{buckets: [other]}"))
	d.write(t, "d", text("d"))

	next := d.Next()
	removed := before.Removed(next)
	if got := removed.Names(); !slices.Equal(got, []string{"b", "c"}) || removed.Tenants["b"] != before.Tenants["b"] {
		t.Errorf("%v", got)
	}
	d.Accept(removed)
	if s := d.next(t, "b c d", ""); s.Tenants["b"] == before.Tenants["b"] {
		t.Error("the change is lost")
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	d := open(t, t.TempDir())
	bad := []string{"A.yaml", "a.yml", "a.yaml~", "x\n.yaml", "a_b.yaml", "README.md", "..."}
	for _, name := range append(bad, ".a.yaml", "..b.yaml") {
		if err := os.WriteFile(filepath.Join(d.path, name), []byte(text("x")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := d.Next()
	if len(s.Problems) != len(bad)-1 || len(s.Tenants) != 0 { // "..." begins with a dot
		t.Errorf("%+v", s.Problems)
	}
	for _, p := range s.Problems {
		if p.Tenant != "" || !strings.Contains(p.Err.Error(), "is not the name of a tenant's file") {
			t.Errorf("%+v", p)
		}
	}
}

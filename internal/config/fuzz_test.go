package config_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// FuzzParse looks for panics, errors without a position or with several
// lines, secrets in errors, and configs that violate the rules.
func FuzzParse(f *testing.F) {
	example, err := os.ReadFile(exampleFile)
	if err != nil {
		f.Fatal(err)
	}

	f.Add(example)
	f.Add([]byte(base))

	for _, seed := range []string{
		"", "a", "[]", "{}", "---\n---\n", "a: &a [*a]", "<<: {a: b}", "? {a: b}\n: c", "listen: {a: &b c}",
		"domains: [[a]]",
		"keys: [{name: a, provider: local, key_file: b}, &k 5]", "tls: ${SECRET}",
		"origin: {secret_key: 'x${SECRET}', endpoint: '${SECRET}'}",
		"\ufefflisten: a", "a: |\n  b\n", "!!map {a: b}", "%YAML 1.2\n---\na: b", "clients:\n- name: !!binary YQ==\n",
	} {
		f.Add([]byte(seed))
	}

	const secret = "fuzz-secret-value"
	env := environment(map[string]string{"SECRET": secret, "APP_SECRET_KEY": secret, "ORIGIN_SECRET_KEY": secret})
	f.Fuzz(func(t *testing.T, data []byte) {
		if strings.Contains(string(data), "file:") {
			t.Skip() // would read any file
		}

		c, err := config.Parse("c.yaml", data, env)
		if err == nil {
			if c.Listen == "" || c.DEKCache.TTL <= 0 || len(c.Encryption.Rules) == 0 ||
				c.TenantsDir == "" && (len(c.Clients) == 0 || len(c.Keys) == 0) {
				t.Errorf("accepted: %+v", c)
			}
			return
		}

		var e *config.Error
		if !errors.As(err, &e) || len(e.Problems) == 0 || c != nil {
			t.Fatalf("got %v, %v", c, err)
		}

		lines := strings.FieldsFunc(string(data),
			func(r rune) bool { return r == '\n' || r == '\r' || r == '\u0085' || r == '\u2028' || r == '\u2029' })
		for _, p := range e.Problems {
			if p.Line < 1 || p.Column < 1 ||
				p.Line > len(lines)+strings.Count(string(data), "\n")+strings.Count(string(data), "\r")+1 {
				t.Errorf("no position in the file: %v", p)
			}
			if strings.ContainsAny(p.Text, "\r\n") || len(p.Text) > 1000 {
				t.Errorf("not one line: %q", p.Text)
			}

			if strings.Contains(p.Text, secret) && !strings.Contains(string(data), secret) {
				t.Errorf("a secret in %q", p.Text)
			}
		}
	})
}

// FuzzParseTenant looks for panics, and for tenants that have more than the
// configuration gives to tenants.
func FuzzParseTenant(f *testing.F) {
	for _, seed := range []string{
		acme, "", "[]", "key: {}", "key: ${SECRET}", "key: {name: a}", "objects: [{buckets: [\"*\"]}]",
		"key: {provider: aws-kms, key_id: alias/a}\nobjects: [{buckets: [data], prefixes: [a/]}]\n" +
			"clients: [{name: a, access_key: b, secret_key: cccccccc, allow: [{buckets: [data], prefixes: [a/, b/], actions: [read]}]}]",
		"key: {provider: any-of, members: [default]}", "clients: [{anonymous: true}]", "limits: {kms_max_per_second: -1}",
	} {
		f.Add([]byte(seed))
	}
	c := parse(f, area)

	f.Fuzz(func(t *testing.T, data []byte) {
		if strings.Contains(string(data), "file:") {
			t.Skip() // would read any file
		}
		tenant, err := config.ParseTenant("dir/acme.yaml", data, c)
		if err != nil {
			if e := (*config.Error)(nil); !errors.As(err, &e) || len(e.Problems) == 0 || tenant != nil {
				t.Fatalf("got %v, %v", tenant, err)
			}
			return
		}

		if tenant.Key.Name != "tenant:acme" || tenant.Key.IsTogether() || tenant.Key.IsTemplate() || len(tenant.Objects) == 0 {
			t.Errorf("accepted: %+v", tenant)
		}
		if err := tenant.Fits(c); err != nil {
			t.Error(err)
		}
		for _, client := range tenant.Clients {
			if client.Anonymous || client.AccessKey == "" || len(client.SecretKey) < 8 || len(client.Allow) == 0 {
				t.Errorf("accepted: %+v", client)
			}
			for _, grant := range client.Allow {
				if !within(grant, tenant.Objects) {
					t.Errorf("granted: %+v of %+v", grant, tenant.Objects)
				}
			}
		}
	})
}

// within reports whether a grant is for objects of the list only.
func within(g config.Grant, objects []config.TenantObjects) bool {
	owned := func(bucket, prefix string) bool {
		for _, o := range objects {
			for _, b := range o.Buckets {
				if b == bucket && len(o.Prefixes) == 0 {
					return true
				}
				for _, p := range o.Prefixes {
					if b == bucket && strings.HasPrefix(prefix, p) {
						return true
					}
				}
			}
		}
		return false
	}
	prefixes := g.Prefixes
	if len(prefixes) == 0 {
		prefixes = []string{""}
	}
	for _, bucket := range g.Buckets {
		for _, prefix := range prefixes {
			if !owned(bucket, prefix) {
				return false
			}
		}
	}
	return true
}

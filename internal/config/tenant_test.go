package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// area is base with an area for tenants.
const area = base + `    - {buckets: [data, "t-*"], tenants: true}
    - {buckets: [mixed], prefixes: [tenants/], tenants: true}
tenants_dir: /tenants
kms: {timeout: 3s, max_per_second: 100}
`

// acme is the file of a tenant.
const acme = `key: {provider: aws-kms, key_id: alias/acme}
objects:
  - {buckets: [data], prefixes: [acme/, acme-2/]}
  - {buckets: [t-acme]}
clients:
  - {name: acme-app, access_key: AKACME, secret_key: acmes-secret}
read_keys: [default]
`

// readTenant reads a tenant's file with that text.
func readTenant(t *testing.T, file, text string) (*config.Tenant, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), file)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	tenant, err := config.ReadTenant(path, parse(t, strings.Replace(area, "    - buckets: [\"*\"]\n      key: default\n",
		"    - {buckets: [others], key: default}\n", 1)))
	if err != nil {
		_, after, _ := strings.Cut(err.Error(), filepath.Dir(path)+"/")
		t.Log(after)
	}
	return tenant, err
}

func TestReadTenant(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("from a file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readTenant(t, "acme.yaml", strings.Replace(acme, "acmes-secret", "file:"+secret, 1))
	if err != nil {
		t.Fatal(err)
	}
	all := []string{"read", "write", "delete", "list"}
	want := &config.Tenant{Name: "acme", Secrets: []string{secret}, TenantFile: config.TenantFile{
		Key: config.Key{Name: "tenant:acme", Provider: config.AWSKMS, KeyID: "alias/acme", Timeout: 3e9},
		Objects: []config.TenantObjects{
			{Buckets: []string{"data"}, Prefixes: []string{"acme/", "acme-2/"}},
			{Buckets: []string{"t-acme"}},
		},
		Clients: []config.Client{{
			Name: "acme-app", AccessKey: "AKACME", SecretKey: "from a file", Allow: []config.Grant{
				{Buckets: []string{"data"}, Prefixes: []string{"acme/", "acme-2/"}, Actions: all},
				{Buckets: []string{"t-acme"}, Actions: all},
			},
		}},
		ReadKeys: []string{"default"},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, not %+v", got, want)
	}
}

// TestParseTenantOffline: clients and their secrets may be lost.
func TestParseTenantOffline(t *testing.T) {
	cfg, text := parse(t, area), strings.Replace(acme, "acmes-secret", "file:/does/not/exist", 1)
	if _, err := config.ParseTenant("acme.yaml", []byte(text), cfg); err == nil {
		t.Error("a missing secret is accepted")
	}
	got, err := config.ParseTenantOffline("acme.yaml", []byte(text), cfg)
	if err != nil || got.Clients != nil || got.Key.KeyID != "alias/acme" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := config.ParseTenantOffline("acme.yaml", []byte(strings.Replace(text, "alias/acme", "''", 1)), cfg); err == nil {
		t.Error("a missing key is accepted")
	}
}

func TestReadTenantRefuses(t *testing.T) {
	t.Setenv("SECRET", "of the vendor")
	for _, row := range []struct{ name, old, changed, want string }{
		{"a variable", "alias/acme", `"${SECRET}"`, "1:34: key.key_id: variables (${...}) are not allowed"},
		{"a variable as a secret", "acmes-secret", `"${SECRET}"`, "secret_key: variables (${...}) are not allowed"},
		{"a template", "alias/acme", `"alias/${prefix.1}"`, "key.key_id: variables"},
		{"a disguised template", "alias/acme", `"alias/$${prefix.1}"`, "cannot have variables"},
		{"a name for the key", "key: {", "key: {name: default, ", `1:7: unknown key "name" in key`},
		{"members", "provider: aws-kms, key_id: alias/acme", "provider: any-of", "cannot be made of others"},
		{"an unknown field", "read_keys", "reed_keys", `7:1: unknown key "reed_keys" in the file (did you mean "read_keys"?)`},
		{"an unknown key", "[default]", "[defualt]", `no key with this name (did you mean "default"?)`},
		{"a pattern for keys", "[default]", `["*"]`, "no key with this name"},
		{"no key", "key: {provider: aws-kms, key_id: alias/acme}", "", `"key" is missing in the file`},
		{"no objects", "objects:\n  - {buckets: [data], prefixes: [acme/, acme-2/]}\n  - {buckets: [t-acme]}\n", "", `"objects" is missing`},
		{"no buckets", "{buckets: [t-acme]}", "{prefixes: [x/]}", `"buckets" is missing in objects[1]`},
		{"no list of clients", "  - {name: acme-app, access_key: AKACME, secret_key: acmes-secret}\n", "", "clients has no value"},
		{"an empty allow", "secret_key: acmes-secret", "secret_key: acmes-secret, allow: []", "allow is empty"},
		{"no such area", "[t-acme]", "[other]", "4:16: no rule of the configuration gives this whole bucket to tenants"},
		{"the bucket of another rule", "[t-acme]", "[others]", "no rule of the configuration gives this whole bucket"},
		{"more than the area", "{buckets: [t-acme]}", "{buckets: [mixed]}", "no rule of the configuration gives this whole bucket"},
		{"beside the area", "{buckets: [t-acme]}", "{buckets: [mixed], prefixes: [acme/]}", "no rule of the configuration gives this prefix"},
		{"a pattern for buckets", "[t-acme]", `["t-*"]`, "not the name of a bucket"},
		{"a prefix without a slash", "acme-2/", "acme", "must end with /"},
		{"an empty prefix", "acme-2/", `""`, "a prefix is empty"},
		{"a prefix with dots", "acme-2/", "acme/../beta/", "must not have"},
		{"a prefix with //", "acme-2/", "acme//x/", "must not have"},
		{"a prefix with / first", "acme-2/", "/acme/", "must not begin"},
		{"an anonymous client", "access_key: AKACME, secret_key: acmes-secret", "anonymous: true", `unknown key "anonymous"`},
		{"a short secret", "acmes-secret", "short", "fewer than 8 characters"},
		{"a client of the configuration", "acme-app", "app", "already has a client with this name"},
		{"an access key of the configuration", "AKACME", "AKAPP", "already has a client with this access_key"},
		{"the same client twice", "clients:\n", "clients:\n  - {name: acme-app, access_key: AK2, secret_key: acmes-secret}\n", "there is already a client with this name"},
		{
			"a grant for another prefix", "acmes-secret", "acmes-secret, allow: [{buckets: [data], prefixes: [acme/, beta/], actions: [read]}]",
			"6:112: this grants objects that are not the tenant's",
		},
		{"a grant for the bucket", "acmes-secret", "acmes-secret, allow: [{buckets: [data], actions: [read]}]", "not the tenant's"},
		{"a grant for all", "acmes-secret", `acmes-secret, allow: [{buckets: ["*"], actions: [read]}]`, "not the tenant's"},
		{"a grant for a pattern", "acmes-secret", `acmes-secret, allow: [{buckets: ["t-*"], actions: [read]}]`, "not the tenant's"},
		{"a grant for a shorter prefix", "acmes-secret", `acmes-secret, allow: [{buckets: [data], prefixes: [acme], actions: [read]}]`, "not the tenant's"},
		{"a limit above", "read_keys", "limits: {kms_max_per_second: 101}\nread_keys", "this limit must be from 1 to kms.max_per_second of the configuration, 100"},
		{"an external id alone", "alias/acme", "alias/acme, external_id: x", "external_id needs a role_arn"},
		{"plain HTTP", "alias/acme", "alias/acme, endpoint: http://kms.example", "sent unencrypted"},
		{"a setting of another provider", "alias/acme", "alias/acme, key_file: /k", "provider aws-kms has no key_file"},
		{"not YAML", "objects:", "objects: [", "this is not YAML"},
		{"two documents", "read_keys", "---\nread_keys", "a second YAML document"},
		{"too large", "read_keys", strings.Repeat("#\n", 40_000) + "read_keys", "larger than 64 KiB"},
	} {
		t.Run(row.name, func(t *testing.T) {
			text := strings.Replace(acme, row.old, row.changed, 1)
			if text == acme {
				t.Fatal("the row changes nothing")
			}
			_, err := readTenant(t, "acme.yaml", text)
			if err == nil || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), "of the vendor") {
				t.Errorf("%v, not %q", err, row.want)
			}
		})
	}
}

func TestTenantOf(t *testing.T) {
	for _, row := range []struct{ file, want string }{
		{"acme.yaml", "acme"},
		{"a.yaml", "a"},
		{"7.yaml", "7"},
		{"a-b-7.yaml", "a-b-7"},
		{strings.Repeat("a", 64) + ".yaml", strings.Repeat("a", 64)},
		{strings.Repeat("a", 65) + ".yaml", ""},
		{".yaml", ""},
		{"-a.yaml", ""},
		{"a-.yaml", ""},
		{"Acme.yaml", ""},
		{"a_b.yaml", ""},
		{"a.b.yaml", ""},
		{"acme.yml", ""},
		{"acme", ""},
		{"acme.yaml~", ""},
		{"acme.yaml\n", ""},
		{"äcme.yaml", ""},
		{"a:b.yaml", ""},
		{"a b.yaml", ""},
		{"acme.yaml.yaml", ""},
	} {
		t.Run(row.file, func(t *testing.T) {
			got, err := config.TenantOf(row.file)
			if got != row.want || (err == nil) != (row.want != "") {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// TestTenantFilesOnly: what is not a regular file is refused, and does not
// block.
func TestTenantFilesOnly(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "acme.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "acme.yaml"): "not a regular file",
		filepath.Join(dir, "beta.yaml"): "no such file",
		"/dev/null":                     "not a regular file",
	} {
		if _, err := config.ReadTenant(path, parse(t, area)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestTenantRules(t *testing.T) {
	runErrors(t, []errorCase{
		{"no directory", "      key: default\n", "      tenants: true\n", []string{"18:16: tenants: true needs tenants_dir"}},
		{"no rule", "", "tenants_dir: /t\n", []string{
			"19:14: tenants_dir needs a rule with tenants: true for the objects of the tenants",
		}},
		{"a key too", "      key: default\n", "      key: default\n      tenants: true\ntenants_dir: /t\n", []string{
			"18:12: a rule with tenants: true has no key: each tenant has its own key",
		}},
		{
			"other settings", "      key: default\n",
			"      tenants: true\n      clients: [app]\n      allowed_keys: [default]\ntenants_dir: /t\n",
			[]string{
				"19:16: a rule with tenants: true has no clients: who may do what is in the allow of clients",
				"20:21: a rule with tenants: true has no allowed_keys: a tenant uses its own key only",
			},
		},
	})

	for _, name := range []string{"tenant", "tenant:acme"} {
		_, err := config.Parse("c.yaml", []byte(strings.ReplaceAll(area, "default", name)), environment(nil))
		if err == nil || !strings.Contains(err.Error(), "choose another name") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := config.Parse("c.yaml", []byte(`listen: 127.0.0.1:9000
origin: {endpoint: http://127.0.0.1:7070, region: us-east-1}
encryption: {rules: [{buckets: ["*"], tenants: true}]}
tenants_dir: /tenants
`), environment(nil)); err != nil {
		t.Errorf("without keys and clients of the configuration: %v", err)
	}
}

// A tenant's file cannot ask for what the version of the format lacks.
func TestTenantRecoveryNeedsVersion2(t *testing.T) {
	const recovery = "alias/acme, recovery_public_key: \"cmekproxy-recovery-public-v1:RQAf6D+0YBC7AIldXIoxd88pyQYVhYIHTfiY/2FGtVI=\""
	text := []byte(strings.Replace(acme, "alias/acme", recovery, 1))
	if _, err := config.ParseTenant("acme.yaml", text, parse(t, area)); err != nil {
		t.Error(err)
	}
	old := parse(t, strings.Replace(area, "encryption:\n", "encryption:\n  format_version: 1\n", 1))
	if _, err := config.ParseTenant("acme.yaml", text, old); err == nil ||
		!strings.Contains(err.Error(), "needs encryption.format_version 2") {
		t.Error(err)
	}
}

package config_test

import (
	"fmt"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// Variables of a template stay in the value. They are no environment
// variables, which can be used next to them.
func TestTemplates(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ name, provider, want string }{
		{"aws alias", `provider: aws-kms, key_id: "alias/tenant-${prefix.1}"`, "alias/tenant-${prefix.1}"},
		{
			"aws alias with account", `provider: aws-kms, key_id: "arn:aws:kms:eu-central-1:${ACCOUNT}:alias/${bucket}"`,
			"arn:aws:kms:eu-central-1:111122223333:alias/${bucket}",
		},
		{"escaped", `provider: aws-kms, key_id: "alias/$${bucket}"`, "alias/${bucket}"},
		{
			"vault", `provider: vault-transit, address: "https://v", login: {token: x}, key_id: "${bucket}.${prefix.2}"`,
			"${bucket}.${prefix.2}",
		},
		{
			"gcp", `provider: gcp-kms, key_id: "projects/p/locations/l/keyRings/${bucket}/cryptoKeys/t-${prefix.1}"`,
			"projects/p/locations/l/keyRings/${bucket}/cryptoKeys/t-${prefix.1}",
		},
		{"local", `provider: local, key_file: "/keys/${bucket}/${prefix.1}.key"`, "/keys/${bucket}/${prefix.1}.key"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			text := replace(t, "  - name: default\n    provider: local\n    key_file: /k\n",
				"  - {name: default, "+row.provider+"}\n")
			c, err := config.Parse("c.yaml", []byte(text), environment(map[string]string{
				"ACCOUNT": "111122223333", "bucket": "environment",
			}))
			if err != nil {
				t.Fatal(err)
			}
			k := c.Keys[0]
			if k.Template() != row.want || !k.IsTemplate() {
				t.Errorf("%q", k.Template())
			}
			if e := k.Expanded("n", "id"); e.IsTemplate() || e.Template() != "id" || e.Name != "n" {
				t.Errorf("%+v", e)
			}
		})
	}

	if parse(t, base).Keys[0].IsTemplate() {
		t.Error("a key without variables is a template")
	}
}

func TestTemplateErrors(t *testing.T) {
	key := func(settings string) string { return "  - {name: default, " + settings + "}\n" }
	const old = "  - name: default\n    provider: local\n    key_file: /k\n"
	const aws = `provider: aws-kms, key_id: "alias/${prefix.1}"`
	const alias = "key_id with variables must be an alias, such as alias/tenant-${prefix.1}, or the ARN of one; " +
		"a variable must follow alias/"
	const only = "key_id has a variable: only aws-kms, vault-transit, gcp-kms and local keys can be templates"
	const gcp = "key_id with variables must be the name of a key, such as " +
		"projects/P/locations/L/keyRings/R/cryptoKeys/tenant-${prefix.1}, with variables in R and in the key only"
	for _, row := range []struct {
		name, settings string
		column         int
		want           string
	}{
		{"client", `provider: aws-kms, key_id: "alias/${client}"`, 48, "key_id is not a usable template: " +
			"${client} is not supported: an object may be read by another client than the one that wrote it; " +
			"use ${prefix.1}, or a rule for each client"},
		{"segment 0", `provider: aws-kms, key_id: "alias/${prefix.0}"`, 48, "key_id is not a usable template: " +
			"\"${prefix.0}\" is not a variable: use ${bucket}, or ${prefix.1} to ${prefix.9}"},
		{
			"no separator", `provider: aws-kms, key_id: "alias/${bucket}-${prefix.1}"`, 48,
			"key_id is not a usable template: two variables need a character between them that values cannot have, " +
				"such as / or .: otherwise different values could name the same key",
		},
		{"a key ARN", `provider: aws-kms, key_id: "arn:aws:kms:r:111122223333:key/${prefix.1}"`, 48, alias},
		{"the account", `provider: aws-kms, key_id: "arn:aws:kms:r:${prefix.1}:alias/x"`, 48, alias},
		{"the region", `provider: aws-kms, key_id: "arn:aws:kms:${prefix.1}:111122223333:alias/x"`, 48, alias},
		{
			"a vault path", `provider: vault-transit, address: "https://v", login: {token: x}, key_id: "a/${bucket}"`, 95,
			"key_id with variables must be the name of a transit key, such as tenant-${prefix.1}; " +
				"between two variables, use '.'",
		},
		{"azure", `provider: azure-keyvault, key_id: "https://v.vault.azure.net/keys/${bucket}"`, 55, only},
		{"gcp, the project", `provider: gcp-kms, key_id: "projects/${bucket}/locations/l/keyRings/r/cryptoKeys/k"`, 48, gcp},
		{"gcp, a version", `provider: gcp-kms, key_id: "projects/p/locations/l/keyRings/r/cryptoKeys/${bucket}/cryptoKeyVersions/1"`, 48, gcp},
		{"azure", `provider: azure-keyvault, key_id: "https://v/keys/${bucket}"`, 55, only},
		{
			"a relative path", `provider: local, key_file: "${bucket}.key"`, 48,
			"key_file with variables must be an absolute path",
		},
		{
			"a path with dots", `provider: local, key_file: "/keys/../${bucket}"`, 48,
			"key_file with variables must not contain ..",
		},
		{
			"also_known_as", aws + `, also_known_as: ["arn:aws:kms:r:111122223333:key/1"]`, 84,
			"a key with variables cannot have also_known_as: give each of these keys an entry, and name it in read_keys",
		},
		{
			"envelope_id",
			`provider: vault-transit, address: "https://v", login: {token: x}, key_id: "${bucket}", envelope_id: x`, 121,
			"a key with variables cannot have envelope_id: it would be the same for all tenants",
		},
		{
			"another setting", `provider: aws-kms, key_id: "alias/x", role_arn: "arn:${prefix.1}"`, 69,
			"keys[0].role_arn: ${ must be followed by the name of an environment variable and }; " +
				"write $${ for a literal ${",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			checkErrors(t, replace(t, old, key(row.settings)), []string{fmt.Sprintf("12:%d: %s", row.column, row.want)})
		})
	}

	more := `  - {name: "default:acme", provider: local, key_file: /a}` + "\n"
	checkErrors(t, replace(t, old, key(aws)+more), []string{
		"13:12: the keys of default have names that begin with default:",
	})
	more = "  - {name: other, provider: local, key_file: /a}\n" +
		"  - {name: both, provider: all-of, members: [default, other]}\n"
	checkErrors(t, replace(t, old, key(aws)+more), []string{
		"14:46: a member must be one key: this one is a template",
	})
	recovery := `, recovery_public_key: "cmekproxy-recovery-public-v1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="`
	checkErrors(t, replace(t, old, key(aws+recovery)), []string{
		"12:90: a key with variables cannot have recovery_public_key: it would open the objects of all tenants",
	})
}

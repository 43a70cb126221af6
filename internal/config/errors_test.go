package config_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// errorCase replaces old in the base config by changed; if old is empty,
// changed is appended. want lists all errors in order, without "c.yaml:".
type errorCase struct {
	name, old, changed string
	want               []string
}

func runErrors(t *testing.T, tests []errorCase) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := base + tt.changed
			if tt.old != "" {
				text = replace(t, tt.old, tt.changed)
			}
			checkErrors(t, text, tt.want)
		})
	}
}

func checkErrors(t *testing.T, text string, want []string) {
	t.Helper()
	c, err := config.Parse("c.yaml", []byte(text), environment(map[string]string{"EMPTY": "", "WORD": "wordvalue"}))
	var e *config.Error
	if !errors.As(err, &e) || c != nil {
		t.Fatalf("got %v, %v", c, err)
	}

	var lines []string
	for _, p := range e.Problems {
		lines = append(lines, strings.TrimPrefix(p.String(), "c.yaml:"))
	}

	if got, want := strings.Join(lines, "\n"), strings.Join(want, "\n"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if got := strings.Count(err.Error(), "\n") + 1; got != len(e.Problems) {
		t.Errorf("%d lines for %d problems", got, len(e.Problems))
	}
}

func TestStructureErrors(t *testing.T) {
	const topKeys = "listen, admin_listen, health_listen, metrics_listen, admin_token, domain, domains, " +
		"trusted_proxies, proxy_protocol, tls, origin, " +
		"clients, session_credentials_file, tenants_dir, keys, encryption, dek_cache, kms, log, audit, tracing, metrics, " +
		"reload_on_change, limits"
	runErrors(t, []errorCase{
		{"unknown key", "listen:", "lissten:", []string{
			`1:1: unknown key "lissten" in the file (did you mean "listen"?)`,
			`1:1: "listen" is missing in the file`,
		}},
		{
			"swapped letters", "", "dek_cahce: {ttl: 1m}\n",
			[]string{`19:1: unknown key "dek_cahce" in the file (did you mean "dek_cache"?)`},
		},
		{
			"unknown key, none near", "", "telemetry: on\n",
			[]string{`19:1: unknown key "telemetry" in the file (valid: ` + topKeys + `)`},
		},
		{"unknown key, deep", `actions: [read]`, `actions: [read], bucket: x`, []string{
			`10:43: unknown key "bucket" in clients[0].allow[0] (did you mean "buckets"?)`,
		}},
		{"unknown key without value", "actions: [read]", "actions: [read], hunter2", []string{
			`10:43: unknown key without a value in clients[0].allow[0]`,
		}},
		{
			"case counts", "", "Log: {level: info}\n",
			[]string{`19:1: unknown key "Log" in the file (did you mean "log"?)`},
		},
		{"long key", "", strings.Repeat("x", 90) + ": 1\n", []string{
			`19:1: unknown key "` + strings.Repeat("x", 60) + `..." in the file (valid: ` + topKeys + `)`,
		}},
		{
			"duplicate key", "", "listen: 127.0.0.1:9002\n",
			[]string{`19:1: "listen" is set twice; the first is on line 1`},
		},
		{"duplicate key in a list", "    access_key: AKAPP", "    name: app", []string{
			`6:5: "access_key" is missing in clients[0]`,
			`7:5: "name" is set twice; the first is on line 6`,
		}},
		{"list as key", "", "[a]: b\n", []string{`19:1: a key must be a plain name, not a list`}},
		{"merge key", "", "<<: {log: {level: info}}\n", []string{`19:1: merge keys (<<) are not allowed`}},
		{"anchor", "region: us-east-1", "region: &r us-east-1", []string{
			`4:11: anchors (&) and aliases (*) are not allowed; quote a value that begins with one`,
		}},
		{"anchor on a mapping", "origin:", "origin: &o", []string{
			`2:9: anchors (&) and aliases (*) are not allowed; quote a value that begins with one`,
		}},
		{"anchor on a key", "listen:", "&l listen:", []string{
			`1:1: anchors (&) and aliases (*) are not allowed`,
			`1:1: "listen" is missing in the file`,
		}},
		{"alias", "  region: us-east-1", "  region: &r us-east-1\n  access_key: *r", []string{
			`4:11: anchors (&) and aliases (*) are not allowed; quote a value that begins with one`,
			`5:15: anchors (&) and aliases (*) are not allowed; quote a value that begins with one`,
		}},
		{"unknown alias", "region: us-east-1", "region: *", []string{
			"4:12: this is not YAML: did not find expected alphabetic or numeric character",
		}},
		{
			"tag", "region: us-east-1", "region: !!str us-east-1",
			[]string{`4:11: tags (!) are not allowed; quote a value that begins with one`},
		},
		{
			"no value", "region: us-east-1", "region:",
			[]string{`4:10: origin.region has no value; omit the key instead`},
		},
		{
			"null", "region: us-east-1", "region: ~",
			[]string{`4:11: origin.region has no value; omit the key instead`},
		},
		{"second document", "", "---\nlisten: :1\n", []string{`19:1: a second YAML document; there can be only one`}},
		{"bad second document", "", "---\nlisten: [\n", []string{
			"21:1: this is not YAML: did not find expected node content; within {} and [], a value such as " +
				"${NAME} needs quotes",
		}},
		{"syntax", "region: us-east-1", "region: a: b", []string{
			"4:12: this is not YAML: mapping values are not allowed in this context",
		}},
		{"unquoted variable in braces", `buckets: ["*"], a`, `buckets: ${WORD}, a`, []string{
			"10:20: this is not YAML: did not find expected ',' or '}'; within {} and [], a value such as " +
				"${NAME} needs quotes",
		}},
		{"not UTF-8", "us-east-1", "ü\xff", []string{"4:12: a character that YAML does not allow"}},
		{"control character", "us-east-1", "us\x01", []string{"4:13: a character that YAML does not allow"}},
	})
}

func TestWholeFile(t *testing.T) {
	missing := []string{
		`1:1: "listen" is missing in the file`,
		`1:1: "origin" is missing in the file`,
		`1:1: "encryption" is missing in the file`,
		`1:1: "keys" is missing in the file`,
		`1:1: "clients" is missing in the file`,
	}

	tests := []struct {
		name, text string
		want       []string
	}{
		{"empty", "", []string{"1:1: the file is empty"}},
		{"comment", "# nothing\n", []string{"1:1: the file is empty"}},
		{"null", "---\n", []string{"2:1: the file must be a mapping of keys to values, not nothing"}},
		{"list", "- a\n", []string{"1:1: the file must be a mapping of keys to values, not a list"}},
		{"word", "a\n", []string{"1:1: the file must be a mapping of keys to values, not a string"}},
		{"empty mapping", "{}\n", missing},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { checkErrors(t, tt.text, tt.want) })
	}
}

func TestTypeErrors(t *testing.T) {
	const duration = "a duration such as 90s, 5m or 1h30m"
	runErrors(t, []errorCase{
		{"string for number", "", "dek_cache: {max_entries: many}\n", []string{
			`19:26: dek_cache.max_entries must be a whole number, not "many"`,
		}},
		{"quoted number", "", "dek_cache: {max_entries: \"5\"}\n", []string{
			`19:26: dek_cache.max_entries must be a whole number, not a string`,
		}},
		{"fraction", "", "dek_cache: {max_entries: 1.5}\n", []string{
			`19:26: dek_cache.max_entries must be a whole number, not "1.5"`,
		}},
		{"huge number", "", "dek_cache: {max_entries: 99999999999999999999}\n", []string{
			`19:26: dek_cache.max_entries must be a whole number, not "99999999999999999999"`,
		}},
		{"list for number", "", "dek_cache: {max_entries: [5]}\n", []string{
			`19:26: dek_cache.max_entries must be a whole number, not a list`,
		}},
		{
			"duration without unit", "", "dek_cache: {ttl: 5}\n",
			[]string{`19:18: dek_cache.ttl must be ` + duration + `, not "5"`},
		},
		{"bad duration", "", "dek_cache: {ttl: 5 minutes}\n", []string{
			`19:18: dek_cache.ttl must be ` + duration + `, not "5 minutes"`,
		}},
		{"duration from the environment is not shown", "", "dek_cache: {ttl: \"${WORD}\"}\n", []string{
			`19:18: dek_cache.ttl must be ` + duration + `, not "${WORD}"`,
		}},
		{"yes for true", "  region: us-east-1", "  region: us-east-1\n  path_style: yes", []string{
			`5:15: origin.path_style must be true or false, not "yes"`,
		}},
		{"quoted boolean", "  region: us-east-1", "  region: us-east-1\n  path_style: \"true\"", []string{
			`5:15: origin.path_style must be true or false, not a string`,
		}},
		{
			"list for string", "region: us-east-1", "region: [us-east-1]",
			[]string{`4:11: origin.region must be a string, not a list`},
		},
		{
			"mapping for string", "region: us-east-1", "region: {a: b}",
			[]string{`4:11: origin.region must be a string, not a mapping`},
		},
		{"string for list", `    - buckets: ["*"]`, `    - buckets: "*"`, []string{
			`17:16: encryption.rules[0].buckets must be a list, not a string`,
		}},
		{"mapping for list", "  - name: default\n    provider", "    name: default\n    provider", []string{
			`12:5: keys must be a list, not a mapping`,
		}},
		{
			"string for mapping", "", "tls: off\n",
			[]string{`19:6: tls must be a mapping of keys to values, not a string`},
		},
		{
			"boolean for mapping", "", "tls: true\n",
			[]string{`19:6: tls must be a mapping of keys to values, not a boolean`},
		},
		{"number in a list of mappings", "      - {buckets: [\"*\"], actions: [read]}", "      - 5", []string{
			`10:9: clients[0].allow[0] must be a mapping of keys to values, not a number`,
		}},
		{"list for a domain", "", "domains: [[a, b]]\n", []string{`19:11: domains[0] must be a string, not a list`}},
		{"string for domains", "", "domains: a.b\n", []string{`19:10: domains must be a list, not a string`}},
		{"list for secret", "secret_key: in-the-clear", "secret_key: [in-the-clear]", []string{
			`8:17: clients[0].secret_key must be a string, not a list`,
		}},
		{"unknown action", "actions: [read]", "actions: [read, wriet]", []string{
			`10:42: clients[0].allow[0].actions[1] must be one of read, write, delete, list, admin, lock, ` +
				`store_admin, not "wriet" (did you mean "write"?)`,
		}},
		{"unknown action, none near", "actions: [read]", "actions: [everything]", []string{
			`10:36: clients[0].allow[0].actions[0] must be one of read, write, delete, list, admin, lock, ` +
				`store_admin, not "everything"`,
		}},
		{"unknown level", "", "log: {level: warning}\n", []string{
			`19:14: log.level must be one of debug, info, warn, error, not "warning"`,
		}},
		{"unknown policy", "", "  plaintext_objects: no\n", []string{
			`19:22: encryption.plaintext_objects must be one of deny, allow, not "no"`,
		}},
		{"unknown provider", "provider: local", "provider: awskms", []string{
			`13:15: keys[0].provider must be one of aws-kms, vault-transit, gcp-kms, azure-keyvault, pkcs11, ` +
				`local, all-of, any-of, not "awskms" (did you mean "aws-kms"?)`,
		}},
	})
}

// TestItemsThatAreNoMappings: a malformed item is one problem, not one for
// each of its fields.
func TestItemsThatAreNoMappings(t *testing.T) {
	checkErrors(t, "listen: :1\norigin: 1\nclients: [1, ~]\nkeys: [1, {}]\nencryption: {rules: [1, &a {}]}\n", []string{
		`2:9: origin must be a mapping of keys to values, not a number`,
		`3:11: clients[0] must be a mapping of keys to values, not a number`,
		`3:14: clients[1] has no value; omit the key instead`,
		`4:8: keys[0] must be a mapping of keys to values, not a number`,
		`4:11: "name" is missing in keys[1]`,
		`4:11: "provider" is missing in keys[1]`,
		`5:22: encryption.rules[0] must be a mapping of keys to values, not a number`,
		`5:25: anchors (&) and aliases (*) are not allowed; quote a value that begins with one`,
	})
}

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// Each example can be loaded, and has the provider that was asked for.
func TestConfigExamples(t *testing.T) {
	for _, row := range []struct {
		name string
		want config.Provider
	}{
		{"aws-kms", config.AWSKMS},
		{"gcp-kms", config.GCPKMS},
		{"azure-keyvault", config.AzureKeyVault},
		{"azure-kms", config.AzureKeyVault},
		{"vault-transit", config.VaultTransit},
		{"vault", config.VaultTransit},
		{"pkcs11", config.PKCS11},
		{"local", config.Local},
	} {
		t.Run(row.name, func(t *testing.T) {
			var out bytes.Buffer
			if code := run(t.Context(), []string{"config", "example", "--provider", row.name}, &out, &out); code != 0 {
				t.Fatalf("exit code %d: %s", code, &out)
			}
			cfg, err := config.Parse("example", out.Bytes(), func(name string) (string, bool) {
				return strings.ReplaceAll(name, "_", "-") + "-of-20-characters", true
			})
			if err != nil {
				t.Fatalf("%v\n%s", err, &out)
			}
			if cfg.Keys[0].Provider != row.want {
				t.Errorf("the key is of %s", cfg.Keys[0].Provider)
			}
			for line := range strings.Lines(out.String()) {
				if len(line) > 121 || strings.TrimRight(line, " \n") != strings.TrimSuffix(line, "\n") {
					t.Errorf("a line that is too long, or ends with a space: %q", line)
				}
			}
		})
	}

	var out bytes.Buffer
	if code := run(t.Context(), []string{"config", "example", "--provider", "kms"}, &out, &out); code != 2 ||
		!strings.Contains(out.String(), "choose one of aws-kms, gcp-kms") {
		t.Errorf("exit code %d: %s", code, &out)
	}
}

func TestConfigValidate(t *testing.T) {
	dir := t.TempDir()
	var example bytes.Buffer
	run(t.Context(), []string{"config", "example", "--provider", "vault"}, &example, &example)
	valid, wrong := filepath.Join(dir, "valid.yaml"), filepath.Join(dir, "wrong.yaml")
	for path, text := range map[string]string{
		valid: example.String(),
		wrong: strings.Replace(example.String(), "\nlisten:", "\nlisen:", 1),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	for _, row := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"valid", []string{valid}, 0, valid + " is valid\nnot checked, because they do not exist here: ${ORIGIN_ACCESS_KEY}, "},
		{"wrong", []string{wrong}, 1, wrong + `:3:1: unknown key "lisen" in the file (did you mean "listen"?)`},
		{"valid, JSON", []string{valid, "--format", "json"}, 0, `"problems":0,"not_checked":["${ORIGIN_ACCESS_KEY}"`},
		{"wrong, JSON", []string{wrong, "--format", "json"}, 1, `"line":3,"column":1,"error":"unknown key \"lisen\"`},
		{"no such file", []string{filepath.Join(dir, "none.yaml")}, 1, "none.yaml"},
		{"no file", nil, 2, "want one FILE"},
		{"no such format", []string{valid, "--format", "xml"}, 2, "text or json"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var out, stderr bytes.Buffer
			code := run(t.Context(), append([]string{"config", "validate"}, row.args...), &out, &stderr)
			if code != row.code || !strings.Contains(out.String()+stderr.String(), row.want) {
				t.Errorf("exit code %d, want %d and %q:\n%s%s", code, row.code, row.want, &out, &stderr)
			}
			if !strings.Contains(row.name, "JSON") {
				return
			}
			for line := range strings.Lines(out.String()) {
				if !json.Valid([]byte(line)) {
					t.Errorf("not JSON: %s", line)
				}
			}
		})
	}
}

func TestQuoteYAML(t *testing.T) {
	for value, want := range map[string]string{
		"my-bucket": "my-bucket", "https://s3.example.com:8443": "https://s3.example.com:8443", "/etc/kms.key": "/etc/kms.key",
		"*": `"*"`, "true": `"true"`, "1234": `"1234"`, "a b": `"a b"`, "a: b": `"a: b"`, "a #b": `"a #b"`,
		"${X}": `"${X}"`, "a,b": `"a,b"`, `a"b`: `"a\"b"`, "a:": `"a:"`,
	} {
		if got, err := quoteYAML(value); err != nil || got != want {
			t.Errorf("%s: %s, want %s; %v", value, got, want, err)
		}
	}
}

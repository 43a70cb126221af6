package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// A printed binding goes into the configuration, and cmekproxy check reports
// on it.
func TestKeysBind(t *testing.T) {
	server := kmstest.StartAzure(t)
	plain := server.NewKey(t, "RSA-2048", nil)
	bind := func(w kms.Wrapper, again string) string {
		t.Helper()
		var out bytes.Buffer
		if err := printBinding(t.Context(), w, again, &out); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out.String())
	}

	open := func(binding string) *kms.Azure {
		return server.OpenKey(t, "key-1", func(c *kms.AzureConfig) { c.Bindings = []string{binding} })
	}

	check := func(w *kms.Azure) string {
		t.Helper()
		wrapped, _, err := kms.RoundTrip(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}

		detail, err := checkBindings(t.Context(), w, kms.VersionOf(w.KeyID(), wrapped))
		if err != nil {
			t.Fatal(err)
		}
		return detail
	}

	if detail := check(plain); !strings.Contains(detail, "public key") {
		t.Errorf("without a binding: %q", detail)
	}
	if detail := check(server.NewKey(t, "oct-HSM", nil)); detail != "" {
		t.Errorf("a symmetric key: %q", detail)
	}

	binding := bind(plain, "")
	bound := open(binding)
	if detail := check(bound); detail != "; 1 bindings" {
		t.Errorf("with a binding: %q", detail)
	}
	server.RotateKey(t, "key-1")

	if detail := check(bound); !strings.Contains(detail, "--again 1") {
		t.Errorf("under an earlier version: %q", detail)
	}
	if detail := check(open(bind(bound, binding))); detail != "; 1 bindings" {
		t.Errorf("wrapped again: %q", detail)
	}

	server.SetEnabled("key-1", 1, false)
	if _, err := checkBindings(t.Context(), open(binding), ""); !kms.IsRevoked(err) {
		t.Errorf("under a disabled version: %v", err)
	}
}

func TestKeysBindCommandLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	config := "clients: [{name: a, access_key: aaaaaaaaaaaaaaaaaaaa, secret_key: bbbbbbbbbbbbbbbbbbbbbbbb, " +
		"allow: [{buckets: ['*'], actions: [read]}]}]\n" +
		"listen: '127.0.0.1:0'\n" +
		"origin: {endpoint: 'http://127.0.0.1:1', access_key: a, secret_key: b, region: r}\n" +
		"keys:\n  - {name: local, provider: local, key_file: /k}\n" +
		"  - {name: hsm, provider: azure-keyvault, key_id: 'https://v.managedhsm.azure.net/keys/k', algorithm: A256KW}\n" +
		"  - {name: rsa, provider: azure-keyvault, key_id: 'https://v.vault.azure.net/keys/k'}\n" +
		"encryption: {rules: [{buckets: ['*'], key: local}]}\n"
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}

	for want, args := range map[string][]string{
		"want one NAME of a key":                {"bind", "--config", path},
		`no key "none"`:                         {"bind", "none", "--config", path},
		"key local needs no binding":            {"bind", "local", "--config", path},
		"key hsm needs no binding":              {"bind", "hsm", "--config", path},
		"--again is 1, and the key has 0 bindi": {"bind", "rsa", "--again", "1", "--config", path},
	} {
		var out bytes.Buffer
		if code := run(t.Context(), append([]string{"keys"}, args...), &out, &out); code == 0 ||
			!strings.Contains(out.String(), want) {
			t.Errorf("%q: exit code %d, %q", args, code, out.String())
		}
	}
}

package kms_test

import (
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

func TestAWSImpostors(t *testing.T) {
	server := kmstest.StartTest(t)
	w := server.NewKey(t, nil)
	kmstest.RunImpostors(t, "aws", w, server.SetImpostor)
}

func TestVaultImpostors(t *testing.T) {
	server := kmstest.StartVault(t)
	kmstest.RunImpostors(t, "vault", server.NewKey(t, nil), server.SetImpostor)
}

// Impostors can answer a login, too. Vault's own 404 without a text is
// still a refusal.
func TestVaultImpostorsAtLogin(t *testing.T) {
	server := kmstest.StartVault(t)
	server.AddAppRole("role", "secret", kmstest.VaultToken{})

	for name, login := range map[string]kms.VaultLogin{
		"token":   {Token: server.NewToken(kmstest.VaultToken{})},
		"AppRole": {AppRole: &kms.VaultAppRole{RoleID: "role", SecretID: "secret"}},
	} {
		for _, i := range kmstest.Impostors {
			if i.Own == "vault" {
				continue
			}

			server.SetImpostor(&i)
			w := server.NewKey(t, func(c *kms.VaultConfig) { c.Login = login })
			_, _, err := kms.Generate(t.Context(), w, nil)
			wantKind(t, name+": "+i.Name, err, kms.Unreachable)
			server.SetImpostor(nil)

			if _, _, err := kms.Generate(t.Context(), w, nil); err != nil {
				t.Errorf("%s: after %s: %v", name, i.Name, err)
			}
		}
	}

	w := server.NewKey(t, nil)
	_, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	server.SetImpostor(&kmstest.Impostor{Status: 404, Type: "application/json", Body: `{"errors":[]}`})
	wantAll(t, "Vault's own 404", w, blob, nil, kms.NotFound)
}

func TestGCPImpostors(t *testing.T) {
	server := kmstest.StartGCP(t)
	w := server.NewKey(t, func(c *kms.GCPConfig) { c.MaxAttempts = 1 })
	kmstest.RunImpostors(t, "gcp", w, server.SetImpostor)
}

func TestAzureImpostors(t *testing.T) {
	server := kmstest.StartAzure(t)
	kmstest.RunImpostors(t, "azure", server.NewKey(t, "oct-HSM", nil), server.SetImpostor)
}

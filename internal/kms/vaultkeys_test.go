package kms_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// TestVaultKeysShareALogin: many keys need one token.
func TestVaultKeysShareALogin(t *testing.T) {
	t.Parallel()
	server := kmstest.StartVault(t)
	server.AddAppRole("role", "secret", kmstest.VaultToken{})
	keys, err := kms.NewVaultKeys(kms.VaultConfig{
		Address: server.URL(), Namespace: "", Timeout: 2 * time.Second, MaxAttempts: 1,
		Login: kms.VaultLogin{AppRole: &kms.VaultAppRole{RoleID: "role", SecretID: "secret"}},
	})
	if err != nil {
		t.Fatal(err)
	}

	for i := range 20 {
		name := fmt.Sprint("tenant-", i)
		server.CreateKey(name, "aes256-gcm96", false)
		w, err := keys.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if w.KeyID() != "vault:transit/"+name {
			t.Errorf("id %s", w.KeyID())
		}
		if _, _, err := kms.RoundTrip(t.Context(), w); err != nil {
			t.Error(err)
		}
	}
	if n := server.Calls()["auth/approle/login"]; n != 1 {
		t.Errorf("%d logins: %v", n, server.Calls())
	}

	if _, err := keys.Open("../sys"); err == nil {
		t.Error("a path was accepted as the name of a key")
	}
}

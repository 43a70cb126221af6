package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// TestKeySecretsInFilesAreReadAgain: a Vault token that was replaced in its
// file is used without a restart.
func TestKeySecretsInFilesAreReadAgain(t *testing.T) {
	t.Parallel()
	t.Run("a key", func(t *testing.T) { testKeySecret(t, "key") })
	t.Run("a template", func(t *testing.T) { testKeySecret(t, "of.${bucket}") })
}

func testKeySecret(t *testing.T, keyID string) {
	t.Helper()
	t.Parallel()
	vault := kmstest.StartVault(t)
	for _, name := range []string{"key", "of.vault"} {
		vault.CreateKey(name, "aes256-gcm96", true)
	}
	token := &secretVolume{t: t, dir: t.TempDir()}
	token.write(vault.NewToken(kmstest.VaultToken{}))
	listen, admin := freePort(t), freePort(t)

	config := writeConfig(
		t,
		sink(t).URL,
		listen,
		admin,
		"rules: [",
		"rules: [{buckets: [vault], key: vault}, ",
		"keys: [",
		fmt.Sprintf(
			"keys: [{name: vault, provider: vault-transit, address: %q, key_id: %q, login: {token: \"file:%s\"}}, ",
			vault.URL(), keyID,
			token.path(),
		),
	)

	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	put := func() error {
		bucket, key := "vault", "key"
		_, err := client(
			listen,
			"appkey",
			"appsecretappsecret",
		).PutObject(
			t.Context(),
			&s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x")},
		)

		return err
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}

	vault.RevokeTokens()
	if put() == nil {
		t.Fatal("a token that was revoked still works")
	}
	token.write(vault.NewToken(kmstest.VaultToken{}))
	eventually(t, "the new token is used", func() bool { return put() == nil })
	s.end(t)
}

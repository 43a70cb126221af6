package kms_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

func TestVaultContract(t *testing.T) {
	server := kmstest.StartVault(t)
	kmstest.RunContract(t, func(t *testing.T) kms.Wrapper { return server.NewKey(t, nil) }, nil)
}

// All suitable types of keys, derived and not.
func TestVaultContractByKeyType(t *testing.T) {
	for _, kind := range []string{"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"} {
		for _, derived := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s derived=%v", kind, derived), func(t *testing.T) {
				server := kmstest.StartVault(t)
				n := 0
				kmstest.RunContract(t, func(t *testing.T) kms.Wrapper {
					n++
					name := fmt.Sprintf("k%d", n)
					server.CreateKey(name, kind, derived)
					return server.OpenKey(t, name, nil)
				}, nil)
			})
		}
	}

	server := kmstest.StartVault(t)
	server.CreateKey("rsa", "rsa-2048", false)
	_, _, err := kms.Generate(t.Context(), server.OpenKey(t, "rsa", nil), nil)
	wantKind(t, "a key that takes no associated data", err, kms.Invalid)
}

// wantKind checks the kind of an error, and that only errors about the key
// count as revoked.
func wantKind(t *testing.T, name string, err error, want kms.Kind) {
	t.Helper()
	e, ok := errors.AsType[*kms.Error](err)
	if !ok || e.Kind != want {
		t.Errorf("%s: %v, want %v", name, err, want)
	}
}

// wantAll is wantKind for wrapping and unwrapping.
func wantAll(t *testing.T, name string, w kms.Wrapper, blob []byte, ec kms.EncryptionContext, want kms.Kind) {
	t.Helper()
	_, err := kms.Unwrap(t.Context(), w, blob, ec)
	wantKind(t, name+": unwrap", err, want)
	_, _, err = kms.Generate(t.Context(), w, ec)
	wantKind(t, name+": generate", err, want)
}

// wantDEK checks that a blob unwraps to a DEK.
func wantDEK(t *testing.T, name string, w kms.Wrapper, blob []byte, ec kms.EncryptionContext, dek []byte) {
	t.Helper()
	if got, err := kms.Unwrap(t.Context(), w, blob, ec); err != nil || !bytes.Equal(got, dek) {
		t.Errorf("%s: another DEK, or %v", name, err)
	}
}

func TestVaultKeyStates(t *testing.T) {
	server := kmstest.StartVault(t)
	w, ec := server.NewKey(t, nil), kmstest.Context("b", "k")
	dek, blob, err := kms.Generate(t.Context(), w, ec)
	must(t, err)

	if !strings.HasPrefix(string(blob), "vault:v1:") || len(blob) != 89 {
		t.Errorf("blob %q of %d bytes", blob, len(blob))
	}

	server.RotateKey("key-1")
	wantDEK(t, "after a rotation", w, blob, ec, dek)
	dek2, blob2, err := kms.Generate(t.Context(), w, ec)
	must(t, err)

	if !strings.HasPrefix(string(blob2), "vault:v2:") {
		t.Errorf("after a rotation, blob %q", blob2)
	}

	wantDEK(t, "under the new version", w, blob2, ec, dek2)
	for _, wrong := range []string{
		"vault:v1:", "vault:v3:", "vault:v02:", "vault:v0:", "vault:v-1:", "vault:v:",
		"vault:v99999999999:",
	} {
		forged := append([]byte(wrong), blob2[len("vault:v2:"):]...)
		_, err := w.Unwrap(t.Context(), forged, ec)
		wantKind(t, "forged version "+wrong, err, kms.InvalidCiphertext)
	}

	server.SetMinDecryptionVersion("key-1", 2)
	_, err = w.Unwrap(t.Context(), blob, ec)
	wantKind(t, "below min_decryption_version", err, kms.Disabled)
	wantDEK(t, "at min_decryption_version", w, blob2, ec, dek2)
	server.SetMinDecryptionVersion("key-1", 1)
	wantDEK(t, "min_decryption_version set back", w, blob, ec, dek)

	server.SoftDeleteKey("key-1", true)
	wantAll(t, "soft-deleted", w, blob, ec, kms.PendingDeletion)
	server.SoftDeleteKey("key-1", false)
	wantDEK(t, "restored", w, blob, ec, dek)

	server.Deny(true)
	wantAll(t, "policy taken away", w, blob, ec, kms.Denied)
	server.Deny(false)
	wantDEK(t, "policy given back", w, blob, ec, dek)

	server.DeleteKey("key-1")
	_, err = w.Unwrap(t.Context(), blob, ec)
	wantKind(t, "deleted: unwrap", err, kms.NotFound)
	_, _, err = kms.Generate(t.Context(), w, ec)
	wantKind(t, "deleted: generate", err, kms.Denied) // this would be a create, but the policy only allows update
	server.CreateKey("key-1", "aes256-gcm96", false)
	_, err = w.Unwrap(t.Context(), blob, ec)

	wantKind(t, "another key by the same name", err, kms.InvalidCiphertext)
}

func TestVaultNotFound(t *testing.T) {
	server := kmstest.StartVault(t)
	w := server.NewKey(t, func(c *kms.VaultConfig) { c.Mount = "elsewhere" })
	_, _, err := kms.Generate(t.Context(), w, nil)
	wantKind(t, "no such mount", err, kms.NotFound)
	token := server.NewToken(kmstest.VaultToken{CreateKeys: true})
	w = server.OpenKey(t, "none", func(c *kms.VaultConfig) { c.Login.Token = token })
	_, err = w.Unwrap(t.Context(), []byte("vault:v1:"+base64.StdEncoding.EncodeToString(make([]byte, 60))), nil)
	wantKind(t, "no such key", err, kms.NotFound)
}

func TestVaultNamespace(t *testing.T) {
	t.Setenv("VAULT_NAMESPACE", "of/another")
	t.Setenv("VAULT_TOKEN", "hvs.of-another")
	t.Setenv("VAULT_ADDR", "http://127.0.0.1:1")
	server := kmstest.StartVault(t)
	if _, _, err := kms.Generate(t.Context(), server.NewKey(t, nil), nil); err != nil {
		t.Errorf("the environment was looked at: %v", err)
	}

	server.AddAppRole("role", "secret", kmstest.VaultToken{})
	byRole := server.NewKey(t, func(c *kms.VaultConfig) {
		c.Login.AppRole = &kms.VaultAppRole{RoleID: "role", SecretID: "secret"}
	})
	if _, _, err := kms.Generate(t.Context(), byRole, nil); err != nil {
		t.Errorf("the environment's token was sent with a login: %v", err)
	}

	server.SetNamespace("team/app")
	in := server.NewKey(t, func(c *kms.VaultConfig) { c.Namespace = "/team/app/" })
	if _, _, err := kms.Generate(t.Context(), in, nil); err != nil {
		t.Error(err)
	}
	if want := "vault:team/app/transit/key-3"; in.KeyID() != want {
		t.Errorf("key id %q, want %q", in.KeyID(), want)
	}

	_, _, err := kms.Generate(t.Context(), server.NewKey(t, nil), nil)
	wantKind(t, "another namespace", err, kms.NotFound)
	own := server.NewKey(t, func(c *kms.VaultConfig) { c.EnvelopeID = "second-vault/hr" })
	if own.KeyID() != "second-vault/hr" {
		t.Errorf("key id %q", own.KeyID())
	}
}

func TestVaultThrottledAndUnreachable(t *testing.T) {
	server := kmstest.StartVault(t)
	w := server.NewKey(t, func(c *kms.VaultConfig) { c.Timeout = 300 * time.Millisecond })
	_, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)

	for _, c := range []struct {
		name    string
		trouble kmstest.Trouble
		want    kms.Kind
	}{
		{"rate limit", kmstest.Trouble{ThrottleNext: -1}, kms.Throttled},
		{"sealed", kmstest.Trouble{Fail: 503, FailText: "Vault is sealed"}, kms.Unreachable},
		{"storage down", kmstest.Trouble{Fail: 500, FailText: "internal error"}, kms.Unreachable},
		{"a replica behind", kmstest.Trouble{Fail: 412, FailText: "required index state not present"}, kms.Unreachable},
		{"not initialized", kmstest.Trouble{Fail: 501}, kms.Unreachable},
		{"a secondary for disasters", kmstest.Trouble{Fail: 472}, kms.Unreachable},
		{"a performance standby", kmstest.Trouble{Fail: 473}, kms.Unreachable},
		{"a status that is not in the list", kmstest.Trouble{Fail: 418}, kms.Unreachable},
		{"not found", kmstest.Trouble{Fail: 404}, kms.NotFound},
		{"method", kmstest.Trouble{Fail: 405}, kms.Invalid},
		{"hang", kmstest.Trouble{Hang: true}, kms.Unreachable},
		{"drop", kmstest.Trouble{Drop: true}, kms.Unreachable},
	} {
		server.SetTrouble(c.trouble)
		start := time.Now()
		wantAll(t, c.name, w, blob, nil, c.want)
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("%s: it took %v, with a timeout of 300 ms", c.name, d)
		}
	}

	server.SetTrouble(kmstest.Trouble{Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err = w.Unwrap(ctx, blob, nil)
	wantKind(t, "canceled in flight", err, kms.Canceled)
	server.Close()

	wantAll(t, "no listener", w, blob, nil, kms.Unreachable)
}

func TestVaultRetries(t *testing.T) {
	server := kmstest.StartVault(t)
	w := server.NewKey(t, func(c *kms.VaultConfig) { c.MaxAttempts = 3; c.Timeout = 10 * time.Second })
	server.SetTrouble(kmstest.Trouble{ThrottleNext: 2})
	if _, _, err := kms.Generate(t.Context(), w, nil); err != nil {
		t.Errorf("throttled twice, then served: %v", err)
	}
	if n := server.Calls()["encrypt"]; n != 3 {
		t.Errorf("%d attempts, want 3", n)
	}
}

// login returns a server, and a key that logs in with AppRole and gets
// tokens of that kind.
func login(t *testing.T, token kmstest.VaultToken) (*kmstest.VaultServer, *kms.Vault) {
	server := kmstest.StartVault(t)
	server.AddAppRole("role", "secret", token)
	return server, server.NewKey(t, func(c *kms.VaultConfig) {
		c.Login.AppRole = &kms.VaultAppRole{RoleID: "role", SecretID: "secret"}
	})
}

func TestVaultLogsInAgain(t *testing.T) {
	server, w := login(t, kmstest.VaultToken{TTL: time.Hour, Renewable: true})
	logins := func() int { return server.Calls()["auth/approle/login"] }
	dek, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	wantDEK(t, "the second call", w, blob, nil, dek)

	if logins() != 1 {
		t.Errorf("%d logins for two calls", logins())
	}

	server.RevokeTokens()
	wantDEK(t, "after the token ended", w, blob, nil, dek)

	if logins() != 2 {
		t.Errorf("%d logins, want 2", logins())
	}

	server.RevokeTokens()
	var wg sync.WaitGroup

	for range 16 {
		wg.Go(func() { wantDEK(t, "many at a time", w, blob, nil, dek) })
	}

	wg.Wait()
	if logins() != 3 {
		t.Errorf("%d logins for 16 calls that met an ended token, want one more than 2", logins())
	}

	// A denied key must not cause constant logins.
	server.Deny(true)

	for range 10 {
		wantAll(t, "denied", w, blob, nil, kms.Denied)
	}

	if logins() != 4 {
		t.Errorf("%d logins for 20 refusals, want one more than 3", logins())
	}
	server.Deny(false)
	wantDEK(t, "no longer denied", w, blob, nil, dek)
}

func TestVaultRefusedLogin(t *testing.T) {
	server, w := login(t, kmstest.VaultToken{TTL: time.Hour})
	_, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	server.RemoveLogins()
	server.RevokeTokens()
	wantAll(t, "the role was deleted", w, blob, nil, kms.Denied)
	_, _, err = kms.Generate(t.Context(), w, nil)
	if strings.Contains(fmt.Sprintf("%v %#v", err, err), "secret") {
		t.Errorf("the error quotes the secret id: %v", err)
	}

	w = server.NewKey(t, func(c *kms.VaultConfig) {
		c.Login.AppRole = &kms.VaultAppRole{RoleID: "role", SecretIDFile: "/nonexistent"}
	})

	_, _, err = kms.Generate(t.Context(), w, nil)
	wantKind(t, "no file of the secret id", err, kms.Internal)
}

func TestVaultRenewsTokens(t *testing.T) {
	t.Parallel()
	server, w := login(t, kmstest.VaultToken{TTL: 2 * time.Second, Renewable: true, MaxTTL: time.Hour})
	_, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)

	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, err := kms.Unwrap(t.Context(), w, blob, nil); err != nil {
			t.Fatal(err)
		}
	}

	if calls := server.Calls(); calls["auth/approle/login"] != 1 || calls["auth/token/renew-self"] < 2 {
		t.Errorf("%d logins and %d renewals in twice the life of a token, want 1 and 2 or 3: %v",
			calls["auth/approle/login"], calls["auth/token/renew-self"], calls)
	}
}

// A token that cannot be renewed, or not for long, is replaced before it
// expires, so no call fails.
func TestVaultReplacesTokens(t *testing.T) {
	t.Parallel()
	for name, token := range map[string]kmstest.VaultToken{
		"not renewable": {TTL: 2 * time.Second},
		"max_ttl":       {TTL: 2 * time.Second, Renewable: true, MaxTTL: 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, w := login(t, token)
			_, blob, err := kms.Generate(t.Context(), w, nil)
			must(t, err)
			n := 0
			for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				_, err := kms.Unwrap(t.Context(), w, blob, nil)
				must(t, err)
				n++
			}

			calls := server.Calls()
			if calls["decrypt"] != n {
				t.Errorf("%d requests for %d calls: a token was used after its end", calls["decrypt"], n)
			}
			if calls["auth/approle/login"] < 2 {
				t.Errorf("%d logins in twice the life of a token", calls["auth/approle/login"])
			}
		})
	}
}

// If Vault refuses a renewal, a token that still works remains in use.
func TestVaultKeepsATokenThatWorks(t *testing.T) {
	t.Parallel()
	server, w := login(t, kmstest.VaultToken{TTL: 3 * time.Second})
	dek, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	server.RemoveLogins()
	time.Sleep(2100 * time.Millisecond)
	wantDEK(t, "the login is refused, the token works", w, blob, nil, dek)
	time.Sleep(time.Second)
	wantAll(t, "the token has ended", w, blob, nil, kms.Denied)
}

func TestVaultTokens(t *testing.T) {
	server := kmstest.StartVault(t)
	file := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(file, []byte(server.NewToken(kmstest.VaultToken{})+"\n"), 0o600))
	w := server.NewKey(t, func(c *kms.VaultConfig) { c.Login.TokenFile = file })
	dek, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	server.RevokeTokens()
	must(t, os.WriteFile(file, []byte(server.NewToken(kmstest.VaultToken{})), 0o600))
	wantDEK(t, "the agent wrote another token", w, blob, nil, dek)

	limited := server.NewToken(kmstest.VaultToken{NoDefaultPolicy: true})
	w = server.NewKey(t, func(c *kms.VaultConfig) { c.Login.Token = limited })
	_, blob, err = kms.Generate(t.Context(), w, nil)
	if err != nil {
		t.Errorf("a token that may not look itself up: %v", err)
	}

	server.RevokeTokens()
	wantAll(t, "a token that was given, and ended", w, blob, nil, kms.Denied)
}

// Run keeps a configured token alive. Without it, the token expires.
func TestVaultRun(t *testing.T) {
	t.Parallel()
	server := kmstest.StartVault(t)
	open := func() *kms.Vault {
		token := server.NewToken(kmstest.VaultToken{TTL: 2 * time.Second, Renewable: true})
		return server.NewKey(t, func(c *kms.VaultConfig) { c.Login.Token = token })
	}

	kept, left := open(), open()
	_, _, err := kms.Generate(t.Context(), left, nil)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		kept.Run(ctx)
	}()

	time.Sleep(3500 * time.Millisecond)
	if _, _, err := kms.Generate(t.Context(), kept, nil); err != nil {
		t.Errorf("with Run: %v", err)
	}

	_, _, err = kms.Generate(t.Context(), left, nil)
	wantKind(t, "without Run", err, kms.Denied)
	cancel()

	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("Run does not end")
	}
}

func TestVaultKubernetes(t *testing.T) {
	server := kmstest.StartVault(t)
	server.AddKubernetes("proxy", "jwt-1", kmstest.VaultToken{TTL: time.Hour})
	file := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(file, []byte("jwt-1"), 0o600))

	w := server.NewKey(t, func(c *kms.VaultConfig) {
		c.Login.Kubernetes = &kms.VaultKubernetes{Role: "proxy", TokenFile: file}
	})

	dek, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)

	// Kubernetes replaces the token of a service account, and the old one
	// expires.
	server.RemoveLogins()
	server.RevokeTokens()
	server.AddKubernetes("proxy", "jwt-2", kmstest.VaultToken{TTL: time.Hour})
	wantAll(t, "the old service account token", w, blob, nil, kms.Denied)
	must(t, os.WriteFile(file, []byte("jwt-2"), 0o600))
	wantDEK(t, "the new one", w, blob, nil, dek)

	_, _, err = kms.Generate(t.Context(), server.NewKey(t, func(c *kms.VaultConfig) {
		c.Login.Kubernetes = &kms.VaultKubernetes{Role: "another", TokenFile: file}
	}), nil)

	wantKind(t, "another role", err, kms.Denied)
}

func TestVaultConfigsThatAreRefused(t *testing.T) {
	good := kms.VaultConfig{Address: "https://vault:8200", KeyID: "hr", Login: kms.VaultLogin{Token: "t"}}
	for name, change := range map[string]func(*kms.VaultConfig){
		"no address":          func(c *kms.VaultConfig) { c.Address = "" },
		"no scheme":           func(c *kms.VaultConfig) { c.Address = "vault:8200" },
		"password in the URL": func(c *kms.VaultConfig) { c.Address = "https://u:p@vault" },
		"no key":              func(c *kms.VaultConfig) { c.KeyID = "" },
		"path for a key":      func(c *kms.VaultConfig) { c.KeyID = "a/b" },
		"key ends in a dot":   func(c *kms.VaultConfig) { c.KeyID = "a." },
		"mount climbs":        func(c *kms.VaultConfig) { c.Mount = "transit/../sys" },
		"mount with a space":  func(c *kms.VaultConfig) { c.Mount = "a b" },
		"namespace climbs":    func(c *kms.VaultConfig) { c.Namespace = ".." },
		"envelope id":         func(c *kms.VaultConfig) { c.EnvelopeID = "two words" },
		"long envelope id":    func(c *kms.VaultConfig) { c.EnvelopeID = strings.Repeat("x", 513) },
		"no login":            func(c *kms.VaultConfig) { c.Login = kms.VaultLogin{} },
		"two logins":          func(c *kms.VaultConfig) { c.Login.TokenFile = "/t" },
		"no role id":          func(c *kms.VaultConfig) { c.Login = kms.VaultLogin{AppRole: &kms.VaultAppRole{}} },
		"no kubernetes role": func(c *kms.VaultConfig) {
			c.Login = kms.VaultLogin{Kubernetes: &kms.VaultKubernetes{}}
		},
		"no CA file":        func(c *kms.VaultConfig) { c.CAFile = "/nonexistent" },
		"no CA in the file": func(c *kms.VaultConfig) { c.CAFile = "vault_test.go" },
		"transport and CA":  func(c *kms.VaultConfig) { c.CAFile, c.Transport = "x", http.DefaultTransport },
		"auth method's mount": func(c *kms.VaultConfig) {
			c.Login = kms.VaultLogin{AppRole: &kms.VaultAppRole{RoleID: "r", Mount: "../sys"}}
		},
		"two kinds of secrets": func(c *kms.VaultConfig) {
			c.Login = kms.VaultLogin{AppRole: &kms.VaultAppRole{RoleID: "r", SecretID: "s", SecretIDFile: "/s"}}
		},
	} {
		cfg := good
		change(&cfg)
		_, err := kms.NewVault(cfg)
		wantKind(t, name, err, kms.Invalid)
	}

	if w, err := kms.NewVault(good); err != nil || w.KeyID() != "vault:transit/hr" {
		t.Errorf("a good one, with nothing listening: %v", err)
	}
}

// Even if a broken or hostile server quotes requests and responses, errors
// must not contain a DEK.
func TestVaultErrorsHoldNoKeys(t *testing.T) {
	server := kmstest.StartVault(t)
	w := server.NewKey(t, nil)
	dek := kmstest.NewDEK()
	encoded := base64.StdEncoding.EncodeToString(dek)
	blob, err := w.Wrap(t.Context(), dek, nil)
	must(t, err)

	for name, trouble := range map[string]kmstest.Trouble{
		"broken answer": {Answer: `{"data":{"plaintext":"` + encoded + `"`},
		"wrong type":    {Answer: `{"data":{"plaintext":["` + encoded + `"]}}`},
		"no base64":     {Answer: `{"data":{"plaintext":"` + encoded + `!","ciphertext":"` + encoded + `"}}`},
		"quoted":        {Fail: 400, FailText: "bad plaintext " + encoded},
	} {
		server.SetTrouble(trouble)
		_, wrapErr := w.Wrap(t.Context(), dek, nil)
		errs := []error{wrapErr}

		if trouble.Fail == 0 { // only Wrap sends the DEK to the server
			_, unwrapErr := w.Unwrap(t.Context(), blob, nil)
			errs = append(errs, unwrapErr)
		}

		for _, err := range errs {
			wantNoKey(t, name, err, dek)
			if _, ok := errors.AsType[*api.ResponseError](err); ok {
				t.Errorf("%s: the client's error was kept", name)
			}
		}
	}

	server.SetTrouble(kmstest.Trouble{Answer: `{"request_id":"1","data":{"ciphertext":"vault:v1:AAAA"}}`})
	_, err = w.Wrap(t.Context(), dek, nil)
	wantKind(t, "a ciphertext that cannot be one", err, kms.Internal)
	server.SetTrouble(kmstest.Trouble{Answer: `{"request_id":"1","data":{"plaintext":"AAAA"}}`})
	_, err = kms.Unwrap(t.Context(), w, blob, nil)

	wantKind(t, "a plaintext that is no DEK", err, kms.Internal)
}

// wantNoKey looks for the DEK in everything that an error shows.
func wantNoKey(t *testing.T, name string, err error, dek []byte) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", name)
		return
	}

	deep, _ := json.Marshal(err)
	text := fmt.Sprintf("%v %+v %#v %s", err, err, err, deep)
	for e := errors.Unwrap(err); e != nil; e = errors.Unwrap(e) {
		text += fmt.Sprintf("%+v %#v", e, e)
	}

	for _, form := range []string{
		base64.StdEncoding.EncodeToString(dek)[:12], base64.RawURLEncoding.EncodeToString(dek)[:12],
		hex.EncodeToString(dek)[:12], strings.ToUpper(hex.EncodeToString(dek))[:12], string(dek[:8]),
		strings.Trim(fmt.Sprintf("%d", dek[:8]), "[]"),
	} {
		if strings.Contains(text, form) {
			t.Errorf("%s: the error holds the DEK", name)
		}
	}
}

func TestVaultTLS(t *testing.T) {
	plain := kmstest.StartVault(t)
	secure := httptest.NewTLSServer(plain)
	defer secure.Close()

	ca := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}),
		0o600))

	w := plain.NewKey(t, func(c *kms.VaultConfig) { c.Address, c.CAFile = secure.URL, ca })
	if _, _, err := kms.Generate(t.Context(), w, nil); err != nil {
		t.Errorf("with the CA file: %v", err)
	}

	t.Setenv("VAULT_SKIP_VERIFY", "true")
	w = plain.NewKey(t, func(c *kms.VaultConfig) { c.Address = secure.URL })
	_, _, err := kms.Generate(t.Context(), w, nil)
	wantKind(t, "an unknown certificate", err, kms.Unreachable)
}

// A standby server that does not forward requests redirects them once.
func TestVaultRedirects(t *testing.T) {
	server := kmstest.StartVault(t)
	standby := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, server.URL()+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer standby.Close()

	w := server.NewKey(t, func(c *kms.VaultConfig) { c.Address = standby.URL })
	dek, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	wantDEK(t, "through a standby server", w, blob, nil, dek)

	// A token is not sent from https to http.
	secure := httptest.NewTLSServer(standby.Config.Handler)
	defer secure.Close()

	w = server.NewKey(t, func(c *kms.VaultConfig) { c.Address, c.Transport = secure.URL, secure.Client().Transport })
	before := server.Calls()
	_, _, err = kms.Generate(t.Context(), w, nil)
	if err == nil || !maps.Equal(before, server.Calls()) {
		t.Errorf("a redirect from https to http was followed: %v", err)
	}
}

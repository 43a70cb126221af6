package kmstest_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// send makes one HTTP request and returns status and body.
func send(t *testing.T, client *http.Client, method, url, body string, header map[string]string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	must(t, err)

	for name, value := range header {
		r.Header.Set(name, value)
	}

	resp, err := client.Do(r)
	must(t, err)
	defer resp.Body.Close()

	answer, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(answer)
}

func TestVaultStrictness(t *testing.T) {
	server := kmstest.StartVault(t)
	server.CreateKey("k", "aes256-gcm96", false)
	server.CreateKey("derived", "aes256-gcm96", true)
	good := server.NewToken(kmstest.VaultToken{})
	plain := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for _, c := range []struct {
		name, method, path, body, token string
		status                          int
		text                            string
	}{
		{"encrypt", "PUT", "transit/encrypt/k", `{"plaintext":"` + plain + `"}`, good, 200, `"ciphertext":"vault:v1:`},
		{
			"POST too", "POST", "transit/encrypt/k", `{"plaintext":"` + plain + `"}`, good, 200,
			`"ciphertext":"vault:v1:`,
		},
		{"no token", "PUT", "transit/encrypt/k", `{}`, "", 403, "invalid token"},
		{"bad token", "PUT", "transit/encrypt/k", `{}`, "hvs.x", 403, "invalid token"},
		{"GET", "GET", "transit/encrypt/k", `{}`, good, 405, "unsupported operation"},
		{
			"unknown parameter", "PUT", "transit/encrypt/k", `{"plaintext":"` + plain + `","colour":"red"}`, good, 400,
			"parse",
		},
		{"two objects", "PUT", "transit/encrypt/k", `{"plaintext":"` + plain + `"}{}`, good, 400, "parse"},
		{"no base64", "PUT", "transit/encrypt/k", `{"plaintext":"!"}`, good, 400, "base64"},
		{
			"no context for a derived key", "PUT", "transit/encrypt/derived", `{"plaintext":"` + plain + `"}`, good,
			400, "context",
		},
		{"another engine", "PUT", "kv/encrypt/k", `{}`, good, 404, "no handler for route"},
		{"another verb", "PUT", "transit/sign/k", `{}`, good, 404, "unsupported path"},
		{"no ciphertext", "PUT", "transit/decrypt/k", `{}`, good, 400, "missing ciphertext"},
		{"no prefix", "PUT", "transit/decrypt/k", `{"ciphertext":"v1:AAAA"}`, good, 400, "no prefix"},
		{"a version to come", "PUT", "transit/decrypt/k", `{"ciphertext":"vault:v2:AAAA"}`, good, 400, "too new"},
		{
			"no key", "PUT", "transit/decrypt/none", `{"ciphertext":"vault:v1:AAAA"}`, good, 400,
			"encryption key not found",
		},
		{"login with a token", "PUT", "auth/approle/login", `{"role_id":"x"}`, good, 400, "token"},
		{"login with an unknown role", "PUT", "auth/approle/login", `{"role_id":"x"}`, "", 400, "invalid role or secret ID"},
		{
			"renewal of a token that is not renewable", "PUT", "auth/token/renew-self", `{"increment":0}`, good, 400,
			"not renewable",
		},
	} {
		header := map[string]string{"X-Vault-Request": "true", "X-Vault-Token": c.token}
		if c.token == "" {
			delete(header, "X-Vault-Token")
		}

		got, body := send(t, http.DefaultClient, c.method, server.URL()+"/v1/"+c.path, c.body, header)
		if got != c.status || !strings.Contains(body, c.text) {
			t.Errorf("%s: %d %s, want %d with %q", c.name, got, body, c.status, c.text)
		}
		if got >= 400 && !strings.HasPrefix(body, `{"errors":["`) {
			t.Errorf("%s: the body is not Vault's: %s", c.name, body)
		}
	}

	if got, _ := send(t, http.DefaultClient, "PUT", server.URL()+"/v1/transit/encrypt/k", `{}`, nil); got != 412 {
		t.Errorf("without X-Vault-Request: %d", got)
	}

	// With a policy that allows "create", a missing key is created, as in
	// Vault.
	creator := map[string]string{
		"X-Vault-Request": "true", "X-Vault-Token": server.NewToken(kmstest.VaultToken{CreateKeys: true}),
	}
	if got, body := send(t, http.DefaultClient, "PUT", server.URL()+"/v1/transit/encrypt/new", `{"plaintext":"`+
		plain+`"}`, creator); got != 200 {
		t.Errorf("create: %d %s", got, body)
	}
}

func TestAzureStrictness(t *testing.T) {
	server := kmstest.StartAzure(t)
	server.CreateKey(t, "k", "oct-HSM")
	server.CreateKey(t, "r", "RSA-2048")

	token, err := server.Credential().GetToken(t.Context(), policy.TokenRequestOptions{
		Scopes: []string{"https://vault.azure.net/.default"}, TenantID: "72f988bf-0000-0000-0000-2d7cd011db47",
	})

	must(t, err)
	if _, err := server.Credential().GetToken(t.Context(),
		policy.TokenRequestOptions{Scopes: []string{"x"}}); err == nil {
		t.Error("a token of another scope")
	}

	value := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	good, version := `{"alg":"A256KW","value":"`+value+`"}`, "?api-version=2025-07-01"
	for _, c := range []struct {
		name, method, path, body, token string
		status                          int
		code                            string
	}{
		{"wrap", "POST", "/keys/k/wrapkey" + version, good, token.Token, 200, ""},
		{"no token", "POST", "/keys/r/wrapkey" + version, good, "", 401, "Unauthorized"},
		{"no token, Managed HSM", "POST", "/keys/k/wrapkey" + version, good, "", 401, ""},
		{"bad token", "POST", "/keys/k/wrapkey" + version, good, "x", 401, "Unauthorized"},
		{"no API version", "POST", "/keys/k/wrapkey", good, token.Token, 404, "NotFound"},
		{"GET", "GET", "/keys/k/wrapkey" + version, good, token.Token, 404, "NotFound"},
		{"another operation", "POST", "/keys/k/sign" + version, good, token.Token, 404, "NotFound"},
		{"no key", "POST", "/keys/none/wrapkey" + version, good, token.Token, 404, "KeyNotFound"},
		{"no version", "POST", "/keys/k/0/unwrapkey" + version, good, token.Token, 404, "KeyNotFound"},
		{
			"another algorithm", "POST", "/keys/k/wrapkey" + version,
			strings.Replace(good, "A256KW", "RSA-OAEP-256", 1), token.Token, 400, "BadParameter",
		},
		{
			"unknown parameter", "POST", "/keys/k/wrapkey" + version, strings.Replace(good, "{", `{"x":1,`, 1),
			token.Token, 400, "BadParameter",
		},
		{"no value", "POST", "/keys/k/wrapkey" + version, `{"alg":"A256KW"}`, token.Token, 400, "BadParameter"},
		{
			"padded base64", "POST", "/keys/k/wrapkey" + version, strings.Replace(good, `"}`, `="}`, 1), token.Token,
			400, "BadParameter",
		},
		{"not wrapped", "POST", "/keys/k/unwrapkey" + version, good, token.Token, 400, "BadParameter"},
	} {
		header := map[string]string{"Content-Type": "application/json"}
		if c.token != "" {
			header["Authorization"] = "Bearer " + c.token
		}

		got, body := send(t, server.Client(), c.method, server.URL()+c.path, c.body, header)
		var out struct{ Error struct{ Code string } }

		if body != "" {
			must(t, json.Unmarshal([]byte(body), &out))
		}
		if got != c.status || out.Error.Code != c.code {
			t.Errorf("%s: %d %s, want %d %q", c.name, got, body, c.status, c.code)
		}
	}
}

func TestGCPStrictness(t *testing.T) {
	server := kmstest.StartGCP(t)
	name := server.NewKey(t, nil).KeyID()
	conn, err := grpc.NewClient(server.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()

	client := kmspb.NewKeyManagementServiceClient(conn)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-goog-request-params", "name=projects%2Ftest")

	sum := func(b []byte) *wrapperspb.Int64Value {
		return wrapperspb.Int64(int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))))
	}

	data := []byte("data")
	good := func() *kmspb.EncryptRequest {
		return &kmspb.EncryptRequest{
			Name: name, Plaintext: data, PlaintextCrc32C: sum(data), AdditionalAuthenticatedDataCrc32C: sum(nil),
		}
	}

	out, err := client.Encrypt(ctx, good())
	if err != nil || !strings.HasPrefix(out.GetName(), name+"/cryptoKeyVersions/1") {
		t.Fatalf("a good request: %v", err)
	}
	if _, err := client.Encrypt(t.Context(), good()); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without routing: %v", err)
	}

	for what, change := range map[string]func(*kmspb.EncryptRequest){
		"no checksum":      func(r *kmspb.EncryptRequest) { r.PlaintextCrc32C = nil },
		"no AAD checksum":  func(r *kmspb.EncryptRequest) { r.AdditionalAuthenticatedDataCrc32C = nil },
		"another checksum": func(r *kmspb.EncryptRequest) { r.PlaintextCrc32C = sum([]byte("x")) },
		"a version":        func(r *kmspb.EncryptRequest) { r.Name += "/cryptoKeyVersions/1" },
		"too long": func(r *kmspb.EncryptRequest) {
			r.Plaintext = bytes.Repeat(data, 3000)
			r.PlaintextCrc32C = sum(r.GetPlaintext())
		},
	} {
		r := good()
		change(r)
		if _, err := client.Encrypt(ctx, r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}

	blob := out.GetCiphertext()
	r := &kmspb.DecryptRequest{
		Name: name, Ciphertext: blob, CiphertextCrc32C: sum(blob), AdditionalAuthenticatedDataCrc32C: sum(nil),
	}
	if back, err := client.Decrypt(ctx, r); err != nil || !bytes.Equal(back.GetPlaintext(), data) {
		t.Errorf("decrypt: %v", err)
	}

	aad := []byte("x")
	r.AdditionalAuthenticatedData, r.AdditionalAuthenticatedDataCrc32C = aad, sum(aad)

	if _, err := client.Decrypt(ctx, r); status.Code(err) != codes.InvalidArgument {
		t.Errorf("other AAD: %v", err)
	}
	if _, err := client.GetCryptoKeyVersion(ctx,
		&kmspb.GetCryptoKeyVersionRequest{Name: name + "/cryptoKeyVersions/1"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("another operation: %v", err)
	}
}

package kmstest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// AzureServer is A TEST SERVER, NOT MICROSOFT'S. It implements wrapKey,
// unwrapKey and GetKey of Azure Key Vault and Managed HSM
// (https://learn.microsoft.com/en-us/rest/api/keyvault/keys/operation-groups)
// with real keys and versions, over TLS on loopback, and with Key Vault's
// challenge. Errors have Azure's statuses and bodies. It is stricter than
// Azure so that mistakes of clients are noticed: it refuses unknown
// parameters. It keeps keys in memory, unencrypted.
type AzureServer struct {
	*troubles
	impostorSwitch
	http *httptest.Server

	lock       sync.Mutex
	publicURL  string // where clients find it, if not at http.URL
	keys       map[string]*azureKey
	tokens     map[string]bool
	login      error // error of the credential
	loginCount int
	created    int
}

// azureError is an error response.
type azureError struct {
	status               int
	code, inner, message string
}

func (e *azureError) Error() string { return e.code + ": " + e.message }

func azureRefuse(status int, code, inner, format string, args ...any) error {
	return &azureError{status, code, inner, fmt.Sprintf(format, args...)}
}

// StartAzure starts a server that runs until the end of the test.
func StartAzure(t testing.TB) *AzureServer {
	t.Helper()
	s := &AzureServer{troubles: newTroubles(), keys: make(map[string]*azureKey), tokens: make(map[string]bool)}
	s.http = httptest.NewTLSServer(s)
	t.Cleanup(s.Close)
	return s
}

// URL returns the URL of the vault.
func (s *AzureServer) URL() string { return cmp.Or(s.publicURL, s.http.URL) }

// SetURL sets the URL of the vault if there is a proxy in front of the
// server. Call it before the first request.
func (s *AzureServer) SetURL(url string) { s.publicURL = url }

// Client returns a client that trusts the server's certificate.
func (s *AzureServer) Client() *http.Client { return s.http.Client() }

// Close stops the server and closes all connections.
func (s *AzureServer) Close() {
	s.release()
	s.http.CloseClientConnections()
	s.http.Close()
}

// Credential returns a credential whose tokens the server accepts.
func (s *AzureServer) Credential() azcore.TokenCredential { return azureCredential{s} }

type azureCredential struct{ *AzureServer }

// GetToken implements azcore.TokenCredential.
func (c azureCredential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	c.count("token")
	if !c.pause(ctx, c.trouble().LoginLatency) {
		return azcore.AccessToken{}, ctx.Err()
	}

	c.lock.Lock()
	defer c.lock.Unlock()

	if c.login != nil {
		return azcore.AccessToken{}, c.login
	}
	if len(o.Scopes) != 1 || o.Scopes[0] != "https://vault.azure.net/.default" || o.TenantID != azureTenant {
		return azcore.AccessToken{}, fmt.Errorf("kmstest: scopes %q, tenant %q", o.Scopes, o.TenantID)
	}

	c.loginCount++
	token := hex.EncodeToString(random(16))
	c.tokens[token] = true
	return azcore.AccessToken{Token: token, ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// SetLogin makes the credential fail with err, or work again if err is nil.
func (s *AzureServer) SetLogin(err error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.login = err
}

// Logins returns how many tokens were issued.
func (s *AzureServer) Logins() int {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.loginCount
}

// RevokeTokens invalidates all tokens, as if they had expired.
func (s *AzureServer) RevokeTokens() {
	s.lock.Lock()
	defer s.lock.Unlock()
	clear(s.tokens)
}

// NewKey creates a key and returns it as a Wrapper of the provider
// azure-keyvault. kind is as for CreateKey. change, if not nil, edits the
// configuration, which has one attempt and a timeout of 5 seconds, because
// RSA is slow under the race detector.
func (s *AzureServer) NewKey(t testing.TB, kind string, change func(*kms.AzureConfig)) *kms.Azure {
	t.Helper()
	s.lock.Lock()
	s.created++
	name := fmt.Sprintf("key-%d", s.created)
	s.lock.Unlock()
	s.CreateKey(t, name, kind)

	return s.OpenKey(t, name, func(c *kms.AzureConfig) {
		if kind == "oct-HSM" {
			c.Algorithm = kms.AzureA256KW
		}
		if change != nil {
			change(c)
		}
	})
}

// OpenKey is NewKey without creating the key.
func (s *AzureServer) OpenKey(t testing.TB, name string, change func(*kms.AzureConfig)) *kms.Azure {
	t.Helper()
	cfg := kms.AzureConfig{
		KeyID: s.URL() + "/keys/" + name, Credential: s.Credential(), Transport: s.Client(), AnyChallenge: true,
		Timeout: 5 * time.Second, MaxAttempts: 1,
	}

	if change != nil {
		change(&cfg)
	}

	w, err := kms.NewAzure(cfg)
	if err != nil {
		t.Fatal(err)
	}

	return w
}

// NewBoundKey is NewKey for an RSA key with a binding, which it also
// returns.
func (s *AzureServer) NewBoundKey(
	t testing.TB, kind string, change func(*kms.AzureConfig),
) (w *kms.Azure, binding string) {
	t.Helper()
	binding, err := s.NewKey(t, kind, change).Bind(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}

	s.lock.Lock()
	name := fmt.Sprintf("key-%d", s.created)
	s.lock.Unlock()

	return s.OpenKey(t, name, func(c *kms.AzureConfig) {
		c.Bindings = []string{binding}
		if change != nil {
			change(c)
		}
	}), binding
}

const azureTenant = "72f988bf-0000-0000-0000-2d7cd011db47"

// ServeHTTP implements http.Handler.
func (s *AzureServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.impersonate(w) {
		return
	}

	w.Header().Set("X-Ms-Request-Id", hex.EncodeToString(random(16)))
	out, err := s.serve(r)
	var refusal *azureError
	switch {
	case errors.Is(err, errDrop):
		panic(http.ErrAbortHandler)
	case errors.As(err, &refusal):
		if refusal.status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/`+azureTenant+
				`", resource="https://vault.azure.net"`)
		}

		body := map[string]any{"code": refusal.code, "message": refusal.message}
		if refusal.inner != "" {
			body["innererror"] = map[string]string{"code": refusal.inner}
		}
		if refusal.code == "" {
			azureReply(w, refusal.status, "")
			return
		}

		azureReply(w, refusal.status, map[string]any{"error": body})
	case err != nil:
		azureReply(w, http.StatusInternalServerError, map[string]any{
			"error": map[string]string{"code": "InternalServerError"},
		})
	default:
		azureReply(w, http.StatusOK, out)
	}
}

func azureReply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	if text, ok := body.(string); ok {
		_, _ = io.WriteString(w, text)
		return
	}
	_ = json.NewEncoder(w).Encode(body)
}

func (s *AzureServer) serve(r *http.Request) (any, error) {
	trouble := s.next(r.Context())
	if trouble.Hang || trouble.Drop {
		return nil, errDrop
	}

	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	s.lock.Lock()
	known := s.tokens[token]
	asksHSM := s.isHSM(r.URL.Path)
	s.lock.Unlock()

	switch {
	case !ok && asksHSM: // a Managed HSM sends its challenge without a body
		return nil, azureRefuse(http.StatusUnauthorized, "", "", "")
	case !ok:
		return nil, azureRefuse(http.StatusUnauthorized, "Unauthorized", "",
			"AKV10000: Request is missing a Bearer or PoP token.")
	case !known:
		return nil, azureRefuse(http.StatusUnauthorized, "Unauthorized", "",
			"[TokenExpired] Error validating token: IDX10223")
	}

	parts := strings.Split(r.URL.Path, "/") // "", keys, NAME, VERSION, operation
	if len(parts) == 4 {
		parts = slices.Insert(parts, 3, "") // the current version
	}
	if r.Method == http.MethodGet && len(parts) == 5 && parts[1] == "keys" && parts[4] == "" {
		return s.describe(parts[2], trouble)
	}
	if r.Method != http.MethodPost || len(parts) != 5 || parts[1] != "keys" || r.URL.Query().Get("api-version") == "" {
		s.count(r.Method + " " + r.URL.Path)
		return nil, azureRefuse(http.StatusNotFound, "NotFound", "", "no such operation")
	}

	operation := parts[4]
	s.count(operation)

	if !s.pause(r.Context(), trouble.Latency) {
		return nil, errDrop
	}

	switch {
	case trouble.Answer != "":
		return trouble.Answer, nil
	case s.throttle():
		return nil, azureRefuse(http.StatusTooManyRequests, "Throttled", "",
			"Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached")
	case trouble.Deny:
		return nil, azureRefuse(http.StatusForbidden, "Forbidden", "ForbiddenByRbac",
			"Caller is not authorized to perform "+
				"action on resource.\r\nAction: 'Microsoft.KeyVault/vaults/keys/%s/action'", operation)
	case trouble.Fail != 0:
		return nil, azureRefuse(trouble.Fail, "Forbidden", trouble.FailCode, "%s", trouble.FailText)
	}

	in, err := decodeAzure(r)
	if err != nil {
		return nil, err
	}

	s.lock.Lock()
	defer s.lock.Unlock()

	return s.operate(operation, parts[2], parts[3], in)
}

// isHSM reports whether path is the path of a symmetric key, which only a
// Managed HSM has. The caller holds s.lock.
func (s *AzureServer) isHSM(path string) bool {
	parts := strings.Split(path, "/") // "", keys, NAME
	return len(parts) > 2 && s.keys[parts[2]] != nil && s.keys[parts[2]].kind == "oct-HSM"
}

type azureIn struct {
	Alg   string `json:"alg"`
	Value string `json:"value"`
}

func decodeAzure(r *http.Request) (*azureIn, error) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, 64<<10)) //nolint:forbidigo // bounded
	if err != nil {
		return nil, azureRefuse(http.StatusBadRequest, "BadParameter", "", "body")
	}

	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	in := new(azureIn)
	if err := decoder.Decode(in); err != nil || decoder.More() || r.Header.Get("Content-Type") != "application/json" {
		return nil, azureRefuse(http.StatusBadRequest, "BadParameter", "",
			"The body is not the JSON of this operation.")
	}

	return in, nil
}

// operate performs wrapKey or unwrapKey. The caller holds s.lock.
func (s *AzureServer) operate(operation, name, version string, in *azureIn) (any, error) {
	value, err := base64.RawURLEncoding.DecodeString(in.Value)
	if err != nil || len(value) == 0 {
		return nil, azureRefuse(http.StatusBadRequest, "BadParameter", "", "Content of 'value' is not base64url.")
	}

	k := s.keys[name]
	v := k.find(version)
	if v == nil || k.deleted {
		return nil, azureRefuse(http.StatusNotFound, "KeyNotFound", "",
			"A key with (name/id) %s/%s was not found in this key "+
				"vault. If you recently deleted this key you may be able to recover it using "+
				"the correct recovery command.", name, version)
	}

	if in.Alg != v.algorithm() {
		return nil, azureRefuse(http.StatusBadRequest, "BadParameter", "", "Property 'alg' has an invalid value.")
	}

	disabled := azureRefuse(http.StatusForbidden, "Forbidden", "KeyDisabled",
		"Operation %s is not allowed on a disabled key.", operation)
	var out []byte

	switch operation {
	case "wrapkey":
		if v.disabled && !v.isRSA() { // a disabled RSA key has been seen to wrap
			return nil, disabled
		}
		out, err = v.wrap(value)
	case "unwrapkey":
		if v.disabled {
			return nil, disabled
		}
		out, err = v.unwrap(value)
	default:
		return nil, azureRefuse(http.StatusNotFound, "NotFound", "", "no such operation")
	}

	if err != nil {
		return nil, azureRefuse(http.StatusBadRequest, "BadParameter", "", "%v", err)
	}

	return map[string]string{
		"kid": s.URL() + "/keys/" + name + "/" + v.id, "value": base64.RawURLEncoding.EncodeToString(out),
	}, nil
}

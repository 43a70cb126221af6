package kmstest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// VaultServer is A TEST SERVER, NOT VAULT AND NOT OPENBAO. It implements
// the part of their HTTP API that the provider vault-transit uses, and what
// describes a key and a token (see vaultdescribe.go)
// (https://developer.hashicorp.com/vault/api-docs/secret/transit): encrypt
// and decrypt of the transit engine with real keys and versions, tokens
// with policies and TTLs, and AppRole and Kubernetes logins. Errors have
// Vault's statuses and texts. It is stricter than Vault so that mistakes of
// clients are noticed: it refuses unknown parameters. It keeps keys in
// memory, unencrypted.
type VaultServer struct {
	*troubles
	impostorSwitch
	http *httptest.Server

	lock      sync.Mutex
	namespace string
	keys      map[string]*vaultKey
	tokens    map[string]*issuedToken
	logins    map[string]vaultRole // by "approle/ROLE/SECRET" or "kubernetes/ROLE/JWT"
	created   int
}

// VaultToken describes the lifetime and the permissions of a token.
type VaultToken struct {
	// TTL is the lifetime in whole seconds, as in Vault. 0 means unlimited.
	TTL time.Duration
	// MaxTTL limits renewals, counted from the creation of the token. 0
	// means no limit.
	MaxTTL time.Duration
	// Renewable allows the token to renew itself.
	Renewable bool
	// NoDefaultPolicy forbids the token to look itself up, and to ask for its
	// capabilities.
	NoDefaultPolicy bool
	// Grants are further capabilities, by path, such as "read" on
	// transit/keys/hr. The path "*" is a root token's: everything.
	Grants map[string][]string
	// NoKeys forbids encrypt and decrypt.
	NoKeys bool
	// CreateKeys is the capability "create" on encrypt, with which Vault
	// creates a missing key.
	CreateKeys bool
}

type issuedToken struct {
	VaultToken
	created, expires time.Time
}

type vaultRole struct{ token VaultToken }

// vaultError is an error response.
type vaultError struct {
	status int
	text   string
}

func (e *vaultError) Error() string { return e.text }

func vaultRefuse(status int, format string, args ...any) error {
	return &vaultError{status, fmt.Sprintf(format, args...)}
}

// StartVault starts a server that runs until the end of the test.
func StartVault(t testing.TB) *VaultServer {
	t.Helper()
	s := &VaultServer{
		troubles: newTroubles(), keys: make(map[string]*vaultKey), tokens: make(map[string]*issuedToken),
		logins: make(map[string]vaultRole),
	}
	s.http = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// URL returns the address for clients.
func (s *VaultServer) URL() string { return s.http.URL }

// Close stops the server and closes all connections.
func (s *VaultServer) Close() {
	s.release()
	s.http.CloseClientConnections()
	s.http.Close()
}

// SetNamespace moves everything to a namespace.
func (s *VaultServer) SetNamespace(path string) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.namespace = path
}

// NewToken creates a token.
func (s *VaultServer) NewToken(token VaultToken) string {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.issue(token)
}

// issue creates a token. The caller holds s.lock.
func (s *VaultServer) issue(token VaultToken) string {
	id := "hvs." + hex.EncodeToString(random(16))
	made := &issuedToken{VaultToken: token, created: time.Now()}
	if token.TTL > 0 {
		made.expires = made.created.Add(token.TTL)
	}
	s.tokens[id] = made
	return id
}

// RevokeTokens invalidates all tokens, as if they had expired.
func (s *VaultServer) RevokeTokens() {
	s.lock.Lock()
	defer s.lock.Unlock()
	clear(s.tokens)
}

// Deny forbids all tokens to use keys, including those of later logins, as
// after a change of the policy.
func (s *VaultServer) Deny(deny bool) {
	s.lock.Lock()
	defer s.lock.Unlock()
	for _, t := range s.tokens {
		t.NoKeys = deny
	}
	for name, role := range s.logins {
		role.token.NoKeys = deny
		s.logins[name] = role
	}
}

// AddAppRole allows a role to log in with a secret id.
func (s *VaultServer) AddAppRole(role, secret string, token VaultToken) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.logins["approle/"+role+"/"+secret] = vaultRole{token}
}

// AddKubernetes allows a role to log in with a service account's token.
func (s *VaultServer) AddKubernetes(role, jwt string, token VaultToken) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.logins["kubernetes/"+role+"/"+jwt] = vaultRole{token}
}

// RemoveLogins removes all roles.
func (s *VaultServer) RemoveLogins() {
	s.lock.Lock()
	defer s.lock.Unlock()
	clear(s.logins)
}

// NewKey creates a key and returns it as a Wrapper of the provider
// vault-transit, with a new token. change, if not nil, edits the
// configuration, which has one attempt and a timeout of 2 seconds.
func (s *VaultServer) NewKey(t testing.TB, change func(*kms.VaultConfig)) *kms.Vault {
	t.Helper()
	s.lock.Lock()
	s.created++
	name := fmt.Sprintf("key-%d", s.created)
	s.lock.Unlock()
	s.CreateKey(name, "aes256-gcm96", false)
	return s.OpenKey(t, name, change)
}

// OpenKey is NewKey without creating the key.
func (s *VaultServer) OpenKey(t testing.TB, name string, change func(*kms.VaultConfig)) *kms.Vault {
	t.Helper()
	cfg := kms.VaultConfig{Address: s.URL(), KeyID: name, Timeout: 2 * time.Second, MaxAttempts: 1}

	if change != nil {
		change(&cfg)
	}
	if cfg.Login == (kms.VaultLogin{}) {
		cfg.Login.Token = s.NewToken(VaultToken{})
	}

	w, err := kms.NewVault(cfg)
	if err != nil {
		t.Fatal(err)
	}

	return w
}

// ServeHTTP implements http.Handler.
func (s *VaultServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.impersonate(w) {
		return
	}

	path, ok := strings.CutPrefix(r.URL.Path, "/v1/")
	operation := path

	if parts := strings.Split(path, "/"); len(parts) == 3 && parts[0] == "transit" {
		operation = parts[1]
		if reads := r.Method == http.MethodGet; reads != (operation == "keys") {
			operation = r.Method + " " + path
		}
	}

	s.count(operation)
	out, err := map[string]any(nil), vaultRefuse(http.StatusNotFound, "unsupported path")
	trouble := s.next(r.Context())
	latency := trouble.Latency

	if strings.HasPrefix(path, "auth/") {
		latency = trouble.LoginLatency
	}
	if trouble.Hang || trouble.Drop || !s.pause(r.Context(), latency) {
		panic(http.ErrAbortHandler)
	} else if ok && !strings.HasPrefix(path, "auth/") && trouble.Answer != "" {
		_, _ = io.WriteString(w, trouble.Answer)
		return
	} else if ok {
		out, err = s.serve(r, path, trouble)
	}

	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	var refusal *vaultError
	switch {
	case errors.As(err, &refusal):
		w.WriteHeader(refusal.status)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{refusal.text}})
	case err != nil:
		w.WriteHeader(http.StatusInternalServerError)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{"internal error"}})
	default:
		answer := map[string]any{
			"request_id": hex.EncodeToString(random(16)), "lease_id": "", "renewable": false, "lease_duration": 0,
			"data": nil, "wrap_info": nil, "warnings": nil, "auth": nil,
		}
		maps.Copy(answer, out)
		_ = json.NewEncoder(w).Encode(answer)
	}
}

func (s *VaultServer) serve(r *http.Request, path string, trouble Trouble) (map[string]any, error) {
	if r.Header.Get("X-Vault-Request") != "true" {
		return nil, vaultRefuse(http.StatusPreconditionFailed, "missing 'X-Vault-Request' header")
	}

	s.lock.Lock()
	defer s.lock.Unlock()

	if strings.Trim(r.Header.Get("X-Vault-Namespace"), "/") != s.namespace {
		return nil, vaultRefuse(http.StatusNotFound, "no handler for route %q. route entry not found.", path)
	}
	if method, ok := strings.CutSuffix(strings.TrimPrefix(path, "auth/"), "/login"); ok {
		return s.logIn(r, method)
	}

	token, err := s.authenticate(r)
	if err != nil {
		return nil, err
	}

	switch path {
	case "auth/token/lookup-self":
		return s.lookUp(r, token)
	case "auth/token/renew-self":
		return s.renew(r, token)
	case "sys/capabilities-self":
		return s.capabilities(r, token)
	}

	if name, ok := strings.CutPrefix(path, "transit/keys/"); ok {
		return s.readKey(r, name, token)
	}
	verb, key, ok := strings.Cut(strings.TrimPrefix(path, "transit/"), "/")
	if !strings.HasPrefix(path, "transit/") || !ok {
		return nil, vaultRefuse(http.StatusNotFound, "no handler for route %q. route entry not found.", path)
	}

	switch {
	case s.throttle():
		return nil, vaultRefuse(http.StatusTooManyRequests, "request path %q: rate limit quota exceeded", path)
	case token.NoKeys || trouble.Deny:
		return nil, vaultRefuse(http.StatusForbidden, "1 error occurred:\n\t* permission denied\n\n")
	case trouble.Fail != 0:
		return nil, vaultRefuse(trouble.Fail, "%s", trouble.FailText)
	}

	return s.transit(r, verb, key, token)
}

// authenticate returns the token of a request.
func (s *VaultServer) authenticate(r *http.Request) (*issuedToken, error) {
	t := s.tokens[r.Header.Get("X-Vault-Token")]
	if t == nil || !t.expires.IsZero() && !time.Now().Before(t.expires) {
		return nil, vaultRefuse(http.StatusForbidden,
			"2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
	}
	return t, nil
}

func (s *VaultServer) lookUp(r *http.Request, t *issuedToken) (map[string]any, error) {
	if r.Method != http.MethodGet {
		return nil, vaultRefuse(http.StatusMethodNotAllowed, "1 error occurred:\n\t* unsupported operation\n\n")
	}
	if t.NoDefaultPolicy {
		return nil, vaultRefuse(http.StatusForbidden, "1 error occurred:\n\t* permission denied\n\n")
	}

	ttl := 0
	if !t.expires.IsZero() {
		ttl = int(time.Until(t.expires).Seconds())
	}

	return map[string]any{"data": map[string]any{
		"ttl": ttl, "renewable": t.Renewable, "creation_ttl": int(t.TTL.Seconds()), "type": "service",
		"policies": t.policies(),
	}}, nil
}

func (s *VaultServer) renew(r *http.Request, t *issuedToken) (map[string]any, error) {
	var in struct {
		Increment int `json:"increment"`
	}
	if err := decodeVault(r, &in); err != nil {
		return nil, err
	}

	if !t.Renewable {
		return nil, vaultRefuse(http.StatusBadRequest, "lease is not renewable")
	}

	ttl := t.TTL
	if left := time.Until(t.created.Add(t.MaxTTL)); t.MaxTTL > 0 && left < ttl {
		ttl = left
	}

	t.expires = time.Now().Add(ttl)
	return vaultAuth(r.Header.Get("X-Vault-Token"), t, ttl), nil
}

func (s *VaultServer) logIn(r *http.Request, method string) (map[string]any, error) {
	var in struct {
		RoleID   string `json:"role_id"`
		SecretID string `json:"secret_id"`
		Role     string `json:"role"`
		JWT      string `json:"jwt"`
	}
	if err := decodeVault(r, &in); err != nil {
		return nil, err
	}

	role, ok := s.logins[method+"/"+in.RoleID+in.Role+"/"+in.SecretID+in.JWT]
	switch {
	case r.Header.Get("X-Vault-Token") != "":
		return nil, vaultRefuse(http.StatusBadRequest, "a token with a login")
	case !ok && method == "approle":
		return nil, vaultRefuse(http.StatusBadRequest, "invalid role or secret ID")
	case !ok && method == "kubernetes":
		return nil, vaultRefuse(http.StatusForbidden, "permission denied")
	case !ok:
		return nil, vaultRefuse(http.StatusForbidden, "1 error occurred:\n\t* permission denied\n\n")
	}

	id := s.issue(role.token)
	return vaultAuth(id, s.tokens[id], role.token.TTL), nil
}

func vaultAuth(id string, t *issuedToken, ttl time.Duration) map[string]any {
	return map[string]any{"auth": map[string]any{
		"client_token": id, "policies": []string{"default", "app"}, "lease_duration": int(ttl.Seconds()),
		"renewable": t.Renewable,
	}}
}

func decodeVault(r *http.Request, into any) error {
	if r.Method != http.MethodPut && r.Method != http.MethodPost {
		return vaultRefuse(http.StatusMethodNotAllowed, "1 error occurred:\n\t* unsupported operation\n\n")
	}

	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, 64<<10)) //nolint:forbidigo // bounded
	if err != nil {
		return vaultRefuse(http.StatusRequestEntityTooLarge, "http: request body too large")
	}

	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()

	if err := decoder.Decode(into); err != nil || decoder.More() {
		return vaultRefuse(http.StatusBadRequest, "failed to parse JSON input")
	}
	return nil
}

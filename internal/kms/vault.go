package kms

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

// Defaults of VaultConfig.
const (
	DefaultVaultMount       = "transit"
	DefaultVaultTimeout     = 5 * time.Second
	DefaultVaultMaxAttempts = 3
)

// VaultConfig configures the provider "vault-transit".
type VaultConfig struct {
	// Address is the URL of the server, such as
	// https://vault.example.com:8200. Required. VAULT_ADDR, VAULT_TOKEN,
	// VAULT_NAMESPACE and the TLS settings in the environment are ignored.
	Address string
	// Namespace is the namespace of the mount and the login, such as
	// "team/app". Empty means the root namespace.
	Namespace string
	// Mount is the path of the transit engine. Empty means
	// DefaultVaultMount.
	Mount string
	// KeyID is the name of the transit key. Required. The key must be
	// symmetric and not convergent.
	KeyID string
	// EnvelopeID is the key's id in the envelopes of objects, in printable
	// ASCII. Empty means "vault:" and the path of namespace, mount and key.
	// Set it if two servers have a key with the same path, and never change
	// it.
	EnvelopeID string
	// Login says how to get a token. Required.
	Login VaultLogin
	// CAFile is a PEM file with the certificate authorities for the server.
	// It is reloaded when it changes. Empty means those of the system.
	CAFile string
	// Report is called when a file has been reloaded. It may be nil.
	Report Report
	// Transport sends the calls. Nil means a new transport with CAFile, and
	// proxy settings from the environment.
	Transport http.RoundTripper
	// Timeout limits one encrypt or decrypt request, including all its
	// attempts. A login has a separate limit of 30 seconds, and a call
	// waits for it until its context ends. 0 means DefaultVaultTimeout.
	Timeout time.Duration
	// MaxAttempts includes the first attempt. 0 means
	// DefaultVaultMaxAttempts.
	MaxAttempts int
}

// Vault is the provider "vault-transit": a key of the transit engine of
// HashiCorp Vault or OpenBao.
//
// Its KeyID is a path, without the server's address. A transit key is
// identified by where it is mounted. A server that moves, fails over to a
// replica or is restored elsewhere keeps its keys, and must still be able
// to open its objects.
//
// The encryption context is passed to Vault twice: as associated data,
// which AES-GCM and ChaCha20-Poly1305 authenticate, and as the context of
// derived keys, which other keys ignore. Blobs are Vault's own ciphertext,
// "vault:v3:...", which names the key version. Rotation needs no action
// here, and min_decryption_version retires old versions.
//
// DEKs are generated here, because Vault's datakey endpoint accepts no
// associated data.
type Vault struct {
	id      string
	mount   string
	key     string
	timeout time.Duration
	login   *vaultTokens
}

// NewVault returns the key that cfg describes. It makes no calls: the first
// use logs in.
func NewVault(cfg VaultConfig) (*Vault, error) {
	keys, err := NewVaultKeys(cfg)
	if err != nil {
		return nil, err
	}
	return keys.openKey(cfg.KeyID, cfg.EnvelopeID)
}

// VaultKeys opens keys of one mount that share a login and connections.
type VaultKeys struct {
	mount, namespace string
	timeout          time.Duration
	login            *vaultTokens
}

// NewVaultKeys returns the VaultKeys that cfg describes. It does not use
// cfg.KeyID and cfg.EnvelopeID, and makes no calls.
func NewVaultKeys(cfg VaultConfig) (*VaultKeys, error) {
	k := &VaultKeys{
		mount:     cmp.Or(strings.Trim(cfg.Mount, "/"), DefaultVaultMount),
		namespace: strings.Trim(cfg.Namespace, "/"),
		timeout:   cmp.Or(max(cfg.Timeout, 0), DefaultVaultTimeout),
	}

	err := checkVaultPaths(k.namespace, k.mount, "any")
	if err == nil {
		k.login, err = newVaultTokens(cfg, k.namespace)
	}
	if err != nil {
		return nil, &Error{Kind: Invalid, Op: "open", KeyID: printable(k.idOf(cfg.KeyID), maxKeyID), Err: err}
	}
	return k, nil
}

// Open returns the key with a name. It makes no calls.
func (k *VaultKeys) Open(name string) (*Vault, error) { return k.openKey(name, "") }

func (k *VaultKeys) openKey(name, envelopeID string) (*Vault, error) {
	v := &Vault{key: name, mount: k.mount, timeout: k.timeout, id: cmp.Or(envelopeID, k.idOf(name)), login: k.login}
	if err := errors.Join(checkVaultPaths("", v.mount, v.key), checkKeyID(v.id, vaultMaxBlob)); err != nil {
		return nil, &Error{Kind: Invalid, Op: "open", KeyID: printable(v.id, maxKeyID), Err: err}
	}
	return v, nil
}

// idOf returns the id that a key has unless another one is configured.
func (k *VaultKeys) idOf(name string) string {
	return "vault:" + strings.TrimPrefix(k.namespace+"/"+k.mount+"/"+name, "/")
}

// Run keeps the token of the keys alive until ctx ends; see Vault.Run.
func (k *VaultKeys) Run(ctx context.Context) { k.login.run(ctx) }

// KeyID returns VaultConfig.EnvelopeID, or "vault:" and a path.
func (v *Vault) KeyID() string { return v.id }

// vaultFields has the parameters and results of encrypt and decrypt that
// are used here
// (https://developer.hashicorp.com/vault/api-docs/secret/transit). Byte
// slices are base64 on the wire.
type vaultFields struct {
	Plaintext      []byte `json:"plaintext,omitempty"`
	Ciphertext     string `json:"ciphertext,omitempty"`
	Context        []byte `json:"context,omitempty"`
	AssociatedData []byte `json:"associated_data,omitempty"`
}

// Wrap implements Wrapper.
func (v *Vault) Wrap(ctx context.Context, dek []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkWrap(ctx, v.id, dek, ec); err != nil {
		return nil, err
	}

	ad := associatedData(ec)
	out, err := v.call(ctx, "wrap", "encrypt", vaultFields{Plaintext: dek, Context: ad, AssociatedData: ad})
	if err != nil {
		return nil, err
	}
	if !isVaultBlob(out.Ciphertext) {
		err := errors.New("the answer contains no ciphertext of a symmetric key")
		return nil, &Error{Kind: Internal, Op: "wrap", KeyID: v.id, Err: err}
	}

	return []byte(out.Ciphertext), nil
}

// Unwrap implements Wrapper.
func (v *Vault) Unwrap(ctx context.Context, wrapped []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkCall(ctx, "unwrap", v.id, ec); err != nil {
		return nil, err
	}
	if !isVaultBlob(string(wrapped)) {
		err := errors.New("not a blob of a transit key")
		return nil, &Error{Kind: InvalidCiphertext, Op: "unwrap", KeyID: v.id, Err: err}
	}

	ad := associatedData(ec)
	out, err := v.call(ctx, "unwrap", "decrypt", vaultFields{
		Ciphertext: string(wrapped), Context: ad, AssociatedData: ad,
	})
	if err != nil {
		return nil, err
	}

	return out.Plaintext, nil
}

// call sends one request. If Vault refuses the token, the token may have
// expired, so call logs in once and repeats the request once.
func (v *Vault) call(ctx context.Context, op, verb string, in vaultFields) (*vaultFields, error) {
	s, err := v.login.session(ctx, nil)
	if err != nil {
		return nil, v.failLogin(ctx, op, err)
	}

	out, err := v.send(ctx, s, verb, in)
	if isVaultForbidden(err) && !v.login.isUseless() {
		again, loginErr := v.login.session(ctx, s)
		if loginErr != nil {
			return nil, v.failLogin(ctx, op, loginErr)
		}

		out, err = v.send(ctx, again, verb, in)
		if isVaultForbidden(err) {
			v.login.markUseless()
		}
	}

	if err != nil {
		return nil, v.fail(ctx, op, err)
	}
	return out, nil
}

// vaultMaxAnswer limits the size of a response in bytes. Real ones have a
// few hundred.
const vaultMaxAnswer = 64 << 10

// errVaultAnswer is returned for a malformed response. The JSON parser's
// error is not used, because it might quote the response.
var errVaultAnswer = errors.New("the answer cannot be read")

// send does not use api.Secret, because its strings cannot be wiped. It
// does not use the client's methods for raw bodies either: they send "null"
// as the body when a standby server redirects them (api 1.23.0).
func (v *Vault) send(ctx context.Context, s *vaultSession, verb string, in vaultFields) (*vaultFields, error) {
	ctx, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()

	r := s.client.NewRequest(http.MethodPut, "/v1/"+v.mount+"/"+verb+"/"+v.key)
	if err := r.SetJSONBody(in); err != nil {
		return nil, errors.New("the request cannot be encoded")
	}

	resp, err := s.client.RawRequestWithContext(ctx, r) //nolint:staticcheck // see above
	if resp != nil {
		defer resp.Body.Close()
	}
	if err != nil {
		return nil, err
	}

	answer, err := io.ReadAll(io.LimitReader(resp.Body, vaultMaxAnswer)) //nolint:forbidigo // bounded
	defer clear(answer)

	if err != nil {
		return nil, err
	}

	var out struct {
		RequestID string `json:"request_id"`
		Data      vaultFields
	}
	if err := json.Unmarshal(answer, &out); err != nil || out.RequestID == "" { // Vault always sends a request id
		clear(out.Data.Plaintext)
		return nil, errVaultAnswer
	}

	traceRequest(ctx, out.RequestID)
	return &out.Data, nil
}

// vaultMaxBlob is the maximum length of a blob in bytes: ten digits of the
// version, and XChaCha20-Poly1305.
const vaultMaxBlob = len("vault:v:") + 10 + 96

var vaultBlobForm = regexp.MustCompile(`^vault:v[1-9][0-9]{0,9}:([A-Za-z0-9+/]+={0,2})$`)

// isVaultBlob reports whether s can be the ciphertext of a DEK: nonce, 32
// bytes and tag. Anything else is not sent to Vault, which parses base64
// and numbers leniently.
func isVaultBlob(s string) bool {
	form := vaultBlobForm.FindStringSubmatch(s)
	if form == nil {
		return false
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(form[1])
	return err == nil && (len(raw) == 12+DEKSize+16 || len(raw) == 24+DEKSize+16)
}

// vaultVersion returns the version in a blob, such as "3" for
// "vault:v3:...". No other provider's blobs look like this.
func vaultVersion(_ string, blob []byte) string {
	if !isVaultBlob(string(blob)) {
		return ""
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(string(blob), "vault:v"), ":")
	return version
}

var (
	vaultKeyForm  = regexp.MustCompile(`^\w(([\w.-]+)?\w)?$`) // as in Vault's source
	vaultPathForm = regexp.MustCompile(`^[\w.-]+(/[\w.-]+)*$`)
)

func checkVaultPaths(namespace, mount, key string) error {
	if !vaultKeyForm.MatchString(key) {
		return fmt.Errorf("%q is not the name of a transit key", key)
	}

	for _, path := range []string{namespace, mount} {
		dots := strings.Contains("/"+path+"/", "/./") || strings.Contains("/"+path+"/", "/../")
		if path != "" && (dots || !vaultPathForm.MatchString(path)) {
			return fmt.Errorf("%q is not the path of a namespace or a mount", path)
		}
	}

	return nil
}

// newVaultConfig returns the client's configuration, without a token.
func newVaultConfig(cfg VaultConfig) (*api.Config, error) {
	u, err := url.Parse(cfg.Address)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil {
		return nil, errors.New("the address is not an http or https URL")
	}

	transport := cfg.Transport
	switch {
	case transport != nil && cfg.CAFile != "":
		return nil, errors.New("both a transport and a CA file are set")
	case transport == nil:
		if transport, err = withAuthorities(newVaultTransport(), cfg.CAFile, cfg.Report); err != nil {
			return nil, err
		}
	}

	attempts := cfg.MaxAttempts
	if attempts <= 0 {
		attempts = DefaultVaultMaxAttempts
	}

	return &api.Config{
		Address: cfg.Address,
		HttpClient: &http.Client{
			Transport: newReconnecting(transport),
			// The client follows redirects itself: only one, and not from
			// https to http.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		MaxRetries:   attempts - 1,
		MinRetryWait: 100 * time.Millisecond,
		MaxRetryWait: 400 * time.Millisecond,
		// Timeout is not set: it would end before the response is read.
		// Every call has a deadline.
	}, nil
}

func newVaultTransport() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 4 * time.Second,
		MaxIdleConnsPerHost: 64, // each PUT makes one call, and PUTs come in bursts
		IdleConnTimeout:     90 * time.Second,
		ForceAttemptHTTP2:   true,
		HTTP2:               http2Pings(),
	}
}

package kms

import (
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
	// https://vault.example.com:8200. Required. The environment's VAULT_ADDR,
	// VAULT_TOKEN, VAULT_NAMESPACE and TLS settings are not looked at.
	Address string
	// Namespace is that of mount and login, such as "team/app". Empty: the
	// root namespace.
	Namespace string
	// Mount is the path of the transit engine. Empty: DefaultVaultMount.
	Mount string
	// KeyID is the name of the transit key. Required. The key must be
	// symmetric and not convergent.
	KeyID string
	// EnvelopeID is the key's id in the envelopes of objects, printable ASCII.
	// Empty: "vault:" and the path of namespace, mount and key. Give one where
	// two servers have a key at the same path; never change it afterwards.
	EnvelopeID string
	// Login is how to get a token. Required.
	Login VaultLogin
	// CAFile is a file of PEM certificates that sign the server's. It is read
	// again when it changes. Empty: those of the system.
	CAFile string
	// Report, if not nil, is told of files that were read again.
	Report Report
	// Transport sends the calls. Nil: one of its own, with proxy settings from
	// the environment and CAFile.
	Transport http.RoundTripper
	// Timeout bounds one request to encrypt or decrypt, with all its attempts.
	// A login has 30 seconds of its own, for which a call waits until its
	// context ends. 0: DefaultVaultTimeout.
	Timeout time.Duration
	// MaxAttempts counts the first attempt too. 0: DefaultVaultMaxAttempts.
	MaxAttempts int
}

// Vault is the provider "vault-transit": a key of the transit engine of
// HashiCorp Vault or OpenBao.
//
// Its KeyID is a path and not the server's address: what identifies a transit
// key is where it is mounted, and a server that moves, fails over to a
// replica, or is restored elsewhere keeps its keys and must keep the objects
// under them.
//
// The encryption context goes to Vault as associated data, which AES-GCM and
// ChaCha20-Poly1305 authenticate, and as the context that derived keys are
// derived by and other keys ignore. Blobs are Vault's own ciphertext,
// "vault:v3:...", which names the version of the key: rotation needs nothing,
// and min_decryption_version ends the old versions.
//
// Data keys are made here: Vault's own datakey endpoint takes no associated
// data.
type Vault struct {
	id      string
	mount   string
	key     string
	timeout time.Duration
	login   *vaultTokens
}

// NewVault returns the key that cfg names. It calls nobody: the first login is
// at the first use.
func NewVault(cfg VaultConfig) (*Vault, error) {
	v := &Vault{
		key:     cfg.KeyID,
		mount:   strings.Trim(cfg.Mount, "/"),
		timeout: cfg.Timeout,
		id:      cfg.EnvelopeID,
	}
	if v.mount == "" {
		v.mount = DefaultVaultMount
	}

	if v.timeout <= 0 {
		v.timeout = DefaultVaultTimeout
	}

	namespace := strings.Trim(cfg.Namespace, "/")
	if v.id == "" {
		v.id = "vault:" + strings.TrimPrefix(namespace+"/"+v.mount+"/"+v.key, "/")
	}

	err := errors.Join(checkVaultPaths(namespace, v.mount, v.key), checkKeyID(v.id, vaultMaxBlob))
	if err == nil {
		v.login, err = newVaultTokens(cfg, namespace)
	}
	if err != nil {
		return nil, &Error{Kind: Invalid, Op: "open", KeyID: printable(v.id, maxKeyID), Err: err}
	}

	return v, nil
}

// KeyID is VaultConfig.EnvelopeID, or "vault:" and a path.
func (v *Vault) KeyID() string { return v.id }

// vaultFields is what of the parameters and answers of encrypt and decrypt is
// used here (https://developer.hashicorp.com/vault/api-docs/secret/transit).
// Slices are base64 on the wire.
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
		err := errors.New("the answer holds no ciphertext of a symmetric key")
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

// call sends one request. A token that Vault refuses may only have expired, so
// the first refusal leads to one login and one more request; then the answer
// stands.
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

// vaultMaxAnswer bounds an answer, in bytes. Real ones have a few hundred.
const vaultMaxAnswer = 64 << 10

// errVaultAnswer says that an answer is not what it should be. The parser's
// own error could quote it.
var errVaultAnswer = errors.New("the answer cannot be read")

// send goes below api.Secret, whose strings cannot be wiped. The client's
// methods for raw bodies would do, but send "null" for the body when a standby
// server redirects them (api 1.23.0).
func (v *Vault) send(ctx context.Context, s *vaultSession, verb string, in vaultFields) (*vaultFields, error) {
	ctx, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()

	r := s.client.NewRequest(http.MethodPut, "/v1/"+v.mount+"/"+verb+"/"+v.key)
	if err := r.SetJSONBody(in); err != nil {
		return nil, errors.New("the request cannot be written")
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
	if err := json.Unmarshal(answer, &out); err != nil || out.RequestID == "" { // which Vault always sends
		clear(out.Data.Plaintext)
		return nil, errVaultAnswer
	}

	traceRequest(ctx, out.RequestID)
	return &out.Data, nil
}

// vaultMaxBlob is the longest that a blob can be, in bytes: a version of ten
// digits, and XChaCha20-Poly1305.
const vaultMaxBlob = len("vault:v:") + 10 + 96

var vaultBlobForm = regexp.MustCompile(`^vault:v[1-9][0-9]{0,9}:([A-Za-z0-9+/]+={0,2})$`)

// isVaultBlob reports whether s can be the ciphertext of a DEK: nonce, 32
// bytes and tag. What cannot is not sent to Vault, whose reading of base64 and
// numbers is lenient.
func isVaultBlob(s string) bool {
	form := vaultBlobForm.FindStringSubmatch(s)
	if form == nil {
		return false
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(form[1])
	return err == nil && (len(raw) == 12+DEKSize+16 || len(raw) == 24+DEKSize+16)
}

// vaultVersion is the version that a blob names, the 3 of "vault:v3:...". No
// other provider's blobs look like this.
func vaultVersion(_ string, blob []byte) string {
	if !isVaultBlob(string(blob)) {
		return ""
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(string(blob), "vault:v"), ":")
	return version
}

var (
	vaultKeyForm  = regexp.MustCompile(`^\w(([\w.-]+)?\w)?$`) // Vault's own
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

// newVaultConfig is the client's configuration without a token.
func newVaultConfig(cfg VaultConfig) (*api.Config, error) {
	u, err := url.Parse(cfg.Address)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil {
		return nil, errors.New("the address is not an http or https URL")
	}

	transport := cfg.Transport
	switch {
	case transport != nil && cfg.CAFile != "":
		return nil, errors.New("a transport and a CA file: give one")
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
			// The client follows redirects itself, one only, and not from
			// https to http.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		MaxRetries:   attempts - 1,
		MinRetryWait: 100 * time.Millisecond,
		MaxRetryWait: 400 * time.Millisecond,
		// No Timeout: the client's own would end before the answer is read.
		// Every call has a deadline.
	}, nil
}

func newVaultTransport() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 4 * time.Second,
		MaxIdleConnsPerHost: 64, // each PUT is one call, and they come in bursts
		IdleConnTimeout:     90 * time.Second,
		ForceAttemptHTTP2:   true,
		HTTP2:               http2Pings(),
	}
}

package kms

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
)

// Defaults of AzureConfig.
const (
	DefaultAzureTimeout     = 5 * time.Second
	DefaultAzureMaxAttempts = 3
)

// Algorithms of AzureConfig.
const (
	AzureRSAOAEP256 = "RSA-OAEP-256" // RSA keys of 2048, 3072 or 4096 bits, in a vault or a Managed HSM
	AzureA256KW     = "A256KW"       // 256-bit symmetric keys in a Managed HSM
)

// azureProof is how long a successful unwrap proves that the key is
// enabled; see (*Azure).prove.
const azureProof = 5 * time.Second

// AzureConfig configures the provider "azure-keyvault".
type AzureConfig struct {
	// KeyID is the identifier of a key without its version,
	// "https://NAME.vault.azure.net/keys/KEY", or for a Managed HSM,
	// "https://NAME.managedhsm.azure.net/keys/KEY". Required.
	KeyID string
	// Algorithm is AzureRSAOAEP256 or AzureA256KW and must match the key.
	// Empty means AzureRSAOAEP256.
	Algorithm string
	// EnvelopeID is the key's id in the envelopes of objects, in printable
	// ASCII. Empty means KeyID in lower case. If a key was restored into
	// another vault, set it to the old id, because the key keeps its
	// versions. Otherwise never change it.
	EnvelopeID string
	// Bindings bind blobs of an RSA key to secrets that only the vault can
	// unwrap; Bind creates them. Without bindings, anyone with the public
	// key can create blobs. New blobs use the first binding. Blobs with any
	// of the bindings can be opened.
	Bindings []string
	// AcceptForm is the lowest form of blobs that can be opened. 2 refuses
	// blobs without a binding. 0 means 1.
	AcceptForm int
	// WriteForm 1 creates blobs without a binding even if Bindings are set.
	// Use it until all proxies have the bindings. 0 means 2 with Bindings,
	// otherwise 1.
	WriteForm int
	// Credential provides the tokens. Nil means azidentity's
	// DefaultAzureCredential.
	Credential azcore.TokenCredential
	// CAFile is a PEM file with the certificate authorities for Key Vault.
	// It is reloaded when it changes. Empty means those of the system.
	CAFile string
	// Report is called when a file has been reloaded. It may be nil.
	Report Report
	// Transport sends the calls. Nil means an HTTP client with keep-alive,
	// and proxy settings from the environment.
	Transport policy.Transporter
	// AnyChallenge sends tokens even to a server whose name does not match
	// the resource in its challenge. The check prevents sending tokens to a
	// server that is not the vault, so disable it only for servers outside
	// Azure.
	AnyChallenge bool
	// Timeout limits one request, including all its attempts. Getting a
	// token has a separate limit of 30 seconds, and a call waits for it
	// until its context ends. 0 means DefaultAzureTimeout.
	Timeout time.Duration
	// MaxAttempts includes the first attempt. 0 means
	// DefaultAzureMaxAttempts.
	MaxAttempts int
}

// Azure is the provider "azure-keyvault": a key in Azure Key Vault or a
// Managed HSM.
//
// The operations wrapKey and unwrapKey accept no associated data. Therefore
// the key in Azure wraps a random key-encryption key (KEK) for each blob,
// and the KEK encrypts the DEK with AES-256-GCM and the encryption context
// as associated data. So the proxy enforces the encryption context, not the
// KMS: Azure's logs do not show buckets and keys, and policies cannot
// depend on them. It needs no additional call.
//
// A blob contains the version of the key, because unwrapKey needs it. After
// a rotation, new blobs use the new version. Old blobs can be opened as
// long as their version is enabled.
type Azure struct {
	client    *azkeys.Client
	transport policy.Transporter
	tokens    *azureTokens
	id        string
	vault     string // URL without path
	name      string
	algorithm azkeys.EncryptionAlgorithm
	timeout   time.Duration
	provenAt  atomic.Pointer[time.Time]
	bindings  []*azureBinding
	leastForm byte
	form      byte // form of new blobs
}

var azureNameForm = regexp.MustCompile(`^[0-9a-zA-Z-]{1,127}$`)

// NewAzure returns the key that cfg describes. It makes no calls. It
// refuses a key whose blobs do not fit in envelopes.
func NewAzure(cfg AzureConfig) (*Azure, error) {
	a := &Azure{id: cfg.EnvelopeID, timeout: cfg.Timeout}
	if a.timeout <= 0 {
		a.timeout = DefaultAzureTimeout
	}
	if err := a.open(cfg); err != nil {
		id := printable(a.id, maxKeyID)
		if id == "" {
			id = printable(cfg.KeyID, maxKeyID)
		}
		return nil, &Error{Kind: Invalid, Op: "open", KeyID: id, Err: err}
	}

	return a, nil
}

func (a *Azure) open(cfg AzureConfig) error {
	var err error
	if a.vault, a.name, err = parseAzureKeyID(cfg.KeyID); err != nil {
		return err
	}
	if a.id == "" {
		a.id = a.vault + "/keys/" + a.name
	}

	var longest int
	switch cfg.Algorithm {
	case "", AzureRSAOAEP256:
		a.algorithm, longest = azkeys.EncryptionAlgorithmRSAOAEP256, slices.Max(azureRSASizes)
	case AzureA256KW:
		a.algorithm, longest = azkeys.EncryptionAlgorithmA256KW, azureKWSize
	default:
		return fmt.Errorf("the algorithm is neither %s nor %s", AzureRSAOAEP256, AzureA256KW)
	}

	if err := a.setBindings(cfg, longest); err != nil {
		return err
	}

	credential := func() azcore.TokenCredential { return cfg.Credential }
	if cfg.Credential == nil {
		found, err := followLogin(func() (azcore.TokenCredential, error) {
			return azidentity.NewDefaultAzureCredential(nil)
		}, cfg.Report, azureFileVariable)
		if err != nil {
			return errors.New("no credentials: " + printable(err.Error(), 300))
		}

		credential = found.Get
	}

	options, err := azureOptions(cfg)
	if err != nil {
		return err
	}

	a.transport = reconnectingAzure(options.Transport)
	options.Transport = a.transport
	a.tokens = &azureTokens{from: credential}
	a.client, err = azkeys.NewClient(a.vault, a.tokens, options)
	return err
}

// setBindings sets the forms of blobs to create and to open. longest is the
// maximum size of a wrapped key.
func (a *Azure) setBindings(cfg AzureConfig, longest int) error {
	if err := a.parseAzureBindings(cfg.Bindings); err != nil {
		return err
	}

	longestForm := byte(azureBlobForm)
	if len(a.bindings) > 0 {
		longestForm = azureBoundForm
	}

	a.form, a.leastForm = longestForm, azureBlobForm
	if cfg.WriteForm == azureBlobForm {
		a.form = azureBlobForm
	}

	switch {
	case cfg.AcceptForm < 0 || cfg.AcceptForm > azureBoundForm || cfg.WriteForm < 0 || cfg.WriteForm > azureBoundForm:
		return errors.New("blobs are of form 1 or 2")
	case max(cfg.AcceptForm, cfg.WriteForm) == azureBoundForm && len(a.bindings) == 0:
		return errors.New("blobs of form 2 need a binding: " +
			"add one to bindings, made by cmekproxy keys bind")
	case cfg.AcceptForm == azureBoundForm && a.form != azureBoundForm:
		return errors.New("accept_form 2 refuses the new blobs of form 1")
	case cfg.AcceptForm == azureBoundForm:
		a.leastForm = azureBoundForm
	}

	return checkKeyID(a.id, azureBlobSize(longestForm, longest))
}

func azureOptions(cfg AzureConfig) (*azkeys.ClientOptions, error) {
	retries := int32(DefaultAzureMaxAttempts - 1)
	if cfg.MaxAttempts > 0 {
		retries = int32(min(cfg.MaxAttempts, 100) - 1)
	}
	if retries == 0 {
		retries = -1 // the client would use its default for 0
	}

	transport := cfg.Transport
	switch {
	case transport != nil && cfg.CAFile != "":
		return nil, errors.New("both a transport and a CA file are set")
	case transport == nil:
		client, err := newAzureTransport(cfg.CAFile, cfg.Report)
		if err != nil {
			return nil, err
		}
		transport = client
	}

	return &azkeys.ClientOptions{
		ClientOptions: azcore.ClientOptions{
			Transport:        transport,
			PerRetryPolicies: []policy.Policy{azureTrace{}},
			Retry: policy.RetryOptions{
				MaxRetries: retries, RetryDelay: 100 * time.Millisecond, MaxRetryDelay: time.Second,
			},
		},
		DisableChallengeResourceVerification: cfg.AnyChallenge,
	}, nil
}

// azureTrace records the request id of each response, which is the
// requestId in Key Vault's log. It rejects errors that Key Vault did not
// send.
type azureTrace struct{}

// Do implements policy.Policy.
func (azureTrace) Do(r *policy.Request) (*http.Response, error) {
	resp, err := r.Next()
	if err != nil {
		return resp, err
	}

	traceRequest(r.Raw().Context(), resp.Header.Get("X-Ms-Request-Id"))
	if (resp.StatusCode < 200 || resp.StatusCode >= 300) && !isAzureError(resp) {
		return nil, &intermediaryError{resp.StatusCode}
	}

	return resp, nil
}

// newAzureTransport keeps more idle connections than net/http's default of
// 2 for each host: each PUT makes one call, and PUTs come in bursts.
func newAzureTransport(caFile string, report Report) (*http.Client, error) {
	transport, err := withAuthorities(&http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		TLSHandshakeTimeout: 4 * time.Second,
		HTTP2:               http2Pings(),
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     90 * time.Second,
		ForceAttemptHTTP2:   true,
	}, caFile, report)

	return &http.Client{Transport: transport}, err
}

// parseAzureKeyID returns URL and name in lower case. Azure ignores case,
// but envelopes do not.
func parseAzureKeyID(id string) (vault, name string, err error) {
	u, err := url.Parse(id)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", "", errors.New("the key id is not of the form https://NAME.vault.azure.net/keys/KEY")
	}

	name, ok := strings.CutPrefix(u.Path, "/keys/")
	if ok && strings.Count(name, "/") == 1 {
		return "", "", errors.New("the key id has a version: remove it, or rotation has no effect")
	}
	if !ok || !azureNameForm.MatchString(name) {
		return "", "", errors.New("the key id is not of the form https://NAME.vault.azure.net/keys/KEY")
	}

	return "https://" + strings.ToLower(u.Host), strings.ToLower(name), nil
}

// KeyID returns AzureConfig.EnvelopeID, or the key's identifier without
// version, in lower case.
func (a *Azure) KeyID() string { return a.id }

// Wrap implements Wrapper by
// https://learn.microsoft.com/en-us/rest/api/keyvault/keys/wrap-key/wrap-key.
func (a *Azure) Wrap(ctx context.Context, dek []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkWrap(ctx, a.id, dek, ec); err != nil {
		return nil, err
	}

	blob := &azureBlob{form: azureBlobForm}
	var secret []byte

	if a.form == azureBoundForm && ctx.Value(keepUnboundKey{}) == nil {
		blob.form, blob.binding = azureBoundForm, a.bindings[0].blob.binding
		var err error
		if secret, err = a.secret(ctx, "wrap", a.bindings[0]); err != nil {
			return nil, err
		}
		defer clear(secret)
	}

	kek, err := a.wrapKEK(ctx, "wrap", blob)
	if err != nil {
		return nil, err
	}
	defer clear(kek)

	if err := a.prove(ctx, blob, kek); err != nil {
		return nil, err
	}

	sealed, err := blob.seal(kek, secret, dek, ec)
	if err != nil {
		return nil, &Error{Kind: Internal, Op: "wrap", KeyID: a.id, Err: err}
	}

	return sealed, nil
}

// wrapKEK generates the KEK of a blob and sets the blob's remaining fields,
// except form and binding.
func (a *Azure) wrapKEK(ctx context.Context, op string, blob *azureBlob) (kek []byte, err error) {
	kek = make([]byte, azureKEKSize)
	rand.Read(kek)
	defer func() {
		if err != nil {
			clear(kek)
		}
	}()

	var out azkeys.WrapKeyResponse
	err = a.attempt(ctx, func(call context.Context) (err error) {
		in := azkeys.KeyOperationParameters{Algorithm: &a.algorithm, Value: kek}
		out, err = a.client.WrapKey(call, a.name, "", in, nil)
		return err
	})
	if err != nil {
		return nil, a.fail(ctx, op, err)
	}

	if out.KID == nil {
		return nil, &Error{Kind: Unreachable, Op: op, KeyID: a.id, Err: errUnreadable}
	}

	blob.algorithm, blob.key, blob.wrapped = azureAlgorithms[a.algorithm], azureTag(a.id), out.Result
	if blob.version, err = a.answeredVersion(out.KeyOperationResult); err == nil {
		err = blob.check()
	}
	if err != nil {
		return nil, &Error{Kind: Internal, Op: op, KeyID: a.id, Err: err}
	}

	return kek, nil
}

// prove unwraps the KEK that was just wrapped, unless an unwrap has
// succeeded within azureProof. Wrapping with an RSA key needs only its
// public half, and Azure has been seen to wrap with a disabled key
// (https://github.com/Azure/azure-sdk-for-python/issues/45342). Without
// this check, a proxy would keep encrypting objects under a revoked key,
// and those objects could not be opened.
func (a *Azure) prove(ctx context.Context, blob *azureBlob, kek []byte) error {
	if at := a.provenAt.Load(); at != nil && time.Since(*at) < azureProof {
		return nil
	}

	got, err := a.unwrapKEK(ctx, "wrap", blob)
	if err != nil {
		return err
	}
	defer clear(got)

	if !slices.Equal(got, kek) {
		err := errors.New("the KMS unwrapped a different key than it had wrapped")
		return &Error{Kind: Internal, Op: "wrap", KeyID: a.id, Err: err}
	}

	return nil
}

// Unwrap implements Wrapper by
// https://learn.microsoft.com/en-us/rest/api/keyvault/keys/unwrap-key/unwrap-key.
func (a *Azure) Unwrap(ctx context.Context, wrapped []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkCall(ctx, "unwrap", a.id, ec); err != nil {
		return nil, err
	}

	blob, sealed, err := parseAzureBlob(wrapped)
	if err != nil {
		return nil, &Error{Kind: InvalidCiphertext, Op: "unwrap", KeyID: a.id, Err: err}
	}

	binding, err := a.accept(blob)
	if err != nil {
		return nil, &Error{Kind: InvalidCiphertext, Op: "unwrap", KeyID: a.id, Err: err}
	}

	kek, err := a.unwrapKEK(ctx, "unwrap", blob)
	if err != nil {
		return nil, err
	}
	defer clear(kek)

	var secret []byte
	if binding != nil {
		if secret, err = a.secret(ctx, "unwrap", binding); err != nil {
			return nil, err
		}
		defer clear(secret)
	}

	dek, err := blob.open(kek, secret, sealed, ec)
	if err != nil {
		return nil, &Error{Kind: InvalidCiphertext, Op: "unwrap", KeyID: a.id, Err: err}
	}

	return dek, nil
}

// accept refuses, before asking the vault, a blob that must not be opened.
// It returns the binding of a blob of form 2.
func (a *Azure) accept(blob *azureBlob) (*azureBinding, error) {
	switch {
	case blob.algorithm != azureAlgorithms[a.algorithm] || blob.key != azureTag(a.id):
		return nil, errors.New("the blob is for a different key or algorithm than configured")
	case blob.form == azureBindingForm:
		return nil, errAzureBlob
	case blob.form < a.leastForm:
		return nil, errors.New("accept_form 2 refuses blobs of form 1, which anyone with the public key can create")
	case blob.form == azureBlobForm:
		return nil, nil
	}

	binding := a.binding(blob.binding)
	if binding == nil {
		return nil, fmt.Errorf("the blob has a binding that is not in bindings of the key (id %x)", blob.binding)
	}

	return binding, nil
}

func (a *Azure) unwrapKEK(ctx context.Context, op string, blob *azureBlob) ([]byte, error) {
	var (
		out   azkeys.UnwrapKeyResponse
		start time.Time
	)

	err := a.attempt(ctx, func(call context.Context) (err error) {
		start = time.Now()
		in := azkeys.KeyOperationParameters{Algorithm: &a.algorithm, Value: blob.wrapped}
		out, err = a.client.UnwrapKey(call, a.name, blob.versionName(), in, nil)
		return err
	})
	if err != nil {
		a.provenAt.Store(nil) // after any error, the key may no longer be enabled
		failure := a.fail(ctx, op, err)
		if IsRevoked(failure) {
			a.forgetAll()
		}
		return nil, failure
	}

	if out.KID == nil {
		clear(out.Result)
		return nil, &Error{Kind: Unreachable, Op: op, KeyID: a.id, Err: errUnreadable}
	}

	version, err := a.answeredVersion(out.KeyOperationResult)
	switch {
	case err != nil:
	case version != blob.version:
		err = errors.New("the KMS answered about another version of the key")
	case len(out.Result) != azureKEKSize:
		err = fmt.Errorf("the KMS answered with a key of %d bytes", len(out.Result))
	default:
		a.provenAt.Store(&start)
		return out.Result, nil
	}

	clear(out.Result)
	return nil, &Error{Kind: Internal, Op: op, KeyID: a.id, Err: err}
}

// answeredVersion checks that a response is about the requested key, and
// returns the key version.
func (a *Azure) answeredVersion(out azkeys.KeyOperationResult) (version [azureVersion]byte, _ error) {
	name, ok := strings.CutPrefix(strings.ToLower(string(*out.KID)), a.vault+"/keys/"+a.name+"/")
	if n, err := hex.Decode(version[:], []byte(name[:min(len(name), 2*azureVersion)])); !ok || err != nil ||
		n != azureVersion || len(name) != 2*azureVersion {
		return version, fmt.Errorf("the KMS answered about another key, %q", printable(string(*out.KID), 300))
	}
	return version, nil
}

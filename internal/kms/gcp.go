package kms

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
	gcpkms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Defaults of GCPConfig.
const (
	DefaultGCPTimeout     = 5 * time.Second
	DefaultGCPMaxAttempts = 3
)

// GCPConfig configures the provider "gcp-kms".
type GCPConfig struct {
	// KeyID is the resource name of a symmetric key without a version,
	// "projects/P/locations/L/keyRings/R/cryptoKeys/K". Required.
	KeyID string
	// Endpoint is the host and port of another endpoint, such as a regional
	// or private one. Empty means Google's global endpoint.
	Endpoint string
	// CAFile is a PEM file with the certificate authorities for the KMS. It
	// is reloaded when it changes. Empty means those of the system.
	CAFile string
	// Report is called when a file has been reloaded. It may be nil.
	Report Report
	// Options configure the client instead of the application default
	// credentials. They must not contain a connection, because the client
	// is recreated when its connection is dead. Nil means the default
	// credentials.
	Options []option.ClientOption
	// Timeout limits one Wrap or Unwrap, including all its attempts.
	// Getting a token has a separate limit of 30 seconds, and a call waits
	// for it until its context ends. 0 means DefaultGCPTimeout.
	Timeout time.Duration
	// MaxAttempts includes the first attempt. 0 means
	// DefaultGCPMaxAttempts.
	MaxAttempts int
}

// GCP is the provider "gcp-kms": a symmetric key of Google Cloud KMS with
// any protection level.
//
// Its KeyID is the name of the CryptoKey, not of a version. Encrypt uses
// the primary version and Decrypt finds the version in the ciphertext, so
// rotation needs no action here. A name is never reused, not even that of a
// deleted key
// (https://docs.cloud.google.com/kms/docs/delete-kms-resources).
//
// DEKs are generated here, because Google Cloud KMS does not generate data
// keys.
type GCP struct {
	conn     *gcpConn
	creds    *auth.Credentials // nil if Options were set
	name     string
	timeout  time.Duration
	attempts int
}

var gcpKeyForm = regexp.MustCompile(`^projects/[a-z0-9.:-]+/locations/[a-z0-9-]+` +
	`/keyRings/[a-zA-Z0-9_-]{1,63}/cryptoKeys/[a-zA-Z0-9_-]{1,63}$`)

// GCPKeys opens keys that share credentials and a connection. It is safe for
// concurrent use.
type GCPKeys struct {
	conn     *gcpConn
	creds    *auth.Credentials // nil if Options were set
	timeout  time.Duration
	attempts int
}

// NewGCP returns the key that cfg describes. It looks for credentials, but
// does not call the KMS.
func NewGCP(ctx context.Context, cfg GCPConfig) (*GCP, error) {
	if err := checkGCPName(cfg.KeyID); err != nil {
		return nil, err
	}
	keys, err := NewGCPKeys(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return keys.Open(cfg.KeyID)
}

// checkGCPName returns an error if name is not that of a CryptoKey.
func checkGCPName(name string) error {
	err := checkKeyID(name, gcpLeastBlob)
	if !gcpKeyForm.MatchString(name) {
		err = errors.New("not of the form projects/P/locations/L/keyRings/R/cryptoKeys/K")
	}
	if err != nil {
		return &Error{Kind: Invalid, Op: "open", KeyID: printable(name, maxKeyID), Err: err}
	}
	return nil
}

// Open returns the key with a name. It makes no calls.
func (k *GCPKeys) Open(name string) (*GCP, error) {
	if err := checkGCPName(name); err != nil {
		return nil, err
	}
	return &GCP{conn: k.conn, creds: k.creds, name: name, timeout: k.timeout, attempts: k.attempts}, nil
}

// Close ends the connection to the KMS.
func (k *GCPKeys) Close() error { return k.conn.close() }

// NewGCPKeys returns the GCPKeys that cfg describes. It does not use cfg.KeyID.
// It looks for credentials, but does not call the KMS.
func NewGCPKeys(ctx context.Context, cfg GCPConfig) (*GCPKeys, error) {
	g := &GCPKeys{timeout: cfg.Timeout, attempts: cfg.MaxAttempts}
	if g.timeout <= 0 {
		g.timeout = DefaultGCPTimeout
	}
	if g.attempts <= 0 {
		g.attempts = DefaultGCPMaxAttempts
	}

	// With GOOGLE_SDK_GO_LOGGING_LEVEL=debug in the environment, the client
	// would log every request and response to standard error, including
	// DEKs and access tokens.
	silent := slog.New(slog.DiscardHandler)
	options := cfg.Options
	if options == nil {
		detect := func() (*auth.Credentials, error) {
			return credentials.DetectDefault(&credentials.DetectOptions{
				Scopes: gcpkms.DefaultAuthScopes(), UseSelfSignedJWT: true, Logger: silent, // as the client does
			})
		}

		found, err := followLogin(detect, cfg.Report, gcpFileVariable,
			".config", "gcloud", "application_default_credentials.json")
		if err != nil {
			err := messageError("no credentials: " + printable(err.Error(), 300))
			return nil, &Error{Kind: Internal, Op: "open", KeyID: cfg.KeyID, Err: err}
		}
		g.creds = shareGCPTokens(found.Get)
		options = []option.ClientOption{option.WithAuthCredentials(g.creds)}
	}

	options = append(slices.Clip(options), option.WithLogger(silent))
	if cfg.Endpoint != "" {
		options = append(options, option.WithEndpoint(cfg.Endpoint))
	}
	if cfg.CAFile != "" {
		trusted, err := newPoolCredentials(cfg.CAFile, cfg.Report)
		if err != nil {
			return nil, &Error{Kind: Invalid, Op: "open", KeyID: cfg.KeyID, Err: err}
		}
		options = append(options, option.WithGRPCDialOption(grpc.WithTransportCredentials(trusted)))
	}

	var err error
	if g.conn, err = newGCPConn(ctx, options); err != nil {
		err := messageError(printable(err.Error(), 300))
		return nil, &Error{Kind: Invalid, Op: "open", KeyID: cfg.KeyID, Err: err}
	}
	return g, nil
}

// KeyID returns the name of the CryptoKey.
func (g *GCP) KeyID() string { return g.name }

// Close ends the connection to the KMS. Other keys of the same GCPKeys use it
// too.
func (g *GCP) Close() error { return g.conn.close() }

// gcpLeastBlob is the minimum length of a ciphertext of 32 bytes: nonce and
// tag, in addition to Google's own fields.
const gcpLeastBlob = 12 + DEKSize + 16

// gcpMaxCiphertext is the longest blob that is sent. Google accepts 64 KiB
// of plaintext plus its overhead.
const gcpMaxCiphertext = 64 << 10

// Wrap implements Wrapper by
// https://cloud.google.com/kms/docs/reference/rpc/google.cloud.kms.v1#encryptrequest.
func (g *GCP) Wrap(ctx context.Context, dek []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkWrap(ctx, g.name, dek, ec); err != nil {
		return nil, err
	}

	aad := associatedData(ec)
	req := &kmspb.EncryptRequest{
		Name: g.name, Plaintext: dek, PlaintextCrc32C: crc32c(dek),
		AdditionalAuthenticatedData: aad, AdditionalAuthenticatedDataCrc32C: crc32c(aad),
	}

	var blob []byte
	err := g.call(ctx, "wrap", func(call context.Context) error {
		resp, err := g.conn.client().Encrypt(call, req, g.retry())
		if err != nil {
			return err
		}

		intact := resp.GetVerifiedPlaintextCrc32C() && resp.GetVerifiedAdditionalAuthenticatedDataCrc32C()
		if !intact || !isCRC32C(resp.GetCiphertext(), resp.GetCiphertextCrc32C()) {
			return errGCPDamaged
		}
		if !isVersionOf(resp.GetName(), g.name) {
			return errGCPOtherKey
		}

		blob = resp.GetCiphertext()
		return nil
	})
	if err != nil {
		return nil, err
	}

	// External key managers can return blobs of any length.
	if err := checkKeyID(g.name, len(blob)); err != nil {
		return nil, &Error{Kind: Invalid, Op: "wrap", KeyID: g.name, Err: err}
	}

	return blob, nil
}

// Unwrap implements Wrapper by
// https://cloud.google.com/kms/docs/reference/rpc/google.cloud.kms.v1#decryptrequest.
func (g *GCP) Unwrap(ctx context.Context, wrapped []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkCall(ctx, "unwrap", g.name, ec); err != nil {
		return nil, err
	}
	if len(wrapped) < gcpLeastBlob || len(wrapped) > gcpMaxCiphertext {
		err := fmt.Errorf("a blob of %d bytes", len(wrapped))
		return nil, &Error{Kind: InvalidCiphertext, Op: "unwrap", KeyID: g.name, Err: err}
	}

	aad := associatedData(ec)
	req := &kmspb.DecryptRequest{
		Name: g.name, Ciphertext: wrapped, CiphertextCrc32C: crc32c(wrapped),
		AdditionalAuthenticatedData: aad, AdditionalAuthenticatedDataCrc32C: crc32c(aad),
	}

	var dek []byte
	err := g.call(ctx, "unwrap", func(call context.Context) error {
		resp, err := g.conn.client().Decrypt(call, req, g.retry())
		if err != nil {
			return err
		}
		if !isCRC32C(resp.GetPlaintext(), resp.GetPlaintextCrc32C()) {
			clear(resp.GetPlaintext())
			return errGCPDamaged
		}

		dek = resp.GetPlaintext()
		return nil
	})
	if err != nil {
		return nil, err
	}

	return dek, nil
}

var (
	errGCPDamaged  = errors.New("the request or the answer was damaged in transit: the checksums differ")
	errGCPOtherKey = errors.New("the KMS answered about another key")
)

// call repeats a call that was damaged in transit, as
// https://cloud.google.com/kms/docs/data-integrity-guidelines asks. If the
// KMS detects the damage, the code is INVALID_ARGUMENT. A bad blob has the
// same code, so calls with that code are repeated once.
func (g *GCP) call(ctx context.Context, op string, run func(context.Context) error) error {
	if err := g.haveToken(ctx, op); err != nil {
		return err
	}

	call, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()

	var err error
	for attempt := 1; ; attempt++ {
		used, sent := g.conn.client(), clock()
		err = run(call)
		g.conn.note(used, sent, err)
		last := attempt >= g.attempts || call.Err() != nil
		again := errors.Is(err, errGCPDamaged) || status.Code(err) == codes.InvalidArgument && attempt == 1
		if last || !again {
			break
		}
	}

	if err == nil {
		return nil
	}
	return g.fail(ctx, op, err)
}

// retry limits the attempts of a failed call. By default the client retries
// until the deadline.
func (g *GCP) retry() gax.CallOption {
	return gax.WithRetry(func() gax.Retryer {
		again := gax.OnCodes([]codes.Code{codes.Unavailable, codes.ResourceExhausted, codes.Internal}, gax.Backoff{
			Initial: 100 * time.Millisecond, Max: time.Second, Multiplier: 2,
		})
		return &boundedRetryer{again, g.attempts - 1}
	})
}

type boundedRetryer struct {
	gax.Retryer
	left int
}

// Retry implements gax.Retryer.
func (r *boundedRetryer) Retry(err error) (time.Duration, bool) {
	if r.left <= 0 {
		return 0, false
	}
	r.left--
	return r.Retryer.Retry(err)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func crc32c(b []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(b, castagnoli)))
}

// isCRC32C reports whether sum is present and is the checksum of b.
func isCRC32C(b []byte, sum *wrapperspb.Int64Value) bool {
	return sum != nil && sum.GetValue() == crc32c(b).GetValue()
}

// isVersionOf reports whether version is a version of key. The project part
// may differ, because a project has a name and a number.
func isVersionOf(version, key string) bool {
	_, from, _ := strings.Cut(version, "/locations/")
	_, of, _ := strings.Cut(key, "/locations/")
	number, ok := strings.CutPrefix(from, of+"/cryptoKeyVersions/")
	return ok && number != "" && !strings.Contains(number, "/")
}

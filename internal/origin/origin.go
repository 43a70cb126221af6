// Package origin sends requests to the store behind the proxy.
//
// Origin is an http.RoundTripper: it takes a request for /bucket/key,
// addresses and signs it for the store with the store's own credentials, and
// returns the store's answer untouched. It mirrors no S3 operation, so a
// header or query parameter that it does not know survives.
package origin

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// UnsignedPayload is sent in place of the body's hash: hashing costs more CPU
// than encrypting, TLS protects the bytes on the way, and whatever arrives
// altered is refused when it is read.
const UnsignedPayload = "UNSIGNED-PAYLOAD"

// Config says where the store is and how to speak to it.
type Config struct {
	Endpoint    *url.URL // scheme and host only
	Region      string   // for the signature
	Credentials aws.CredentialsProvider
	PathStyle   bool              // bucket in the path; otherwise in the host name
	Trailers    bool              // uploads carry a checksum in a trailer; false for stores that do not know aws-chunked
	Transport   http.RoundTripper // NewTransport's, or another
	Now         func() time.Time
	// CredentialsTimeout is how long Credentials may take. 0: 10 s.
	CredentialsTimeout time.Duration
}

// Origin signs and sends. It is safe for concurrent use.
type Origin struct {
	cfg    Config
	signer atomic.Pointer[signer]
}

// signer signs with one secret. A v4.Signer keeps the key that it derives from
// the secret for a day, and looks for another one only when the access key
// changes: a secret that was replaced under the same access key needs a new
// signer.
type signer struct {
	*v4.Signer
	secret string
}

// New returns an Origin.
func New(cfg Config) *Origin { return &Origin{cfg: cfg} }

func (o *Origin) signerOf(secret string) *signer {
	if s := o.signer.Load(); s != nil && subtle.ConstantTimeCompare([]byte(s.secret), []byte(secret)) == 1 {
		return s
	}
	s := &signer{secret: secret, Signer: v4.NewSigner(func(o *v4.SignerOptions) {
		o.DisableURIPathEscaping = true // S3 alone escapes a path once, not twice
	})}
	o.signer.Store(s)
	return s
}

// ErrCredentials says that the proxy has no credentials for the store.
var ErrCredentials = errors.New("origin: no credentials for the store")

// RoundTrip sends r, whose URL holds nothing but /bucket/key (Path and
// RawPath) and the query. A body whose hash is in X-Amz-Content-Sha256 is sent
// as it is; another one with a checksum in its trailer, or as UnsignedPayload.
// A multipart upload is created with the algorithm of its parts' trailers, and
// Amazon S3 then wants the checksum of each part, see stored.PartChecksum,
// when the upload is completed. r is not modified.
func (o *Origin) RoundTrip(r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.URL.Scheme = o.cfg.Endpoint.Scheme
	out.URL.Host = o.cfg.Endpoint.Host

	if !o.cfg.PathStyle {
		moveBucketToHost(out.URL)
	}

	out.Host = out.URL.Host
	if o.cfg.Trailers && out.Method == http.MethodPost && strings.HasPrefix(out.URL.RawQuery, "uploads") {
		out.Header.Set("X-Amz-Checksum-Algorithm", trailerAlgorithm)
	}

	switch hashed := out.Header.Get("X-Amz-Content-Sha256") != ""; {
	case hashed:
	case o.cfg.Trailers && out.Body != nil && out.ContentLength > 0:
		frame(out)
	default:
		out.Header.Set("X-Amz-Content-Sha256", UnsignedPayload)
	}

	creds, err := o.credentials(r.Context())
	if err != nil {
		closeBody(r)
		return nil, fmt.Errorf("%w: %w", ErrCredentials, err)
	}

	hash := out.Header.Get("X-Amz-Content-Sha256")
	if err := o.signerOf(creds.SecretAccessKey).SignHTTP(r.Context(), creds, out, hash, "s3", o.cfg.Region,
		o.cfg.Now()); err != nil {
		closeBody(r)
		return nil, fmt.Errorf("origin: signing: %w", err)
	}

	return o.cfg.Transport.RoundTrip(out)
}

// defaultCredentialsTimeout is longer than what the AWS SDK needs to ask an
// instance's metadata service three times.
const defaultCredentialsTimeout = 10 * time.Second

func (o *Origin) credentials(ctx context.Context) (aws.Credentials, error) {
	limit := o.cfg.CredentialsTimeout
	if limit <= 0 {
		limit = defaultCredentialsTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return o.cfg.Credentials.Retrieve(ctx)
}

// closeBody keeps the promise of http.RoundTripper to close the body also on
// errors.
func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

func moveBucketToHost(u *url.URL) {
	bucket, _, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if bucket == "" {
		return // ListBuckets
	}
	u.Host = bucket + "." + u.Host
	u.RawPath = "/" + strings.TrimPrefix(strings.TrimPrefix(u.EscapedPath(), "/"+bucket), "/")
	u.Path = "/" + strings.TrimPrefix(strings.TrimPrefix(u.Path, "/"+bucket), "/")
}

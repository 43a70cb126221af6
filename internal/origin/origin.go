// Package origin sends requests to the store behind the proxy.
//
// Origin is an http.RoundTripper. It takes a request for /bucket/key,
// addresses it to the store, signs it with the store's credentials, and
// returns the store's response unchanged. It does not know S3 operations,
// so unknown headers and query parameters pass through.
//
//	origin.go     addressing and signing
//	sse.go        asking for the store's own encryption
//	trailer.go    uploads with a checksum in a trailer
//	retry.go      requests that are repeated
//	transport.go  timeouts
//	faults.go     what errors of connections mean
//
// There is no example: it needs a store. The tests show its use.
package origin

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

// UnsignedPayload is sent instead of the body's hash. Hashing would cost
// more CPU than encryption, TLS protects data in transit, and altered data
// is detected when it is read.
const UnsignedPayload = "UNSIGNED-PAYLOAD"

// Config configures an Origin.
type Config struct {
	Endpoint    *url.URL                // only scheme and host
	Region      string                  // region in signatures
	Credentials aws.CredentialsProvider // must limit how long it takes
	PathStyle   bool                    // bucket in the path rather than in the host name
	SSE         SSE                     // what the store's own encryption is asked for
	// Uploads says how bodies are sent to a bucket. If it returns an error,
	// the request fails. nil means Always(Uploads{}).
	Uploads   func(ctx context.Context, bucket string) (Uploads, error)
	Transport http.RoundTripper // normally from NewTransport
	Now       func() time.Time
}

// Uploads is how bodies are sent to the store.
type Uploads struct {
	// Trailer sends them with a checksum in a trailer. False for stores that
	// do not support aws-chunked.
	Trailer bool
	// PartChecksums creates multipart uploads with the algorithm of the
	// trailers. Amazon S3 then requires the checksum of each part when the
	// upload is completed (see stored.PartChecksum), and without it does not
	// complete an upload whose parts have checksums.
	PartChecksums bool
}

// Always returns a value for Config.Uploads that is the same for all buckets.
func Always(u Uploads) func(context.Context, string) (Uploads, error) {
	return func(context.Context, string) (Uploads, error) { return u, nil }
}

// Origin signs and sends requests to the store. It is safe for concurrent
// use.
type Origin struct {
	cfg    Config
	signer *sigv4.Signer
}

// New returns an Origin.
func New(cfg Config) *Origin {
	if cfg.Uploads == nil {
		cfg.Uploads = Always(Uploads{})
	}
	return &Origin{cfg: cfg, signer: sigv4.NewSigner()}
}

// ErrCredentials is returned if the proxy has no credentials for the store.
var ErrCredentials error = &storefault.Error{
	Kind: storefault.Credentials, What: "origin: no credentials for the store", NotDone: true,
	Hint: "set origin.access_key and origin.secret_key, or check what the AWS SDK's default chain finds",
}

// RoundTrip sends r. Its URL must contain only /bucket/key (Path and
// RawPath) and the query. A body whose hash is in X-Amz-Content-Sha256 is
// sent unchanged. Other bodies are sent with a checksum trailer or as
// UnsignedPayload; see Uploads. RoundTrip does not modify r.
func (o *Origin) RoundTrip(r *http.Request) (*http.Response, error) {
	out := shallowClone(r)
	out.URL.Scheme = o.cfg.Endpoint.Scheme
	out.URL.Host = o.cfg.Endpoint.Host
	o.cfg.SSE.askFor(out) // while the bucket is in the path

	if !o.cfg.PathStyle {
		moveBucketToHost(out.URL)
	}

	out.Host = out.URL.Host
	if err := o.prepareUpload(r, out); err != nil {
		closeBody(r)
		return nil, err
	}

	creds, err := o.cfg.Credentials.Retrieve(r.Context())
	if err != nil {
		closeBody(r)
		return nil, fmt.Errorf("%w: %w", ErrCredentials, err)
	}

	hash := out.Header.Get("X-Amz-Content-Sha256")
	own := sigv4.Credentials{AccessKey: creds.AccessKeyID, Secret: creds.SecretAccessKey, Token: creds.SessionToken}
	if err := o.signer.Sign(out, own, hash, o.cfg.Region, o.cfg.Now()); err != nil {
		closeBody(r)
		return nil, fmt.Errorf("origin: signing: %w", err)
	}

	return o.cfg.Transport.RoundTrip(out)
}

// shallowClone returns a copy of a request whose headers and URL can be set
// without changing those of r. The values of the headers are shared.
func shallowClone(r *http.Request) *http.Request {
	out := r.WithContext(r.Context())
	out.Header = make(http.Header, len(r.Header)+4) // with room for those of the signature
	maps.Copy(out.Header, r.Header)
	u := *r.URL
	out.URL = &u
	return out
}

// prepareUpload decides how the body of r is sent, and changes out
// accordingly.
func (o *Origin) prepareUpload(r, out *http.Request) error {
	hashed := out.Header.Get("X-Amz-Content-Sha256") != ""
	body := !hashed && out.Body != nil && out.ContentLength > 0
	creates := out.Method == http.MethodPost && strings.HasPrefix(out.URL.RawQuery, "uploads")

	var how Uploads
	if body || creates {
		bucket, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		var err error
		if how, err = o.cfg.Uploads(r.Context(), bucket); err != nil {
			return err
		}
	}

	if creates && how.PartChecksums {
		out.Header.Set("X-Amz-Checksum-Algorithm", trailerAlgorithm)
	}
	switch {
	case hashed:
	case body && how.Trailer:
		frame(out)
	default:
		out.Header.Set("X-Amz-Content-Sha256", UnsignedPayload)
	}
	return nil
}

// closeBody closes the request's body, as http.RoundTripper requires even
// after errors.
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

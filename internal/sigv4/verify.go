// Package sigv4 verifies AWS Signature Version 4 on requests to S3. It is
// the server side of the protocol.
//
// It supports header signatures, presigned URLs and browser forms. Payloads
// may be hashed, unsigned or in aws-chunked framing, with or without a
// trailer. Names and the order of steps follow
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html.
// The package imports only the standard library, and takes the time as an
// input.
//
//	verify.go     Verifier and Auth, and the steps of a verification
//	header.go     the Authorization header
//	presign.go    the query of a presigned URL
//	post.go       browser forms: policy and signature
//	anonymous.go  requests without a signature
//	canonical.go  the canonical request, and percent-encoding
//	payload.go    x-amz-content-sha256
//	body.go       Body: reading and verifying a payload
//	chunked.go    aws-chunked framing
//	trailer.go    headers after the last chunk
//	errors.go     Error: S3's codes and messages
package sigv4

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	algorithm       = "AWS4-HMAC-SHA256"
	serviceS3       = "s3"
	terminator      = "aws4_request"
	timeFormat      = "20060102T150405Z"
	dateFormat      = "20060102"
	defaultSkew     = 15 * time.Minute
	maxPresignedAge = 7 * 24 * time.Hour
)

// Verifier checks the signatures of requests. It is safe for concurrent use.
type Verifier struct {
	// Now returns the current time.
	Now func() time.Time
	// Secret returns the secret key of an access key.
	Secret func(accessKey string) (secret string, ok bool)
	// Session returns the session token that belongs to an access key of
	// temporary credentials, and when the credentials expire. ok is false
	// for an access key of permanent credentials. If Session is nil, all
	// access keys are permanent.
	Session func(accessKey string) (token string, expires time.Time, ok bool)
	// SigningKeys, if not nil, remembers derived keys.
	SigningKeys *SigningKeys
	// MaxSkew is the maximum difference between a request's time and Now. 0
	// means 15 minutes, as in S3.
	MaxSkew time.Duration
}

// Auth is an authenticated request. Its payload is verified later, as the
// Body is read.
type Auth struct {
	AccessKey string
	Presigned bool

	payload    payload
	length     int64       // of the decoded payload, in bytes; -1 if unknown
	signingKey *signingKey // for chunk signatures
	scope      scope
	date       string // the request's time, in timeFormat
	seed       string // the request's signature, in hex
	trailers   []string
}

// claim holds what a request says about its own signature.
type claim struct {
	accessKey string
	scope     scope
	signed    []string // signed headers in lower case, in the client's order
	signature string
	time      time.Time
	presigned bool
	lifetime  time.Duration // of a presigned URL
	hash      string        // payload hash in the canonical request
	token     string        // session token; "" for none
}

// scope is the credential scope.
type scope struct{ date, region, service, terminator string }

func (s scope) String() string {
	return s.date + "/" + s.region + "/" + s.service + "/" + s.terminator
}

// Verify authenticates a request that net/http's server has received. It
// reads only the header, never the body. Every error is an *Error.
//
// Any region in the scope is accepted. Secret keys belong to this endpoint
// alone and Host is always signed, so checking the region would add no
// protection, and clients have many different defaults for it.
func (v *Verifier) Verify(r *http.Request) (*Auth, error) {
	rawPath, rawQuery := RequestTarget(r)
	query, err := parseQuery(rawQuery)
	if err != nil {
		return nil, err
	}

	c, err := claimOf(r, query)
	if err != nil {
		return nil, err
	}
	if err := v.checkTime(c); err != nil {
		return nil, err
	}
	if err := checkSigned(r, c); err != nil {
		return nil, err
	}

	described, err := payloadOf(c.hash)
	if err != nil {
		return nil, err
	}

	canonical, err := appendCanonicalRequest(make([]byte, 0, 1024), r, c, rawPath, query)
	if err != nil {
		return nil, err
	}

	secret, known := v.Secret(c.accessKey)
	known = known && secret != "" // anyone could sign with an empty secret
	key := v.SigningKeys.get(secret, c.scope)
	date := c.time.Format(timeFormat)
	toSign := appendStringToSign(nil, date, c.scope, canonical)
	want := key.sign(nil, toSign)
	genuine := subtle.ConstantTimeCompare(want, []byte(c.signature)) == 1

	if !known {
		return nil, fail("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.",
			"AWSAccessKeyId", c.accessKey)
	}
	if !genuine {
		return nil, errSignature(c.accessKey, string(toSign), c.signature, "CanonicalRequest", string(canonical),
			"CanonicalRequestBytes", hexBytes(string(canonical)))
	}

	v.SigningKeys.remember(secret, c.scope, key)
	if err := v.checkToken(c); err != nil {
		return nil, err
	}

	a := &Auth{
		AccessKey: c.accessKey, Presigned: c.presigned, payload: described,
		signingKey: key, scope: c.scope, date: date, seed: c.signature,
	}
	if err := a.describePayload(r); err != nil {
		return nil, err
	}

	return a, nil
}

// DecodedLength returns the length of the payload in bytes, without
// framing, or -1 if the client did not send it.
func (a *Auth) DecodedLength() int64 { return a.length }

// Framed reports whether the payload has aws-chunked framing.
func (a *Auth) Framed() bool { return a.payload.chunked }

// Body returns a reader of the payload, with aws-chunked framing removed.
// It returns io.EOF only after it has verified the length, the hash or all
// chunk signatures, and the trailer. Any other error is an *Error, or
// body's own.
//
// A chunk may be too large to hold in memory, so its bytes are returned
// before its signature is verified. Do not act on any of them before
// io.EOF.
func (a *Auth) Body(body io.Reader) *Body { return newBody(a, body) }

// RequestTarget returns path and query exactly as in the request line, not
// decoded.
func RequestTarget(r *http.Request) (path, query string) {
	target := r.RequestURI
	if target == "" {
		return r.URL.EscapedPath(), r.URL.RawQuery
	}
	if !strings.HasPrefix(target, "/") { // absolute-form, as sent to a proxy
		if u, err := url.Parse(target); err == nil {
			return u.EscapedPath(), u.RawQuery
		}
	}

	path, query, _ = strings.Cut(target, "?")
	return path, query
}

func claimOf(r *http.Request, query []parameter) (*claim, error) {
	authorization := r.Header.Values("Authorization")
	inQuery := hasParameter(query, "X-Amz-Algorithm") || hasParameter(query, "X-Amz-Signature") ||
		hasParameter(query, "X-Amz-Credential")

	switch {
	case len(authorization) > 0 && inQuery:
		return nil, badAuthorization("Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, "+
			"Signature query string parameter or the Authorization header should be specified", authorization[0])
	case len(authorization) > 1:
		return nil, badAuthorization("Authorization header is invalid -- there is more than one", authorization[0])
	case len(authorization) == 1:
		return headerClaim(r, authorization[0])
	case inQuery:
		return queryClaim(r, query)
	case hasParameter(query, "Signature") && hasParameter(query, "AWSAccessKeyId"):
		return nil, errOldSignature()
	default:
		return nil, fail("AccessDenied", "Access Denied")
	}
}

func (v *Verifier) checkTime(c *claim) error {
	now, skew := v.Now(), v.MaxSkew
	if skew == 0 {
		skew = defaultSkew
	}
	if !c.presigned {
		if d := now.Sub(c.time); d > skew || d < -skew {
			return fail("RequestTimeTooSkewed",
				"The difference between the request time and the current time is too large.",
				"RequestTime", c.time.Format(timeFormat), "ServerTime", now.UTC().Format(time.RFC3339),
				"MaxAllowedSkewMilliseconds", milliseconds(skew))
		}

		return nil
	}

	end := c.time.Add(c.lifetime)
	switch {
	case c.time.Sub(now) > skew: // S3 prints this one date in milliseconds, too
		return fail("AccessDenied", "Request is not yet valid", "X-Amz-Date", strconv.FormatInt(c.time.UnixMilli(), 10),
			"Expires", end.Format(time.RFC3339), "ServerTime", now.UTC().Format(time.RFC3339))
	case now.After(end):
		return fail("AccessDenied", "Request has expired.", "X-Amz-Expires", seconds(c.lifetime),
			"Expires", end.Format(time.RFC3339), "ServerTime", now.UTC().Format(time.RFC3339))
	}

	return nil
}

// checkSigned checks that the signature covers everything that gives the
// request its meaning: Host, and every x-amz- header. The payload's hash is
// covered even if SignedHeaders does not name it.
func checkSigned(r *http.Request, c *claim) error {
	signed := make(map[string]bool, len(c.signed))
	for _, name := range c.signed {
		if signed[name] || name == "" || name != strings.ToLower(name) {
			return malformedClaim(c, "SignedHeaders is malformed")
		}
		signed[name] = true
	}

	if !signed["host"] {
		return malformedClaim(c, "host must be a signed header")
	}

	var missing []string
	for name := range r.Header {
		if !IsAmz(name) {
			continue
		}
		lower := strings.ToLower(name)
		covered := signed[lower] && name == http.CanonicalHeaderKey(name) // canonicalHeader finds only canonical names
		if !c.presigned && name == contentSHA256 {
			covered = true // the last line of the canonical request
		}
		if !covered {
			missing = append(missing, lower)
		}
	}

	if len(missing) > 0 {
		slices.Sort(missing)
		return fail("AccessDenied", "There were headers present in the request which were not signed",
			"HeadersNotSigned", strings.Join(missing, ", "))
	}

	return nil
}

// IsAmz reports whether a header starts with x-amz-, in any case.
func IsAmz(name string) bool {
	const prefix = "x-amz-"
	return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
}

// checkToken checks the session token of a request whose signature is
// correct. The signature covers the token, in a header or in the query.
func (v *Verifier) checkToken(c *claim) error {
	want, expires, temporary := "", time.Time{}, false
	if v.Session != nil {
		want, expires, temporary = v.Session(c.accessKey)
	}

	switch {
	case !temporary && c.token == "":
		return nil
	case temporary && c.token == "": // as in S3, where such an access key exists only with its token
		return fail("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.",
			"AWSAccessKeyId", c.accessKey)
	case !temporary || want == "" || subtle.ConstantTimeCompare([]byte(want), []byte(c.token)) != 1:
		return errToken()
	case !v.Now().Before(expires):
		return fail("ExpiredToken", "The provided token has expired.")
	default:
		return nil
	}
}

func malformedClaim(c *claim, message string) *Error {
	if c.presigned {
		return fail("AuthorizationQueryParametersError", message)
	}
	return malformedHeader(message)
}

func malformedHeader(message string) *Error {
	return fail("AuthorizationHeaderMalformed", "The authorization header is malformed; "+message)
}

func hexSHA256(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

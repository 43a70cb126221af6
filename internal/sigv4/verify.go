// Package sigv4 is the server side of AWS Signature Version 4 for S3: it
// verifies what clients sign.
//
// Header signatures, presigned URLs, hashed, unsigned and aws-chunked
// payloads, with trailers. The words and the order of steps are those of
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html.
// The package uses the standard library only, and takes the time as an input.
//
//	verify.go     Verifier and Auth, and the steps of a verification
//	header.go     what the Authorization header says
//	presign.go    what the query of a presigned URL says
//	post.go       forms of browsers: policy and signature
//	anonymous.go  requests that nobody has signed
//	canonical.go  the canonical request, and escaping
//	payload.go    what x-amz-content-sha256 says of the body
//	body.go       Body: reading and verifying a payload
//	chunked.go    aws-chunked framing
//	trailer.go    headers behind the last chunk
//	errors.go     Error: S3's codes and messages
package sigv4

import (
	"crypto/hmac"
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
	// Now is the clock.
	Now func() time.Time
	// Secret returns the secret key of an access key.
	Secret func(accessKey string) (secret string, ok bool)
	// Session returns the token that must come with an access key of temporary
	// credentials, and when they expire. ok is false for an access key with
	// which no token must come. nil: for all of them.
	Session func(accessKey string) (token string, expires time.Time, ok bool)
	// MaxSkew is how far a request's time may be from Now, either way. 0 means
	// 15 minutes, as S3.
	MaxSkew time.Duration
}

// Auth is a request whose signature is genuine. What the signature says of the
// payload is verified while it is read.
type Auth struct {
	AccessKey string
	Presigned bool

	payload    payload
	length     int64  // decoded, -1 if not said
	signingKey []byte // for chunk signatures
	scope      string
	date       string // of the request, in timeFormat
	seed       string // the request's signature, hex
	trailers   []string
}

// claim is what a request says about its own signature.
type claim struct {
	accessKey string
	scope     scope
	signed    []string // signed headers, lower case, in the order given
	signature string
	time      time.Time
	presigned bool
	lifetime  time.Duration // of a presigned URL
	hash      string        // payload hash of the canonical request
	token     string        // session token; "" for none
}

// scope is the credential scope.
type scope struct{ date, region, service, terminator string }

func (s scope) String() string {
	return s.date + "/" + s.region + "/" + s.service + "/" + s.terminator
}

// Verify authenticates r, which is a request as net/http's server gives it. It
// reads the header only, never the body. Every error is an *Error.
//
// Any region is accepted in the scope: secrets are this endpoint's own and
// Host is always signed, so a region adds no protection, while clients have
// all kinds of defaults for it.
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

	canonical, err := canonicalRequest(r, c, rawPath, query)
	if err != nil {
		return nil, err
	}

	secret, known := v.Secret(c.accessKey)
	known = known && secret != "" // anybody could sign with an empty one
	key := signingKey(secret, c.scope)
	toSign := stringToSign(c.time, c.scope, canonical)
	want := hex.EncodeToString(hmacSHA256(key, toSign))
	genuine := subtle.ConstantTimeCompare([]byte(want), []byte(c.signature)) == 1

	if !known {
		return nil, fail("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.",
			"AWSAccessKeyId", c.accessKey)
	}
	if !genuine {
		return nil, errSignature(c.accessKey, toSign, c.signature, "CanonicalRequest", canonical,
			"CanonicalRequestBytes", hexBytes(canonical))
	}

	if err := v.checkToken(c); err != nil {
		return nil, err
	}

	a := &Auth{
		AccessKey: c.accessKey, Presigned: c.presigned, payload: described,
		signingKey: key, scope: c.scope.String(), date: c.time.Format(timeFormat), seed: c.signature,
	}
	if err := a.describePayload(r); err != nil {
		return nil, err
	}

	return a, nil
}

// DecodedLength is the length in bytes of the payload without its framing, or
// -1 if the client did not say.
func (a *Auth) DecodedLength() int64 { return a.length }

// Framed reports whether the payload comes in aws-chunked framing.
func (a *Auth) Framed() bool { return a.payload.chunked }

// Body returns the payload of the request's body: without aws-chunked framing,
// and with io.EOF only after length, hash or chunk signatures, and trailer
// have all been verified. Any other end is an *Error, or the body's own.
//
// A chunk may be longer than anybody wants to hold in memory, so its bytes
// come out before its signature has been seen: do not act upon any of them
// before io.EOF.
func (a *Auth) Body(body io.Reader) *Body { return newBody(a, body) }

// RequestTarget returns path and query as they stood in the request line, not
// decoded.
func RequestTarget(r *http.Request) (path, query string) {
	target := r.RequestURI
	if target == "" {
		return r.URL.EscapedPath(), r.URL.RawQuery
	}
	if !strings.HasPrefix(target, "/") { // absolute-form, to a proxy
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
		return nil, badAuthorization("Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter or the Authorization header should be specified", authorization[0])
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
	case c.time.Sub(now) > skew: // S3 does print this one date in milliseconds
		return fail("AccessDenied", "Request is not yet valid", "X-Amz-Date", strconv.FormatInt(c.time.UnixMilli(), 10),
			"Expires", end.Format(time.RFC3339), "ServerTime", now.UTC().Format(time.RFC3339))
	case now.After(end):
		return fail("AccessDenied", "Request has expired.", "X-Amz-Expires", seconds(c.lifetime),
			"Expires", end.Format(time.RFC3339), "ServerTime", now.UTC().Format(time.RFC3339))
	}

	return nil
}

// checkSigned makes sure that nothing that decides what the request means was
// left out of the signature: Host, and every x-amz- header.
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
		lower := strings.ToLower(name)
		covered := signed[lower] && name == http.CanonicalHeaderKey(name) // canonicalHeader sees canonical keys only
		if strings.HasPrefix(lower, "x-amz-") && !covered {
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

// checkToken compares the session token of a genuine request. As a header or
// parameter it is part of what was signed.
func (v *Verifier) checkToken(c *claim) error {
	want, expires, temporary := "", time.Time{}, false
	if v.Session != nil {
		want, expires, temporary = v.Session(c.accessKey)
	}

	switch {
	case !temporary && c.token == "":
		return nil
	case temporary && c.token == "": // as S3, which knows such an access key only together with its token
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

func stringToSign(at time.Time, s scope, canonical string) string {
	return algorithm + "\n" + at.Format(timeFormat) + "\n" + s.String() + "\n" + hexSHA256(canonical)
}

func signingKey(secret string, s scope) []byte {
	key := hmacSHA256([]byte("AWS4"+secret), s.date)
	key = hmacSHA256(key, s.region)
	key = hmacSHA256(key, s.service)
	return hmacSHA256(key, s.terminator)
}

func hmacSHA256(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func hexSHA256(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

package sigv4

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// queryClaim parses the parameters of a presigned URL:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html.
func queryClaim(r *http.Request, query []parameter) (*claim, error) {
	values := make(map[string]string)
	for _, p := range query {
		if !strings.HasPrefix(p.name, "X-Amz-") {
			continue
		}
		if _, twice := values[p.name]; twice {
			return nil, fail("AuthorizationQueryParametersError", p.name+" occurs more than once")
		}
		values[p.name] = p.value
	}

	switch used := values["X-Amz-Algorithm"]; {
	case strings.HasPrefix(used, "AWS4-ECDSA"):
		return nil, fail("AuthorizationQueryParametersError", "X-Amz-Algorithm only supports \"AWS4-HMAC-SHA256\"")
	case used != algorithm: // S3's message, although this proxy supports only the first algorithm
		return nil, fail("AuthorizationQueryParametersError",
			"X-Amz-Algorithm only supports \"AWS4-HMAC-SHA256 and AWS4-ECDSA-P256-SHA256\"")
	}

	for _, name := range []string{
		"X-Amz-Credential", "X-Amz-Signature", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Expires",
	} {
		if values[name] == "" {
			return nil, fail("AuthorizationQueryParametersError", "Query-string authentication version 4 requires "+
				"the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, "+
				"and X-Amz-Expires parameters.")
		}
	}

	c := &claim{
		presigned: true, signature: values["X-Amz-Signature"],
		signed: strings.Split(values["X-Amz-SignedHeaders"], ";"),
	}
	if err := c.setCredential(values["X-Amz-Credential"]); err != nil {
		return nil, err
	}

	var err error
	if c.lifetime, err = parseLifetime(values["X-Amz-Expires"]); err != nil {
		return nil, err
	}
	if c.time, err = parseTime(values["X-Amz-Date"]); err != nil {
		return nil, fail("AuthorizationQueryParametersError",
			"X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
	}

	if c.scope.date != c.time.Format(dateFormat) {
		return nil, fail("AuthorizationQueryParametersError", "Invalid credential date \""+c.scope.date+
			"\". This date is not the same as X-Amz-Date: \""+c.time.Format(dateFormat)+"\".")
	}
	if c.token, err = presignedToken(r, values); err != nil {
		return nil, err
	}

	c.hash, err = presignedHash(r, values)
	return c, err
}

// presignedToken returns the session token. It can be a parameter, a signed
// header, or both if they are equal.
func presignedToken(r *http.Request, values map[string]string) (string, error) {
	token, err := tokenHeader(r)
	parameter, inQuery := values[securityToken]
	switch {
	case err != nil:
		return "", err
	case !inQuery || parameter == "":
		return token, nil
	case token != "" && token != parameter:
		return "", errToken()
	default:
		return parameter, nil
	}
}

// presignedHash returns UNSIGNED-PAYLOAD unless the signer bound the URL to
// a payload. The Go SDK does so with a parameter, others with a signed
// header.
func presignedHash(r *http.Request, values map[string]string) (string, error) {
	header, parameter := r.Header.Get(contentSHA256), values[contentSHA256]
	switch {
	case len(r.Header.Values(contentSHA256)) > 1:
		return "", fail("InvalidRequest", "There is more than one x-amz-content-sha256 header.")
	case header != "" && parameter != "" && header != parameter:
		return "", fail("XAmzContentSHA256Mismatch",
			"The x-amz-content-sha256 header and the X-Amz-Content-Sha256 parameter differ.")
	case parameter != "":
		return parameter, nil
	case header != "":
		return header, nil
	default:
		return unsignedPayload, nil
	}
}

// parseLifetime parses X-Amz-Expires, which is in seconds.
func parseLifetime(text string) (time.Duration, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil:
		return 0, fail("AuthorizationQueryParametersError", "X-Amz-Expires should be a number")
	case n < 0:
		return 0, fail("AuthorizationQueryParametersError", "X-Amz-Expires must be non-negative")
	// S3 accepts 0, but then the request has always expired, unless the
	// signer's clock is ahead.
	case n == 0:
		return 0, fail("AuthorizationQueryParametersError", "X-Amz-Expires must be at least one second")
	case n > int64(maxPresignedAge/time.Second):
		return 0, fail("AuthorizationQueryParametersError", "X-Amz-Expires must be less than a week "+
			"(in seconds); that is, the given X-Amz-Expires must be less than 604800 seconds")
	}

	return time.Duration(n) * time.Second, nil
}

package sigv4

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"
)

const contentSHA256 = "X-Amz-Content-Sha256"

// headerClaim parses the Authorization header:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-auth-using-authorization-header.html.
func headerClaim(r *http.Request, authorization string) (*claim, error) {
	mechanism, rest, ok := strings.Cut(authorization, " ")
	switch {
	case !ok:
		return nil, badAuthorization("Authorization header is invalid -- one and only one ' ' (space) required.",
			authorization)
	case mechanism == algorithm:
	case strings.HasPrefix(mechanism, "AWS4-ECDSA"):
		return nil, errAsymmetric()
	case mechanism == "AWS":
		return nil, errOldSignature()
	default:
		return nil, badAuthorization("Unsupported Authorization Type", mechanism)
	}

	c := &claim{}
	parts, err := authorizationParts(rest)
	if err != nil {
		return nil, err
	}
	if err := c.setCredential(parts[0]); err != nil {
		return nil, err
	}

	c.signed = strings.Split(parts[1], ";")
	c.signature = parts[2]

	if c.time, err = requestTime(r); err != nil {
		return nil, err
	}
	if c.scope.date != c.time.Format(dateFormat) {
		return nil, malformedClaim(c, "Invalid credential date. Date is not the same as X-Amz-Date.")
	}

	if c.token, err = tokenHeader(r); err != nil {
		return nil, err
	}

	hashes := r.Header.Values(contentSHA256)
	if len(hashes) != 1 {
		return nil, fail("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
	}

	c.hash = hashes[0]
	return c, nil
}

// authorizationNames are the components of an Authorization header.
var authorizationNames = [3]string{"Credential", "SignedHeaders", "Signature"}

// authorizationParts splits "Credential=…, SignedHeaders=…, Signature=…", in
// any order, and returns the values in the order of authorizationNames. Some
// clients omit the spaces.
func authorizationParts(text string) (parts [3]string, err error) {
	if strings.Count(text, ",") != 2 {
		return parts, malformedHeader("the authorization header requires three components: " +
			"Credential, SignedHeaders, and Signature.")
	}

	for component := range strings.SplitSeq(text, ",") {
		component = strings.TrimSpace(component)
		name, value, ok := strings.Cut(component, "=")
		at := slices.Index(authorizationNames[:], name)
		if !ok || at >= 0 && parts[at] != "" {
			return parts, malformedHeader("the authorization component \"" + component + "\" is malformed.")
		}
		if at >= 0 {
			parts[at] = value
		}
	}

	for i, name := range authorizationNames {
		if parts[i] == "" {
			return parts, malformedHeader("missing " + name + ".")
		}
	}

	return parts, nil
}

// setCredential parses ACCESSKEY/date/region/service/aws4_request. The
// access key may contain slashes, so the elements are counted from the end.
func (c *claim) setCredential(text string) error {
	const unclear = "the Credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\"."
	parts := strings.Split(text, "/")
	n := len(parts) - 4
	if n < 1 || parts[0] == "" {
		return malformedCredential(c, unclear)
	}

	c.accessKey = strings.Join(parts[:n], "/")
	c.scope = scope{parts[n], parts[n+1], parts[n+2], parts[n+3]}

	switch {
	case n > 1 && (c.scope.service != serviceS3 || c.scope.terminator != terminator):
		return malformedCredential(c, unclear)
	case c.scope.region == "":
		return malformedCredential(c, "a non-empty region must be provided in the credential.")
	case c.scope.service != serviceS3:
		return malformedCredential(c, "incorrect service \""+c.scope.service+"\". This endpoint belongs to \"s3\".")
	case c.scope.terminator != terminator:
		return malformedCredential(c, "incorrect terminal \""+c.scope.terminator+
			"\". This endpoint uses \"aws4_request\".")
	}

	if _, err := time.Parse(dateFormat, c.scope.date); err != nil {
		return malformedCredential(c, "incorrect date format \""+c.scope.date+
			"\". This date in the credential must be in the format \"yyyyMMdd\".")
	}

	return nil
}

func malformedCredential(c *claim, message string) *Error {
	if c.presigned {
		message = "Error parsing the X-Amz-Credential parameter; " + message
	}
	return malformedClaim(c, message)
}

// requestTime returns the time in X-Amz-Date, or in Date if there is no
// X-Amz-Date.
func requestTime(r *http.Request) (time.Time, error) {
	if values := r.Header.Values("X-Amz-Date"); len(values) == 1 {
		if t, err := parseTime(values[0]); err == nil {
			return t, nil
		}
	} else if date := r.Header.Get("Date"); len(values) == 0 && date != "" {
		for _, format := range []string{http.TimeFormat, time.RFC1123Z, timeFormat} {
			if t, err := time.Parse(format, date); err == nil {
				return t.UTC(), nil
			}
		}
	}

	return time.Time{}, fail("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header.")
}

// parseTime parses a time in timeFormat. It checks the length because
// time.Parse also accepts fractions of a second.
func parseTime(text string) (time.Time, error) {
	if len(text) != len(timeFormat) {
		return time.Time{}, errors.New("not of the form " + timeFormat)
	}
	return time.Parse(timeFormat, text)
}

const securityToken = "X-Amz-Security-Token" //nolint:gosec // a header name, not a credential

// tokenHeader returns the session token, or "" if none exists. An empty token
// counts as none, because some SDKs send the value of AWS_SESSION_TOKEN even
// if it is empty. checkSigned checks that the header is signed.
func tokenHeader(r *http.Request) (string, error) {
	values := r.Header.Values(securityToken)
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1:
		return "", errToken()
	default:
		return values[0], nil
	}
}

func errToken() *Error {
	return fail("InvalidToken", "The provided token is malformed or otherwise invalid.")
}

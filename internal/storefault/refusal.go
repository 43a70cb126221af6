package storefault

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Answer is an answer of the store with a status of 300 or more.
type Answer struct {
	Method string // of the request
	Status int
	Header http.Header
	Body   []byte // as much as was read; empty after a HEAD
}

// document has the elements of S3's error documents that matter here.
type document struct {
	XMLName                                     xml.Name
	Code, Message, Region, Endpoint, ServerTime string
}

// throttling are the codes of stores that limit the rate of requests. Most
// come with status 503. SlowDownRead and SlowDownWrite are MinIO's.
var throttling = map[string]bool{
	"BandwidthLimitExceeded":   true,
	"RequestLimitExceeded":     true,
	"RequestThrottled":         true,
	"SlowDown":                 true,
	"SlowDownRead":             true,
	"SlowDownWrite":            true,
	"Throttling":               true,
	"ThrottlingException":      true,
	"TooManyRequests":          true,
	"TooManyRequestsException": true,
}

// credentialHints has the codes for the proxy's own credentials, and what to
// check.
var credentialHints = map[string]string{
	"AccountProblem":        "the account of origin.access_key has a problem: ask the store's operator",
	"ExpiredToken":          expired,
	"InvalidAccessKeyId":    unknownKey,
	"InvalidSecurity":       "check origin.access_key and origin.secret_key",
	"InvalidToken":          expired,
	"NotSignedUp":           "the account of origin.access_key may not use the store",
	"SignatureDoesNotMatch": "check origin.secret_key; something may also change Host or path on the way",
	"TokenRefreshRequired":  expired,
	"UserSuspended":         suspended,  // of Ceph
	"XAdminUserNotFound":    unknownKey, // of versitygw, with status 404
}

const unknownKey = "the store does not know origin.access_key: check it, and origin.endpoint"

const suspended = "the store has suspended the user of origin.access_key: enable the user there"

const expired = "the proxy's temporary credentials for the store have expired or are wrong: renew them"

// redirects are the codes that name another region or endpoint.
var redirects = map[string]bool{
	"AuthorizationHeaderMalformed": true,
	"IncorrectEndpoint":            true,
	"PermanentRedirect":            true,
	"TemporaryRedirect":            true,
}

// OfAnswer returns the fault that an answer shows. It returns nil if the
// answer is about the request.
func OfAnswer(a Answer) *Error {
	var doc document
	_ = xml.Unmarshal(a.Body, &doc) // stays empty if it is not XML
	what := strings.TrimRight(fmt.Sprintf("answered %d %s: %.300s", a.Status, doc.Code, doc.Message), ": ")

	switch {
	case a.Status == http.StatusTooManyRequests, a.Status >= 400 && throttling[doc.Code]:
		return &Error{
			Kind: Throttled, What: what, Hint: "it limits the rate of requests: raise its limit, or send fewer",
			RetryAfter: retryAfter(a.Header), Temporary: true, NotDone: true,
		}
	case credentialHints[doc.Code] != "":
		return &Error{Kind: Credentials, What: what, Hint: credentialHints[doc.Code], NotDone: true}
	case doc.Code == "RequestTimeTooSkewed":
		return &Error{
			Kind: Clock, What: what + clockOf(doc), NotDone: true,
			Hint: "synchronize the clocks of the proxy's machine and of the store (NTP)",
		}
	case redirects[doc.Code], isRedirect(a.Status) && (doc.Code != "" || a.Header.Get("X-Amz-Bucket-Region") != ""):
		return &Error{
			Kind: Redirect, What: what, Hint: redirectHint(a, doc), NotDone: true,
			Temporary: a.Status == http.StatusTemporaryRedirect || doc.Code == "TemporaryRedirect",
		}
	case isRedirect(a.Status):
		return &Error{
			Kind: Foreign, What: what + " and redirects to " + hostOf(a.Header.Get("Location")),
			Hint: "S3 does not do that: check the scheme, host and port in origin.endpoint", NotDone: true,
		}
	case doc.Code == "" && isForeign(a):
		return &Error{
			Kind: Foreign, What: fmt.Sprintf("%s with %.100q", what, a.Body), Hint: foreignHint(a), Temporary: true,
		}
	case a.Status >= 500 && a.Status != http.StatusNotImplemented && a.Status != http.StatusInsufficientStorage:
		return &Error{
			Kind: Unavailable, What: what, Hint: unavailableHint(a), RetryAfter: retryAfter(a.Header), Temporary: true,
		}
	default:
		return nil
	}
}

// unavailableHint says what the answer to a HEAD leaves open.
func unavailableHint(a Answer) string {
	if a.Method == http.MethodHead && a.Status == http.StatusServiceUnavailable {
		return "it fails or limits the rate of requests; the answer to a HEAD does not say which"
	}
	return ""
}

func isRedirect(status int) bool {
	return status >= 300 && status < 400 && status != http.StatusNotModified
}

// isForeign reports whether an answer without an S3 error code has what
// stores do not send: a page, or another text that is not XML. Some stores
// send such texts to CORS preflights, which their HTTP server answers.
func isForeign(a Answer) bool {
	if a.Status == http.StatusUnauthorized || a.Status == http.StatusProxyAuthRequired {
		return true // S3 answers 403
	}
	if a.Method == http.MethodHead {
		return strings.HasPrefix(a.Header.Get("Content-Type"), "text/html")
	}

	body := bytes.TrimSpace(a.Body)
	return IsPage(body) || len(body) > 0 && body[0] != '<' && a.Method != http.MethodOptions
}

// IsPage reports whether an answer is HTML, which stores do not send.
func IsPage(body []byte) bool {
	start := bytes.ToLower(bytes.TrimSpace(body[:min(len(body), 512)]))
	return bytes.HasPrefix(start, []byte("<!doctype html")) || bytes.HasPrefix(start, []byte("<html"))
}

func foreignHint(a Answer) string {
	switch {
	case a.Status == http.StatusProxyAuthRequired:
		return "the HTTP proxy in HTTPS_PROXY or HTTP_PROXY wants credentials"
	case a.Status == http.StatusBadRequest && bytes.Contains(a.Body, []byte("HTTPS")):
		return "the server speaks TLS: use https:// in origin.endpoint"
	case a.Status >= 500:
		return "a load balancer or gateway answered for the store: check whether the store runs"
	default:
		return "something other than the store answered: check the host, port and path in origin.endpoint"
	}
}

// regionForm and hostForm match what a hint repeats of an answer.
var (
	regionForm = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
	hostForm   = regexp.MustCompile(`^[A-Za-z0-9.:_-]{1,253}$`)
)

// redirectHint names the region and the endpoint that an answer names.
func redirectHint(a Answer, doc document) string {
	region := cmp.Or(doc.Region, a.Header.Get("X-Amz-Bucket-Region"))
	endpoint := cmp.Or(doc.Endpoint, hostOf(a.Header.Get("Location")))
	if !regionForm.MatchString(region) {
		region = ""
	}
	if !hostForm.MatchString(endpoint) {
		endpoint = ""
	}

	switch {
	case doc.Code == "AuthorizationHeaderMalformed" && region != "":
		return "set origin.region to " + region
	case doc.Code == "AuthorizationHeaderMalformed":
		return "check origin.region and origin.access_key"
	case region != "" && endpoint != "":
		return "the bucket is in another region: set origin.region to " + region +
			", and origin.endpoint to that of the region; the store names " + endpoint
	case region != "":
		return "the bucket is in another region: set origin.region to " + region +
			", and origin.endpoint to that of the region"
	case endpoint != "":
		return "another endpoint has the bucket: set origin.endpoint and origin.region to those of " + endpoint
	default:
		return "check origin.endpoint and origin.region"
	}
}

// hostOf returns the host of a URL. The rest may have secrets, as URLs of
// login pages do.
func hostOf(location string) string {
	u, err := url.Parse(location)
	if err != nil {
		return ""
	}
	return u.Host
}

func clockOf(doc document) string {
	if _, err := time.Parse(time.RFC3339, doc.ServerTime); err != nil {
		return ""
	}
	return ", its time is " + doc.ServerTime
}

// maxRetryAfter limits what a store can ask clients to wait.
const maxRetryAfter = 5 * time.Minute

// retryAfter returns the header Retry-After, which has seconds or a date
// (RFC 9110, section 10.2.3). Stores send seconds.
func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.ParseUint(h.Get("Retry-After"), 10, 32)
	if err != nil {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, maxRetryAfter)
}

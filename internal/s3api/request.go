package s3api

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// newBucketName is S3's rule for the names of new buckets. The store checks
// what else it requires.
var newBucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// validBucket reports whether a bucket can have this name. That includes
// WriteGetObjectResponse, S3's only path that looks like a bucket but is not
// one; its row refuses it.
//
// Some stores have buckets with "_", capital letters or long names: Google
// Cloud Storage, Ceph, and old buckets of Amazon S3.
func validBucket(name string) bool {
	if len(name) < 3 || len(name) > 255 || strings.Contains(name, "..") {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case (c == '_' || c == '-') && i > 0, c == '.' && i > 0 && i < len(name)-1:
		default:
			return false
		}
	}
	return true
}

const maxKeyLength = 1024

// locate finds bucket and key. The request is virtual-host-style if its host
// is a subdomain of one of the domains, else path-style.
func (c *call) locate(domains []string) error {
	rawPath, rawQuery := sigv4.RequestTarget(c.Request)
	path, err := sigv4.UnescapePath(rawPath)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(path, "/") {
		return badRequest("InvalidURI", "Couldn't parse the specified URI.")
	}

	if c.query, err = url.ParseQuery(rawQuery); err != nil {
		return badRequest("InvalidURI", "Couldn't parse the query of the specified URI.")
	}

	path = path[1:]
	if sub, ok := bucketOfHost(c.Host, domains); ok {
		c.bucket, c.key, c.virtual = sub, path, true
	} else {
		c.bucket, c.key, _ = strings.Cut(path, "/")
	}

	if c.bucket == "" && path != "" || c.bucket != "" && !validBucket(c.bucket) {
		refusal := errBucketName(c.bucket)
		c.bucket, c.key = "", ""
		return refusal
	}

	switch {
	case len(c.key) > maxKeyLength:
		return badRequest("KeyTooLongError", "Your key is too long")
	// S3 keys are UTF-8, and a KMS takes only UTF-8 in an encryption
	// context.
	case !utf8.ValidString(c.key):
		return badRequest("InvalidURI", "Couldn't parse the specified URI: the key is not UTF-8.")
	}
	return nil
}

func errBucketName(bucket string) *Error {
	return &Error{
		Code:    "InvalidBucketName",
		Message: "The specified bucket is not valid.",
		Details: [][2]string{{"BucketName", bucket}},
	}
}

// bucketOfHost returns the bucket of a Host header such as
// bucket.s3.example.com:9000. The host may be absolute, with a dot at its
// end. If domains contain each other, the longest one counts.
func bucketOfHost(host string, domains []string) (string, bool) {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")

	longest := ""
	for _, domain := range domains {
		if host == domain {
			return "", false
		}
		if strings.HasSuffix(host, "."+domain) && len(domain) > len(longest) {
			longest = domain
		}
	}
	return strings.TrimSuffix(host, "."+longest), longest != ""
}

// objectURL returns the URL of the call's bucket or object. The origin adds
// scheme and host.
func (c *call) objectURL(query url.Values) *url.URL { return storeURL(c.resource(), query) }

// storeURL returns the URL of a path such as /bucket/key.
func storeURL(path string, query url.Values) *url.URL {
	u := &url.URL{Path: path, RawQuery: encodeQuery(query)}
	u.RawPath = sigv4.EscapePath(u.Path)
	return u
}

// encodeQuery encodes a query as AWS does: sorted, and a space as %20.
func encodeQuery(query url.Values) string {
	if len(query) == 0 {
		return ""
	}
	return strings.ReplaceAll(query.Encode(), "+", "%20")
}

// takeHoisted turns x-amz- parameters of a presigned URL into headers. Some
// signers move headers into the query, where the signature covers them as
// well.
func (c *call) takeHoisted() error {
	if !c.auth.Presigned {
		return nil
	}
	c.Header = c.Header.Clone()

	for name, values := range c.query {
		lower := strings.ToLower(name)
		if signatureNames.has(name) {
			continue
		}
		if c.route.ignoresHoisted(lower) {
			delete(c.query, name)
			continue
		}
		if !c.route.allowsHeader(lower) || customerNames.has(lower) { // keys do not belong in a URL
			continue
		}

		if !httpguts.ValidHeaderFieldName(name) ||
			slices.ContainsFunc(values, func(v string) bool { return !httpguts.ValidHeaderFieldValue(v) }) {
			return badRequest(
				"InvalidArgument",
				fmt.Sprintf("The query parameter %q is not valid as a header.", name),
			)
		}

		if len(c.Header.Values(name)) > 0 && !slices.Equal(c.Header.Values(name), values) {
			return badRequest(
				"InvalidArgument",
				"The header "+name+" and the query parameter with the same name differ.",
			)
		}
		c.Header[http.CanonicalHeaderKey(name)] = values
		delete(c.query, name)
	}

	return nil
}

// checkNames refuses query parameters and x-amz- headers that the operation
// does not have.
func (c *call) checkNames() error {
	for name, values := range c.query {
		if !c.route.allowsQuery(name) {
			return notImplemented("The query parameter "+name+" of "+c.op, changesMeaning)
		}
		if len(values) > 1 {
			return badRequest("InvalidArgument", "The query parameter "+name+" occurs more than once.")
		}
	}

	var ignored []string
	for name, values := range c.Header {
		if !sigv4.IsAmz(name) && len(values) == 1 {
			continue
		}

		name = c.route.lowerName(name)
		if sigv4.IsAmz(name) && !c.route.allowsHeader(name) {
			if c.route.ignoresHeader(name) {
				ignored = append(ignored, name)
				continue
			}
			if strings.HasPrefix(name, strings.ToLower(checksumPrefix)) {
				return badRequest(
					"InvalidRequest",
					"The algorithm type you specified in x-amz-checksum- header is invalid.",
				)
			}
			return notImplemented("The header "+name+" of "+c.op, changesMeaning)
		}

		// The signature does not distinguish two headers from one with a
		// comma, so a header that is read once must not be repeated.
		if len(values) > 1 && !repeatable(name) {
			return badRequest("InvalidArgument", "The header "+name+" occurs more than once.")
		}
	}

	c.logIgnored(ignored)
	if c.route.flags&checksACL != 0 {
		return nil
	}
	return checkCanned(c.Header)
}

// repeatable reports whether every use of a header, given in lower case,
// reads all of its values.
func repeatable(name string) bool {
	switch name {
	case "range", "if-modified-since", "if-unmodified-since", "content-type", "content-md5", "expires":
		return false
	default:
		return !strings.HasPrefix(name, "x-amz-") || strings.HasPrefix(name, "x-amz-meta-") ||
			name == "x-amz-trailer" ||
			name == "x-amz-object-attributes"
	}
}

// openBody sets payload. It does not read yet, so a client that waits for
// 100 Continue is not asked to send the body.
func (c *call) openBody() error {
	if c.posted != nil {
		if err := c.server.openForm(c); err != nil {
			return err
		}
	}

	if c.route.method == http.MethodPut || c.route.method == http.MethodPost {
		if c.auth.DecodedLength() < 0 {
			return badRequest("MissingContentLength", "You must provide the Content-Length HTTP header.")
		}
	}

	stores := c.route.policy == seal && c.route.body > 0
	if c.auth.Framed() && !stores {
		return badRequest("InvalidRequest", "The value of x-amz-content-sha256 header is invalid.")
	}

	if c.auth.DecodedLength() > c.route.maxBody() {
		if stores {
			return &Error{
				Code: "EntityTooLarge", Message: "Your proposed upload exceeds the maximum allowed object size.",
				Details: [][2]string{
					{"ProposedSize", strconv.FormatInt(c.auth.DecodedLength(), 10)},
					{"MaxSizeAllowed", strconv.FormatInt(c.route.body, 10)},
				},
			}
		}

		return badRequest("MaxMessageLengthExceeded", "Your request was too big.")
	}

	var err error
	if c.checks, err = newChecksums(c.route.payloadHeader(c.Header)); err != nil {
		return err
	}
	if c.route.dropsBody() && c.auth.DecodedLength() <= 0 {
		c.payload = http.NoBody
		return nil
	}

	src := &meter{src: c.Body, c: c}
	if c.posted != nil { // the form knows its end
		c.payload = c.checks.reader(src, nil)
		return nil
	}
	body := c.auth.Body(src)
	c.payload = c.checks.reader(body, body.Trailer)
	return c.dropBody()
}

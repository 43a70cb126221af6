package s3api

import (
	"net/http"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

const copySourceName = "X-Amz-Copy-Source"

// checkPlace refuses requests that fit no operation of S3, in its words:
// subresources, methods and headers in the wrong place. S3 does so before it
// looks at the signature. The answer depends on nothing but the request, so it
// tells nothing about buckets and clients.
func (c *call) checkPlace() error {
	switch {
	case c.misplacesSource():
		return invalidArgument("You can only specify a copy source header for copy requests.",
			"x-amz-copy-source", c.Header.Get(copySourceName))
	case c.bucket == "":
		return c.checkServiceMethod()
	case c.key == "":
		return nil
	case c.overridesHeaders() && c.isRead() && sigv4.IsAnonymous(c.Request):
		return errAnonymousOverrides()
	}
	return c.checkObjectQuery()
}

// misplacesSource reports whether x-amz-copy-source is in a request that
// copies nothing.
func (c *call) misplacesSource() bool {
	if len(c.Header.Values(copySourceName)) == 0 || c.Method == http.MethodPut {
		return false
	}
	return c.isRead() || c.Method == http.MethodDelete || c.Method == http.MethodPost && c.query.Has("uploadId")
}

func (c *call) isRead() bool { return c.Method == http.MethodGet || c.Method == http.MethodHead }

// errAnonymousOverrides is the error for an unsigned link that chooses what a
// browser does with the object.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
func errAnonymousOverrides() *Error {
	return badRequest("InvalidRequest", "Request specific response headers cannot be used for anonymous GET requests.")
}

// checkServiceMethod refuses all methods but GET of the service, which has
// only ListBuckets. https://github.com/versity/versitygw/issues/1810 has
// Amazon's answer to POST and HEAD.
func (c *call) checkServiceMethod() error {
	if c.Method == http.MethodGet {
		return nil
	}
	return c.methodNotAllowed("SERVICE", http.MethodGet)
}

// checkObjectQuery refuses query parameters that S3 has for buckets only, or
// that come without another one.
// https://github.com/versity/versitygw/issues/1597 and 1688 have Amazon's
// answers.
func (c *call) checkObjectQuery() error {
	has := c.query.Has
	switch c.Method {
	case http.MethodGet:
		switch {
		case has("uploads"):
			return badRequest("InvalidRequest", "Key is not expected for the GET method ?uploads subresource")
		case has("versions"):
			return badRequest("InvalidRequest", "There is no such thing as the ?versions sub-resource for a key")
		}
	case http.MethodPut:
		switch {
		case has("partNumber") && !has("uploadId"):
			const message = "This operation does not accept partNumber without uploadId"
			return invalidArgument(message, "partNumber", "partNumber")
		case has("uploadId") && !has("partNumber"):
			return c.methodNotAllowed("UPLOAD", http.MethodDelete, http.MethodPost, http.MethodGet)
		}
	case http.MethodPost:
		if !c.hasParameters() {
			return c.methodNotAllowed("OBJECT", http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodPut)
		}
	}
	return nil
}

// hasParameters reports whether the query has more than a signature.
func (c *call) hasParameters() bool {
	for name := range c.query {
		if !signatureNames.has(name) {
			return true
		}
	}
	return false
}

func (c *call) methodNotAllowed(resource string, allowed ...string) *Error {
	return &Error{
		Code:    "MethodNotAllowed",
		Message: messages["MethodNotAllowed"],
		Details: [][2]string{{"Method", c.Method}, {"ResourceType", resource}},
		Header:  http.Header{"Allow": {strings.Join(allowed, ", ")}},
	}
}

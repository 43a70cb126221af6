package s3api

import (
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
)

// idParameters are the query parameters that hold ids of the store.
// listParameters are those that hold prefixes and markers. A test checks
// that every other parameter of a route holds no name.
var (
	idParameters   = setOf("uploadId upload-id-marker versionId version-id-marker id annotationName")
	listParameters = setOf("prefix marker start-after key-marker continuation-token")
)

// checkPathNames refuses a request if its path or a query parameter has a
// name that would lead out of its place when a store uses it as a path. The
// request is refused before the store sees it. Names in bodies and headers
// are checked where they are read; see checkKey and checkVersionID.
func (s *Server) checkPathNames(c *call) error {
	if c.key != "" {
		use := keyname.Read
		if c.stores() {
			use = keyname.Write
		}
		if err := s.checkKey(c.key, use); err != nil {
			return err
		}
	}

	for name, values := range c.query {
		for _, value := range values {
			switch {
			case idParameters.has(name):
				if err := keyname.CheckID(value); err != nil {
					return invalidID(name, value, err)
				}
			case listParameters.has(name):
				if err := s.KeyNames.Check(value, keyname.Listed); err != nil {
					return invalidName(name, value, err)
				}
			}
		}
	}

	return nil
}

// stores reports whether the operation writes the call's object, a part of
// it, or its settings.
func (c *call) stores() bool {
	return c.route != nil && (c.Method == http.MethodPut || c.Method == http.MethodPost) &&
		(c.route.action == access.Write || c.route.action == access.Admin)
}

// checkKey refuses an object key that the store could take for another key.
// The key may come from the path, a form, or the body of a request.
func (s *Server) checkKey(key string, use keyname.Use) error {
	if err := s.KeyNames.Check(key, use); err != nil {
		return invalidName("key", key, err)
	}
	return nil
}

// checkVersionID refuses an invalid version id.
func checkVersionID(id string) error {
	if err := keyname.CheckID(id); err != nil {
		return invalidID("versionId", id, err)
	}
	return nil
}

func invalidName(name, value string, cause error) error {
	refusal := invalidArgument("The name is not accepted: "+cause.Error()+".", name, value)
	refusal.cause = cause
	return refusal
}

// invalidID returns S3's error for an id that does not exist.
func invalidID(name, value string, cause error) error {
	switch name {
	case "uploadId", "upload-id-marker":
		return noSuchUpload(value, cause)
	case "versionId", "version-id-marker":
		refusal := invalidArgument("Invalid version id specified", name, value)
		refusal.cause = cause
		return refusal
	default:
		return invalidName(name, value, cause)
	}
}

func noSuchUpload(id string, cause error) *Error {
	return &Error{
		Code: "NoSuchUpload",
		Message: "The specified upload does not exist. " +
			"The upload ID may be invalid, or the upload may have been aborted or completed.",
		Details: [][2]string{{"UploadId", id}}, cause: cause,
	}
}

package s3api

import (
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
)

// idParameters are the query parameters that hold ids of the store's, and
// listParameters those that hold prefixes and markers. A test makes sure that
// each parameter of a route is one of them, or holds no name.
var (
	idParameters   = setOf("uploadId upload-id-marker versionId version-id-marker id annotationName")
	listParameters = setOf("prefix marker start-after key-marker continuation-token")
)

// checkPathNames refuses a request before the store sees it if its path or a
// parameter holds a name that, taken for a path, leads out of its place. Names
// in the body and in headers are checked where they are read: see checkKey and
// checkVersionID.
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

// stores reports whether the operation makes an object of the call's key, or a
// part of one, or changes what belongs to it.
func (c *call) stores() bool {
	return c.route != nil && (c.Method == http.MethodPut || c.Method == http.MethodPost) &&
		(c.route.action == access.Write || c.route.action == access.Admin)
}

// checkKey refuses the key of an object that the store could take for another
// one. A form or a request in its body may name it.
func (s *Server) checkKey(key string, use keyname.Use) error {
	if err := s.KeyNames.Check(key, use); err != nil {
		return invalidName("key", key, err)
	}
	return nil
}

// checkVersionID refuses what is no version's id.
func checkVersionID(id string) error {
	if err := keyname.CheckID(id); err != nil {
		return invalidID("versionId", id, err)
	}
	return nil
}

func invalidName(name, value string, cause error) error {
	refusal := invalidArgument("The name is not taken: "+cause.Error()+".", name, value)
	refusal.cause = cause
	return refusal
}

// invalidID says of each kind of id that there is no such thing, in S3's words.
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

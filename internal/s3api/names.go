package s3api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/kms"
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
	err := s.KeyNames.Check(key, use)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, keyname.ErrLeadsOut):
		return invalidName("key", key, err)
	default:
		return s.foldedKey(key, use, err)
	}
}

// checkStoredName refuses to store an object that could not be read under its
// name. It may ask the store, so the client must have been authorized.
func (s *Server) checkStoredName(c *call) error {
	if c.key == "" || !c.stores() {
		return nil
	}
	for _, odd := range []struct {
		is   bool
		able capability.Capability
		why  error
	}{
		{strings.HasPrefix(c.key, "/"), capability.LiteralLeadingSlash, keyname.ErrEmpty},
		{strings.Contains(c.key, "//"), capability.LiteralSlashes, keyname.ErrEmpty},
		{strings.Contains(c.key, `\`), capability.LiteralBackslash, keyname.ErrBackslash},
		{keyname.HasDots(c.key), capability.LiteralDots, keyname.ErrDots},
	} {
		if odd.is && s.Capabilities(c.Context(), c.bucket, odd.able)[odd.able] == capability.No {
			return s.foldedKey(c.key, keyname.Write, odd.why)
		}
	}

	return nil
}

// checkMarker refuses to store a body of this size under the call's key, if
// the store would not keep its envelope. size is negative if it is not known.
func (s *Server) checkMarker(c *call, size int64) error {
	if size == 0 || !s.dropsMetadata(c, c.object()) {
		return nil
	}
	return invalidArgument(
		"The store behind this proxy does not keep the metadata of an object whose key ends in \"/\", "+
			"so it could not be decrypted. Such an object must be empty.",
		"key", c.key,
	)
}

// dropsMetadata reports whether the store does not keep the metadata of an
// object, and so not its envelope: some do not for directory markers.
func (s *Server) dropsMetadata(c *call, obj crypt.Object) bool {
	return strings.HasSuffix(obj.Key, "/") && s.Capabilities(
		c.Context(), obj.Bucket, capability.MarkerMetadata,
	)[capability.MarkerMetadata] == capability.No
}

// foldedKey refuses a key that a store with paths would keep under another
// name. There, an object could not be read, because its encryption is bound
// to the name under which it was put.
func (s *Server) foldedKey(key string, use keyname.Use, cause error) error {
	message := fmt.Sprintf("The key %q is not accepted: %s. The store behind this proxy keeps objects as files",
		key, cause.Error())
	const instead = "Use that key instead."
	folded := keyname.Fold(key)
	switch {
	case folded == "" || s.KeyNames.Check(folded, use) != nil:
		message += ", and could take it for another key. Use a key without such segments instead."
	case use == keyname.Write:
		message += fmt.Sprintf(", and would store it as %q, under which it could not be read. %s", folded, instead)
	default:
		message += fmt.Sprintf(", and would take it for %q. %s", folded, instead)
	}

	refusal := invalidArgument(message, "key", key)
	refusal.cause = cause
	return refusal
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

// mentionNames adds to an integrity error of a whole object that it may be
// stored under another name than it was put under. Only cmekproxy verify
// tries such names: each try is a request to the KMS and a record in its log,
// under a name that no client has sent and that its grants may not cover. See
// ADR 14.
func (s *Server) mentionNames(c *call, e *Error) {
	var key *kms.Error
	bound := errors.Is(e.cause, crypt.ErrAuth) || errors.As(e.cause, &key) && key.Kind == kms.InvalidCiphertext
	if e.Code != "ObjectIntegrityError" || !bound || c.key == "" || s.KeyNames == keyname.Literal {
		return
	}
	e.Message += ` If the store takes keys as paths, it may have been put under another name, such as one with "//" ` +
		`or a leading "/", and be intact: cmekproxy verify tells.`
}

package s3api

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// copySource parses x-amz-copy-source and the headers for it. It checks that
// the client may read the source.
func (s *Server) copySource(c *call) (stored.Request, error) {
	src, version, err := parseCopySource(c.Header.Get("X-Amz-Copy-Source"), s.KeyNames)
	if err != nil {
		return stored.Request{}, err
	}
	if !c.client.MayObject(access.Read, src.Bucket, src.Key) {
		return stored.Request{}, accessDenied(
			fmt.Errorf("client %q has no grant to read %q", c.client.Name, "/"+src.Bucket+"/"+src.Key),
		)
	}

	c.sourceBucket = src.Bucket
	q := stored.Request{
		Object:    src,
		Version:   version,
		Header:    sourceConditions(c.Header, "X-Amz-Copy-Source-"),
		Plaintext: s.admitPlaintext(c, src),
	}

	if text := c.Header.Get("X-Amz-Copy-Source-Range"); text != "" {
		q.Range = stored.ParseRange(text)
		if q.Range == nil || !q.Range.Closed() {
			return q, badRequest(
				"InvalidArgument",
				"The x-amz-copy-source-range value must be of the form bytes=first-last "+
					"where first and last are the zero-based offsets of the first and last bytes to copy",
			)
		}
	}

	return q, nil
}

// parseCopySource parses bucket/key, escaped as in a form, and an optional
// ?versionId= at the end. An escaped ? or / belongs to the key. A + is a
// space, as at S3, also if the bucket has a key with a +: a client that means
// it sends %2B.
func parseCopySource(text string, names keyname.Store) (src crypt.Object, version string, err error) {
	const header = "x-amz-copy-source"
	path, query, _ := strings.Cut(text, "?")
	path, err = sigv4.UnescapePath(strings.ReplaceAll(path, "+", "%20"))
	if err != nil {
		return src, "", invalidArgument("Invalid copy source encoding", header, text)
	}

	src.Bucket, src.Key, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if _, err := netip.ParseAddr(src.Bucket); err == nil || !validBucket(src.Bucket) {
		return src, "", invalidArgument("Invalid copy source bucket name", header, text)
	}
	if src.Key == "" || names.Check(src.Key, keyname.Read) != nil {
		return src, "", invalidArgument("Invalid copy source object key", header, src.Key)
	}

	parameters, err := url.ParseQuery(query)
	if err != nil || len(parameters) > 1 || len(parameters) == 1 && !parameters.Has("versionId") {
		return src, "", invalidArgument(
			"Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
			header,
			text,
		)
	}

	version = parameters.Get("versionId")
	return src, version, checkVersionID(version)
}

// sourceConditions turns the conditions on the source, in headers with the
// prefix, into those of a GET.
func sourceConditions(h http.Header, prefix string) http.Header {
	out := make(http.Header)
	for _, name := range []string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		if value := h.Get(prefix + name); value != "" {
			out.Set(name, value)
		}
	}

	if owner := h.Get(sourceOwnerHeader); owner != "" {
		out.Set(ownerHeader, owner)
	}

	for _, name := range []string{"If-Match", "If-None-Match"} {
		if value := out.Get(name); value != "" {
			out.Set(name, storedETags(value))
		}
	}
	return out
}

// sourceTooLarge is the error for a source larger than limit bytes.
func sourceTooLarge(limit int64) *Error {
	return badRequest("InvalidRequest",
		fmt.Sprintf("The specified copy source is larger than the maximum allowable size for a copy source: %d", limit))
}

// errCondition returns the error for a condition that does not hold.
func errCondition() *Error {
	return &Error{Code: "PreconditionFailed", Message: messages["PreconditionFailed"]}
}

// pathOf returns the path of an object at the store.
func pathOf(o crypt.Object) string { return "/" + o.Bucket + "/" + o.Key }

package s3api

import (
	"fmt"
	"html"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// sizeRequests is the number of concurrent HEAD requests for a listing.
const sizeRequests = 16

// listWithSizes rewrites the elements of a listing with this name. If the
// size of a plaintext does not follow from the stored size and the ETag, it
// sends a HEAD for the object, unless the size is cached.
func (s *Server) listWithSizes(c *call, doc []byte, name string) ([]byte, error) {
	encoding, _, _ := element(doc, "EncodingType")
	var entries []listed
	changeElements(doc, name, func(entry []byte) []byte {
		entries = append(entries, listedObject(c.bucket, entry, string(encoding)))
		return entry
	})

	sizes, err := s.plaintextSizes(c, entries)
	if err != nil {
		return nil, err
	}

	i := -1
	return changeElements(doc, name, func(entry []byte) []byte {
		i++
		entry = replace(withoutChecksums(entry), "Size", func(string) string { return sizes[i] })
		return replace(entry, "ETag", showETagXML)
	}), nil
}

// plaintextSizes returns the size of each entry's plaintext, as text.
func (s *Server) plaintextSizes(c *call, entries []listed) ([]string, error) {
	sizes := make([]string, len(entries))
	counted := s.countsParts(c, entries)
	var asked errgroup.Group
	asked.SetLimit(sizeRequests)

	for i, e := range entries {
		sizes[i] = plaintextSize(e.etag, e.size)
		if !s.needsHead(c, e, counted) {
			continue
		}

		asked.Go(func() error {
			return recovered(func() (err error) {
				sizes[i], err = s.sizeOf(c, e)
				return err
			})
		})
	}

	return sizes, asked.Wait()
}

// listed is an object of a listing.
type listed struct {
	object     crypt.Object
	version    string // "" for the current version
	etag, size string // as in the store; the ETag without quotes
}

func listedObject(bucket string, entry []byte, encoding string) listed {
	name, _, _ := element(entry, "Key")
	etag, _, _ := element(entry, "ETag")
	size, _, _ := element(entry, "Size")
	key := html.UnescapeString(string(name))

	if encoding == "url" {
		if decoded, err := url.QueryUnescape(key); err == nil {
			key = decoded
		}
	}

	version, _, _ := element(entry, "VersionId")
	if latest, _, _ := element(entry, "IsLatest"); string(version) == "null" && string(latest) == "true" {
		version = nil // a bucket without versions, whose store may not know the id null
	}
	return listed{crypt.Object{Bucket: bucket, Key: key}, string(version), unquote(string(etag)), string(size)}
}

// countsParts reports whether the store's ETags of multipart objects end in
// the number of parts. It asks the store only if a size depends on it.
func (s *Server) countsParts(c *call, entries []listed) bool {
	depends := func(e listed) bool { return e.size != "" && e.size != "0" }
	return slices.ContainsFunc(entries, depends) &&
		s.Capabilities(c.Context(), c.bucket, capability.PartCount)[capability.PartCount] == capability.Yes
}

// needsHead reports whether the size cannot be computed: the store's ETags
// do not have the number of parts, or the object may be plaintext. counted is
// the result of countsParts.
func (s *Server) needsHead(c *call, e listed, counted bool) bool {
	return e.size != "" && e.size != "0" && (!counted || s.Keys.AllowPlaintext(e.object, c.client.Name))
}

// sizeOf returns the size of a listed object's plaintext. If the object was
// deleted in the meantime, or cannot be read, it returns the stored size.
func (s *Server) sizeOf(c *call, e listed) (string, error) {
	n, err := strconv.ParseInt(e.size, 10, 64)
	if err != nil {
		return e.size, nil //nolint:nilerr // without a size, the text is shown unchanged
	}
	size, err := c.reader.Size(c.Context(), stored.Request{Object: e.object, Version: e.version}, `"`+e.etag+`"`, n)
	if err != nil {
		if answer := asError(c.Context(), err); answer.Status() == http.StatusNotFound ||
			answer.Code == "ObjectIntegrityError" {
			return e.size, nil
		}
		return "", err
	}
	return strconv.FormatInt(size, 10), nil
}

// recovered turns a panic into an error. Outside the request's own
// goroutine, a panic would end the process.
func recovered(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return do()
}

package s3api

import (
	"bytes"
	"errors"
	"html"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// sizeRequests is how many objects of a listing are asked about at a time.
const sizeRequests = 16

// listWithSizes rewrites a listing of a store whose ETags do not tell which objects have parts, and how many: each
// object that is not remembered is asked about.
func (s *Server) listWithSizes(c *call, doc []byte) ([]byte, error) {
	encoding, _, _ := element(doc, "EncodingType")
	var entries [][]byte
	changeElements(doc, "Contents", func(entry []byte) []byte {
		entries = append(entries, entry)
		return entry
	})
	sizes, failures := make([]string, len(entries)), make([]error, len(entries))
	turns := make(chan struct{}, sizeRequests)
	var all sync.WaitGroup
	for i, entry := range entries {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			sizes[i], failures[i] = s.sizeOf(c, entry, string(encoding))
		})
	}
	all.Wait()
	if err := errors.Join(failures...); err != nil {
		return nil, err
	}
	i := -1
	return changeElements(doc, "Contents", func(entry []byte) []byte {
		i++
		entry = replace(withoutChecksums(entry), "Size", func(string) string { return sizes[i] })
		return replace(entry, "ETag", showETagXML)
	}), nil
}

// sizeOf returns the size of a listed object's plaintext. One that was deleted since, or that no read would take, is
// listed as the store has it.
func (s *Server) sizeOf(c *call, entry []byte, encoding string) (string, error) {
	name, _, _ := element(entry, "Key")
	etag, _, _ := element(entry, "ETag")
	listed, _, _ := element(entry, "Size")
	key := html.UnescapeString(string(name))
	if encoding == "url" {
		var err error
		if key, err = url.QueryUnescape(key); err != nil {
			return "", err
		}
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(listed)), 10, 64)
	if err != nil || strings.HasSuffix(key, "/") && n == 0 {
		return string(listed), nil //nolint:nilerr // what has no size is shown as it came
	}
	q := stored.Request{Object: crypt.Object{Bucket: c.bucket, Key: key}}
	size, err := s.objects.Size(c.Context(), q, `"`+unquote(string(etag))+`"`, n)
	if err != nil {
		if answer := asError(c.Context(), err); answer.Status() == http.StatusNotFound || answer.Code == "ObjectIntegrityError" {
			return string(listed), nil
		}
		return "", err
	}
	return strconv.FormatInt(size, 10), nil
}

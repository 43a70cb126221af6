package s3api

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// Annotations are texts of up to 1 MiB that Amazon S3 keeps with an object.
// The proxy does not seal them yet, so their operations are refused
// (docs/adr/0018-annotations.md), and it never reads one. A bucket may still
// have some, from before it was encrypted.

// annotationDirective says whether a copy gets the annotations of its source:
// COPY, which is the default, or EXCLUDE.
const annotationDirective = "x-amz-object-annotation-directive"

// checkAnnotationDirective refuses values other than COPY and EXCLUDE.
func (c *call) checkAnnotationDirective() error {
	if value := c.Header.Get(annotationDirective); value != "" && value != "COPY" && value != "EXCLUDE" {
		return invalidArgument("Unknown object annotation directive.", annotationDirective, value)
	}
	return nil
}

// checkAnnotations refuses a copy that the proxy makes by itself if the client
// has asked for annotations, and the source may have some. A copy that the
// store makes has them anyway.
func (s *Server) checkAnnotations(c *objectCopy) error {
	if c.Header.Get(annotationDirective) != "COPY" {
		return nil
	}

	any, err := s.mayHaveAnnotations(c)
	if err != nil || !any {
		return err
	}
	return &Error{
		Code: "NotImplemented",
		Message: "The source has annotations, and the proxy must read and encrypt this object again to copy it. " +
			"It cannot do that with annotations. Copy the object with " + annotationDirective + ": EXCLUDE.",
	}
}

// mayHaveAnnotations asks the store. Few stores have annotations. The others
// refuse the request, or ignore the parameter and answer with the object.
func (s *Server) mayHaveAnnotations(c *objectCopy) (bool, error) {
	query := url.Values{"annotation": {""}, "max-annotation-results": {"1"}}
	if c.source.Version != "" {
		query.Set("versionId", c.source.Version)
	}
	at := storeURL(pathOf(c.source.Object), query)

	resp, err := s.send(c.call, c.requestAt(http.MethodGet, at, make(http.Header)))
	switch status := stored.StatusOf(err); {
	case status == http.StatusForbidden:
		return true, nil
	case status >= 400 && status < 500, status == http.StatusNotImplemented:
		return false, nil
	case err != nil:
		return false, err
	}
	defer func() { _ = resp.Body.Close() }() // it may be the whole object

	root, err := rootOf(resp)
	if err != nil || !strings.Contains(root, "Annotation") {
		return false, err
	}
	return annotated(io.LimitReader(resp.Body, maxConfig))
}

// annotated reports whether a list of annotations has an entry.
func annotated(doc io.Reader) (bool, error) {
	decoder := xml.NewDecoder(doc)
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("%w sent a list of annotations that is not XML: %w", errOrigin, err)
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "AnnotationName" {
			return true, nil
		}
	}
}

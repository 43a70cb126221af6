package rewrap

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// carryTags adds the object's tags, which a server-side copy takes along by itself.
func (m *Mover) carryTags(ctx context.Context, obj crypt.Object, h http.Header) error {
	tags, err := m.reader.Tags(ctx, request(obj))
	if err == nil && tags != "" {
		h.Set("X-Amz-Tagging", tags)
	}
	return err
}

// payload is a request body of known length.
type payload struct {
	body   io.Reader
	length int64
}

// newRequest returns a request for an object, with a query that is encoded already.
func newRequest(ctx context.Context, method string, obj crypt.Object, query string, header http.Header, p *payload) *http.Request {
	u := &url.URL{Path: "/" + obj.Bucket + "/" + obj.Key, RawQuery: query}
	u.RawPath = sigv4.EscapePath(u.Path)
	if header == nil {
		header = make(http.Header)
	}
	r := &http.Request{Method: method, URL: u, Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	if p != nil {
		r.Body, r.ContentLength = io.NopCloser(p.body), p.length
	}
	return r.WithContext(ctx)
}

// maxAnswer bounds the store's documents, in bytes.
const maxAnswer = 1 << 20

// ask sends a request and returns the document in the answer. S3 begins to answer copies and completions before it is
// done with them, so that a failure can come with status 200.
func (m *Mover) ask(ctx context.Context, method string, obj crypt.Object, query string, header http.Header, p *payload) ([]byte, error) {
	resp, err := m.send(newRequest(ctx, method, obj, query, header, p))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(io.LimitReader(resp.Body, maxAnswer)); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnanswered, err)
	}
	return body.Bytes(), lateError(body.Bytes())
}

// lateError reads an error document that came with a good status. Whatever it says, the request can be made again.
func lateError(body []byte) error {
	var doc struct {
		XMLName       xml.Name
		Code, Message string
	}
	if err := xml.Unmarshal(body, &doc); err != nil || doc.XMLName.Local != "Error" {
		return nil //nolint:nilerr // most answers have no document
	}
	return fmt.Errorf("%w: %s %s", errUnanswered, doc.Code, doc.Message)
}

// etagOf reads the ETag element of a document.
func etagOf(body []byte) (string, error) {
	var doc struct{ ETag string }
	if err := xml.Unmarshal(body, &doc); err != nil || doc.ETag == "" {
		return "", errors.Join(fmt.Errorf("%w answered without an ETag: %.200q", stored.ErrStore, body), err)
	}
	return doc.ETag, nil
}

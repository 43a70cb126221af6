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
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// carried are the headers of a HEAD answer that a request to write takes in the same form. The store's own encryption is
// not among them: what the bucket says of it holds, as it did for the proxy's own requests.
var carried = []string{
	"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Expires",
	"X-Amz-Storage-Class", "X-Amz-Website-Redirect-Location",
	"X-Amz-Object-Lock-Mode", "X-Amz-Object-Lock-Retain-Until-Date", "X-Amz-Object-Lock-Legal-Hold",
}

// envelopePrefix starts the envelope's headers.
var envelopePrefix = http.CanonicalHeaderKey(stored.MetaPrefix + crypt.Prefix)

// carry returns the header that gives an object what it had, with another envelope.
func carry(have http.Header, envelope map[string]string) (http.Header, error) {
	if n := have.Get("X-Amz-Missing-Meta"); n != "" && n != "0" {
		return nil, fmt.Errorf("the store does not show %s of its metadata entries, so that they cannot be carried over", n)
	}
	h := make(http.Header)
	for _, name := range carried {
		if values := have.Values(name); len(values) > 0 {
			h[name] = values
		}
	}
	stored.WithoutFraming(h)
	for name, values := range have {
		if strings.HasPrefix(name, stored.MetaPrefix) && !strings.HasPrefix(name, envelopePrefix) {
			h[name] = values
		}
	}
	for name, value := range envelope {
		h.Set(stored.MetaPrefix+name, value)
	}
	return h, nil
}

// carryTags adds the object's tags, which a server-side copy takes along by itself.
func (m *Mover) carryTags(ctx context.Context, obj crypt.Object, h http.Header) error {
	var doc struct {
		Tags []struct{ Key, Value string } `xml:"TagSet>Tag"`
	}
	body, err := m.ask(ctx, http.MethodGet, obj, "tagging", nil, nil)
	switch status(err) {
	case http.StatusNotFound, http.StatusNotImplemented: // none, or a store without tags. An object that is gone fails soon enough
		return nil
	}
	if err == nil {
		err = xml.Unmarshal(body, &doc)
	}
	if err != nil {
		return fmt.Errorf("asking for the tags: %w", err)
	}
	tags := make(url.Values)
	for _, tag := range doc.Tags {
		tags.Set(tag.Key, tag.Value)
	}
	if len(tags) > 0 {
		h.Set("X-Amz-Tagging", tags.Encode())
	}
	return nil
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

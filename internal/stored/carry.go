package stored

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// carried are the headers of a HEAD answer that a request to write takes in the same form. The store's own encryption is
// not among them: what the bucket says of it holds, as it did for the proxy's own requests.
var carried = []string{
	"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Expires",
	"X-Amz-Storage-Class", "X-Amz-Website-Redirect-Location",
	"X-Amz-Object-Lock-Mode", "X-Amz-Object-Lock-Retain-Until-Date", "X-Amz-Object-Lock-Legal-Hold",
}

// envelopePrefix starts the envelope's headers.
var envelopePrefix = http.CanonicalHeaderKey(MetaPrefix + crypt.Prefix)

// Carry returns the header that gives an object what another one had, beside its body and tags, with another envelope.
func Carry(have http.Header, envelope map[string]string) (http.Header, error) {
	if n := have.Get("X-Amz-Missing-Meta"); n != "" && n != "0" {
		return nil, fmt.Errorf("the store does not show %s of its metadata entries, so that they cannot be carried over", n)
	}
	h := make(http.Header)
	for _, name := range carried {
		if values := have.Values(name); len(values) > 0 {
			h[name] = values
		}
	}
	WithoutFraming(h)
	for name, values := range have {
		if strings.HasPrefix(name, MetaPrefix) && !strings.HasPrefix(name, envelopePrefix) {
			h[name] = values
		}
	}
	for name, value := range envelope {
		h.Set(MetaPrefix+name, value)
	}
	return h, nil
}

// maxTagging bounds a Tagging document, in bytes: S3 has at most 10 tags of 384 characters.
const maxTagging = 64 << 10

// Tags returns the tags of an object as the header x-amz-tagging has them; "" for none, and for a store that knows none.
func (s *Reader) Tags(ctx context.Context, q Request) (string, error) {
	q.Query, q.Header = url.Values{"tagging": {""}}, nil
	resp, err := s.request(ctx, http.MethodGet, q, nil)
	switch status(err) {
	case http.StatusNotFound, http.StatusNotImplemented: // an object that is gone fails soon enough
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("asking for the tags: %w", err)
	}
	defer closeBody(resp)
	var doc struct {
		Tags []struct{ Key, Value string } `xml:"TagSet>Tag"`
	}
	if err := xml.NewDecoder(io.LimitReader(resp.Body, maxTagging)).Decode(&doc); err != nil {
		return "", fmt.Errorf("asking for the tags: %w", err)
	}
	tags := make(url.Values)
	for _, tag := range doc.Tags {
		tags.Set(tag.Key, tag.Value)
	}
	return tags.Encode(), nil
}

package inplace

import (
	"context"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
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

// Carry returns the header that gives an object what it had, with another envelope.
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

// CarryTags adds the object's tags, which a server-side copy takes along by itself.
func (s *Store) CarryTags(ctx context.Context, obj crypt.Object, h http.Header) error {
	var doc struct {
		Tags []struct{ Key, Value string } `xml:"TagSet>Tag"`
	}
	body, err := s.Ask(ctx, http.MethodGet, obj, "tagging", nil, nil)
	switch Status(err) {
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

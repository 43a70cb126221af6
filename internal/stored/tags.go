package stored

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// maxTagging bounds a Tagging document, in bytes: S3 has at most 10 tags of
// 384 characters.
const maxTagging = 64 << 10

// Tags returns the tags of an object as the header x-amz-tagging has them; ""
// for none, and for a store that knows none.
func (s *Reader) Tags(ctx context.Context, q Request) (string, error) {
	q.Query, q.Header = url.Values{"tagging": {""}}, nil
	resp, err := s.request(ctx, http.MethodGet, q, nil)
	switch StatusOf(err) {
	case http.StatusNotFound, http.StatusNotImplemented: // an object that is gone fails soon enough
		return "", nil
	}

	if err != nil {
		return "", fmt.Errorf("asking for the tags: %w", err)
	}
	defer CloseBody(resp)

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

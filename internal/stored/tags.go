package stored

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// maxTagging limits a Tagging document, in bytes. S3 allows 10 tags of 384
// characters.
const maxTagging = 64 << 10

// TagCount is the header in which a store says how many tags an object has.
const TagCount = "X-Amz-Tagging-Count"

// IsRGW recognizes the Ceph Object Gateway by its answer to HEAD. It drops
// the tags of a copy with new metadata, and the tags that the request for
// the copy has.
func IsRGW(h http.Header) bool { return h.Get("X-Rgw-Object-Type") != "" }

// Tags returns the tags of an object in the syntax of the header
// x-amz-tagging; "" if there are none, or if the store does not support
// tags.
func (s *Reader) Tags(ctx context.Context, q Request) (string, error) {
	q.Query, q.Header = url.Values{"tagging": {""}}, nil
	resp, err := s.request(ctx, http.MethodGet, q, nil)
	switch StatusOf(err) {
	case http.StatusNotFound, http.StatusNotImplemented: // if the object no longer exists, the next request fails
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the tags: %w", err)
	}
	defer CloseBody(resp)

	var doc struct {
		Tags []struct{ Key, Value string } `xml:"TagSet>Tag"`
	}
	if err := xml.NewDecoder(io.LimitReader(resp.Body, maxTagging)).Decode(&doc); err != nil {
		return "", fmt.Errorf("reading the tags: %w", err)
	}

	tags := make(url.Values)
	for _, tag := range doc.Tags {
		tags.Set(tag.Key, tag.Value)
	}
	return tags.Encode(), nil
}

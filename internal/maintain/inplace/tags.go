package inplace

import (
	"context"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// CarryTags adds the object's tags to h. Only a copy within the store keeps
// the tags by itself.
func (s *Store) CarryTags(ctx context.Context, obj crypt.Object, h http.Header) error {
	tags, err := (&stored.Reader{Send: s.Send}).Tags(ctx, stored.Request{Object: obj})
	if tags != "" {
		h.Set("X-Amz-Tagging", tags)
	}
	return err
}

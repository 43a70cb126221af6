package stored

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// metaHeader is the header with sealed metadata.
var metaHeader = http.CanonicalHeaderKey(MetaPrefix + crypt.Prefix + "meta")

// What an object with sealed metadata has as its content type in the store,
// and what S3 shows for an object without one.
const (
	sealedContentType  = "application/octet-stream"
	defaultContentType = "binary/octet-stream"
)

// override is the prefix of query parameters that replace a content header of
// one answer.
const override = "response-"

// TakeMetadata removes the metadata that can be sealed from the headers of a
// write request, and returns it.
func TakeMetadata(h http.Header) (map[string]string, error) {
	entries := make(map[string]string)
	for name, values := range h {
		lower := strings.ToLower(name)
		switch {
		case crypt.IsSealable(lower):
			entries[lower] = strings.Join(values, ",")
			delete(h, name)
		case strings.HasPrefix(name, MetaPrefix):
			return nil, fmt.Errorf("%w: the metadata entry %.60q cannot be sealed", crypt.ErrEnvelope, lower)
		}
	}

	h.Set("Content-Type", sealedContentType)
	return entries, nil
}

// SealMetadata takes the metadata out of the headers of a write request, and
// returns it sealed.
func SealMetadata(h http.Header, dek []byte, random io.Reader) ([]byte, error) {
	entries, err := TakeMetadata(h)
	if err != nil {
		return nil, err
	}
	return crypt.SealMetadata(entries, dek, random)
}

// Reveal returns the headers of an object with its sealed metadata in place
// of the store's. The MAC that covers sealed must have been verified. Without
// sealed metadata, it returns h itself.
func Reveal(h http.Header, sealed, dek []byte) (http.Header, error) {
	if sealed == nil {
		return h, nil
	}
	entries, err := crypt.OpenMetadata(sealed, dek)
	if err != nil {
		return nil, err
	}

	out := make(http.Header, len(h))
	for name, values := range h {
		if !crypt.IsSealable(strings.ToLower(name)) {
			out[name] = values
		}
	}
	out.Set("Content-Type", defaultContentType)
	for name, value := range entries {
		out.Set(name, value)
	}
	return out, nil
}

// revealWith is Reveal with the content headers that the request asks for.
func revealWith(query url.Values, h http.Header, sealed, dek []byte) (http.Header, error) {
	out, err := Reveal(h, sealed, dek)
	if err != nil || sealed == nil {
		return out, err
	}
	for name, values := range query {
		if header, ok := strings.CutPrefix(name, override); ok && len(values) > 0 {
			out.Set(header, values[0])
		}
	}
	return out, nil
}

// NewMark completes the mark of a new multipart object. If entries is not
// nil, it is the metadata to be sealed. In version 2, Random has the random
// bytes for the parts.
func NewMark(
	m crypt.Mark, entries map[string]string, obj crypt.Object, dek []byte, random io.Reader,
) (*crypt.Mark, error) {
	if m.Version == crypt.V1 {
		return &crypt.Mark{Version: m.Version, KeyID: m.KeyID}, nil
	}
	if _, err := io.ReadFull(random, m.Random[:]); err != nil {
		return nil, fmt.Errorf("drawing the random bytes of an upload: %w", err)
	}
	if entries == nil {
		return &m, nil
	}

	var err error
	if m.Meta, err = crypt.SealMetadata(entries, dek, random); err != nil {
		return nil, err
	}
	return &m, m.Sign(dek, obj)
}

// SealedMetadata is the metadata of an object, if it is sealed, and what
// opens it.
type SealedMetadata struct {
	KeyID      string
	WrappedDEK []byte
	sealed     []byte
	verify     func(dek []byte, obj crypt.Object) error
}

// metadataOf returns nil if the metadata is not sealed.
func metadataOf(e *crypt.Envelope, m *crypt.Mark) *SealedMetadata {
	switch {
	case e != nil && e.Meta != nil:
		return &SealedMetadata{e.KeyID, e.WrappedDEK, e.Meta, e.Verify}
	case m != nil && m.Meta != nil:
		return &SealedMetadata{m.KeyID, m.WrappedDEK, m.Meta, m.Verify}
	default:
		return nil
	}
}

// Metadata returns the sealed metadata of an object, or nil.
func (s *Seen) Metadata() *SealedMetadata { return metadataOf(s.Envelope, s.Mark) }

// Reveal verifies the metadata, and returns the object's headers with it.
func (m *SealedMetadata) Reveal(h http.Header, dek []byte, obj crypt.Object) (http.Header, error) {
	if err := m.verify(dek, obj); err != nil {
		return nil, err
	}
	return Reveal(h, m.sealed, dek)
}

// revealed returns the headers of an answer with the sealed metadata that f
// has. It opens the key.
func (s *Reader) revealed(ctx context.Context, q Request, h http.Header, f facts) (http.Header, error) {
	m := metadataOf(f.envelope, f.mark)
	if m == nil {
		return h, nil
	}
	lease, err := s.Open(ctx, q.Object, m.KeyID, m.WrappedDEK)
	if err != nil {
		return nil, err
	}
	defer lease.Release()

	if err := m.verify(lease.DEK(), q.Object); err != nil {
		return nil, err
	}
	return revealWith(q.Query, h, m.sealed, lease.DEK())
}

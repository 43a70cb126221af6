package stored

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// copiedHeaders are the headers that a HEAD answer and a write request have
// in common. The store's own encryption is left out: the bucket's default
// or origin.sse applies, as it does to all requests of the proxy.
var copiedHeaders = []string{
	"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Expires",
	"X-Amz-Storage-Class", "X-Amz-Website-Redirect-Location",
	"X-Amz-Object-Lock-Mode", "X-Amz-Object-Lock-Retain-Until-Date", "X-Amz-Object-Lock-Legal-Hold",
	"X-Amz-Object-Lock-Event-Hold", "X-Amz-Object-Lock-Event-Hold-Duration-Days",
	"X-Amz-Object-Lock-Event-Hold-Duration-Years",
}

// envelopePrefix is the prefix of the envelope's headers.
var envelopePrefix = http.CanonicalHeaderKey(MetaPrefix + crypt.Prefix)

// Carry returns the headers for a new version of an object: the metadata of
// the old one with another envelope. It does not include the tags.
func Carry(have http.Header, envelope map[string]string) (http.Header, error) {
	if n := have.Get("X-Amz-Missing-Meta"); n != "" && n != "0" {
		return nil, fmt.Errorf(
			"the store does not return %s of the object's metadata entries, so they cannot be copied",
			n,
		)
	}

	h := make(http.Header)
	for _, name := range copiedHeaders {
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

	SetEnvelope(h, envelope)
	return h, nil
}

// SetEnvelope sets the headers of an envelope or a mark.
func SetEnvelope(h http.Header, metadata map[string]string) {
	for name, value := range metadata {
		h.Set(MetaPrefix+name, value)
	}
}

// WithoutFraming removes "aws-chunked" from Content-Encoding. It describes
// the framing of one transfer and not the content, but some stores keep it.
func WithoutFraming(h http.Header) {
	values := h.Values("Content-Encoding")
	if len(values) == 0 {
		return
	}

	var kept []string
	for _, value := range values {
		for coding := range strings.SplitSeq(value, ",") {
			if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "aws-chunked") {
				kept = append(kept, coding)
			}
		}
	}

	h.Del("Content-Encoding")
	if len(kept) > 0 {
		h.Set("Content-Encoding", strings.Join(kept, ","))
	}
}

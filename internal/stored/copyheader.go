package stored

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// copiedHeaders are the headers of a HEAD answer that a request to write takes
// in the same form. The store's own encryption is not among them: what the
// bucket says of it holds, as it did for the proxy's own requests.
var copiedHeaders = []string{
	"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Expires",
	"X-Amz-Storage-Class", "X-Amz-Website-Redirect-Location",
	"X-Amz-Object-Lock-Mode", "X-Amz-Object-Lock-Retain-Until-Date", "X-Amz-Object-Lock-Legal-Hold",
}

// envelopePrefix starts the envelope's headers.
var envelopePrefix = http.CanonicalHeaderKey(MetaPrefix + crypt.Prefix)

// Carry returns the header that gives an object what another one had, beside
// its body and tags, with another envelope.
func Carry(have http.Header, envelope map[string]string) (http.Header, error) {
	if n := have.Get("X-Amz-Missing-Meta"); n != "" && n != "0" {
		return nil, fmt.Errorf(
			"the store does not show %s of its metadata entries, so that they cannot be carried over",
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

	for name, value := range envelope {
		h.Set(MetaPrefix+name, value)
	}
	return h, nil
}

// WithoutFraming takes "aws-chunked" out of Content-Encoding: it is the
// framing of one transfer and not the content's, and some stores keep it all
// the same.
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

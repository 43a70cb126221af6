package sigv4

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const unsignedPayload = "UNSIGNED-PAYLOAD"

// payload is what x-amz-content-sha256 says of the body.
type payload struct {
	sha256  string // hex; "" if the body's hash is not known in advance
	chunked bool   // aws-chunked framing
	signed  bool   // each chunk has a signature
	trailer bool   // headers follow the last chunk
}

// payloads are the values of x-amz-content-sha256 besides a hash:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html.
var payloads = map[string]payload{
	unsignedPayload:                              {},
	"STREAMING-AWS4-HMAC-SHA256-PAYLOAD":         {chunked: true, signed: true},
	"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER": {chunked: true, signed: true, trailer: true},
	"STREAMING-UNSIGNED-PAYLOAD-TRAILER":         {chunked: true, trailer: true},
}

// maxTrailers bounds the headers that a trailer may have. S3 has checksums only, one at a time.
const maxTrailers = 8

// describePayload reads all that the header says about the payload.
func (a *Auth) describePayload(r *http.Request, hash string) error {
	known, ok := payloads[hash]
	switch {
	case ok:
		a.payload = known
	case isHexSHA256(hash):
		a.payload = payload{sha256: hash}
	case strings.HasPrefix(hash, "STREAMING-AWS4-ECDSA"):
		return fail("NotImplemented", "Signature Version 4A is not implemented by this proxy.")
	default:
		return fail("InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER, or a valid sha256 value.",
			"ArgumentName", "x-amz-content-sha256", "ArgumentValue", hash)
	}
	if err := a.announcedTrailers(r.Header); err != nil {
		return err
	}
	decoded := r.Header.Values("X-Amz-Decoded-Content-Length")
	if !a.payload.chunked {
		if len(decoded) > 0 {
			return fail("InvalidRequest", "x-amz-decoded-content-length is for aws-chunked payloads only.")
		}
		a.length = r.ContentLength
		return nil
	}
	if len(decoded) != 1 {
		return fail("MissingContentLength", "You must provide the Content-Length HTTP header.")
	}
	n, err := strconv.ParseUint(decoded[0], 10, 63) // takes no sign
	if err != nil {
		return fail("InvalidArgument", "x-amz-decoded-content-length is not a length.", "ArgumentName", "x-amz-decoded-content-length", "ArgumentValue", decoded[0])
	}
	a.length = int64(n)
	return nil
}

func (a *Auth) announcedTrailers(h http.Header) error {
	for _, line := range h.Values("X-Amz-Trailer") {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.ToLower(strings.TrimSpace(name)); name == "" || len(a.trailers) == maxTrailers || slices.Contains(a.trailers, name) {
				return malformedTrailer("x-amz-trailer")
			}
			a.trailers = append(a.trailers, name)
		}
	}
	if len(a.trailers) > 0 && !a.payload.trailer {
		return fail("InvalidRequest", "x-amz-trailer needs a payload with a trailer in x-amz-content-sha256.")
	}
	return nil
}

func isHexSHA256(text string) bool {
	return len(text) == 64 && strings.Trim(text, "0123456789abcdef") == ""
}

func malformedTrailer(what string) *Error {
	return fail("MalformedTrailerError", "The request contained trailing data that was not well-formed or did not conform to our published schema.", "Trailer", what)
}

package sigv4

import (
	"net/http"
	"strconv"
	"strings"
)

const unsignedPayload = "UNSIGNED-PAYLOAD"

// payload is the kind of payload that x-amz-content-sha256 announces.
type payload struct {
	sha256  string // hex; "" if the hash is not known in advance
	chunked bool   // aws-chunked framing
	signed  bool   // each chunk is signed
	trailer bool   // headers follow the last chunk
}

// payloads are the values of x-amz-content-sha256 other than a hash:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html.
var payloads = map[string]payload{
	unsignedPayload:                              {},
	"STREAMING-AWS4-HMAC-SHA256-PAYLOAD":         {chunked: true, signed: true},
	"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER": {chunked: true, signed: true, trailer: true},
	"STREAMING-UNSIGNED-PAYLOAD-TRAILER":         {chunked: true, trailer: true},
}

// payloadOf parses a value of x-amz-content-sha256.
func payloadOf(hash string) (payload, error) {
	known, ok := payloads[hash]
	switch {
	case ok:
		return known, nil
	case isHexSHA256(hash):
		return payload{sha256: hash}, nil
	case strings.HasPrefix(hash, "STREAMING-AWS4-ECDSA"):
		return payload{}, errAsymmetric()
	default: // S3's message, although this proxy does not support all of these
		return payload{}, fail("InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, "+
			"STREAMING-UNSIGNED-PAYLOAD-TRAILER, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, "+
			"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER, STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD, "+
			"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER or a valid sha256 value.",
			"ArgumentName", "x-amz-content-sha256", "ArgumentValue", hash)
	}
}

// describePayload reads the length and the trailers that the header
// announces.
func (a *Auth) describePayload(r *http.Request) error {
	if err := a.announcedTrailers(r.Header); err != nil {
		return err
	}
	if !a.payload.chunked {
		a.length = r.ContentLength
		return a.refuseFraming(r)
	}

	decoded := r.Header.Values("X-Amz-Decoded-Content-Length")
	if len(decoded) != 1 {
		return errNoLength()
	}

	n, err := strconv.ParseUint(decoded[0], 10, 63) // accepts no sign
	if err != nil {
		return errNoLength() // as S3, which does not distinguish the two
	}

	a.length = int64(n)
	return nil
}

// refuseFraming refuses a plain payload with headers of aws-chunked
// framing: the framing would be stored as data. S3 accepts such a
// Content-Encoding if the payload is hashed, and stores it like any other. A
// decoded length is harmless if it is the length of the body: then there is
// no framing.
func (a *Auth) refuseFraming(r *http.Request) error {
	for _, decoded := range r.Header.Values("X-Amz-Decoded-Content-Length") {
		if n, err := strconv.ParseUint(decoded, 10, 63); err != nil || int64(n) != r.ContentLength {
			return fail("InvalidRequest",
				"x-amz-decoded-content-length differs from Content-Length, but the payload is not aws-chunked.")
		}
	}

	for _, line := range r.Header.Values("Content-Encoding") {
		for encoding := range strings.SplitSeq(line, ",") {
			if a.payload.sha256 == "" && strings.EqualFold(strings.TrimSpace(encoding), "aws-chunked") {
				return fail("InvalidArgument",
					"aws-chunked encoding is not supported when x-amz-content-sha256 UNSIGNED-PAYLOAD is supplied",
					"ArgumentName", "Content-Encoding", "ArgumentValue", line)
			}
		}
	}

	return nil
}

func errNoLength() *Error {
	return fail("MissingContentLength", "You must provide the Content-Length HTTP header.")
}

func isHexSHA256(text string) bool {
	return len(text) == 64 && strings.Trim(text, "0123456789abcdef") == ""
}

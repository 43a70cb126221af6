package sigv4

import (
	"crypto/sha256"
	"io"
	"net/http"
	"slices"
	"strings"
)

const signatureName = "x-amz-trailer-signature"

// maxTrailers is the maximum number of headers in a trailer. S3 itself uses
// only checksums, one per request.
const maxTrailers = 8

// announcedTrailers parses x-amz-trailer.
func (a *Auth) announcedTrailers(h http.Header) error {
	for _, line := range h.Values("X-Amz-Trailer") {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.ToLower(strings.TrimSpace(name)); name == "" || len(a.trailers) == maxTrailers ||
				slices.Contains(a.trailers, name) {
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

// finish reads what follows the last chunk: the trailer or one empty line,
// and then the end of the body. Some clients send one CRLF more, and S3
// accepts it.
func (b *Body) finish() error {
	b.trailerHeader = make(http.Header)
	if b.auth.payload.trailer {
		if err := b.readTrailer(); err != nil {
			return err
		}
	} else if err := b.expect("\r\n"); err != nil {
		return err
	}

	switch rest, err := b.framed.Peek(len("\r\n") + 1); {
	case err == nil || len(rest) > 0 && string(rest) != "\r\n":
		return malformed("bytes follow the payload")
	case err != io.EOF:
		return earlyEndError(err)
	}

	return nil
}

// readTrailer reads header lines up to an empty line. The signature covers
// "name:value\n" of each line:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html.
func (b *Body) readTrailer() error {
	var signed strings.Builder
	var signature string
	var sealed bool // the signature was read, and must be the last line
	for {
		line, err := b.trailerLine()
		if err != nil {
			return err
		}
		if line == "" {
			break
		}

		name, value, ok := strings.Cut(line, ":")
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		switch {
		case !ok || sealed:
			return malformedTrailer(name)
		case name == signatureName && b.auth.payload.signed:
			signature, sealed = value, true
			continue
		case b.auth.payload.signed && len(b.trailerHeader) > 0 && len(b.trailerHeader) == len(b.auth.trailers):
			return malformed("the trailer has another line where its signature belongs")
		case !slices.Contains(b.auth.trailers, name) || b.trailerHeader.Values(name) != nil:
			return malformedTrailer(name)
		}

		b.trailerHeader.Set(name, value)
		signed.WriteString(name + ":" + value + "\n")
	}

	if len(b.trailerHeader) != len(b.auth.trailers) {
		return malformedTrailer(strings.Join(b.auth.trailers, ","))
	}
	if !b.auth.payload.signed {
		return nil
	}

	if len(signature) != sha256.Size*2 {
		return malformed("the trailer has no x-amz-trailer-signature")
	}
	return b.compare("AWS4-HMAC-SHA256-TRAILER\n"+b.auth.date+"\n"+b.auth.scope.String()+"\n"+b.chunk.previous+"\n"+
		hexSHA256(signed.String()), signature)
}

// trailerLine reads a line up to CRLF, or up to LF CRLF. minio-go ends
// trailer headers with the latter, and S3 accepts it.
func (b *Body) trailerLine() (string, error) {
	line, ok, err := b.lineFeed()
	if err == nil && !ok {
		err = b.expect("\r\n")
	}
	return line, err
}

func malformedTrailer(what string) *Error {
	return fail("MalformedTrailerError",
		"The request contained trailing data that was not well-formed or did not conform to our published schema.",
		"Trailer", what)
}

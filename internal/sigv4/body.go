package sigv4

import (
	"bufio"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/http"
)

const (
	emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

	// bufferSize is the maximum length of a framing line, in bytes. A
	// larger buffer would not help: the payload goes past it, directly into
	// the caller's slice.
	bufferSize = 4 << 10
)

// Body reads and verifies a payload. See Auth.Body.
type Body struct {
	auth    *Auth
	src     io.Reader     // of a payload without framing
	framed  *bufio.Reader // of a payload with framing
	remains int64         // payload bytes not yet read; -1 if unknown
	hash    hash.Hash     // of the payload or of the current chunk; nil if neither is signed
	err     error         // sticky

	chunk         chunk
	trailerHeader http.Header
}

func newBody(a *Auth, src io.Reader) *Body {
	b := &Body{auth: a, src: src, remains: a.length}
	if a.payload.chunked {
		b.framed = bufio.NewReaderSize(src, bufferSize)
	}
	if a.payload.signed || a.payload.sha256 != "" {
		b.hash = sha256.New()
	}
	if a.payload.signed {
		b.chunk.previous = a.seed
		b.chunk.mac = a.signingKey.newMAC()
	}

	return b
}

// Trailer returns the verified headers that follow the payload. It is nil
// until Read has returned io.EOF.
func (b *Body) Trailer() http.Header {
	if b.err != io.EOF { //nolint:errorlint // set by Read, never wrapped
		return nil
	}
	return b.trailerHeader
}

// Read implements io.Reader. After an error, including io.EOF, it keeps
// returning that error.
func (b *Body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}

	var n int
	if b.auth.payload.chunked {
		n, b.err = b.readChunked(p)
	} else {
		n, b.err = b.readPlain(p)
	}

	return n, b.err
}

func (b *Body) readPlain(p []byte) (int, error) {
	n, err := b.src.Read(p)
	if b.hash != nil {
		b.hash.Write(p[:n])
	}
	if b.remains >= 0 {
		if b.remains -= int64(n); b.remains < 0 {
			return 0, wrongLength(nil)
		}
	}

	switch {
	case err == nil:
		return n, nil
	case err == io.EOF && b.remains > 0:
		return n, wrongLength(errEarlyEnd)
	case err != io.EOF:
		return n, earlyEndError(err)
	}

	if want := b.auth.payload.sha256; want != "" {
		if got := hex.EncodeToString(b.hash.Sum(nil)); subtle.ConstantTimeCompare([]byte(got), []byte(want)) != 1 {
			return n, fail("XAmzContentSHA256Mismatch",
				"The provided 'x-amz-content-sha256' header does not match what was computed.",
				"ClientComputedContentSHA256", want, "S3ComputedContentSHA256", got)
		}
	}

	return n, io.EOF
}

var errEarlyEnd = errors.New("the body has ended")

// earlyEndError converts the end of the body, where more must follow, to an
// *Error. The result never matches io.EOF or io.ErrUnexpectedEOF with
// errors.Is, so callers cannot mistake it for a regular end.
func earlyEndError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return incomplete(errEarlyEnd)
	}
	return err
}

// incomplete returns S3's error for a body that ends too early, or whose
// framing is malformed.
func incomplete(cause error) *Error {
	e := fail("IncompleteBody", "The request body terminated unexpectedly")
	e.cause = cause
	return e
}

// wrongLength returns S3's error for a payload that does not have its
// declared length.
func wrongLength(cause error) *Error {
	e := fail("IncompleteBody", "You did not provide the number of bytes specified by the Content-Length HTTP header")
	e.cause = cause
	return e
}

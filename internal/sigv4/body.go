package sigv4

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const (
	emptySHA256   = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	maxLine       = 4 << 10 // of a chunk header or a trailer, in bytes
	minChunk      = 8 << 10 // of every chunk with data but the last, S3's rule
	bufferSize    = maxLine // chunk data goes past it, straight into the caller's slice
	signatureName = "x-amz-trailer-signature"
)

// Body is a payload while it is read and verified. See Auth.Body.
type Body struct {
	auth    *Auth
	src     *bufio.Reader
	remains int64 // payload still to come; -1 if the client did not say
	hash    hash.Hash
	err     error // sticky

	chunk     int64  // bytes left of the current chunk
	chunkSize int64  // of the current chunk
	started   bool   // a chunk header has been read
	claimed   string // signature of the current chunk
	previous  string // signature before it
	trailer   http.Header
}

func newBody(a *Auth, src io.Reader) *Body {
	b := &Body{auth: a, src: bufio.NewReaderSize(src, bufferSize), remains: a.length, previous: a.seed}
	if a.payload.signed || a.payload.sha256 != "" {
		b.hash = sha256.New()
	}
	return b
}

// Trailer returns the headers behind the payload, verified: it is nil until Read has returned io.EOF.
func (b *Body) Trailer() http.Header {
	if b.err != io.EOF { //nolint:errorlint // Read's own, never wrapped
		return nil
	}
	return b.trailer
}

// Read implements io.Reader.
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
			return 0, incomplete(nil)
		}
	}
	switch {
	case err == nil:
		return n, nil
	case err != io.EOF || b.remains > 0:
		return n, cut(err)
	}
	if want := b.auth.payload.sha256; want != "" {
		if got := hex.EncodeToString(b.hash.Sum(nil)); subtle.ConstantTimeCompare([]byte(got), []byte(want)) != 1 {
			return n, fail("XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed.",
				"ClientComputedContentSHA256", want, "S3ComputedContentSHA256", got)
		}
	}
	return n, io.EOF
}

// readChunked reads "size[;chunk-signature=hex]\r\n data \r\n" until a chunk of size 0, and what follows it.
func (b *Body) readChunked(p []byte) (int, error) {
	if b.chunk == 0 {
		if err := b.nextChunk(); err != nil {
			return 0, err
		}
		if b.chunk == 0 {
			if err := b.finish(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
	}
	n, err := b.src.Read(p[:min(int64(len(p)), b.chunk)])
	if b.hash != nil {
		b.hash.Write(p[:n])
	}
	b.chunk -= int64(n)
	b.remains -= int64(n)
	if err != nil {
		return n, cut(err)
	}
	if b.chunk == 0 {
		return n, b.endChunk()
	}
	return n, nil
}

// nextChunk reads a chunk header.
func (b *Body) nextChunk() error {
	line, err := b.line()
	if err != nil {
		return err
	}
	size, extension, signed := strings.Cut(line, ";")
	if signed != b.auth.payload.signed {
		return incompleteChunk("a chunk header has a signature where none belongs, or lacks one")
	}
	if signed {
		var ok bool
		if b.claimed, ok = strings.CutPrefix(extension, "chunk-signature="); !ok || len(b.claimed) != sha256.Size*2 {
			return incompleteChunk("a chunk header has no chunk-signature")
		}
	}
	n, err := strconv.ParseUint(size, 16, 63)
	if err != nil || len(size) > 16 {
		return incompleteChunk("a chunk size is not a hexadecimal number")
	}
	if b.started && n > 0 && b.chunkSize < minChunk {
		return fail("InvalidChunkSizeError", "Only the last chunk is allowed to have a size less than 8192 bytes", "BadChunkSize", strconv.FormatInt(b.chunkSize, 10))
	}
	b.started = true
	b.chunk, b.chunkSize = int64(n), int64(n)
	if b.chunk > b.remains || b.chunk == 0 && b.remains > 0 {
		return incomplete(nil) // more, or less, than x-amz-decoded-content-length
	}
	if b.chunk == 0 && signed {
		return b.verifyChunk()
	}
	return nil
}

// endChunk verifies a chunk whose data has been read.
func (b *Body) endChunk() error {
	if err := b.expect("\r\n"); err != nil {
		return err
	}
	if b.auth.payload.signed {
		return b.verifyChunk()
	}
	return nil
}

// verifyChunk compares the chunk's signature:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html#sigv4-chunked-body-definition.
func (b *Body) verifyChunk() error {
	toSign := "AWS4-HMAC-SHA256-PAYLOAD\n" + b.auth.date + "\n" + b.auth.scope + "\n" + b.previous + "\n" +
		emptySHA256 + "\n" + hex.EncodeToString(b.hash.Sum(nil))
	if err := b.compare(toSign, b.claimed); err != nil {
		return err
	}
	b.previous = b.claimed
	b.hash.Reset()
	return nil
}

func (b *Body) compare(toSign, claimed string) error {
	want := hex.EncodeToString(hmacSHA256(b.auth.signingKey, toSign))
	if subtle.ConstantTimeCompare([]byte(want), []byte(claimed)) != 1 {
		return fail("SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method.",
			"AWSAccessKeyId", b.auth.AccessKey, "StringToSign", toSign, "SignatureProvided", claimed)
	}
	return nil
}

// finish reads what follows the last chunk: the trailer, or one empty line, and then nothing.
func (b *Body) finish() error {
	b.trailer = make(http.Header)
	if b.auth.payload.trailer {
		if err := b.readTrailer(); err != nil {
			return err
		}
	} else if err := b.expect("\r\n"); err != nil {
		return err
	}
	switch _, err := b.src.ReadByte(); {
	case err == nil:
		return incompleteChunk("bytes follow the payload")
	case err != io.EOF:
		return cut(err)
	}
	return nil
}

// readTrailer reads header lines up to an empty line. The signature covers "name:value\n" of each.
func (b *Body) readTrailer() error {
	var signed strings.Builder
	var signature string
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
		case !ok || signature != "":
			return malformedTrailer(name)
		case name == signatureName && b.auth.payload.signed:
			signature = value
			continue
		case !slices.Contains(b.auth.trailers, name) || b.trailer.Values(name) != nil:
			return malformedTrailer(name)
		}
		b.trailer.Set(name, value)
		signed.WriteString(name + ":" + value + "\n")
	}
	if len(b.trailer) != len(b.auth.trailers) {
		return malformedTrailer(strings.Join(b.auth.trailers, ","))
	}
	if !b.auth.payload.signed {
		return nil
	}
	return b.compare("AWS4-HMAC-SHA256-TRAILER\n"+b.auth.date+"\n"+b.auth.scope+"\n"+b.previous+"\n"+hexSHA256(signed.String()), signature)
}

// line reads up to CRLF.
func (b *Body) line() (string, error) {
	line, ok, err := b.lineFeed()
	if err == nil && !ok {
		err = incompleteChunk("a line does not end in CRLF")
	}
	return line, err
}

// trailerLine reads up to CRLF, or up to LF CRLF: minio-go ends a header of the trailer so, and S3 takes it.
func (b *Body) trailerLine() (string, error) {
	line, ok, err := b.lineFeed()
	if err == nil && !ok {
		err = b.expect("\r\n")
	}
	return line, err
}

// lineFeed reads up to LF, and says whether a CR stood before it.
func (b *Body) lineFeed() (line string, crlf bool, err error) {
	raw, err := b.src.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", false, incompleteChunk("a line is longer than " + strconv.Itoa(maxLine) + " bytes")
	case err != nil:
		return "", false, cut(err)
	}
	raw, crlf = bytes.CutSuffix(raw[:len(raw)-1], []byte("\r"))
	return string(raw), crlf, nil
}

func (b *Body) expect(text string) error {
	for i := range len(text) {
		c, err := b.src.ReadByte()
		if err != nil {
			return cut(err)
		}
		if c != text[i] {
			return incompleteChunk("a chunk is not followed by CRLF")
		}
	}
	return nil
}

// cut names the end of the body in a place where it must not end. Nothing that it returns is io.EOF to errors.Is.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return incomplete(io.ErrUnexpectedEOF)
	}
	return err
}

func incomplete(cause error) *Error {
	e := fail("IncompleteBody", "You did not provide the number of bytes specified by the Content-Length HTTP header.")
	e.cause = cause
	return e
}

func incompleteChunk(what string) *Error {
	e := incomplete(errors.New(what))
	return e
}

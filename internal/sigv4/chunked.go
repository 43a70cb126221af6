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
	"strconv"
	"strings"
)

// minChunk is the minimum size in bytes of all chunks except the last one
// with data:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html.
const minChunk = 8 << 10

// chunk is the current chunk of an aws-chunked payload.
type chunk struct {
	number  int // counted from 1; 0 before the first
	size    int64
	remains int64 // data not yet read

	claimed  string    // signature in the chunk header
	previous string    // signature of the previous chunk, verified
	mac      hash.Hash // HMAC with the signing key
}

// readChunked reads "size[;chunk-signature=hex]\r\n data \r\n" for each
// chunk up to the one of size 0, and then what follows that chunk.
func (b *Body) readChunked(p []byte) (int, error) {
	if b.chunk.remains == 0 {
		if err := b.nextChunk(); err != nil {
			return 0, err
		}
		if b.chunk.size == 0 {
			if err := b.finish(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
	}

	n, err := b.framed.Read(p[:min(int64(len(p)), b.chunk.remains)])
	if b.hash != nil {
		b.hash.Write(p[:n])
	}

	b.chunk.remains -= int64(n)
	b.remains -= int64(n)

	if err != nil {
		return n, earlyEndError(err)
	}
	if b.chunk.remains == 0 {
		return n, b.endChunk()
	}

	return n, nil
}

// nextChunk reads a chunk header. If the chunk is empty, it also verifies
// the signature.
func (b *Body) nextChunk() error {
	line, err := b.line()
	if err != nil {
		return err
	}

	size, extension, signed := strings.Cut(line, ";")
	if signed != b.auth.payload.signed {
		return malformed("a chunk header has a signature where none belongs, or lacks one")
	}
	if signed {
		var ok bool
		if b.chunk.claimed, ok = strings.CutPrefix(extension, "chunk-signature="); !ok ||
			len(b.chunk.claimed) != sha256.Size*2 {
			return malformed("a chunk header has no chunk-signature")
		}
	}

	n, err := strconv.ParseUint(size, 16, 63)
	if err != nil {
		return malformed("a chunk size is not a hexadecimal number")
	}

	b.chunk.number++
	if b.chunk.number > 1 && n > 0 && b.chunk.size < minChunk {
		return fail("InvalidChunkSizeError", "Only the last chunk is allowed to have a size less than 8192 bytes",
			"Chunk", strconv.Itoa(b.chunk.number), "BadChunkSize", strconv.FormatInt(b.chunk.size, 10))
	}

	b.chunk.size, b.chunk.remains = int64(n), int64(n)
	switch {
	case b.chunk.size > b.remains: // longer than x-amz-decoded-content-length
		return b.overlong()
	case b.chunk.size == 0 && b.remains > 0: // shorter
		return wrongLength(nil)
	case b.chunk.size == 0 && signed:
		return b.verifyChunk()
	}

	return nil
}

// overlong returns S3's error for a chunk that is longer than the rest of
// the payload. If no CRLF follows its data, the chunk size itself is wrong.
// That is checked only for a chunk that fits in the buffer.
func (b *Body) overlong() error {
	if b.chunk.size > bufferSize-int64(len("\r\n")) {
		return wrongLength(nil)
	}

	data, err := b.framed.Peek(int(b.chunk.size) + len("\r\n"))
	switch {
	case err != nil:
		return earlyEndError(err)
	case !bytes.HasSuffix(data, []byte("\r\n")):
		return malformed("a chunk is not followed by CRLF")
	default:
		return wrongLength(nil)
	}
}

// endChunk verifies a chunk after its data has been read.
func (b *Body) endChunk() error {
	if err := b.expect("\r\n"); err != nil {
		return err
	}
	if b.auth.payload.signed {
		return b.verifyChunk()
	}
	return nil
}

// verifyChunk verifies the chunk's signature:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html#sigv4-chunked-body-definition.
func (b *Body) verifyChunk() error {
	var sum [sha256.Size]byte
	hashed := hex.EncodeToString(b.hash.Sum(sum[:0]))
	toSign := "AWS4-HMAC-SHA256-PAYLOAD\n" + b.auth.date + "\n" + b.auth.scope.String() + "\n" +
		b.chunk.previous + "\n" +
		emptySHA256 + "\n" + hashed
	if err := b.compare(toSign, b.chunk.claimed); err != nil {
		return err
	}

	b.chunk.previous = b.chunk.claimed
	b.hash.Reset()
	return nil
}

// compare compares the claimed signature of a chunk or a trailer with the
// correct one.
func (b *Body) compare(toSign, claimed string) error {
	var sum [sha256.Size]byte
	var want [sha256.Size * 2]byte
	b.chunk.mac.Reset()
	_, _ = io.WriteString(b.chunk.mac, toSign) // hashes never fail
	hex.Encode(want[:], b.chunk.mac.Sum(sum[:0]))

	if subtle.ConstantTimeCompare(want[:], []byte(claimed)) != 1 {
		return errSignature(b.auth.AccessKey, toSign, claimed)
	}
	return nil
}

// line reads a line up to CRLF.
func (b *Body) line() (string, error) {
	line, ok, err := b.lineFeed()
	if err == nil && !ok {
		err = malformed("a line does not end in CRLF")
	}
	return line, err
}

// lineFeed reads a line up to LF, and reports whether it ended in CRLF.
func (b *Body) lineFeed() (line string, crlf bool, err error) {
	raw, err := b.framed.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", false, malformed("a line is longer than " + strconv.Itoa(bufferSize) + " bytes")
	case err != nil:
		return "", false, earlyEndError(err)
	}

	raw, crlf = bytes.CutSuffix(raw[:len(raw)-1], []byte("\r"))
	if bytes.IndexByte(raw, '\r') >= 0 {
		return "", false, malformed("a line has a CR in it")
	}

	return string(raw), crlf, nil
}

// expect reads text, and fails if it finds anything else.
func (b *Body) expect(text string) error {
	for i := range len(text) {
		c, err := b.framed.ReadByte()
		if err != nil {
			return earlyEndError(err)
		}
		if c != text[i] {
			return malformed("a chunk is not followed by CRLF")
		}
	}

	return nil
}

// malformed returns the error for malformed framing. The client gets only
// IncompleteBody, as in S3; the log gets the details.
func malformed(what string) *Error { return incomplete(errors.New(what)) }

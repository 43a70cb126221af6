package origin

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// An upload is sent in aws-chunked framing with a CRC32 in the trailer, as
// all AWS SDKs have done by default since 2025. This has two benefits, for
// a tenth of a CPU second per GiB. The store refuses data that was altered
// in transit. And a truncated body never counts as complete, not even on a
// server that takes the end of the connection for the end of the body.
//
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
const (
	streamingTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
	trailerAlgorithm = "CRC32"
	checksumTrailer  = "x-amz-checksum-crc32"

	// MinIO accepts chunks of at most 16 MiB.
	chunkSize = 1 << 20
)

// frame converts the body of r, which has a known length, to such an
// upload.
func frame(r *http.Request) {
	h := r.Header
	h.Set("X-Amz-Content-Sha256", streamingTrailer)
	h.Set("X-Amz-Trailer", checksumTrailer)
	h.Set("X-Amz-Decoded-Content-Length", strconv.FormatInt(r.ContentLength, 10))
	h.Set("Content-Encoding", strings.TrimSuffix("aws-chunked,"+h.Get("Content-Encoding"), ","))
	f := &framed{body: r.Body, sum: crc32.NewIEEE(), left: r.ContentLength}
	r.ContentLength = framedSize(r.ContentLength)

	r.Body, r.GetBody = f, nil // GetBody would return the unframed body
}

// framedSize returns the size of a framed body with n bytes of data, n >=
// 1.
func framedSize(n int64) int64 {
	full, rest := n/chunkSize, n%chunkSize
	size := n + full*int64(len(chunkHead(chunkSize))+len(chunkEnd))
	if rest > 0 {
		size += int64(len(chunkHead(rest)) + len(chunkEnd))
	}
	return size + int64(len(trailer(0)))
}

const chunkEnd = "\r\n"

func chunkHead(n int64) string { return strconv.FormatInt(n, 16) + "\r\n" }

// trailer returns the empty last chunk and the trailer.
func trailer(sum uint32) string {
	digest := binary.BigEndian.AppendUint32(nil, sum)
	return "0\r\n" + checksumTrailer + ":" + base64.StdEncoding.EncodeToString(digest) + "\r\n\r\n"
}

// framed is the reader of a framed body.
type framed struct {
	body  io.ReadCloser
	sum   hash.Hash32
	out   string // framing to return before more data
	left  int64  // data left in the body
	chunk int64  // data left in the chunk
	begun bool
	done  bool // out contains the trailer
}

func (f *framed) Read(p []byte) (int, error) {
	if f.out == "" && f.chunk == 0 && !f.done {
		if err := f.next(); err != nil {
			return 0, err
		}
	}

	n := copy(p, f.out)
	f.out = f.out[n:]

	switch {
	case f.out != "" || n == len(p):
		return n, nil
	case f.done && n == 0:
		return 0, io.EOF
	case f.done:
		return n, nil
	}

	m, err := f.body.Read(p[n:][:min(int64(len(p)-n), f.chunk)])
	f.sum.Write(p[n : n+m])
	f.chunk -= int64(m)
	f.left -= int64(m)

	if err == io.EOF { // ==: an error that wraps io.EOF is a failure
		if err = nil; f.left > 0 {
			err = io.ErrUnexpectedEOF
		}
	}

	return n + m, err
}

// next starts the next chunk. The trailer, which completes the body, is
// written only after the source has returned a bare io.EOF.
func (f *framed) next() error {
	if f.begun {
		f.out = chunkEnd
	}

	f.begun = true
	if f.chunk = min(f.left, chunkSize); f.chunk > 0 {
		f.out += chunkHead(f.chunk)
		return nil
	}

	var one [1]byte
	switch n, err := io.ReadFull(f.body, one[:]); {
	case n > 0:
		return errors.New("origin: the body is longer than its declared length")
	case err != io.EOF: // as in Read
		return err
	}

	f.out += trailer(f.sum.Sum32())
	f.done = true
	return nil
}

func (f *framed) Close() error { return f.body.Close() }

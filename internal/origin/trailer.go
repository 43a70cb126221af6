package origin

import (
	"encoding/base64"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// An upload goes to the store in aws-chunked framing, as one chunk with the CRC32 of the bytes in a trailer: what every
// AWS SDK sends by default since 2025. It buys two things at a tenth of a CPU-second per GiB. The store refuses bytes
// that were altered on the way to it; and a body that breaks off can never be taken for whole, even by a server that
// takes the end of the connection for the end of the body.
//
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
const (
	streamingTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
	checksumTrailer  = "x-amz-checksum-crc32"
)

// frame turns the body of r, whose length is known, into such an upload.
func frame(r *http.Request) {
	h := r.Header
	h.Set("X-Amz-Content-Sha256", streamingTrailer)
	h.Set("X-Amz-Trailer", checksumTrailer)
	h.Set("X-Amz-Decoded-Content-Length", strconv.FormatInt(r.ContentLength, 10))
	h.Set("Content-Encoding", strings.TrimSuffix("aws-chunked,"+h.Get("Content-Encoding"), ","))
	f := &framed{body: r.Body, sum: crc32.NewIEEE()}
	head := fmt.Sprintf("%x\r\n", r.ContentLength)
	f.out = []byte(head)
	r.ContentLength += int64(len(head) + len(f.tail()))
	r.Body = f
}

// framed is the framed body while it is read.
type framed struct {
	body io.ReadCloser
	sum  hash.Hash32
	out  []byte // framing to be handed out before more of the body
	done bool   // the body has ended, and out is the trailer
}

// tail is what follows the data: the end of its chunk, the last chunk and the trailer.
func (f *framed) tail() string {
	return "\r\n0\r\n" + checksumTrailer + ":" + base64.StdEncoding.EncodeToString(f.sum.Sum(nil)) + "\r\n\r\n"
}

func (f *framed) Read(p []byte) (int, error) {
	if len(f.out) > 0 {
		n := copy(p, f.out)
		f.out = f.out[n:]
		return n, nil
	}
	if f.done {
		return 0, io.EOF
	}
	n, err := f.body.Read(p)
	f.sum.Write(p[:n])
	if err == io.EOF { // bare, as every io.Reader must say it: an error that wraps it is a failure
		f.done, f.out = true, []byte(f.tail())
		err = nil
	}
	return n, err
}

func (f *framed) Close() error { return f.body.Close() }

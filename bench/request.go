package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
)

const region = "us-east-1"

// request is a signed request in the form in which it is sent. It is sent
// many times: nginx and the pass-through do not check signatures, and
// cmekproxy accepts one for 15 minutes.
type request struct {
	method string
	head   []byte // the request line and the headers
	body   []byte
	times  int // how often body is sent, one copy after the other
}

// message is a request before it is signed.
type message struct {
	method string
	path   string // with the query
	header http.Header
	body   []byte
	times  int
}

// Values of X-Amz-Content-Sha256.
const (
	emptyPayload    = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	unsignedPayload = "UNSIGNED-PAYLOAD"
	trailerPayload  = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

var signer = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })

// sign signs a message for a server.
func (t *target) sign(ctx context.Context, e endpoint, m message) (*request, error) {
	r, err := http.NewRequestWithContext(ctx, m.method, e.url()+m.path, http.NoBody)
	if err != nil {
		return nil, err
	}
	maps.Copy(r.Header, m.header)

	r.ContentLength = int64(len(m.body)) * int64(m.times)
	payload := r.Header.Get("X-Amz-Content-Sha256")
	if payload == "" {
		payload = emptyPayload
		if m.body != nil {
			payload = unsignedPayload
		}
		r.Header.Set("X-Amz-Content-Sha256", payload)
	}
	r.Header.Set("User-Agent", "bench")

	keys := aws.Credentials{AccessKeyID: t.access, SecretAccessKey: t.secret}
	if err := signer.SignHTTP(ctx, keys, r, payload, "s3", region, time.Now()); err != nil {
		return nil, err
	}

	var head bytes.Buffer
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\n", m.method, r.URL.RequestURI(), r.URL.Host)
	if m.method == http.MethodPut || m.method == http.MethodPost {
		r.Header.Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
	}
	if err := r.Header.Write(&head); err != nil {
		return nil, err
	}
	head.WriteString("\r\n")
	return &request{method: m.method, head: head.Bytes(), body: m.body, times: m.times}, nil
}

// uploadMessage returns a message that uploads size bytes: without a checksum, or
// with one of that algorithm in a trailer, as SDKs send it.
func uploadMessage(path string, size int64, algorithm *checksum.Algorithm) message {
	m := message{method: http.MethodPut, path: path, header: make(http.Header), times: 1}
	m.header.Set("Content-Type", "application/octet-stream")
	if algorithm == nil {
		unit := min(size, int64(len(noise)))
		m.body, m.times = noise[:unit], int(size/unit)
		return m
	}

	m.header.Set("X-Amz-Content-Sha256", trailerPayload)
	m.header.Set("X-Amz-Sdk-Checksum-Algorithm", algorithm.Name)
	m.header.Set("X-Amz-Trailer", algorithm.Header())
	m.header.Set("X-Amz-Decoded-Content-Length", strconv.FormatInt(size, 10))
	m.header.Set("Content-Encoding", "aws-chunked")
	m.body = frame(noise[:size], algorithm)
	return m
}

// sdkChunk is the size of a chunk: that of the SDK for Java. The SDK for
// Python has 1 MiB, that for Go the whole body.
const sdkChunk = 128 << 10

// frame returns data in aws-chunked framing.
func frame(data []byte, algorithm *checksum.Algorithm) []byte {
	var out bytes.Buffer
	sum := algorithm.New()
	sum.Write(data)
	for rest := data; len(rest) > 0; {
		chunk := rest[:min(len(rest), sdkChunk)]
		fmt.Fprintf(&out, "%x\r\n%s\r\n", len(chunk), chunk)
		rest = rest[len(chunk):]
	}

	digest := base64.StdEncoding.EncodeToString(sum.Sum(nil))
	fmt.Fprintf(&out, "0\r\n%s:%s\r\n\r\n", algorithm.Header(), digest)
	return out.Bytes()
}

// noise is the content of all bodies, repeated as needed.
var noise = func() []byte {
	b := make([]byte, 1<<20)
	_, _ = io.ReadFull(rand.Reader, b)
	return b
}()

package s3api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// forward sends the request to the store, and its answer to the client.
// Neither has object content.
func (s *Server) forward(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}
	return s.forwardBody(c, body)
}

// readBody reads the whole body of a configuration request, and verifies it.
// The route limits its size.
func (c *call) readBody() ([]byte, error) {
	if c.route.body == 0 {
		return nil, nil
	}
	var body bytes.Buffer
	if _, err := body.ReadFrom(io.LimitReader(c.payload, c.route.body+1)); err != nil {
		return nil, err
	}
	return body.Bytes(), nil
}

// maxDropped is the longest body, in bytes, that a request without a use for
// it may have. Some HTTP clients send one with GET or DELETE.
const maxDropped = 64 << 10

// maxBody returns the longest body of a request.
func (row *route) maxBody() int64 {
	if row.dropsBody() {
		return maxDropped
	}
	return row.body
}

// dropsBody reports whether a body means nothing to the operation.
func (row *route) dropsBody() bool {
	return row.body == 0 && row.method != http.MethodPut && row.method != http.MethodPost
}

// dropBody reads and verifies a body that means nothing, as S3 does. It is
// never sent to the store.
func (c *call) dropBody() error {
	if !c.route.dropsBody() {
		return nil
	}
	_, err := io.Copy(io.Discard, c.payload)
	return err
}

func (s *Server) forwardBody(c *call, body []byte) error {
	resp, err := s.sendBody(c, body)
	if err != nil {
		return err
	}
	defer closeBody(resp)
	if c.Method == http.MethodHead {
		resp.ContentLength = -1
	}
	return c.pass(resp)
}

func (s *Server) sendBody(c *call, body []byte) (*http.Response, error) {
	header := c.requestHeader()
	header.Set("X-Amz-Content-Sha256", sha256Of(body))
	if len(body) > 0 || c.hasDigest() {
		header.Set("Content-Md5", md5Of(body)) // S3 requires it for some operations
	}
	return s.send(c, replayable(c.originRequest(c.Method, header, int64(len(body))), body))
}

// replayable gives a request a body that can be sent again.
func replayable(r *http.Request, body []byte) *http.Request {
	if len(body) > 0 {
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		r.Body, _ = r.GetBody()
	}
	return r
}

// hasDigest reports whether the client sent a digest of its body, besides
// the signature.
func (c *call) hasDigest() bool {
	for name := range c.Header {
		if name == "Content-Md5" || strings.HasPrefix(name, checksumPrefix) {
			return true
		}
	}
	return false
}

func sha256Of(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// pass sends the store's answer to the client.
func (c *call) pass(resp *http.Response) error {
	c.copyHeader(resp.Header)
	if resp.ContentLength >= 0 {
		c.w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	c.w.WriteHeader(resp.StatusCode)
	_, err := io.Copy(onlyWriter{&c.w}, resp.Body)
	return err
}

// onlyWriter hides ReadFrom, so that io.Copy uses response.Write.
type onlyWriter struct{ io.Writer }

package s3api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
)

// forward sends a request on that has nothing of an object's content in it.
func (s *Server) forward(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}
	return s.forwardBody(c, body)
}

// readBody reads the whole body of a configuration request, which the route bounds, and verifies it.
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

func (s *Server) forwardBody(c *call, body []byte) error {
	header := c.requestHeader()
	sum := sha256.Sum256(body)
	header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum[:]))
	if len(body) > 0 {
		header.Set("Content-Md5", md5Of(body)) // S3 demands it of some operations
	}
	resp, err := s.send(c, c.originRequest(c.Method, header, io.NopCloser(bytes.NewReader(body)), int64(len(body))))
	if err != nil {
		return err
	}
	defer closeBody(resp)
	if c.Method == http.MethodHead {
		resp.ContentLength = -1
	}
	return c.pass(resp)
}

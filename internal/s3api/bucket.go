package s3api

import (
	"errors"
	"net/http"
	"net/url"
)

// findBucket makes sure that there is such a bucket.
func (s *Server) findBucket(c *call) error {
	resp, err := s.sendToBucket(c, http.MethodHead, "")
	if err != nil {
		return noSuchBucket(c, err)
	}
	closeBody(resp)
	return nil
}

// sendToBucket sends a request of the proxy's own about the call's bucket.
func (s *Server) sendToBucket(c *call, method, query string) (*http.Response, error) {
	r := &http.Request{Method: method, URL: &url.URL{Path: "/" + c.bucket, RawQuery: query}, Header: make(http.Header)}
	return s.send(c, r.WithContext(c.Context()))
}

// noSuchBucket names the store's 404 to a HEAD of a bucket.
func noSuchBucket(c *call, err error) error {
	if !hasCode(err, notFound) {
		return err
	}
	return &Error{
		Code:       "NoSuchBucket",
		Message:    "The specified bucket does not exist.",
		Details:    [][2]string{{"BucketName", c.bucket}},
		httpStatus: http.StatusNotFound,
		cause:      err,
	}
}

// nameNotFound gives an error its name that came as the answer to a HEAD, which
// has none, where the client has not sent a HEAD.
func (s *Server) nameNotFound(c *call, err error) error {
	answer := (*Error)(nil)
	if c.Method == http.MethodHead || !errors.As(err, &answer) || answer.Code != notFound {
		return err
	}

	if s.findBucket(c) == nil {
		return &Error{
			Code:       "NoSuchKey",
			Message:    "The specified key does not exist.",
			Details:    [][2]string{{"Key", c.key}},
			Header:     answer.Header,
			httpStatus: answer.httpStatus,
			cause:      err,
		}
	}

	return noSuchBucket(c, err)
}

// unlessNoBucket is for a fault of the request that S3 tells only of a bucket
// that is there.
func (s *Server) unlessNoBucket(c *call, fault error) error {
	if err := s.findBucket(c); hasCode(err, "NoSuchBucket") {
		return err
	}
	return fault
}

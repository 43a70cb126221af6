package s3api

import (
	"errors"
	"net/http"
	"net/url"
)

// createBucket creates a bucket. Its name must follow S3's rules for new
// buckets, because clients could not use another one with virtual hosts.
func (s *Server) createBucket(c *call) error {
	if !newBucketName.MatchString(c.bucket) {
		return errBucketName(c.bucket)
	}
	return s.forward(c)
}

// findBucket returns an error if the bucket does not exist.
func (s *Server) findBucket(c *call) error {
	resp, err := s.sendToBucket(c, http.MethodHead, "")
	if err != nil {
		return noSuchBucket(c, err)
	}
	closeBody(resp)
	return nil
}

// sendToBucket sends the proxy's own request about the call's bucket.
func (s *Server) sendToBucket(c *call, method, query string) (*http.Response, error) {
	r := &http.Request{Method: method, URL: &url.URL{Path: "/" + c.bucket, RawQuery: query}, Header: make(http.Header)}
	return s.send(c, r.WithContext(c.Context()))
}

// noSuchBucket turns the store's 404 to HeadBucket into NoSuchBucket.
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

// nameNotFound replaces the code of a 404 that came from a HEAD to the
// store. If the client did not send a HEAD, it needs to know whether the key
// or the bucket is missing.
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

// unlessNoBucket returns fault, or NoSuchBucket if the bucket does not
// exist. S3 reports some errors only for existing buckets.
func (s *Server) unlessNoBucket(c *call, fault error) error {
	if err := s.findBucket(c); hasCode(err, "NoSuchBucket") {
		return err
	}
	return fault
}

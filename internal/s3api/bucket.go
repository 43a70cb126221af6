package s3api

import (
	"errors"
	"net/http"
	"net/url"
)

// findBucket makes sure that there is such a bucket.
func (s *Server) findBucket(c *call) error {
	path := url.URL{Path: "/" + c.bucket}
	resp, err := s.send(c, (&http.Request{Method: http.MethodHead, URL: &path, Header: make(http.Header)}).WithContext(c.Context()))
	if err != nil {
		return noSuchBucket(c, err)
	}
	closeBody(resp)
	return nil
}

// noSuchBucket names the store's 404 to a HEAD of a bucket.
func noSuchBucket(c *call, err error) error {
	answer := (*Error)(nil)
	if !errors.As(err, &answer) || answer.Code != notFound {
		return err
	}
	return &Error{Code: "NoSuchBucket", Message: "The specified bucket does not exist.", Details: [][2]string{{"BucketName", c.bucket}}, httpStatus: http.StatusNotFound, cause: err}
}

// nameNotFound gives an error its name that came as the answer to a HEAD, which has none, where the client has not sent a HEAD.
func (s *Server) nameNotFound(c *call, err error) error {
	answer := (*Error)(nil)
	if c.Method == http.MethodHead || !errors.As(err, &answer) || answer.Code != notFound {
		return err
	}
	path := url.URL{Path: "/" + c.bucket}
	resp, failure := s.send(c, (&http.Request{Method: http.MethodHead, URL: &path, Header: make(http.Header)}).WithContext(c.Context()))
	if failure == nil {
		closeBody(resp)
		return &Error{Code: "NoSuchKey", Message: "The specified key does not exist.", Details: [][2]string{{"Key", c.key}}, Header: answer.Header, httpStatus: answer.httpStatus, cause: err}
	}
	return noSuchBucket(c, err)
}

// unlessNoBucket is for a fault of the request that S3 tells only of a bucket that is there.
func (s *Server) unlessNoBucket(c *call, fault error) error {
	var answer *Error
	if err := s.findBucket(c); errors.As(err, &answer) && answer.Code == "NoSuchBucket" {
		return err
	}
	return fault
}

package s3api

import (
	"encoding/xml"
	"errors"
	"net/http"
	"net/url"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

// getBucketEncryption tells which KMS key the proxy's rules have for new objects in the bucket. Rules for prefixes only are
// not in it: S3's answer has room for one key. What the store itself does to ciphertext is not the client's business.
func (s *Server) getBucketEncryption(c *call) error {
	path := url.URL{Path: "/" + c.bucket}
	resp, err := s.send(c, (&http.Request{Method: http.MethodHead, URL: &path, Header: make(http.Header)}).WithContext(c.Context()))
	if err != nil {
		return noSuchBucket(c, err)
	}
	closeBody(resp)
	keyID, err := s.Keys.KeyID(crypt.Object{Bucket: c.bucket}, c.client.Name, "")
	if errors.Is(err, keyring.ErrNoRule) {
		return &Error{
			Code: "ServerSideEncryptionConfigurationNotFoundError", Message: "The server side encryption configuration was not found",
			Details: [][2]string{{"BucketName", c.bucket}}, cause: err,
		}
	}
	if err != nil {
		return err
	}
	type byDefault struct{ SSEAlgorithm, KMSMasterKeyID string }
	type rule struct {
		Default          byDefault `xml:"ApplyServerSideEncryptionByDefault"`
		BucketKeyEnabled bool
	}
	doc, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ServerSideEncryptionConfiguration"`
		Rule    rule
	}{Rule: rule{Default: byDefault{"aws:kms", keyID}}})
	if err != nil {
		return err
	}
	return c.answerXML(append([]byte(xml.Header), doc...))
}

// noSuchBucket names the store's 404 to a HEAD of a bucket.
func noSuchBucket(c *call, err error) error {
	answer := (*Error)(nil)
	if !errors.As(err, &answer) || answer.Code != notFound {
		return err
	}
	return &Error{Code: "NoSuchBucket", Message: "The specified bucket does not exist", Details: [][2]string{{"BucketName", c.bucket}}, status: http.StatusNotFound, cause: err}
}

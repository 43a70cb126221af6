package s3api

import (
	"encoding/xml"
	"errors"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

// getBucketEncryption returns the KMS key that the proxy's rules have for
// new objects in the bucket. Rules for prefixes are left out, because S3's
// answer has room for one key only. The store's own encryption of the
// ciphertext is not shown.
func (s *Server) getBucketEncryption(c *call) error {
	if err := s.findBucket(c); err != nil {
		return err
	}

	chosen, err := s.Keys.Rule(crypt.Object{Bucket: c.bucket}, c.client.Name)
	keyID := ""
	if err == nil {
		keyID, err = s.Keys.KeyID(crypt.Object{Bucket: c.bucket}, c.client.Name, "")
	}

	if errors.Is(err, keyring.ErrNoRule) {
		return &Error{
			Code:    "ServerSideEncryptionConfigurationNotFoundError",
			Message: "The server side encryption configuration was not found",
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

	return c.answerDocument(struct {
		XMLName xml.Name
		Rule    rule
	}{
		XMLName: rootNamed("ServerSideEncryptionConfiguration"),
		Rule:    rule{Default: byDefault{"aws:kms", keyID}, BucketKeyEnabled: chosen.Reuse != nil},
	})
}

// putBucketEncryption chooses the KMS key for new objects in the bucket, if
// bucket_defaults_file is configured. Encryption without a KMS key is
// refused.
func (s *Server) putBucketEncryption(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}

	var doc struct {
		Rules []struct {
			Default struct{ SSEAlgorithm, KMSMasterKeyID string } `xml:"ApplyServerSideEncryptionByDefault"`
			Unknown []unknownElement                              `xml:",any"`
		} `xml:"Rule"`
	}
	if err := xml.Unmarshal(body, &doc); err != nil || len(doc.Rules) != 1 {
		return malformedXML(err)
	}

	for _, e := range doc.Rules[0].Unknown {
		// The rule's dek_reuse decides about it; GetBucketEncryption returns
		// it.
		if e.XMLName.Local != "BucketKeyEnabled" {
			return notImplemented("The element "+e.XMLName.Local+" of PutBucketEncryption", changesMeaning)
		}
	}

	wanted := doc.Rules[0].Default
	if wanted.SSEAlgorithm != "aws:kms" {
		return badRequest("InvalidArgument", "The proxy encrypts with KMS keys: SSEAlgorithm must be aws:kms.")
	}
	if err := s.findBucket(c); err != nil {
		return err
	}

	return s.setDefault(c, wanted.KMSMasterKeyID, http.StatusOK)
}

// deleteBucketEncryption removes the choice, so that the proxy's rules apply
// again.
func (s *Server) deleteBucketEncryption(c *call) error {
	if err := s.findBucket(c); err != nil {
		return err
	}
	return s.setDefault(c, "", http.StatusNoContent)
}

func (s *Server) setDefault(c *call, keyID string, status int) error {
	if !s.Keys.HasDefaults() {
		return notImplemented("Choosing a bucket's KMS key",
			"the proxy's configuration does it, with encryption.rules or encryption.bucket_defaults_file")
	}
	if err := s.Keys.SetDefault(c.bucket, c.client.Name, keyID); err != nil {
		return err
	}
	c.w.WriteHeader(status)
	return nil
}

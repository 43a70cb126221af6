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

	chosen, err := c.keys.Rule(crypt.Object{Bucket: c.bucket}, c.client.Name)
	keyID := ""
	if err == nil {
		keyID, err = c.keys.KeyID(c.Context(), crypt.Object{Bucket: c.bucket}, c.client.Name, "")
	}

	if errors.Is(err, keyring.ErrTenant) || errors.Is(err, keyring.ErrNoTenant) {
		err = nil // each tenant has its own key, and S3's answer need not name one
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

	allowed, err := c.keys.AllowsCustomerKeys(c.bucket)
	if err != nil {
		return err
	}
	blocked := customerEncryption
	if allowed {
		blocked = noEncryption
	}

	type byDefault struct {
		SSEAlgorithm   string
		KMSMasterKeyID string `xml:",omitempty"`
	}
	type rule struct {
		Default          byDefault `xml:"ApplyServerSideEncryptionByDefault"`
		BucketKeyEnabled bool
		Blocked          string `xml:"BlockedEncryptionTypes>EncryptionType"`
	}

	return c.answerDocument(struct {
		XMLName xml.Name
		Rule    rule
	}{
		XMLName: rootNamed("ServerSideEncryptionConfiguration"),
		Rule: rule{
			Default: byDefault{"aws:kms", keyID}, BucketKeyEnabled: chosen.Reuse != nil, Blocked: blocked,
		},
	})
}

// Values of EncryptionType in BlockedEncryptionTypes.
const (
	customerEncryption = "SSE-C"
	noEncryption       = "NONE"
)

// encryptionRule is the only rule in a document of PutBucketEncryption.
type encryptionRule struct {
	Default *struct{ SSEAlgorithm, KMSMasterKeyID string } `xml:"ApplyServerSideEncryptionByDefault"`
	Blocked *struct {
		Types   []string         `xml:"EncryptionType"`
		Unknown []unknownElement `xml:",any"`
	} `xml:"BlockedEncryptionTypes"`
	Unknown []unknownElement `xml:",any"`
}

// putBucketEncryption chooses the key of a bucket, and blocks customer keys in
// it. The document replaces the choice of the key. A block stays until a
// document says NONE, or the configuration is deleted.
func (s *Server) putBucketEncryption(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}

	var doc struct {
		Rules []encryptionRule `xml:"Rule"`
	}
	if err := xml.Unmarshal(body, &doc); err != nil || len(doc.Rules) != 1 {
		return malformedXML(err)
	}
	rule := doc.Rules[0]
	for _, e := range rule.Unknown {
		// The rule's dek_reuse decides about it; GetBucketEncryption returns
		// it.
		if e.XMLName.Local != "BucketKeyEnabled" {
			return notImplemented("The element "+e.XMLName.Local+" of PutBucketEncryption", changesMeaning)
		}
	}

	block, err := rule.blocking()
	if err != nil {
		return err
	}
	keyID := ""
	switch {
	case rule.Default == nil && block == keyring.KeepBlocking:
		return malformedXML(nil)
	case rule.Default == nil:
	case rule.Default.SSEAlgorithm != "aws:kms":
		return badRequest("InvalidArgument", "The proxy encrypts with KMS keys: SSEAlgorithm must be aws:kms.")
	default:
		keyID = rule.Default.KMSMasterKeyID
	}

	if err := s.findBucket(c); err != nil {
		return err
	}
	done, err := s.checkBlocking(c, block)
	if err != nil {
		return err
	}
	if done && rule.Default == nil && !c.keys.HasDefaults() {
		c.w.WriteHeader(http.StatusOK) // the rules say so already
		return nil
	}
	return s.setDefault(c, keyID, block, http.StatusOK)
}

// blocking returns what a rule changes about customer keys.
func (r *encryptionRule) blocking() (keyring.Blocking, error) {
	if r.Blocked == nil {
		return keyring.KeepBlocking, nil
	}
	if len(r.Blocked.Types) != 1 || len(r.Blocked.Unknown) > 0 {
		return keyring.KeepBlocking, malformedXML(nil)
	}
	switch r.Blocked.Types[0] {
	case customerEncryption:
		return keyring.Block, nil
	case noEncryption:
		return keyring.Unblock, nil
	default:
		return keyring.KeepBlocking, invalidArgument("Unknown encryption type.", "EncryptionType", r.Blocked.Types[0])
	}
}

// checkBlocking refuses to allow what the rules forbid, and a block that can
// be kept nowhere. done reports whether the rules alone have the same effect.
func (s *Server) checkBlocking(c *call, block keyring.Blocking) (done bool, err error) {
	allowed := c.keys.RulesAllowCustomerKeys(c.bucket)
	switch {
	case block == keyring.Unblock && !allowed:
		return false, &Error{
			Code: "AccessDenied",
			Message: "The proxy's configuration forbids SSE-C in this bucket, and a client cannot allow it. The " +
				"proxy's operator can, with customer_keys.",
		}
	case block == keyring.Block && allowed && !c.keys.HasDefaults():
		return false, notImplemented("Blocking SSE-C in a bucket",
			"the proxy's configuration does it, with customer_keys or encryption.bucket_defaults_file")
	}
	return block != keyring.KeepBlocking, nil
}

// deleteBucketEncryption removes the choice and the block, so that the proxy's
// rules apply again.
func (s *Server) deleteBucketEncryption(c *call) error {
	if err := s.findBucket(c); err != nil {
		return err
	}
	return s.setDefault(c, "", keyring.Unblock, http.StatusNoContent)
}

func (s *Server) setDefault(c *call, keyID string, block keyring.Blocking, status int) error {
	if !c.keys.HasDefaults() {
		return notImplemented("Choosing a bucket's KMS key",
			"the proxy's configuration does it, with encryption.rules or encryption.bucket_defaults_file")
	}
	if err := c.keys.SetDefault(c.Context(), c.bucket, c.client.Name, keyID, block); err != nil {
		return err
	}
	c.w.WriteHeader(status)
	return nil
}

package s3api

import (
	"encoding/xml"
	"net/http"
	"strings"
)

const (
	cannedHeader = "X-Amz-Acl"
	grantPrefix  = "x-amz-grant-"

	ownerEnforced = "BucketOwnerEnforced" // a bucket without ACLs
)

// putACL handles PutBucketAcl and PutObjectAcl. ACLs name identities of the
// store. Others whom an ACL lets in use the store without the proxy: they
// could read only ciphertext, and store objects that the proxy does not
// read. So only an ACL that grants access to the owner alone is accepted, in
// any of its forms.
func (s *Server) putACL(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}
	if err := checkACL(c.Header, body); err != nil {
		return s.unlessNoACLs(c, err)
	}
	c.Header = c.Header.Clone()
	if len(body) > 0 {
		c.Header.Set(cannedHeader, "private")
		c.Header.Del("Content-Type")
	}
	return s.forwardBody(c, nil)
}

// checkACL returns nil for an ACL that grants access only to the owner. A
// malformed ACL gets S3's error, any other ACL NotImplemented.
func checkACL(h http.Header, body []byte) error {
	canned, granted := h.Get(cannedHeader), false
	for name := range h {
		granted = granted || strings.HasPrefix(strings.ToLower(name), grantPrefix)
	}

	refusal := checkCanned(h)
	if canned != "" && !cannedACLs.has(canned) {
		return refusal
	}

	var acl accessControl
	switch {
	case len(body) > 0 && (xml.Unmarshal(body, &acl) != nil || !acl.valid()):
		return badRequest(
			"MalformedACLError",
			"The XML you provided was not well-formed or did not validate against our published schema.",
		)
	case len(body) > 0 && (canned != "" || granted):
		return badRequest("UnexpectedContent", "This request does not support content.")
	case canned != "" && granted:
		return badRequest("InvalidRequest", "Specifying both Canned ACLs and Header Grants is not allowed.")
	case len(body) == 0 && canned == "" && !granted:
		return badRequest("MissingSecurityHeader", "Your request was missing a required header.")
	case granted, len(body) > 0 && !acl.private():
		return notImplemented("An ACL that grants access to anyone but the owner", ownerOnly)
	default:
		return refusal
	}
}

// unlessNoACLs returns the error for an invalid ACL. Like S3, it returns
// another error first if the bucket does not exist or has no ACLs.
func (s *Server) unlessNoACLs(c *call, fault error) error {
	resp, err := s.sendToBucket(c, http.MethodGet, "ownershipControls=")
	if hasCode(err, "NoSuchBucket") {
		return err
	}
	if err != nil {
		return fault // the bucket may have no ownership controls, or the store may not support them
	}
	defer closeBody(resp)

	var doc struct {
		Ownership []string `xml:"Rule>ObjectOwnership"`
	}
	if xml.NewDecoder(resp.Body).Decode(&doc) == nil && len(doc.Ownership) == 1 && doc.Ownership[0] == ownerEnforced {
		return badRequest("AccessControlListNotSupported", "The bucket does not allow ACLs.")
	}
	return fault
}

// ownerOnly is the reason why other ACLs are refused.
const ownerOnly = "others would read ciphertext from the store, without the proxy"

// cannedACLs are all canned ACLs of S3.
var cannedACLs = setOf(
	"private public-read public-read-write aws-exec-read authenticated-read " +
		"bucket-owner-read bucket-owner-full-control log-delivery-write",
)

// checkCanned refuses a canned ACL that lets in anyone besides the store's
// owner, because others could read only ciphertext.
func checkCanned(h http.Header) error {
	switch acl := h.Get(cannedHeader); {
	case acl == "", acl == "private", acl == "bucket-owner-full-control":
		return nil
	case !cannedACLs.has(acl):
		return &Error{
			Code:    "InvalidArgument",
			Message: "There is no such canned ACL.",
			Details: [][2]string{{"ArgumentName", "x-amz-acl"}, {"ArgumentValue", acl}},
		}
	case h.Get("X-Amz-Object-Ownership") == ownerEnforced: // for CreateBucket
		return badRequest(
			"InvalidBucketAclWithObjectOwnership",
			"Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
		)
	default:
		return notImplemented("The canned ACL "+acl, ownerOnly)
	}
}

// permissions are all permissions of S3's ACLs.
var permissions = setOf("FULL_CONTROL WRITE WRITE_ACP READ READ_ACP")

// accessControl is the AccessControlPolicy document.
type accessControl struct {
	XMLName xml.Name `xml:"AccessControlPolicy"`
	Owner   struct{ ID string }
	Grants  []struct {
		Grantee struct {
			Type    string `xml:"http://www.w3.org/2001/XMLSchema-instance type,attr"`
			ID      string
			Unknown []unknownElement `xml:",any"`
		}
		Permission string
	} `xml:"AccessControlList>Grant"`
}

// valid reports whether S3 would accept the document: it names an owner, and
// each grant has a grantee and a permission. The ACLs of MinIO name nobody;
// clients send back what they get there.
func (a *accessControl) valid() bool {
	if a.nameless() {
		return true
	}
	for _, g := range a.Grants {
		if !permissions.has(g.Permission) {
			return false
		}

		switch g.Grantee.Type {
		case "Group", "AmazonCustomerByEmail":
		case "CanonicalUser", "":
			if g.Grantee.ID == "" {
				return false
			}
		default:
			return false
		}
	}

	return a.Owner.ID != ""
}

// nameless reports whether the document grants full control to its owner, and
// has no id of either.
func (a *accessControl) nameless() bool {
	for _, g := range a.Grants {
		if g.Grantee.ID != "" || len(g.Grantee.Unknown) > 1 || g.Grantee.Type != "CanonicalUser" ||
			g.Permission != "FULL_CONTROL" {
			return false
		}
		for _, u := range g.Grantee.Unknown { // MinIO has the type as an element too
			if u.XMLName.Local != "Type" {
				return false
			}
		}
	}
	return a.Owner.ID == "" && len(a.Grants) == 1
}

// private reports whether the owner has full control, and no other grants
// exist.
func (a *accessControl) private() bool {
	if a.nameless() {
		return true
	}
	for _, g := range a.Grants {
		if g.Grantee.Type == "Group" || g.Grantee.ID != a.Owner.ID || g.Permission != "FULL_CONTROL" {
			return false
		}
		for _, u := range g.Grantee.Unknown {
			if u.XMLName.Local != "DisplayName" {
				return false
			}
		}
	}
	return a.Owner.ID != "" && len(a.Grants) > 0
}

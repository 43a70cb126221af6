package s3api

import "encoding/xml"

// putACL answers PutBucketAcl and PutObjectAcl. An ACL is the store's, and knows the store's identities only: whoever it
// lets in besides the owner comes past the proxy, can read ciphertext only, and can put objects there that the proxy does
// not read. So only the ACL that lets in nobody else is taken, in whichever form.
func (s *Server) putACL(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}
	switch canned := c.Header.Get("X-Amz-Acl") != ""; {
	case canned && len(body) > 0:
		return badRequest("UnexpectedContent", "This request does not support content")
	case canned: // checkNames has looked at it
		return s.forwardBody(c, nil)
	case len(body) == 0:
		return badRequest("MissingSecurityHeader", "Your request was missing a required header")
	}
	var acl accessControl
	if err := xml.Unmarshal(body, &acl); err != nil {
		return badRequest("MalformedACLError", "The XML you provided was not well-formed or did not validate against our published schema")
	}
	if !acl.private() {
		return notImplemented("An ACL that grants anything to others than the owner")
	}
	c.Header = c.Header.Clone()
	c.Header.Set("X-Amz-Acl", "private")
	c.Header.Del("Content-Type")
	return s.forwardBody(c, nil)
}

// accessControl is the AccessControlPolicy document.
type accessControl struct {
	XMLName xml.Name `xml:"AccessControlPolicy"`
	Owner   struct{ ID string }
	Grants  []struct {
		Grantee struct {
			ID      string
			Unknown []unknownElement `xml:",any"`
		}
		Permission string
	} `xml:"AccessControlList>Grant"`
}

// private reports whether the owner has full control, and nobody else has anything.
func (a *accessControl) private() bool {
	for _, g := range a.Grants {
		if g.Grantee.ID != a.Owner.ID || g.Permission != "FULL_CONTROL" {
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

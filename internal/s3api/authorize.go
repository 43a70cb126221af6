package s3api

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// authenticate sets the call's client. A request without a signature is from
// the anonymous client, if one is configured.
func (s *Server) authenticate(c *call) error {
	known := c.clients
	if sigv4.IsAnonymous(c.Request) {
		auth, err := sigv4.Anonymous(c.Request)
		if err != nil {
			return err
		}

		client, ok := known.Anonymous()
		if !ok {
			return accessDenied(errors.New("the request is not signed, and no client is anonymous"))
		}
		c.auth, c.client = auth, client
		return nil
	}

	auth, err := s.verifier(known).Verify(c.Request)
	if err != nil {
		return err
	}

	client, ok := known.Client(auth.AccessKey)
	if !ok {
		return badRequest("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
	}
	c.auth, c.client = auth, client
	return nil
}

func (s *Server) verifier(known access.View) *sigv4.Verifier {
	return &sigv4.Verifier{Now: s.Now, Secret: known.Secret, Session: known.Session, SigningKeys: s.signingKeys}
}

// authorize checks that the client has the grants for the request.
func (c *call) authorize() error {
	switch {
	case !c.mayDo():
		return accessDenied(fmt.Errorf("client %q has no grant to %s %q", c.client.Name, c.route.action, c.resource()))
	case c.wantsBypass() && !c.mayBypass():
		return accessDenied(
			fmt.Errorf(
				"client %q has no grant to %s %q, which is needed to bypass a retention",
				c.client.Name,
				access.Admin,
				c.resource(),
			),
		)
	case c.locks() && !c.mayLock():
		return accessDenied(fmt.Errorf("client %q has no grant to %s %q", c.client.Name, access.Lock, c.resource()))
	default:
		return nil
	}
}

// mayDo reports whether the client has the grant for the operation. A row
// without a scope is denied to all clients.
func (c *call) mayDo() bool {
	row, client := c.route, c.client
	switch row.scope {
	case byKey: // from the path, or a form
		return c.key != "" && client.MayObject(row.action, c.bucket, c.key)
	case byPrefix:
		return client.MayList(c.bucket, c.query.Get("prefix"))
	case byBucket:
		return client.May(row.action, c.bucket)
	case eachKey, anyKey:
		return client.MaySome(row.action, c.bucket)
	case bySigner:
		return !client.Anonymous
	case unsigned:
		return true
	default:
		return false
	}
}

// bypassHeader asks to delete or change an object under a retention in
// governance mode. S3 has a separate permission for it.
const bypassHeader = "X-Amz-Bypass-Governance-Retention" //nolint:gosec // a name, not a credential

// wantsBypass treats every value but "false" as a request to bypass, because
// a store may do so too.
func (c *call) wantsBypass() bool {
	value := c.Header.Get(bypassHeader)
	return value != "" && !strings.EqualFold(value, "false")
}

func (c *call) mayBypass() bool {
	if c.key == "" {
		return c.client.May(access.Admin, c.bucket)
	}
	return c.client.MayObject(access.Admin, c.bucket, c.key)
}

func (c *call) overridesHeaders() bool {
	for name := range c.query {
		if overrideNames.has(name) {
			return true
		}
	}
	return false
}

func accessDenied(cause error) *Error {
	return &Error{Code: "AccessDenied", Message: "Access Denied", cause: cause}
}

package s3api

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/access"
)

// eachElement calls check with the name and the text of each element of a
// document, in whichever namespace and order they come. It takes nothing that
// two parsers could read in two ways.
func eachElement(doc []byte, check func(name, text string) error) error {
	type element struct {
		name string
		text []byte
	}
	decoder := xml.NewDecoder(bytes.NewReader(doc))
	var open []element

	for {
		token, err := decoder.Token()
		if err == io.EOF { //nolint:errorlint // bare, as Token says
			return nil
		}
		if err != nil {
			return malformedXML(err)
		}

		switch token := token.(type) {
		case xml.StartElement:
			open = append(open, element{name: token.Name.Local})
		case xml.CharData:
			if len(open) > 0 {
				last := &open[len(open)-1]
				last.text = append(last.text, token...)
			}
		case xml.EndElement:
			last := open[len(open)-1]
			open = open[:len(open)-1]
			if err := check(last.name, string(bytes.TrimSpace(last.text))); err != nil {
				return err
			}
		case xml.Directive: // could define entities
			return malformedXML(errors.New("it has a document type"))
		}
	}
}

// lockModeHeader is the retention that a new object is to have.
const lockModeHeader = "X-Amz-Object-Lock-Mode"

// isCompliance reports whether a retention is one that nobody can take back
// before its time, not even who pays for the store. Whatever is not clearly
// the other mode counts, as a store may take it so.
func isCompliance(mode string) bool {
	return mode != "" && !strings.EqualFold(mode, "GOVERNANCE")
}

// mayLock reports whether the client may store or keep what nobody can delete.
func (c *call) mayLock() bool {
	if c.key == "" {
		return c.client.May(access.Lock, c.bucket)
	}
	return c.client.MayObject(access.Lock, c.bucket, c.key)
}

// putRetention forwards the retention of an object, or of all new objects in a
// bucket, if the client may ask for its mode.
func (s *Server) putRetention(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}

	err = eachElement(body, func(name, text string) error {
		if name == "Mode" && isCompliance(text) && !c.mayLock() {
			return accessDenied(fmt.Errorf("client %q has no grant to %s %q", c.client.Name, access.Lock, c.resource()))
		}
		return nil
	})
	if err != nil {
		return err
	}

	return s.forwardBody(c, body)
}

// putTargeted forwards a configuration that has the store write elsewhere, in
// its own name: the client may configure the bucket, and needs a right on the
// target too.
func (s *Server) putTargeted(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}
	if err := eachElement(body, c.checkTarget); err != nil {
		return err
	}
	return s.forwardBody(c, body)
}

// checkTarget returns why an element of a configuration is refused, or nil.
func (c *call) checkTarget(name, text string) error {
	switch name {
	case "Bucket", "TargetBucket":
		target, ok := bucketOfARN(text)
		if ok && (target == c.bucket || c.client.May(access.Write, target)) {
			return nil
		}

		if ok {
			return accessDenied(
				fmt.Errorf("client %q has no grant to %s %q, which the configuration of %q has as a target",
					c.client.Name, access.Write, target, c.bucket),
			)
		}
	case "TargetGrants", "AccessControlTranslation", // for identities of the store
		"TopicConfiguration", "QueueConfiguration", "CloudFunctionConfiguration", "LambdaFunctionConfiguration",
		"EventBridgeConfiguration",
		"Topic", "Queue", "CloudFunction", "LambdaFunctionArn":
	default:
		return nil
	}

	return c.needsStoreAdmin(name)
}

// needsStoreAdmin refuses what opens the bucket past the proxy, unless the
// client may do that.
func (c *call) needsStoreAdmin(what string) error {
	if c.client.May(access.StoreAdmin, c.bucket) {
		return nil
	}
	return accessDenied(fmt.Errorf("client %q has no grant to %s %q, which %s in %s needs",
		c.client.Name, access.StoreAdmin, c.bucket, what, c.op))
}

// bucketOfARN returns the bucket that arn:aws:s3:::bucket, or a bare name,
// says.
func bucketOfARN(text string) (bucket string, ok bool) {
	if arn, isARN := strings.CutPrefix(text, "arn:"); isARN {
		parts := strings.Split(arn, ":")
		if len(parts) != 5 || parts[1] != "s3" || parts[2] != "" || parts[3] != "" {
			return "", false
		}
		text = parts[4]
	}
	return text, bucketName.MatchString(text)
}

// putPublicAccessBlock forwards a block of public access. One that is less than
// whole makes room for what opens the bucket.
func (s *Server) putPublicAccessBlock(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}
	blocked := make(map[string]bool)

	err = eachElement(body, func(name, text string) error {
		_, twice := blocked[name]
		blocked[name] = text == "true" && !twice
		return nil
	})
	if err != nil {
		return err
	}

	for _, name := range []string{"BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"} {
		if !blocked[name] {
			if err := c.needsStoreAdmin(name + " that is not true"); err != nil {
				return err
			}
		}
	}

	return s.forwardBody(c, body)
}

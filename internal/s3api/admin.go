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
// document, in any namespace and order. It refuses documents that two
// parsers could read differently.
func eachElement(doc []byte, check func(name, text string) error) error {
	type element struct {
		name string
		text []byte
	}
	decoder := xml.NewDecoder(bytes.NewReader(doc))
	var open []element

	for {
		token, err := decoder.Token()
		if err == io.EOF { //nolint:errorlint // Token returns io.EOF unwrapped
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
		case xml.Directive: // it could define entities
			return malformedXML(errors.New("it has a document type"))
		}
	}
}

// lockModeHeader has the retention mode of a new object.
const lockModeHeader = "X-Amz-Object-Lock-Mode"

// isCompliance reports whether a retention is in compliance mode, in which
// not even the owner of the store can shorten it. Every value except
// GOVERNANCE counts as compliance mode, because a store may treat it so.
func isCompliance(mode string) bool {
	return mode != "" && !strings.EqualFold(mode, "GOVERNANCE")
}

// mayLock reports whether the client may set a retention that nobody can
// remove.
func (c *call) mayLock() bool {
	if c.key == "" {
		return c.client.May(access.Lock, c.bucket)
	}
	return c.client.MayObject(access.Lock, c.bucket, c.key)
}

// eventHoldHeader puts a new object under an event hold. While the hold is on,
// the store moves the end of the retention ahead, by a duration. The two
// headers with the duration have the same prefix.
const eventHoldHeader = "X-Amz-Object-Lock-Event-Hold"

// locks reports whether the headers may set a retention that nobody can
// remove. An event hold may, unless they say that its mode is another one.
func (c *call) locks() bool {
	mode := c.Header.Get(lockModeHeader)
	if mode != "" {
		return isCompliance(mode)
	}
	for name := range c.Header {
		if strings.HasPrefix(name, eventHoldHeader) {
			return !strings.EqualFold(c.Header.Get(eventHoldHeader), "OFF")
		}
	}
	return false
}

// putRetention forwards the retention of an object, or of all new objects in
// a bucket, if the client has the grants for it.
func (s *Server) putRetention(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}
	asked, err := retentionIn(body)
	if err != nil {
		return err
	}

	switch {
	case asked.locks && !c.mayLock():
		err = fmt.Errorf("client %q has no grant to %s %q", c.client.Name, access.Lock, c.resource())
	case asked.eventHold && !c.mayBypass():
		err = fmt.Errorf(
			"client %q has no grant to %s %q, which a change of an event hold needs",
			c.client.Name, access.Admin, c.resource(),
		)
	default:
		return s.forwardBody(c, body)
	}
	return accessDenied(err)
}

// retention is what a retention document asks for.
type retention struct {
	locks     bool // it may set a retention that nobody can remove
	eventHold bool // it changes an event hold, and may release it
}

func retentionIn(body []byte) (r retention, err error) {
	governed, held := false, false
	err = eachElement(body, func(name, text string) error {
		switch name {
		case "Mode":
			governed = true
			r.locks = r.locks || isCompliance(text)
		case "EventHold":
			r.eventHold = true
			held = held || !strings.EqualFold(text, "OFF")
		case "EventHoldDuration", "DefaultEventHold":
			r.eventHold, held = true, true
		}
		return nil
	})
	r.locks = r.locks || held && !governed
	return r, err
}

// putTargeted forwards a configuration that makes the store write to another
// bucket, with the store's own permissions. The client needs a grant for
// that bucket as well.
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

// checkTarget returns the reason for refusing an element of a configuration,
// or nil.
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
	case "TargetGrants", "AccessControlTranslation", // these are for identities of the store
		"TopicConfiguration", "QueueConfiguration", "CloudFunctionConfiguration", "LambdaFunctionConfiguration",
		"EventBridgeConfiguration",
		"Topic", "Queue", "CloudFunction", "LambdaFunctionArn":
	default:
		return nil
	}

	return c.needsStoreAdmin(name)
}

// needsStoreAdmin refuses a setting that opens the bucket to others than the
// proxy, unless the client has the grant for it.
func (c *call) needsStoreAdmin(what string) error {
	if c.client.May(access.StoreAdmin, c.bucket) {
		return nil
	}
	return accessDenied(fmt.Errorf("client %q has no grant to %s %q, which %s in %s needs",
		c.client.Name, access.StoreAdmin, c.bucket, what, c.op))
}

// bucketOfARN returns the bucket in arn:aws:s3:::bucket or in a plain bucket
// name.
func bucketOfARN(text string) (bucket string, ok bool) {
	if arn, isARN := strings.CutPrefix(text, "arn:"); isARN {
		parts := strings.Split(arn, ":")
		if len(parts) != 5 || parts[1] != "s3" || parts[2] != "" || parts[3] != "" {
			return "", false
		}
		text = parts[4]
	}
	return text, validBucket(text)
}

// putPublicAccessBlock forwards a block of public access. If it does not
// block everything, the client needs the same grant as for opening the
// bucket.
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

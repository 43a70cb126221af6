package s3api

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // Content-MD5 is S3's
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// maxDeletes is S3's limit on the keys of one DeleteObjects.
const maxDeletes = 1000

// sizeCondition has an object deleted only if it has that size.
const sizeCondition = "x-amz-if-match-size"

// deleteObject forwards a request to delete an object. A condition on its
// size, which is the plaintext's, is checked here, and becomes one on the
// ETag: what the store deletes is the very object that was looked at.
func (s *Server) deleteObject(c *call) error {
	said := c.Header.Get(sizeCondition)
	if said == "" {
		return s.forward(c)
	}

	size, err := strconv.ParseInt(said, 10, 64)
	if err != nil || size < 0 {
		return invalidArgument("The value of "+sizeCondition+" must be a size in bytes.", sizeCondition, said)
	}

	q := stored.Request{
		Object: c.object(), Version: c.query.Get("versionId"), Header: c.requestHeader(),
		Plaintext: func() error { return nil }, // it is only to be deleted
	}
	for name := range c.route.headerNames.exact {
		q.Header.Del(name)
	}

	o, err := c.reader.Head(c.Context(), q)
	if err != nil {
		return err
	}
	if o.Size != size {
		return errCondition()
	}

	c.Header = c.Header.Clone()
	c.Header.Set("If-Match", showETag(o.Header.Get("Etag")))
	return s.forward(c)
}

// deleteObjects forwards a list of keys to be deleted, with the store's ETags
// in place of ours. Keys that the client may not delete are left out, and have
// an error of their own in the answer, as in S3's.
func (s *Server) deleteObjects(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}

	doc, err := parseDeletion(body)
	if err != nil {
		return err
	}
	denied := doc.split(func(o deletionObject) error { return s.checkDeletion(c, o) })

	if len(doc.Objects) == 0 {
		return c.answerXML(withErrors(nil, denied))
	}
	if body, err = doc.encode(); err != nil {
		return err
	}

	if len(denied) == 0 {
		return s.forwardBody(c, body)
	}
	resp, err := s.sendBody(c, body)
	if err != nil {
		return err
	}
	defer closeBody(resp)

	answer, err := readListing(resp)
	if err != nil {
		return err
	}
	if !bytes.Contains(answer, []byte("<DeleteResult")) {
		return fmt.Errorf("%w did not say what it has deleted", errOrigin)
	}

	c.copyHeader(resp.Header)
	return c.answerXML(withErrors(answer, denied))
}

// checkDeletion returns why one object of the list is not deleted, or nil.
func (s *Server) checkDeletion(c *call, o deletionObject) error {
	if err := s.checkKey(o.Key, keyname.Read); err != nil {
		return err
	}
	if err := checkVersionID(o.VersionID); err != nil {
		return err
	}
	if !c.client.MayObject(c.route.action, c.bucket, o.Key) {
		return accessDenied(fmt.Errorf("client %q has no grant to %s %q", c.client.Name, c.route.action, o.Key))
	}
	return nil
}

// withErrors adds to a DeleteResult document that the objects were not
// deleted. An empty one is made.
func withErrors(doc []byte, denied []deletionRefusal) []byte {
	const end = "</DeleteResult>"
	head, _, ok := bytes.Cut(doc, []byte(end))
	if !ok { // nothing was to be told: <DeleteResult/>, or nothing at all
		head = []byte(xml.Header + `<DeleteResult xmlns="` + namespace + `">`)
	}
	var out bytes.Buffer
	out.Write(head)

	for _, o := range denied {
		out.WriteString("<Error><Key>" + escapeXML(o.Key) + "</Key>")
		if o.VersionID != "" {
			out.WriteString("<VersionId>" + escapeXML(o.VersionID) + "</VersionId>")
		}

		out.WriteString(
			"<Code>" + escapeXML(
				o.reason.Code,
			) + "</Code><Message>" + escapeXML(
				o.reason.Message,
			) + "</Message></Error>",
		)
	}

	out.WriteString(end)
	return out.Bytes()
}

// deletion is the Delete document.
type deletion struct {
	XMLName xml.Name
	Quiet   *bool            `xml:"Quiet"`
	Objects []deletionObject `xml:"Object"`
}

type deletionObject struct {
	Key       string `xml:"Key"`
	VersionID string `xml:"VersionId,omitempty"`
	ETag      string `xml:"ETag,omitempty"`
}

// parseDeletion reads the list, and turns its ETags into the store's. It reads
// as far as it is a good one. An element that is not known could make a
// deletion conditional, so it is refused.
func parseDeletion(body []byte) (*deletion, error) {
	list, err := newXMLBody(body, "Delete")
	if err != nil {
		return nil, malformedXML(err)
	}
	var doc deletion

	for {
		name, err := list.next()
		if errors.Is(err, io.EOF) {
			break
		}

		switch {
		case err != nil:
			return nil, malformedXML(err)
		case name == "Quiet" && doc.Quiet == nil:
			doc.Quiet, err = parseQuiet(list)
		case name == "Object" && len(doc.Objects) < maxDeletes:
			err = doc.add(list)
		case name == "Object", name == "Quiet":
			err = malformedXML(errors.New("too many elements " + name))
		default:
			err = notImplemented("The element "+name+" of DeleteObjects", changesMeaning)
		}

		if err != nil {
			return nil, err
		}
	}

	if len(doc.Objects) == 0 {
		return nil, malformedXML(nil)
	}
	return &doc, nil
}

func parseQuiet(list *xmlBody) (*bool, error) {
	text, err := list.text()
	quiet := false
	if text = strings.TrimSpace(text); err == nil && text != "" {
		quiet, err = strconv.ParseBool(text)
	}
	if err != nil {
		return nil, malformedXML(err)
	}
	return &quiet, nil
}

// add reads an Object.
func (d *deletion) add(list *xmlBody) error {
	var o deletionObject
	fields := map[string]*string{"Key": &o.Key, "VersionId": &o.VersionID, "ETag": &o.ETag}
	list.enter()

	for {
		name, err := list.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return malformedXML(err)
		}

		field := fields[name]
		if field == nil {
			return notImplemented("The element "+name+" of DeleteObjects", changesMeaning)
		}
		if *field != "" { // two readers could disagree about which one counts
			return malformedXML(errors.New("the element " + name + " occurs twice"))
		}

		if *field, err = list.text(); err != nil {
			return malformedXML(err)
		}
	}

	if o.Key == "" {
		return malformedXML(nil)
	}
	o.ETag = storedETags(o.ETag)
	d.Objects = append(d.Objects, o)
	return nil
}

// deletionRefusal is an object that is not deleted, and why.
type deletionRefusal struct {
	deletionObject
	reason *Error
}

// split takes out the objects that may not be deleted, and returns them.
func (d *deletion) split(check func(deletionObject) error) (denied []deletionRefusal) {
	allowed := d.Objects[:0]
	for _, o := range d.Objects {
		if err := check(o); err != nil {
			denied = append(denied, deletionRefusal{o, asError(context.Background(), err)})
		} else {
			allowed = append(allowed, o)
		}
	}
	d.Objects = allowed
	return denied
}

func (d *deletion) encode() ([]byte, error) {
	doc := *d
	doc.XMLName = rootNamed("Delete")
	return encodeXML(doc)
}

func md5Of(body []byte) string {
	sum := md5.Sum(body) //nolint:gosec // Content-MD5 is S3's
	return base64.StdEncoding.EncodeToString(sum[:])
}

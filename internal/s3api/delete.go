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
	"net/http"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// maxDeletes is S3's limit for the number of keys in DeleteObjects.
const maxDeletes = 1000

// sizeCondition is a header: delete the object only if it has this size.
const sizeCondition = "x-amz-if-match-size"

// deleteObject forwards DeleteObject. A condition on the size is about the
// plaintext, so the proxy checks it, and sends the store a condition on the
// ETag instead. The store then deletes exactly the object whose size was
// checked.
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
		Plaintext: func(int64) error { return nil }, // plaintext may be deleted
	}
	for name := range c.route.headerNames.exact {
		q.Header.Del(name)
	}

	o, err := c.reader.Head(c.Context(), q)
	if hasCode(err, notFound, "NoSuchKey", "NoSuchVersion") {
		return s.deletedNothing(c)
	}
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

// deletedNothing answers a DELETE with a condition on the size of an object
// that does not exist. As S3 says, that is a success. The store is not asked:
// it would delete what another client has written meanwhile.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html
func (s *Server) deletedNothing(c *call) error {
	if err := s.findBucket(c); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// deleteObjects forwards the list of keys, with the store's ETags. Keys that
// the client may not delete are left out. The answer has an error for each
// of them, as in S3.
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
		return fmt.Errorf("%w did not answer with a DeleteResult", errOrigin)
	}

	c.copyHeader(resp.Header)
	return c.answerXML(withErrors(answer, denied))
}

// checkDeletion returns the reason for not deleting an object of the list,
// or nil.
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

// withErrors adds the refused objects to a DeleteResult document. If the
// document is empty, it makes a new one.
func withErrors(doc []byte, denied []deletionRefusal) []byte {
	const end = "</DeleteResult>"
	head, _, ok := bytes.Cut(doc, []byte(end))
	if !ok { // the document is <DeleteResult/> or empty
		head = []byte(xml.Header + `<DeleteResult xmlns="` + namespace + `">`)
	}
	var out bytes.Buffer
	out.Write(head)

	for _, o := range denied {
		out.WriteString("<Error><Key>" + escapeXML(o.Key) + "</Key>")
		if o.VersionID != "" {
			out.WriteString("<VersionId>" + escapeXML(o.VersionID) + "</VersionId>")
		}

		out.WriteString("<Code>" + escapeXML(o.reason.Code) + "</Code>")
		out.WriteString("<Message>" + escapeXML(o.reason.Message) + "</Message></Error>")
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

// parseDeletion parses the list up to the first error, and converts its
// ETags to the store's. An unknown element could be a condition, so it is
// refused.
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

// add parses an Object element.
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
		if *field != "" { // two parsers could disagree about which one counts
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

// deletionRefusal is an object that is not deleted, with the reason.
type deletionRefusal struct {
	deletionObject
	reason *Error
}

// split removes the objects that may not be deleted, and returns them.
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

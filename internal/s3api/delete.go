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
	"net/url"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// maxDeletes is S3's limit for the number of keys in DeleteObjects.
const maxDeletes = 1000

// sizeCondition and timeCondition are headers: delete the object only if it
// has this size, or was modified at this time.
const (
	sizeCondition = "x-amz-if-match-size"
	timeCondition = "x-amz-if-match-last-modified-time"
)

// deleteObject forwards DeleteObject. A condition on the size is about the
// plaintext, and few stores know one on the time. So the proxy checks them,
// and sends the store a condition on the ETag instead. The store then deletes
// exactly the object that was checked.
func (s *Server) deleteObject(c *call) error {
	wanted, err := deletionOf(c.Header)
	if err != nil {
		return err
	}
	if wanted.isEmpty() {
		if c.Header.Get("If-Match") == "" {
			return s.forward(c)
		}
		if err := c.checkDeleteCondition(); err != nil {
			return err
		}
		return s.forward(c)
	}
	if err := c.checkDeleteCondition(); err != nil {
		return err
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
	if !wanted.isMet(o) {
		return errCondition()
	}

	c.Header = c.Header.Clone()
	c.Header.Set("If-Match", showETag(o.Header.Get("Etag")))
	c.Header.Del(timeCondition)
	return s.forward(c)
}

// deletedNothing answers a DELETE with such a condition on an object that does
// not exist. As S3 says, that is a success. The store is not asked:
// it would delete what another client has written meanwhile.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html
func (s *Server) deletedNothing(c *call) error {
	if err := s.findBucket(c); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// deleteObjects forwards the list of keys. Keys that the client may not
// delete are left out, and those with a condition are deleted one by one. The
// answer has the result of each of them, as in S3.
func (s *Server) deleteObjects(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}

	doc, err := parseDeletion(body)
	if err != nil {
		return err
	}

	results := doc.split(func(o deletionObject) error { return s.checkDeletion(c, o) })
	results = append(results, s.deleteOnCondition(c, doc)...)
	if len(doc.Objects) == 0 {
		return c.answerXML(doc.withResults(nil, results))
	}
	if body, err = doc.encode(); err != nil {
		return err
	}

	if len(results) == 0 {
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
	return c.answerXML(doc.withResults(answer, results))
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

// withResults adds the results of single keys to the store's document, or to
// a new one.
func (d *deletion) withResults(doc []byte, results []deletionResult) []byte {
	const end = "</DeleteResult>"
	head, _, ok := bytes.Cut(doc, []byte(end))
	if !ok { // the document is <DeleteResult/> or empty
		head = []byte(xml.Header + `<DeleteResult xmlns="` + namespace + `">`)
	}
	var out bytes.Buffer
	out.Write(head)

	for _, o := range results {
		if o.reason != nil || d.Quiet == nil || !*d.Quiet {
			o.write(&out)
		}
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

// split removes the objects that check refuses, and returns them.
func (d *deletion) split(check func(deletionObject) error) (refused []deletionResult) {
	allowed := d.Objects[:0]
	for _, o := range d.Objects {
		if err := check(o); err != nil {
			refused = append(refused, deletionResult{deletionObject: o, reason: asError(context.Background(), err)})
		} else {
			allowed = append(allowed, o)
		}
	}
	d.Objects = allowed
	return refused
}

// deletionResult is the result of one key.
type deletionResult struct {
	deletionObject
	reason *Error // why it was not deleted; nil if it was
	marker string // the id of the delete marker that was made or deleted; "" for none
}

func (o *deletionResult) write(out *bytes.Buffer) {
	element := func(name, text string) {
		if text != "" {
			out.WriteString("<" + name + ">" + escapeXML(text) + "</" + name + ">")
		}
	}
	kind := "Deleted"
	if o.reason != nil {
		kind = "Error"
	}

	out.WriteString("<" + kind + ">")
	element("Key", o.Key)
	element("VersionId", o.VersionID)
	switch {
	case o.reason != nil:
		element("Code", o.reason.Code)
		element("Message", o.reason.Message)
	case o.marker != "":
		element("DeleteMarker", "true")
		element("DeleteMarkerVersionId", o.marker)
	}
	out.WriteString("</" + kind + ">")
}

// deleteOnCondition deletes the objects of the list that have an ETag, and
// removes them from the list. Some stores honor the condition of DeleteObject
// and ignore the same one in DeleteObjects.
func (s *Server) deleteOnCondition(c *call, d *deletion) (results []deletionResult) {
	rest := d.Objects[:0]
	for _, o := range d.Objects {
		if o.ETag == "" {
			rest = append(rest, o)
			continue
		}
		result := deletionResult{deletionObject: o}
		if err := s.deleteOne(c, &result); err != nil {
			result.reason = asError(c.Context(), err)
		}
		results = append(results, result)
	}
	d.Objects = rest
	return results
}

// deleteOne deletes an object if it has the ETag.
func (s *Server) deleteOne(c *call, o *deletionResult) error {
	if err := c.checkDeleteCondition(); err != nil {
		return err
	}
	query := make(url.Values)
	if o.VersionID != "" {
		query.Set("versionId", o.VersionID)
	}
	match := o.ETag
	if match != "*" {
		match = `"` + unquote(match) + `"`
	}
	header := http.Header{"If-Match": {match}}
	for name := range strings.FieldsSeq(lockHeaders) {
		if value := c.Header.Get(name); value != "" {
			header.Set(name, value)
		}
	}

	at := storeURL(pathOf(crypt.Object{Bucket: c.bucket, Key: o.Key}), query)
	resp, err := s.send(c, c.requestAt(http.MethodDelete, at, header))
	if err != nil {
		return err
	}
	closeBody(resp)
	if resp.Header.Get("X-Amz-Delete-Marker") == "true" {
		o.marker = resp.Header.Get("X-Amz-Version-Id")
	}
	return nil
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

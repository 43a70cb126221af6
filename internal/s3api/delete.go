package s3api

import (
	"bytes"
	"crypto/md5" //nolint:gosec // Content-MD5 is S3's
	"encoding/base64"
	"encoding/xml"
)

// maxDeletes is S3's limit on the keys of one DeleteObjects.
const maxDeletes = 1000

// deleteObjects forwards a list of keys to be deleted, with the store's ETags in place of ours.
func (s *Server) deleteObjects(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}
	if body, err = translateDelete(body); err != nil {
		return err
	}
	return s.forwardBody(c, body)
}

// deletion is the Delete document. Fields that are not here could make a deletion conditional, so they are refused.
type deletion struct {
	XMLName xml.Name         `xml:"Delete"`
	Xmlns   string           `xml:"xmlns,attr,omitempty"`
	Quiet   *bool            `xml:"Quiet"`
	Objects []deletionObject `xml:"Object"`
	Unknown []unknownElement `xml:",any"`
}

type deletionObject struct {
	Key       string           `xml:"Key"`
	VersionID string           `xml:"VersionId,omitempty"`
	ETag      string           `xml:"ETag,omitempty"`
	Unknown   []unknownElement `xml:",any"`
}

type unknownElement struct{ XMLName xml.Name }

func translateDelete(body []byte) ([]byte, error) {
	malformed := badRequest("MalformedXML", "The XML you provided was not well-formed or did not validate against our published schema")
	var doc deletion
	if err := xml.Unmarshal(body, &doc); err != nil || len(doc.Objects) == 0 || len(doc.Objects) > maxDeletes {
		return nil, malformed
	}
	if len(doc.Unknown) > 0 {
		return nil, notImplemented("The element " + doc.Unknown[0].XMLName.Local + " of DeleteObjects")
	}
	for i := range doc.Objects {
		o := &doc.Objects[i]
		if o.Key == "" {
			return nil, malformed
		}
		if len(o.Unknown) > 0 {
			return nil, notImplemented("The element " + o.Unknown[0].XMLName.Local + " of DeleteObjects")
		}
		o.ETag = storedETags(o.ETag)
	}
	doc.XMLName.Space, doc.Xmlns = "", "http://s3.amazonaws.com/doc/2006-03-01/"
	var out bytes.Buffer
	out.WriteString(xml.Header)
	if err := xml.NewEncoder(&out).Encode(doc); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func md5Of(body []byte) string {
	sum := md5.Sum(body) //nolint:gosec // Content-MD5 is S3's
	return base64.StdEncoding.EncodeToString(sum[:])
}

package s3api

import (
	"encoding/xml"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// getObjectAttributes answers from a HEAD, because the store's own
// attributes describe ciphertext. It returns the size only after verifying
// it.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectAttributes.html
func (s *Server) getObjectAttributes(c *call) error {
	wanted, err := attributeNames(c.Header)
	if err != nil {
		return s.unlessNoBucket(c, err)
	}

	q := stored.Request{
		Object:    c.object(),
		Version:   c.query.Get("versionId"),
		Header:    c.requestHeader(),
		Plaintext: s.admitPlaintext(c, c.object()),
	}

	for _, name := range []string{"X-Amz-Object-Attributes", "X-Amz-Max-Parts", "X-Amz-Part-Number-Marker"} {
		q.Header.Del(name)
	}
	o, err := c.reader.Head(c.Context(), q)
	if err != nil {
		return c.noAttributes(err)
	}

	if o.NotModified {
		return c.notModified(o)
	}
	if err := c.checkCustomerKey(o); err != nil {
		return err
	}

	if o.CustomerKey || wanted["ObjectSize"] || wanted["ObjectParts"] {
		if err := c.reader.Prove(c.Context(), q, o); err != nil {
			return err
		}
	}

	out, err := attributesOf(c, q, o, wanted)
	if err != nil {
		return err
	}

	for _, name := range []string{"Last-Modified", "X-Amz-Version-Id", "X-Amz-Delete-Marker"} {
		if value := o.Header.Get(name); value != "" {
			c.w.Header().Set(name, value)
		}
	}
	return c.answerDocument(out)
}

// noAttributes converts the error for a version that is a delete marker: HEAD
// of one is 405, but this operation has NoSuchKey only.
func (c *call) noAttributes(err error) error {
	answer := (*Error)(nil)
	if !errors.As(err, &answer) || answer.Code != "MethodNotAllowed" {
		return err
	}

	header := answer.Header.Clone()
	header.Del("Allow")
	return &Error{
		Code:    "NoSuchKey",
		Message: "The specified key does not exist.",
		Details: [][2]string{{"Key", c.key}},
		Header:  header,
		cause:   err,
	}
}

// attributesOf returns the attributes that the client wants.
func attributesOf(c *call, q stored.Request, o *stored.Object, wanted map[string]bool) (*attributes, error) {
	out := &attributes{XMLName: rootNamed("GetObjectAttributesResponse")}
	if wanted["ETag"] {
		out.ETag = strings.Trim(showETag(o.Header.Get("Etag")), `"`)
	}
	if wanted["ObjectSize"] {
		out.ObjectSize = &o.Size
	}

	if wanted["StorageClass"] {
		if out.StorageClass = o.Header.Get("X-Amz-Storage-Class"); out.StorageClass == "" {
			out.StorageClass = "STANDARD"
		}
	}

	if wanted["ObjectParts"] {
		layout, err := c.reader.Layout(c.Context(), q, o)
		if err != nil {
			return nil, err
		}
		if out.ObjectParts, err = objectParts(c.Header, layout); err != nil {
			return nil, err
		}
	}

	if wanted["Checksum"] && !o.Plaintext {
		if err := c.reader.Survey(c.Context(), q, o); err != nil { // the checksum is in the record
			return nil, err
		}
		sum, err := o.Checksum(c.Context())
		if err != nil {
			return nil, err
		}

		out.Checksum = checksumAttributes(sum)
	}

	return out, nil
}

// attributes is the GetObjectAttributesResponse document.
type attributes struct {
	XMLName      xml.Name
	ETag         string             `xml:",omitempty"`
	Checksum     *checksumAttribute `xml:",omitempty"`
	ObjectParts  *partAttributes    `xml:",omitempty"`
	StorageClass string             `xml:",omitempty"`
	ObjectSize   *int64             `xml:",omitempty"`
}

type checksumAttribute struct {
	Values []xmlText
	Type   string `xml:"ChecksumType"`
}

type partAttributes struct {
	PartsCount           int
	PartNumberMarker     int
	NextPartNumberMarker int `xml:",omitempty"`
	MaxParts             int
	IsTruncated          bool
	Parts                []partAttribute `xml:"Part"`
}

type partAttribute struct {
	PartNumber int
	Size       int64
}

// attributeNames parses x-amz-object-attributes.
func attributeNames(h http.Header) (map[string]bool, error) {
	wanted := make(map[string]bool)
	if h.Get("X-Amz-Object-Attributes") == "" {
		return nil, badRequest(
			"InvalidRequest",
			"The x-amz-object-attributes header specifying the attributes to be retrieved is either missing or empty",
		)
	}

	for name := range strings.SplitSeq(strings.Join(h.Values("X-Amz-Object-Attributes"), ","), ",") {
		switch name = strings.TrimSpace(name); name {
		case "ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize":
			wanted[name] = true
		default:
			return nil, badRequest("InvalidArgument", "Invalid attribute name specified.")
		}
	}

	return wanted, nil
}

const maxPartAttributes = 1000

// objectParts returns one page of the parts; nil for a single-PUT object.
func objectParts(h http.Header, layout crypt.Layout) (*partAttributes, error) {
	if layout == nil {
		return nil, nil
	}

	out := &partAttributes{PartsCount: layout.Parts(), MaxParts: maxPartAttributes}
	for name, value := range map[string]*int{
		"X-Amz-Max-Parts":          &out.MaxParts,
		"X-Amz-Part-Number-Marker": &out.PartNumberMarker,
	} {
		text := h.Get(name)
		if text == "" {
			continue
		}

		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return nil, badRequest("InvalidArgument", "The header "+strings.ToLower(name)+" is not a number.")
		}
		*value = min(n, crypt.MaxPartNumber)
	}

	out.MaxParts = min(out.MaxParts, maxPartAttributes)
	for i := range layout.Parts() {
		at, _ := layout.At(i)
		number := i + 1 // S3 numbers the parts of an object from 1, without gaps
		if number <= out.PartNumberMarker {
			continue
		}

		if len(out.Parts) == out.MaxParts {
			out.IsTruncated = true
			break
		}
		out.Parts = append(out.Parts, partAttribute{number, at.Size})
		out.NextPartNumberMarker = number
	}

	return out, nil
}

func checksumAttributes(sum stored.Checksum) *checksumAttribute {
	if len(sum.Digests) == 0 {
		return nil
	}
	out := &checksumAttribute{Type: checksumTypes[sum.Type]}
	for _, a := range checksum.All {
		if digest, ok := sum.Digests[a.ID]; ok {
			out.Values = append(
				out.Values,
				xmlText{xml.Name{Local: "Checksum" + a.Name}, checksumText(digest, sum.Type, sum.Parts)},
			)
		}
	}
	return out
}

package s3api

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"html"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
)

// changeElements replaces each <name>…</name> of doc. Text in XML has no
// "<", so tags can be found without a parser.
func changeElements(doc []byte, name string, change func([]byte) []byte) []byte {
	begin, end := []byte("<"+name+">"), []byte("</"+name+">")
	out := make([]byte, 0, len(doc)+len(doc)/32)
	for {
		i := bytes.Index(doc, begin)
		if i < 0 {
			return append(out, doc...)
		}

		j := bytes.Index(doc[i:], end)
		if j < 0 {
			return append(out, doc...)
		}
		j += i + len(end)
		out = append(out, doc[:i]...)
		out = append(out, change(doc[i:j])...)

		doc = doc[j:]
	}
}

// element returns the text of the first <name> in entry, and its position.
func element(entry []byte, name string) (text []byte, start, end int) {
	start = bytes.Index(entry, []byte("<"+name+">"))
	if start < 0 {
		return nil, -1, -1
	}
	start += len(name) + 2
	n := bytes.Index(entry[start:], []byte("</"+name+">"))
	if n < 0 {
		return nil, -1, -1
	}
	return entry[start : start+n], start, start + n
}

func replace(entry []byte, name string, change func(string) string) []byte {
	text, start, end := element(entry, name)
	if start < 0 {
		return entry
	}
	return bytes.Join([][]byte{entry[:start], []byte(change(string(text))), entry[end:]}, nil)
}

// remove removes the first <name> from entry.
func remove(entry []byte, name string) []byte {
	_, start, end := element(entry, name)
	if start < 0 {
		return entry
	}
	return bytes.Join([][]byte{entry[:start-len(name)-2], entry[end+len(name)+3:]}, nil)
}

// appendTo adds text at the end of the last element with this name.
func appendTo(doc []byte, name string, text []byte) []byte {
	end := bytes.LastIndex(doc, []byte("</"+name+">"))
	if end < 0 || len(text) == 0 {
		return doc
	}
	return bytes.Join([][]byte{doc[:end], text, doc[end:]}, nil)
}

// withoutChecksums removes the store's checksums, which are for ciphertext.
func withoutChecksums(entry []byte) []byte {
	for _, name := range []string{"ChecksumType", "ChecksumAlgorithm"} {
		entry = remove(entry, name)
	}
	for _, a := range checksum.All {
		entry = remove(entry, "Checksum"+a.Name)
	}
	return entry
}

// showETagXML is showETag for an ETag in XML, whose quotes may be escaped.
func showETagXML(stored string) string {
	return string(appendETag(nil, []byte(stored)))
}

// unquote removes the quotes of an ETag, escaped or not.
func unquote(etag string) string { return strings.Trim(html.UnescapeString(etag), `"`) }

func escapeXML(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a strings.Builder never fails
	return b.String()
}

// namespace is the XML namespace of S3's documents.
const namespace = "http://s3.amazonaws.com/doc/2006-03-01/"

// rootNamed returns the XMLName of an S3 document.
func rootNamed(name string) xml.Name { return xml.Name{Space: namespace, Local: name} }

// encodeXML encodes a document, with the XML declaration.
func encodeXML(doc any) ([]byte, error) {
	text, err := xml.Marshal(doc)
	if err != nil {
		return nil, err
	}
	return append([]byte(xml.Header), text...), nil
}

type unknownElement struct{ XMLName xml.Name }

type xmlText struct {
	XMLName xml.Name
	Text    string `xml:",chardata"`
}

// maxAnswer limits what is read of the store's XML for an upload, in bytes:
// 1,000 parts.
const maxAnswer = 2 << 20

// readListing reads a whole listing, or the result of DeleteObjects.
func readListing(resp *http.Response) ([]byte, error) {
	var doc bytes.Buffer
	if n := resp.ContentLength; n > 0 && n <= maxListing {
		doc.Grow(int(n) + bytes.MinRead) // MinRead: or ReadFrom would grow it once more
	}
	if _, err := doc.ReadFrom(io.LimitReader(resp.Body, maxListing+1)); err != nil {
		return nil, err
	}
	if doc.Len() > maxListing {
		return nil, fmt.Errorf("%w sent a listing of more than %d bytes", errOrigin, maxListing)
	}
	return doc.Bytes(), nil
}

func readAnswer(resp *http.Response) ([]byte, error) {
	var body bytes.Buffer
	_, err := body.ReadFrom(io.LimitReader(resp.Body, maxAnswer))
	return body.Bytes(), err
}

// answerDocument sends a document of the proxy's own.
func (c *call) answerDocument(doc any) error {
	body, err := encodeXML(doc)
	if err != nil {
		return err
	}
	return c.answerXML(body)
}

// answerXML sends an XML body, or the rest of it if the response has begun.
func (c *call) answerXML(body []byte) error {
	if c.w.begun() {
		_, err := c.w.Write(bytes.TrimPrefix(body, []byte(xml.Header)))
		return err
	}
	c.w.Header().Set("Content-Type", "application/xml")
	c.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	c.w.WriteHeader(http.StatusOK)
	_, err := c.w.Write(body)
	return err
}

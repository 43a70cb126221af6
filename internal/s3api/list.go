package s3api

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// maxListing bounds a listing's XML in bytes: 1,000 keys of 1,024 bytes, each percent-encoded, with their owners, twice
// over.
const maxListing = 8 << 20

// listObjects answers ListObjects and ListObjectsV2. The plaintext's size follows from stored size and ETag alone.
func (s *Server) listObjects(c *call) error {
	return s.rewriteDocument(c, func(c *call, doc []byte) ([]byte, error) { return s.listWithSizes(c, doc, "Contents") })
}

// listObjectVersions does the same with versions. Delete markers have no size and no ETag.
func (s *Server) listObjectVersions(c *call) error {
	return s.rewriteDocument(c, func(c *call, doc []byte) ([]byte, error) { return s.listWithSizes(c, doc, "Version") })
}

// plaintextSize turns a size as the store has it. A part count in the ETag says that the object was uploaded in parts.
// A size that no object of ours has stays as it is.
func plaintextSize(etag, size string) string {
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return size
	}
	plain, err := crypt.PlaintextSize(n)
	if parts, ok := stored.MultipartETag(etag); ok {
		plain, err = stored.MultipartSize(n, parts)
	}
	if err != nil {
		return size
	}
	return strconv.FormatInt(plain, 10)
}

// showETagXML is showETag for an ETag in XML, whose quotes may be written out.
func showETagXML(stored string) string {
	for _, quote := range []string{"&quot;", "&#34;", `"`} {
		if text, ok := strings.CutSuffix(stored, quote); ok {
			return showETag(text) + quote
		}
	}
	return showETag(stored)
}

// listBuckets shows a client the buckets in which it may do anything at all.
func (s *Server) listBuckets(c *call) error {
	return s.rewriteXML(c, "Bucket", func(entry []byte) []byte {
		if name, _, _ := element(entry, "Name"); c.client.Sees(string(name)) {
			return entry
		}
		return nil
	})
}

// rewriteXML forwards the request and passes each <name> element of the answer through change. Everything else stays as
// the store wrote it, byte for byte: it may hold elements that we do not know, and keys with characters that an XML
// parser refuses.
func (s *Server) rewriteXML(c *call, name string, change func([]byte) []byte) error {
	return s.rewriteDocument(c, func(_ *call, doc []byte) ([]byte, error) { return changeElements(doc, name, change), nil })
}

func (s *Server) rewriteDocument(c *call, change func(*call, []byte) ([]byte, error)) error {
	resp, err := s.send(c, c.originRequest(c.Method, c.requestHeader(), nil, 0))
	if err != nil {
		return err
	}
	defer closeBody(resp)
	var doc bytes.Buffer
	if _, err := doc.ReadFrom(io.LimitReader(resp.Body, maxListing+1)); err != nil {
		return err
	}
	if doc.Len() > maxListing {
		return fmt.Errorf("%w sent a listing of more than %d bytes", errOrigin, maxListing)
	}
	out, err := change(c, doc.Bytes())
	if err != nil {
		return err
	}
	c.copyHeader(resp.Header)
	c.w.Header().Set("Content-Length", strconv.Itoa(len(out)))
	c.w.WriteHeader(http.StatusOK)
	_, err = c.w.Write(out)
	return err
}

// changeElements replaces each <name>…</name> of doc. Text in XML holds no "<", so tags can be found without parsing.
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

// element returns the text of the first <name> in entry, and where it is.
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

// withoutChecksums takes out what the store says of checksums: they are of ciphertext.
func withoutChecksums(entry []byte) []byte {
	for _, name := range []string{"ChecksumType", "ChecksumAlgorithm"} {
		entry = remove(entry, name)
	}
	for _, a := range checksum.All {
		entry = remove(entry, "Checksum"+a.Name)
	}
	return entry
}

// remove takes the first <name> out of entry.
func remove(entry []byte, name string) []byte {
	_, start, end := element(entry, name)
	if start < 0 {
		return entry
	}
	return bytes.Join([][]byte{entry[:start-len(name)-2], entry[end+len(name)+3:]}, nil)
}

package s3api

import (
	"net/http"
	"strconv"
)

// maxListing is the largest XML of a listing, in bytes: twice the size of
// 1,000 keys of 1,024 bytes, percent-encoded, with their owners.
const maxListing = 8 << 20

// listObjects handles ListObjects and ListObjectsV2. Usually, the
// plaintext's size follows from the stored size and the ETag.
func (s *Server) listObjects(c *call) error {
	return s.rewriteDocument(
		c,
		func(c *call, doc []byte) ([]byte, error) { return s.listWithSizes(c, doc, "Contents") },
	)
}

// listObjectVersions handles ListObjectVersions. Delete markers have no size
// and no ETag.
func (s *Server) listObjectVersions(c *call) error {
	return s.rewriteDocument(c, func(c *call, doc []byte) ([]byte, error) { return s.listWithSizes(c, doc, "Version") })
}

// listBuckets lists the buckets for which the client has a grant.
func (s *Server) listBuckets(c *call) error {
	return s.rewriteXML(c, "Bucket", func(entry []byte) []byte {
		if name, _, _ := element(entry, "Name"); c.client.Sees(string(name)) {
			return entry
		}
		return nil
	})
}

// rewriteXML forwards the request, and passes each <name> element of the
// answer through change. Everything else stays as the store sent it, byte
// for byte: it may have elements that the proxy does not know, and keys with
// characters that an XML parser refuses.
func (s *Server) rewriteXML(c *call, name string, change func([]byte) []byte) error {
	return s.rewriteDocument(
		c,
		func(_ *call, doc []byte) ([]byte, error) { return changeElements(doc, name, change), nil },
	)
}

func (s *Server) rewriteDocument(c *call, change func(*call, []byte) ([]byte, error)) error {
	resp, err := s.send(c, c.originRequest(c.Method, c.requestHeader(), 0))
	if err != nil {
		return err
	}
	defer closeBody(resp)

	doc, err := readListing(resp)
	if err != nil {
		return err
	}

	out, err := change(c, doc)
	if err != nil {
		return err
	}
	c.copyHeader(resp.Header)
	c.w.Header().Set("Content-Length", strconv.Itoa(len(out)))
	c.w.WriteHeader(http.StatusOK)

	_, err = c.w.Write(out)
	return err
}

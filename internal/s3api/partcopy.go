package s3api

import (
	"errors"
	"strconv"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// uploadPartCopy reads an object, or a range of it, and encrypts it again as
// a part. Each part has its own key stream, so the ciphertext cannot be
// copied.
func (s *Server) uploadPartCopy(c *call) error {
	if err := c.checkNoSSE(); err != nil {
		return err
	}
	number, err := partNumber(c.query.Get("partNumber"))
	if err != nil {
		return err
	}
	q, err := s.copySource(c)
	if err != nil {
		return s.unlessNoBucket(c, err)
	}
	err = s.copyPart(c, number, q)
	if errors.Is(err, errTransfer) { // nothing was stored, and the source can be read again
		err = s.copyPart(c, number, q)
	}
	return err
}

func (s *Server) copyPart(c *call, number int, q stored.Request) error {
	c.reseals = true
	source, err := c.reader.Get(c.Context(), q)
	if outside := (*stored.RangeError)(nil); errors.As(err, &outside) {
		return invalidSourceRange(outside.Size)
	}
	if err != nil {
		return err
	}
	defer source.Close()

	if err := c.checkCustomerKey(source); err != nil {
		return err
	}

	switch {
	case source.NotModified: // a condition that gives 304 for GET fails a copy
		return errCondition()
	case source.Length > crypt.MaxPartSize:
		return sourceTooLarge(crypt.MaxPartSize)
	case q.Range != nil && !q.Range.Is(source.Offset, source.Length):
		return invalidSourceRange(source.Size)
	}

	sums := &checksums{}
	c.payload = sums.computing(s.uploads.sum(c.uploadID()), source.Reader(c.Context()))

	resp, err := s.sealPart(c, number, source.Length)
	if err != nil {
		return err
	}
	defer closeBody(resp)

	if version := source.Header.Get("X-Amz-Version-Id"); version != "" {
		c.w.Header().Set("X-Amz-Copy-Source-Version-Id", version)
	}
	s.uploads.keepSum(c.upload.stored, resp.Header.Get("Etag"), sums)
	result := copyResult{}
	if shown := c.w.Header()["ETag"]; len(shown) > 0 { //nolint:staticcheck // S3's spelling, as copyHeader sets it
		result.etag = shown[0]
	}
	delete(c.w.Header(), "ETag") // the document has it
	if !sums.implied {           // as in S3
		result.sums = sums.known()
	}
	return c.answerResult("CopyPartResult", result)
}

func invalidSourceRange(size int64) *Error {
	return &Error{
		Code:    "InvalidArgument",
		Message: "Range specified is not valid for source object of size: " + strconv.FormatInt(size, 10),
	}
}

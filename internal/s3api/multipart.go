package s3api

import (
	"errors"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// The proxy keeps no state of a multipart upload. Each part has its own
// header, so any replica can seal it and any replica can read it. When the
// upload is completed, the proxy asks the store for the parts.

// createMultipartUpload creates an upload, and marks the object as a
// multipart object. The object's metadata is fixed at this point.
func (s *Server) createMultipartUpload(c *call) error {
	kind, err := uploadChecksum(c.Header)
	if err != nil {
		return err
	}
	body, err := s.createUpload(c, kind)
	if err != nil {
		return err
	}
	kind.headers(c.w.Header())
	return c.answerXML(c.showUpload(body))
}

// createUpload creates an upload for the call's object, and sets the headers
// of the response. It returns the store's answer.
func (s *Server) createUpload(c *call, kind objectSum) ([]byte, error) {
	wanted, err := c.encryption()
	if err != nil {
		return nil, err
	}
	if err := s.checkMarker(c, -1); err != nil {
		return nil, err
	}
	if wanted.KeyID, err = s.otherKey(c, wanted.KeyID); err != nil {
		return nil, err
	}

	// If the key cannot be used, the client gets the error now, and not with
	// the first part.
	sealed, err := c.keys.Create(c.Context(), c.object(), c.client.Name, wanted)
	if err != nil {
		return nil, err
	}
	defer sealed.Release()

	if err := crypt.CheckPartKey(sealed.KeyID, sealed.Wrapped); err != nil {
		return nil, partError(err)
	}
	header := c.requestHeader()
	mark, err := s.addMark(c, header, sealed)
	if err != nil {
		return nil, err
	}

	resp, err := s.send(c, c.originRequestTo(http.MethodPost, url.Values{"uploads": {""}}, header, nil, 0))
	if err != nil {
		return nil, err
	}
	defer closeBody(resp)

	body, err := readAnswer(resp)
	if err != nil {
		return nil, err
	}

	upload, _, _ := element(body, "UploadId")
	id := html.UnescapeString(string(upload))
	if !s.uploads.isNew(id) {
		return nil, errGivenBefore
	}
	if c.upload, err = newUploadRef(id, wanted, sealed, mark); err != nil {
		return nil, err
	}

	s.uploads.put(c.uploadID(), c.upload, sealed, kind)
	c.copyHeader(resp.Header)
	c.setSealedHeaders(sealed)
	return body, nil
}

// addMark adds the metadata of a multipart object to header.
func (s *Server) addMark(c *call, header http.Header, sealed *keyring.DataKey) (*crypt.Mark, error) {
	if err := checkMetadata(c.Header, nil); err != nil {
		return nil, err
	}
	format := c.keys.Format(c.object(), c.client.Name)
	mark := crypt.Mark{Version: format.Version, KeyID: sealed.KeyID, WrappedDEK: sealed.Wrapped}
	var entries map[string]string
	var err error
	if format.SealMetadata {
		if entries, err = takeMetadata(header); err != nil {
			return nil, err
		}
	}

	out, err := stored.NewMark(mark, entries, c.object(), sealed.DEK(), s.Random)
	if err != nil {
		return nil, err
	}
	metadata, err := out.Metadata()
	if err != nil {
		return nil, err
	}
	if err := checkFit(c.Header, entries, metadata); err != nil {
		return nil, err
	}
	stored.SetEnvelope(header, metadata)
	return out, nil
}

// otherKey returns the id of the KMS key that the client asks for, or "" if
// it is the key of the rules.
func (s *Server) otherKey(c *call, asked string) (string, error) {
	if asked == "" {
		return "", nil
	}
	id, err := c.keys.KeyID(c.Context(), c.object(), c.client.Name, asked)
	if err != nil {
		return "", err
	}
	if own, err := c.keys.KeyID(c.Context(), c.object(), c.client.Name, ""); err == nil && own == id {
		return "", nil
	}
	return id, nil
}

// checkNoSSE refuses headers that choose the encryption of an object, in S3's
// words: the upload had them when it was created.
func (c *call) checkNoSSE() error {
	for name := range strings.FieldsSeq(sseHeaders) {
		if value := c.Header.Get(name); value != "" {
			return invalidArgument(name+" header is not supported for this operation.", name, value)
		}
	}
	return nil
}

// uploadPart encrypts a part and sends it to the store.
func (s *Server) uploadPart(c *call) error {
	if err := c.checkNoSSE(); err != nil {
		return err
	}

	created := s.uploads.sum(c.uploadID())
	if err := created.checkPart(c.checks); err != nil {
		return err
	}
	c.payload = c.checks.computing(created, c.payload)
	implied := &checksums{}
	if created.implied && !c.checks.implied { // the object's does not follow from the client's
		c.payload = implied.computing(created, c.payload)
	}

	number, err := partNumber(c.query.Get("partNumber"))
	if err != nil {
		return err
	}
	resp, err := s.sealPart(c, number, c.auth.DecodedLength())
	if err != nil {
		return err
	}
	defer closeBody(resp)
	s.uploads.keepSum(c.upload.stored, resp.Header.Get("Etag"), c.checks)
	s.uploads.keepSum(c.upload.stored+impliedMark, resp.Header.Get("Etag"), implied)
	c.checks.partHeader(c.w.Header())

	c.w.WriteHeader(http.StatusOK)
	return nil
}

// sealPart sends a payload of the given size as a part of the call's upload,
// and sets the headers of the response.
func (s *Server) sealPart(c *call, number int, size int64) (*http.Response, error) {
	lease, err := s.partKey(c)
	if err != nil {
		return nil, err
	}
	defer lease.Release()
	lease.Wrote(size)

	part := crypt.Part{Number: number, Size: size, Final: crypt.IsFinal(number, size)}
	c.upload.bind(&part, lease)

	sealer, err := crypt.NewPartSealer(c.payload, &part, c.object(), lease.DEK(), s.Random)
	if err != nil {
		return nil, partError(err)
	}

	resp, err := s.sendSealed(
		c,
		c.uploadQuery(url.Values{"partNumber": {strconv.Itoa(number)}}),
		make(http.Header),
		&upload{sealer: sealer, c: c, lease: lease.Lease, size: size + crypt.PartOverhead},
	)
	if err != nil {
		return nil, err
	}

	c.copyHeader(resp.Header)
	c.setEncryptionHeaders(lease.KeyID)
	if etag := resp.Header.Get("Etag"); etag != "" && part.Version() >= crypt.V2 {
		s.uploads.keepTag(c.upload.stored, etag, part.Tag())
		c.w.Header()["ETag"] = []string{showPartETag(etag, part.Tag())}
	}
	return resp, nil
}

// partError converts the error for a part that cannot be written. The cause
// is the KMS key, not the stored data.
func partError(err error) error {
	if errors.Is(err, crypt.ErrEnvelope) {
		return &Error{
			Code: "InternalError",
			Message: "The KMS key's id and the wrapped data key do not fit into a part header. " +
				"Please tell the operator of the proxy.",
			cause: err,
		}
	}
	return err
}

func partNumber(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > crypt.MaxPartNumber {
		return 0, invalidArgument("Part number must be an integer between 1 and 10000, inclusive.", "partNumber", text)
	}
	return n, nil
}

func (s *Server) abortMultipartUpload(c *call) error {
	s.uploads.entries.Remove(c.uploadID())
	return s.forward(c)
}

// listParts returns the parts with the sizes of their plaintexts.
func (s *Server) listParts(c *call) error {
	created := s.uploads.sum(c.uploadID())
	return s.rewriteDocument(c, func(c *call, doc []byte) ([]byte, error) {
		doc = changeElements(doc, "Part", func(entry []byte) []byte {
			p, err := parsePart(entry)
			if err != nil || p.appended() {
				return nil
			}

			entry = s.showPart(c, p, entry)
			sum, ok := s.uploads.partSum(c.upload.stored, p.etag)
			if !ok || sum.implied || sum.algorithm != created.algorithm {
				return entry
			}
			return appendTo(entry, "Part", checksumXML(sum.algorithm, checksum.Encode([]byte(sum.digest))))
		})

		doc = remove(remove(doc, "ChecksumAlgorithm"), "ChecksumType")
		return c.showUpload(appendTo(doc, "ListPartsResult", s.uploads.listed(c.uploadID()))), nil
	})
}

// listMultipartUploads adds the checksum algorithm of each upload, if this
// replica knows it. The store's own is for ciphertext. It also replaces the
// store's upload ids with those that this replica has given to the client.
func (s *Server) listMultipartUploads(c *call) error {
	show := func(id string) string {
		return escapeXML(s.uploads.shown(html.UnescapeString(id), c.client.Name))
	}
	return s.rewriteDocument(c, func(c *call, doc []byte) ([]byte, error) {
		doc = changeElements(doc, "Upload", func(entry []byte) []byte {
			entry = replace(entry, "UploadId", show)
			key, _, _ := element(entry, "Key")
			id, _, _ := element(entry, "UploadId")
			created := s.uploads.sum(
				uploadID{c.bucket, html.UnescapeString(string(key)), html.UnescapeString(string(id)), c.client.Name},
			)
			return appendTo(withoutChecksums(entry), "Upload", created.listed())
		})
		return replace(replace(doc, "NextUploadIdMarker", show), "UploadIdMarker", show), nil
	})
}

// showPart returns a part of a listing as clients see it.
func (s *Server) showPart(c *call, p listedPart, entry []byte) []byte {
	entry = replace(entry, "Size", func(string) string { return strconv.FormatInt(p.size, 10) })
	entry = withoutChecksums(entry)
	if tag, ok := s.uploads.partTag(c.upload.stored, p.etag); ok {
		shown := showPartETag(`"`+p.etag+`"`, tag)
		return replace(entry, "ETag", func(string) string { return escapeXML(shown) })
	}
	return replace(entry, "ETag", showETagXML)
}

// listedPart is a part in the store's listing of an upload.
type listedPart struct {
	number int
	etag   string // the store's ETag, without quotes
	size   int64  // of the plaintext; negative if the proxy cannot have sent the part
	sum    string // the store's checksum of ciphertext; "" if it has none
}

// parsePart parses a <Part> of a listing.
func parsePart(entry []byte) (listedPart, error) {
	number, _, _ := element(entry, "PartNumber")
	etag, _, _ := element(entry, "ETag")
	size, _, _ := element(entry, "Size")
	sum, _, _ := element(entry, stored.PartChecksum)
	n, err := strconv.Atoi(string(number))
	if err != nil {
		return listedPart{}, fmt.Errorf("%w: a part number in a listing: %w", errOrigin, err)
	}
	stored, err := strconv.ParseInt(string(size), 10, 64)
	if err != nil {
		return listedPart{}, fmt.Errorf("%w: a part's size in a listing: %w", errOrigin, err)
	}
	return listedPart{n, unquote(string(etag)), stored - crypt.PartOverhead, string(sum)}, nil
}

// appended reports whether a part may be a final part that the proxy has
// appended. If completing the upload fails, that part remains. A client that
// lists its parts to resume must not see it. A client that uploaded an empty
// part itself can still complete the upload with it.
func (p listedPart) appended() bool { return p.size == 0 && p.number > 1 }

// storedParts returns the parts of the upload in the store, by number.
func (s *Server) storedParts(c *call) (map[int]listedPart, error) {
	parts := make(map[int]listedPart)
	marker := "0"
	for {
		query := c.uploadQuery(url.Values{"part-number-marker": {marker}, "max-parts": {"1000"}})
		resp, err := s.send(c, c.originRequestTo(http.MethodGet, query, make(http.Header), nil, 0))
		if err != nil {
			return nil, err
		}
		body, err := readAnswer(resp)
		closeBody(resp)

		if err != nil {
			return nil, err
		}

		changeElements(body, "Part", func(entry []byte) []byte {
			p, failure := parsePart(entry)
			if failure != nil {
				err = failure
			}
			parts[p.number] = p
			return nil
		})

		truncated, _, _ := element(body, "IsTruncated")
		next, _, _ := element(body, "NextPartNumberMarker")
		if err != nil || string(truncated) != "true" {
			return parts, err
		}

		if marker, err = nextMarker(marker, string(next)); err != nil {
			return nil, err
		}
	}
}

// nextMarker returns the marker of the next page of a listing. It must be
// after that of this page, or the listing would never end.
func nextMarker(marker, next string) (string, error) {
	before, err := strconv.Atoi(marker)
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(next)
	if err != nil || n <= before || n > crypt.MaxPartNumber {
		return "", fmt.Errorf("%w lists parts in circles: page %d is followed by page %.20q", errOrigin, before, next)
	}
	return next, nil
}

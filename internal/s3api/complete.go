package s3api

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// completeMultipartUpload makes an object of the parts that the client
// lists.
//
// The store knows which parts exist. A reader must be able to tell that no
// part is missing at the end. If the last listed part cannot be recognized
// as the last one, an empty final part is appended, which records all parts
// before it.
func (s *Server) completeMultipartUpload(c *call) error {
	if err := c.checkNoSSE(); err != nil {
		return err
	}
	if err := c.checkCompletionConditions(); err != nil {
		return err
	}
	body, err := c.readBody()
	if err != nil {
		return err
	}

	said, err := claimedSumOf(c.Header)
	if err != nil {
		return err
	}

	created := s.uploads.sum(c.uploadID())
	if err := created.checkType(said); err != nil {
		return err
	}

	// Before the list is parsed: S3 returns NoSuchUpload first.
	have, err := s.storedParts(c)
	if hasCode(err, "NoSuchUpload", "NoSuchKey") { // RGW says NoSuchKey
		return s.completedBefore(c, body, c.noSuchUpload(err))
	}
	if err != nil {
		return err
	}

	list, err := parseCompletion(body)
	if err != nil {
		return err
	}
	list.upload = c.upload.shown

	layout, tags, err := s.match(c, list, have)
	if err != nil {
		return err
	}
	if err := checkObjectSize(c.Header, layout.Size()); err != nil {
		return err
	}

	known := s.uploads.partSum
	if created.implied && !list.hasSums() {
		known = s.uploads.impliedSum
	}
	sum, err := list.checksum(
		said,
		layout,
		created,
		func(etag string) (objectSum, bool) { return known(c.upload.stored, etag) },
	)
	if err != nil {
		return err
	}

	if err := s.appendEnd(c, list, ahead{layout, tags, have}, sum); err != nil {
		return err
	}
	answer, body, err := s.commitAlive(c, list)
	if err != nil {
		return err
	}

	keyID := crypt.CustomerKeyID
	if !s.uploads.forCustomer(c) {
		if keyID, err = c.keys.KeyID(c.Context(), c.object(), c.client.Name, c.upload.wanted.KeyID); err != nil {
			return err
		}
	}
	s.uploads.entries.Remove(c.uploadID())

	return c.answerCompleted(answer, body, sum, keyID)
}

// completion is the CompleteMultipartUpload document.
type completion struct {
	Parts []completionPart

	upload string // the client's id
}

type completionPart struct {
	PartNumber int
	ETag       string
	sums       []claimedSum // usually one or none

	stored string // the store's checksum of the part's ciphertext; "" if it has none
}

// noNumber is the PartNumber of a part without one.
const noNumber = math.MinInt

// parseCompletion parses the list of parts, up to the first error. An
// unknown element could be a condition, so it is refused.
func parseCompletion(body []byte) (*completion, error) {
	const root = "CompleteMultipartUpload"
	doc, err := newXMLBody(body, root)
	if err != nil {
		return nil, malformedXML(err)
	}
	list := &completion{}

	for {
		name, err := doc.next()
		if errors.Is(err, io.EOF) {
			break
		}

		switch {
		case err != nil:
			return nil, malformedXML(err)
		case name != "Part":
			return nil, notImplemented("The element "+name+" of "+root, changesMeaning)
		case len(list.Parts) == crypt.MaxPartNumber:
			return nil, malformedXML(nil)
		}

		part, err := parseCompletionPart(doc)
		if err == nil {
			err = list.add(part)
		}
		if err != nil {
			return nil, err
		}
	}

	if len(list.Parts) == 0 {
		return nil, malformedXML(nil)
	}
	return list, nil
}

// parseCompletionPart parses one Part. Some clients return Size and
// LastModified from ListParts; they are ignored.
func parseCompletionPart(doc *xmlBody) (completionPart, error) {
	part := completionPart{PartNumber: noNumber}
	doc.enter()
	for {
		name, err := doc.next()
		if errors.Is(err, io.EOF) {
			return part, nil
		}

		algorithm := checksumElement(name)
		switch {
		case err != nil:
			return part, malformedXML(err)
		case algorithm == nil && name != "PartNumber" && name != "ETag" && name != "Size" && name != "LastModified":
			return part, notImplemented("The element "+name+" of CompleteMultipartUpload", changesMeaning)
		}

		text, err := doc.text()
		if err == nil {
			err = part.set(name, algorithm, text)
		}
		if err != nil {
			return part, malformedXML(err)
		}
	}
}

// set sets an element of a part. A repeated element is refused, because two
// parsers could disagree about it.
func (p *completionPart) set(name string, algorithm *checksum.Algorithm, text string) (err error) {
	twice := errors.New("the element " + name + " occurs twice")
	switch {
	case name == "PartNumber" && p.PartNumber != noNumber,
		name == "ETag" && p.ETag != "",
		algorithm != nil && p.sum(algorithm) != "":
		return twice
	case name == "PartNumber":
		p.PartNumber, err = 0, nil
		if text = strings.TrimSpace(text); text != "" {
			p.PartNumber, err = strconv.Atoi(text)
		}
	case name == "ETag":
		p.ETag = text
	case algorithm != nil && text != "":
		p.sums = append(p.sums, claimedSum{algorithm: algorithm, text: text})
	}

	return err
}

// checksumElement returns the algorithm of a checksum element, or nil.
func checksumElement(name string) *checksum.Algorithm {
	named, ok := strings.CutPrefix(name, "Checksum")
	if !ok {
		return nil
	}
	for _, a := range checksum.All {
		if a.Name == named {
			return a
		}
	}
	return nil
}

// add appends a part to the list, if its number is valid and larger than the
// last.
func (list *completion) add(p completionPart) error {
	n := len(list.Parts)
	switch {
	case p.ETag == "" || p.PartNumber == noNumber:
		return malformedXML(nil)
	case p.PartNumber < 1:
		return invalidArgument("PartNumber must be >= 1", "PartNumber", strconv.Itoa(p.PartNumber))
	case p.PartNumber > crypt.MaxPartNumber:
		_, err := partNumber(strconv.Itoa(p.PartNumber))
		return err
	case n > 0 && p.PartNumber <= list.Parts[n-1].PartNumber:
		return badRequest(
			"InvalidPartOrder",
			"The list of parts was not in ascending order. Parts must be ordered by part number.",
		)
	}

	list.Parts = append(list.Parts, p)
	return nil
}

func (list *completion) invalid(p *completionPart) *Error {
	return &Error{
		Code: "InvalidPart",
		Message: "One or more of the specified parts could not be found.  The part may not have been uploaded, " +
			"or the specified entity tag may not match the part's entity tag.",
		Details: [][2]string{{"UploadId", list.upload}, {"PartNumber", strconv.Itoa(p.PartNumber)}, {"ETag", p.ETag}},
	}
}

// match compares the list with the parts in the store, and returns their
// layout. It also returns their tags, if all of them are known.
func (s *Server) match(c *call, list *completion, have map[int]listedPart) (crypt.Layout, []crypt.Tag, error) {
	var layout crypt.Layout
	var tags []crypt.Tag
	for i := range list.Parts {
		p := &list.Parts[i]
		stored, ok := have[p.PartNumber]
		etag, said := partETag(p.ETag)
		if !ok || etag != stored.etag || stored.size < 0 {
			return nil, nil, list.invalid(p)
		}

		tag, known := s.uploads.partTag(c.upload.stored, etag)
		switch {
		case known && said != nil && *said != tag:
			return nil, nil, list.invalid(p)
		case said != nil:
			tag, known = *said, true
		}
		if known {
			tags = append(tags, tag)
		}

		if stored.size < crypt.MinPartSize && i < len(list.Parts)-1 {
			return nil, nil, &Error{
				Code: "EntityTooSmall", Message: "Your proposed upload is smaller than the minimum allowed size",
				Details: [][2]string{
					{"ProposedSize", strconv.FormatInt(stored.size, 10)},
					{"MinSizeAllowed", strconv.Itoa(crypt.MinPartSize)},
					{"PartNumber", strconv.Itoa(p.PartNumber)},
					{"ETag", p.ETag},
				},
			}
		}

		p.ETag, p.stored = stored.etag, stored.sum
		layout = layout.Add(p.PartNumber, stored.size)
	}

	if len(tags) < len(list.Parts) {
		tags = nil
	}
	return layout, tags, nil
}

// ahead is what is known of the parts of an upload that is completed.
type ahead struct {
	layout crypt.Layout
	tags   []crypt.Tag // nil if some are not known
	have   map[int]listedPart
}

// checkObjectSize compares x-amz-mp-object-size with the size of the parts.
func checkObjectSize(h http.Header, size int64) error {
	said := h.Get("X-Amz-Mp-Object-Size")
	if said == "" {
		return nil
	}

	n, err := strconv.ParseInt(said, 10, 64)
	switch {
	case err != nil:
		return badRequest(
			"InvalidRequest",
			fmt.Sprintf("Value for x-amz-mp-object-size header is invalid: '%.20s'", said),
		)
	case n < 0:
		return badRequest(
			"InvalidRequest",
			fmt.Sprintf("Value for x-amz-mp-object-size header is less than zero: '%d'", n),
		)
	case n != size:
		return badRequest(
			"InvalidRequest",
			fmt.Sprintf(
				"The provided 'x-amz-mp-object-size' header value %d does not match what was computed: %d",
				n,
				size,
			),
		)
	}

	return nil
}

// appendEnd makes sure that readers recognize the end of the object. If
// necessary, it uploads a final part and adds it to the list.
func (s *Server) appendEnd(
	c *call,
	list *completion,
	parts ahead,
	sum objectSum,
) error {
	layout, have := parts.layout, parts.have
	last := have[list.Parts[len(list.Parts)-1].PartNumber]
	if crypt.IsFinal(last.number, last.size) {
		if layout.Contiguous() {
			return nil
		}
		return badRequest(
			"InvalidRequest",
			"The part numbers have gaps, and the last part is shorter than 5 MiB or has number 10000. "+
				"The proxy could not detect the removal of a part from such an object: "+
				"number the parts 1, 2, 3 and so on, or end with a part of 5 MiB or more.",
		)
	}

	if first, _ := layout.At(0); s.UniformParts && last.size != first.Size {
		s.Metrics.OpenEnds.Inc() // the store would refuse another part after this one
		return nil
	}

	number := last.number + 1
	for number < crypt.MaxPartNumber && have[number].number != 0 && !have[number].appended() {
		number++ // a part that the client uploaded but does not list
	}

	lease, err := s.endKey(c)
	if err != nil {
		return err
	}
	defer lease.Release()

	if sum.implied && c.customerKey == nil && s.uploads.forCustomer(c) {
		sum = objectSum{} // the key of this part is not the client's
	}
	sealed, err := crypt.SealChecksums(sum.digests(), lease.DEK(), s.Random)
	if err != nil {
		return err
	}

	part := crypt.Part{Number: number, Final: true}
	c.upload.bind(&part, lease)
	part.Record = crypt.NewRecord(part.Version(), layout, sum.kind, sealed, parts.tags)
	if part.Version() >= crypt.V2 && parts.tags == nil {
		s.Metrics.Untagged.Inc()
	}

	sealer, err := crypt.NewPartSealer(http.NoBody, &part, c.object(), lease.DEK(), s.Random)
	if err != nil {
		return partError(err)
	}

	query := c.uploadQuery(url.Values{"partNumber": {strconv.Itoa(number)}})
	resp, err := s.send(c, c.originRequestTo(http.MethodPut, query, make(http.Header), sealer, crypt.PartOverhead))
	if err != nil {
		return err
	}
	closeBody(resp)

	list.Parts = append(
		list.Parts,
		completionPart{
			PartNumber: number,
			ETag:       unquote(resp.Header.Get("Etag")),
			stored:     stored.PartChecksumOf(resp.Header),
		},
	)

	return nil
}

// committed is the CompleteMultipartUpload document that is sent to the
// store.
type committed struct {
	XMLName xml.Name
	Parts   []committedPart `xml:"Part"`
}

type committedPart struct {
	PartNumber int
	ETag       string
	CRC32      string `xml:"ChecksumCRC32,omitempty"`
}

// commitAlive calls commit with what the client asks for. The client gets
// spaces while it waits.
func (s *Server) commitAlive(c *call, list *completion) (http.Header, []byte, error) {
	defer s.keepAlive(c)()
	header := c.requestHeader()
	header.Del("X-Amz-Mp-Object-Size")
	return s.commit(c, list.Parts, header)
}

// commit completes the upload in the store, and returns the store's answer.
func (s *Server) commit(c *call, parts []completionPart, header http.Header) (http.Header, []byte, error) {
	out := committed{XMLName: rootNamed("CompleteMultipartUpload")}
	for _, p := range parts {
		out.Parts = append(
			out.Parts,
			committedPart{PartNumber: p.PartNumber, ETag: `"` + p.ETag + `"`, CRC32: p.stored},
		)
	}

	doc, err := xml.Marshal(out)
	if err != nil {
		return nil, nil, err
	}
	header.Set("Content-Type", "application/xml")
	header.Set("X-Amz-Content-Sha256", sha256Of(doc))

	query := c.uploadQuery(make(url.Values))
	r := replayable(c.originRequestTo(http.MethodPost, query, header, nil, int64(len(doc))), doc)
	resp, err := s.send(c, r)
	if err != nil {
		return nil, nil, err
	}
	defer closeBody(resp)

	body, err := readAnswer(resp)
	if err != nil {
		return nil, nil, err
	}
	if bytes.Contains(body, []byte("<Error>")) || !bytes.Contains(body, []byte("CompleteMultipartUploadResult")) {
		return nil, nil, lateError(body)
	}
	return resp.Header, body, nil
}

// answerCompleted sends the store's document, with the location, the ETag
// and the checksum that the client expects.
func (c *call) answerCompleted(header http.Header, body []byte, sum objectSum, keyID string) error {
	body = replace(withoutChecksums(body), "Location", func(string) string { return escapeXML(c.ownURL()) })
	body = replace(body, "ETag", showETagXML)
	body = appendTo(body, "CompleteMultipartUploadResult", sum.xml())
	c.copyHeader(header)
	c.setEncryptionHeaders(keyID)
	return c.answerXML(body)
}

// noSuchUpload returns S3's error for an upload that does not exist.
func (c *call) noSuchUpload(err error) *Error {
	return &Error{
		Code: "NoSuchUpload",
		Message: "The specified multipart upload does not exist. " +
			"The upload ID may be invalid, or the upload may have been aborted or completed.",
		Details: [][2]string{{"UploadId", c.upload.shown}},
		cause:   err,
	}
}

// completedBefore answers a repeated CompleteMultipartUpload, whose upload
// no longer exists: a client repeats the request if it did not get the
// answer. The stores differ. Amazon S3 answers 200 again, versitygw does so
// without a look at the object, and MinIO answers NoSuchUpload. RGW answers
// 200 if the object has the ETag that follows from the list; but the list
// would need the part that the proxy has appended. So the proxy looks at the
// object itself, which shows from which parts of which upload it was made.
func (s *Server) completedBefore(c *call, body []byte, gone error) error {
	q := stored.Request{Object: c.object(), Plaintext: func(int64) error { return gone }}
	o, err := c.reader.Head(c.Context(), q)
	if err != nil {
		return gone
	}

	list, err := parseCompletion(body)
	if err != nil {
		return gone
	}

	var numbers []int
	for _, p := range list.Parts {
		numbers = append(numbers, p.PartNumber)
	}
	if err := c.reader.Survey(c.Context(), q, o); err != nil || !o.MadeBy(c.upload.stored, numbers) {
		return gone
	}

	doc, err := encodeXML(struct {
		XMLName                     xml.Name
		Location, Bucket, Key, ETag string
	}{XMLName: rootNamed("CompleteMultipartUploadResult"), Bucket: c.bucket, Key: c.key, ETag: o.Header.Get("Etag")})
	if err != nil {
		return err
	}

	header := make(http.Header)
	if version := o.Header.Get("X-Amz-Version-Id"); version != "" {
		header.Set("X-Amz-Version-Id", version)
	}
	return c.answerCompleted(header, doc, objectSum{}, o.KeyID)
}

// ownURL returns the URL of the object at the proxy.
func (c *call) ownURL() string {
	scheme := "http"
	if c.TLS != nil {
		scheme = "https"
	}
	path := c.resource()
	if c.virtual {
		path = "/" + c.key
	}
	return scheme + "://" + c.Host + sigv4.EscapePath(path)
}

// uploadQuery returns a query for the call's upload, with further
// parameters.
func (c *call) uploadQuery(more url.Values) url.Values {
	more.Set("uploadId", c.upload.stored)
	return more
}

package s3api

import (
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// copyObject copies an object that was put whole within the store: its body stays as it is, and its data key is wrapped
// for the new name. Any other object is read and encrypted anew, as one that is put whole.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html
func (s *Server) copyObject(c *call) error {
	choice, err := c.encryption()
	if err != nil {
		return err
	}
	if err := c.checkDirectives(); err != nil {
		return err
	}
	wanted, err := algorithmNamed(c.Header.Get(checksumPrefix + "Algorithm"))
	if err != nil {
		return err
	}
	q, err := s.copySource(c)
	if err != nil {
		return s.unlessNoBucket(c, err)
	}
	if q.Range != nil {
		return notImplemented("The header x-amz-copy-source-range of CopyObject", couldMatter)
	}
	if err := c.checkSelfCopy(q); err != nil {
		return err
	}
	seen, err := s.lookAtSource(c, q)
	if err != nil {
		return err
	}
	// From here on it is this very object, or none.
	q.Header = http.Header{"If-Match": {seen.ETag}}
	if owner := c.Header.Get("X-Amz-Source-Expected-Bucket-Owner"); owner != "" {
		q.Header.Set("X-Amz-Expected-Bucket-Owner", owner)
	}
	if version := seen.Header.Get("X-Amz-Version-Id"); version != "" {
		c.w.Header().Set("X-Amz-Copy-Source-Version-Id", version)
	}
	if seen.Envelope != nil && seen.Stored > 0 { // there are stores that do not copy what stands for a directory
		return s.copyWhole(c, q, seen, choice, wanted)
	}
	return s.copyAnew(c, q, choice, wanted)
}

// checkDirectives refuses what is neither of the two words.
func (c *call) checkDirectives() error {
	for _, name := range []string{"X-Amz-Metadata-Directive", "X-Amz-Tagging-Directive"} {
		if value := c.Header.Get(name); value != "" && value != "COPY" && value != "REPLACE" {
			return badRequest("InvalidArgument", "Unknown "+strings.ToLower(name[len("X-Amz-"):len(name)-len("-Directive")])+" directive.")
		}
	}
	return checkMetadata(c.Header, nil)
}

func (c *call) replaces(what string) bool {
	return c.Header.Get("X-Amz-"+what+"-Directive") == "REPLACE"
}

// checkSelfCopy refuses a copy that would change nothing.
func (c *call) checkSelfCopy(q stored.Request) error {
	if q.Object != c.object() || q.Version != "" || c.replaces("Metadata") {
		return nil
	}
	for _, name := range []string{sseHeader, customerPrefix + "Algorithm", "X-Amz-Storage-Class", "X-Amz-Website-Redirect-Location"} {
		if c.Header.Get(name) != "" {
			return nil
		}
	}
	return badRequest("InvalidRequest", "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.")
}

// lookAtSource finds out what the source is, if the conditions on it hold.
func (s *Server) lookAtSource(c *call, q stored.Request) (*stored.Seen, error) {
	seen, err := c.reader.Look(c.Context(), q)
	if answer := (*Error)(nil); errors.As(err, &answer) && (answer.Code == notFound || answer.Code == "InvalidRequest") {
		o, named := c.reader.Get(c.Context(), q) // whose answer says what is missing or wrong, and is about the source
		if named == nil {
			o.Close()
		}
		return nil, errors.Join(named, err)
	}
	if err != nil {
		return nil, err
	}
	if seen.NotModified { // what is a 304 to a GET fails a copy
		return nil, errCondition()
	}
	if seen.Plaintext {
		return seen, q.Plaintext()
	}
	return seen, c.checkCustomerKey(&stored.Object{CustomerKey: seen.KeyID() == crypt.CustomerKeyID})
}

// maxCopy is S3's limit for the source of a copy, in bytes.
const maxCopy = 5 << 30

// copyWhole has the store copy an object that was put whole, with an envelope for its new name.
func (s *Server) copyWhole(c *call, q stored.Request, seen *stored.Seen, choice keyring.Choice, wanted *checksum.Algorithm) error {
	fresh := *seen.Envelope
	lease, err := s.openKey(c.Context(), c, q.Object, fresh.KeyID, fresh.WrappedDEK)
	if err != nil {
		return err
	}
	defer lease.Release()
	if err := fresh.Verify(lease.DEK(), q.Object); err != nil {
		return err
	}
	if err := s.readEnds(c, q, fresh.Size); err != nil {
		return err
	}
	sealed, err := s.Keys.Rewrap(c.Context(), lease, c.object(), c.client.Name, choice)
	if err != nil {
		return err
	}
	defer sealed.Release()
	c.watch(sealed.Lease)
	fresh.KeyID, fresh.WrappedDEK = sealed.KeyID, sealed.Wrapped
	c.saySealed(sealed)
	stop := s.keepAlive(c)
	answer, result, err := s.copyBody(c, q, seen, &fresh, lease, wanted)
	stop()
	if err != nil {
		return err
	}
	return s.answerCopied(c, answer, result)
}

// readEnds verifies the first and the last segment of a source that the store
// copies by itself. What is damaged between the two is found when the copy is
// read.
func (s *Server) readEnds(c *call, q stored.Request, size int64) error {
	ends := []int64{0}
	if size > crypt.SegmentSize {
		ends = append(ends, size-1)
	}
	for _, at := range ends {
		if size > 0 {
			q.Range = stored.Bytes(at, 1)
		}
		o, err := c.reader.Get(c.Context(), q)
		if err != nil {
			return err
		}
		_, err = o.Next(c.Context())
		o.Close()
		if err != nil && err != io.EOF { //nolint:errorlint // bare: Next says so
			return err
		}
	}
	return nil
}

// copyBody signs the envelope of the copy, and has the store copy the source with it.
func (s *Server) copyBody(c *call, q stored.Request, seen *stored.Seen, e *crypt.Envelope, lease *keyring.Lease, wanted *checksum.Algorithm) (http.Header, copyResult, error) {
	result := copyResult{kind: fullObject}
	var err error
	if result.sums, err = crypt.OpenChecksums(e.Sum, lease.DEK()); err != nil {
		return nil, result, err
	}
	if wanted != nil {
		if result.sums, err = s.only(c, q, wanted, result.sums); err != nil {
			return nil, result, err
		}
		if e.Sum, err = crypt.SealChecksums(result.sums, lease.DEK(), s.Random); err != nil {
			return nil, result, err
		}
	}
	if err := e.Sign(lease.DEK(), c.object()); err != nil {
		return nil, result, err
	}
	header, err := c.copiedHeader(seen.Header, e)
	if err != nil {
		return nil, result, err
	}
	header.Set("X-Amz-Copy-Source", copySourceHeader(q.Object, q.Version))
	header.Set("X-Amz-Copy-Source-If-Match", seen.ETag)
	header.Set("X-Amz-Metadata-Directive", "REPLACE") // the envelope is metadata
	if c.replaces("Tagging") {
		header.Set("X-Amz-Tagging-Directive", "REPLACE")
	}
	answer, body, err := s.sendCopy(c, header)
	etag, _, _ := element(body, "ETag")
	modified, _, _ := element(body, "LastModified")
	result.etag, result.modified = string(etag), string(modified)
	return answer, result, err
}

// copySourceHeader names the source of a copy to the store.
func copySourceHeader(src crypt.Object, version string) string {
	source := sigv4.EscapePath("/" + src.Bucket + "/" + src.Key)
	if version != "" {
		source += "?versionId=" + url.QueryEscape(version)
	}
	return source
}

// only is what is kept with a copy that is to have a checksum of this algorithm. If the source does not have it, the source
// is read for it: the envelope goes ahead of the body.
func (s *Server) only(c *call, q stored.Request, a *checksum.Algorithm, sums map[crypt.ChecksumID][]byte) (map[crypt.ChecksumID][]byte, error) {
	digest, ok := sums[a.ID]
	if !ok {
		source, err := c.reader.Get(c.Context(), q)
		if err != nil {
			return nil, err
		}
		defer source.Close()
		sum := a.New()
		if _, err := io.Copy(sum, source.Reader(c.Context())); err != nil {
			return nil, err
		}
		digest = sum.Sum(nil)
	}
	return map[crypt.ChecksumID][]byte{a.ID: digest}, nil
}

// sendCopy has the store copy, and returns its answer: header and document.
func (s *Server) sendCopy(c *call, header http.Header) (http.Header, []byte, error) {
	resp, err := s.send(c, c.originRequest(http.MethodPut, header, nil, 0))
	if err != nil {
		return nil, nil, err
	}
	defer closeBody(resp)
	body, err := readAnswer(resp)
	if err != nil {
		return nil, nil, err
	}
	_, start, _ := element(body, "ETag")
	if start < 0 { // S3 begins to answer before it is done, so a failure may come with status 200
		return nil, nil, lateError(body)
	}
	return resp.Header, body, nil
}

// copyAnew reads the source, and encrypts it as an object that is put whole.
func (s *Server) copyAnew(c *call, q stored.Request, choice keyring.Choice, wanted *checksum.Algorithm) error {
	c.reseals = true
	source, err := c.reader.Get(c.Context(), q)
	if err != nil {
		return err
	}
	defer source.Close()
	switch {
	case source.Length > maxCopy:
		return badRequest("InvalidRequest", fmt.Sprintf("The specified copy source is larger than the maximum allowable size for a copy source: %d", maxCopy))
	case source.Length > maxObject:
		return badRequest("InvalidRequest", fmt.Sprintf("The specified copy source is larger than what the proxy can store as one object that was not uploaded in parts: %d. Copy it in parts.", maxObject))
	}
	lease, err := s.Keys.Create(c.Context(), c.object(), c.client.Name, choice)
	if err != nil {
		return err
	}
	defer lease.Release()
	c.watch(lease.Lease)
	lease.Wrote(source.Length)
	sums, err := copiedSums(c, source)
	if err != nil {
		return err
	}
	c.saySealed(lease)
	stop := s.keepAlive(c)
	var answer http.Header
	if wanted == nil {
		answer, err = s.sealCopy(c, q, source, lease, sums)
	} else {
		source.Close() // it would wait in the meantime, and the store with it
		answer, sums, err = s.sealWith(c, q, lease, wanted, sums)
	}
	if errors.Is(err, errTransfer) && (wanted == nil || sums != nil) { // nothing was stored, and the source is still there
		source.Close()
		answer, err = s.sealAgain(c, q, lease, sums)
	}
	stop()
	if err != nil {
		return err
	}
	return s.answerCopied(c, answer, copyResult{etag: answer.Get("Etag"), sums: sums, kind: fullObject})
}

// sealWith is sealCopy of an object that is to have a checksum of this algorithm. It returns the checksum too.
func (s *Server) sealWith(c *call, q stored.Request, lease *keyring.DataKey, a *checksum.Algorithm, sums map[crypt.ChecksumID][]byte) (http.Header, map[crypt.ChecksumID][]byte, error) {
	sums, err := s.only(c, q, a, sums)
	if err != nil {
		return nil, nil, err
	}
	answer, err := s.sealAgain(c, q, lease, sums)
	return answer, sums, err
}

// sealAgain is sealCopy of a source that is read once more.
func (s *Server) sealAgain(c *call, q stored.Request, lease *keyring.DataKey, sums map[crypt.ChecksumID][]byte) (http.Header, error) {
	source, err := c.reader.Get(c.Context(), q)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	return s.sealCopy(c, q, source, lease, sums)
}

// copiedSums are the checksums of the source that its copy can have.
func copiedSums(c *call, source *stored.Object) (map[crypt.ChecksumID][]byte, error) {
	if source.Plaintext {
		return nil, nil
	}
	sum, err := source.Checksum(c.Context())
	if err != nil || sum.Type != crypt.FullObject { // one of parts means nothing once there are none
		return nil, err
	}
	return sum.Digests, nil
}

// sealCopy encrypts the source on its way back to the store, and returns the header of the store's answer.
func (s *Server) sealCopy(c *call, q stored.Request, source *stored.Object, lease *keyring.DataKey, sums map[crypt.ChecksumID][]byte) (http.Header, error) {
	sealer, err := crypt.NewSealer(source.Reader(c.Context()), source.Length, lease.DEK(), s.Random)
	if err != nil {
		return nil, err
	}
	header, err := s.copiedAnewHeader(c, q, source, lease, sealer.Header(), sums)
	if err != nil {
		return nil, errors.Join(err, sealer.Close())
	}
	resp, err := s.sendSealed(c, header, &upload{sealer: sealer, c: c, lease: lease.Lease, size: crypt.StoredSize(source.Length)})
	if err != nil {
		return nil, err
	}
	closeBody(resp)
	return resp.Header, nil
}

func (s *Server) copiedAnewHeader(c *call, q stored.Request, source *stored.Object, lease *keyring.DataKey, h crypt.Header, sums map[crypt.ChecksumID][]byte) (http.Header, error) {
	envelope := crypt.Envelope{Header: h, Size: source.Length}
	if err := s.sign(c, &envelope, lease, sums); err != nil {
		return nil, err
	}
	header, err := c.copiedHeader(source.Header, &envelope)
	if err != nil || c.replaces("Tagging") {
		return header, err
	}
	tags, err := c.reader.Tags(c.Context(), q)
	if tags != "" {
		header.Set("X-Amz-Tagging", tags)
	}
	return header, err
}

// notCopied are what belongs to one object and not to its copies.
var notCopied = []string{
	"X-Amz-Storage-Class", "X-Amz-Website-Redirect-Location",
	"X-Amz-Object-Lock-Mode", "X-Amz-Object-Lock-Retain-Until-Date", "X-Amz-Object-Lock-Legal-Hold",
}

// copiedHeader is the header of the copy: the source's or the request's, as the directives say, and the envelope.
func (c *call) copiedHeader(source http.Header, e *crypt.Envelope) (http.Header, error) {
	header := c.requestHeader()
	if !c.replaces("Tagging") {
		header.Del("X-Amz-Tagging")
	}
	if c.replaces("Metadata") {
		return withEnvelope(header, c.Header, e)
	}
	for name := range header {
		if strings.HasPrefix(name, metaPrefix) || slices.Contains(metadataHeaders, name) {
			delete(header, name)
		}
	}
	carried, err := stored.Carry(source, nil)
	if err != nil {
		return nil, err
	}
	for name, values := range carried {
		if !slices.Contains(notCopied, name) {
			header[name] = values
		}
	}
	return withEnvelope(header, carried, e)
}

// copyResult is what the document that answers a copy is made of.
type copyResult struct {
	etag     string // the store's, as it stands in XML or a header
	modified string // "" if the store did not say
	sums     map[crypt.ChecksumID][]byte
	kind     string // of sums; "" if it is not told
}

// answerCopied answers with a CopyObjectResult.
func (s *Server) answerCopied(c *call, header http.Header, r copyResult) error {
	if !c.w.begun() {
		c.copyHeader(header)
		delete(c.w.Header(), "ETag") // it is in the document
	}
	return c.answerResult("CopyObjectResult", r)
}

// answerResult is what CopyObject and UploadPartCopy answer.
func (c *call) answerResult(name string, r copyResult) error {
	out := struct {
		XMLName      xml.Name
		LastModified string
		ETag         string
		ChecksumType string `xml:",omitempty"`
		Sums         []xmlText
	}{
		XMLName:      xml.Name{Space: "http://s3.amazonaws.com/doc/2006-03-01/", Local: name},
		LastModified: cmp.Or(r.modified, c.start.UTC().Format(time.RFC3339)),
		ETag:         `"` + unquote(showETag(`"`+unquote(r.etag)+`"`)) + `"`,
	}
	for _, a := range checksum.All {
		if digest, ok := r.sums[a.ID]; ok {
			out.ChecksumType = r.kind
			out.Sums = append(out.Sums, xmlText{xml.Name{Local: "Checksum" + a.Name}, checksumText(digest, crypt.FullObject, 0)})
		}
	}
	doc, err := xml.Marshal(out)
	if err != nil {
		return err
	}
	return c.answerXML(append([]byte(xml.Header), doc...))
}

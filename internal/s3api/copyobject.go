package s3api

import (
	"cmp"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// objectCopy is a CopyObject request while it is being served.
type objectCopy struct {
	*call
	source stored.Request      // the version that seen describes, and no other
	seen   *stored.Seen        // what was found out about the source
	choice keyring.Choice      // of the key for the copy
	wanted *checksum.Algorithm // the checksum of the copy; nil to keep that of the source
}

// copyObject copies an object in one of two ways. The store copies a
// single-PUT object: the body does not change, and its data key is wrapped
// for the new name (copyinstore.go). Other objects are read, and sealed as a
// single-PUT object (copyreseal.go).
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
		return notImplemented("The header x-amz-copy-source-range of CopyObject", changesMeaning)
	}

	if err := c.checkSelfCopy(q); err != nil {
		return err
	}

	seen, err := s.inspectSource(c, q)
	if err != nil {
		return err
	}

	q.Header = http.Header{"If-Match": {seen.ETag}}
	if owner := c.Header.Get("X-Amz-Source-Expected-Bucket-Owner"); owner != "" {
		q.Header.Set("X-Amz-Expected-Bucket-Owner", owner)
	}
	if version := seen.Header.Get("X-Amz-Version-Id"); version != "" {
		c.w.Header().Set("X-Amz-Copy-Source-Version-Id", version)
	}

	copied := &objectCopy{call: c, source: q, seen: seen, choice: choice, wanted: wanted}
	if seen.Envelope != nil && seen.Stored > 0 { // some stores do not copy directory markers
		return s.copyInStore(copied)
	}
	return s.resealCopy(copied)
}

// checkDirectives refuses directives other than COPY and REPLACE.
func (c *call) checkDirectives() error {
	for _, name := range []string{"X-Amz-Metadata-Directive", "X-Amz-Tagging-Directive"} {
		if value := c.Header.Get(name); value != "" && value != "COPY" && value != "REPLACE" {
			return badRequest(
				"InvalidArgument",
				"Unknown "+strings.ToLower(name[len("X-Amz-"):len(name)-len("-Directive")])+" directive.",
			)
		}
	}
	return checkMetadata(c.Header, nil)
}

func (c *call) replaces(what string) bool {
	return c.Header.Get("X-Amz-"+what+"-Directive") == "REPLACE"
}

// checkSelfCopy refuses a copy of an object to itself that would change
// nothing.
func (c *call) checkSelfCopy(q stored.Request) error {
	if q.Object != c.object() || q.Version != "" || c.replaces("Metadata") {
		return nil
	}
	for _, name := range []string{
		sseHeader, customerPrefix + "Algorithm", "X-Amz-Storage-Class", "X-Amz-Website-Redirect-Location",
	} {
		if c.Header.Get(name) != "" {
			return nil
		}
	}
	return badRequest(
		"InvalidRequest",
		"This copy request is illegal because it is trying to copy an object to itself without changing "+
			"the object's metadata, storage class, website redirect location or encryption attributes.",
	)
}

// inspectSource looks at the source, and checks the conditions on it.
func (s *Server) inspectSource(c *call, q stored.Request) (*stored.Seen, error) {
	seen, err := c.reader.Look(c.Context(), q)
	if hasCode(err, notFound, "InvalidRequest") {
		// The answer to a GET says what is missing or wrong.
		o, named := c.reader.Get(c.Context(), q)
		if named == nil {
			o.Close()
		}
		return nil, errors.Join(named, err)
	}
	if err != nil {
		return nil, err
	}

	if seen.NotModified { // a condition that gives 304 for GET fails a copy
		return nil, errCondition()
	}

	if seen.Plaintext {
		return seen, q.Plaintext()
	}
	return seen, c.checkCustomerKey(&stored.Object{CustomerKey: seen.KeyID() == crypt.CustomerKeyID})
}

// wantedSums returns the source's checksum of the wanted algorithm. If the
// source does not have it, wantedSums reads the source to compute it,
// because the envelope is sent before the body.
func wantedSums(c *objectCopy, sums digests) (digests, error) {
	digest, ok := sums[c.wanted.ID]
	if !ok {
		source, err := c.reader.Get(c.Context(), c.source)
		if err != nil {
			return nil, err
		}
		defer source.Close()

		sum := c.wanted.New()
		if _, err := io.Copy(sum, source.Reader(c.Context())); err != nil {
			return nil, err
		}
		digest = sum.Sum(nil)
	}

	return digests{c.wanted.ID: digest}, nil
}

// notCopied are headers that belong to one object and not to its copies.
var notCopied = []string{
	"X-Amz-Storage-Class", "X-Amz-Website-Redirect-Location",
	"X-Amz-Object-Lock-Mode", "X-Amz-Object-Lock-Retain-Until-Date", "X-Amz-Object-Lock-Legal-Hold",
}

// copiedHeader returns the headers of the copy: the source's or the
// request's, depending on the directives, and the envelope.
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

// copyResult has the values for the document that answers a copy.
type copyResult struct {
	etag     string // the store's, from XML or a header
	modified string // "" if the store did not send it
	sums     digests
	kind     string // checksum type of sums; "" to leave it out
}

// answerCopied sends a CopyObjectResult.
func (c *call) answerCopied(header http.Header, r copyResult) error {
	if !c.w.begun() {
		c.copyHeader(header)
		delete(c.w.Header(), "ETag") // the document has it
	}
	return c.answerResult("CopyObjectResult", r)
}

// answerResult sends the document that answers CopyObject or UploadPartCopy.
func (c *call) answerResult(name string, r copyResult) error {
	out := struct {
		XMLName      xml.Name
		LastModified string
		ETag         string
		ChecksumType string `xml:",omitempty"`
		Sums         []xmlText
	}{
		XMLName:      rootNamed(name),
		LastModified: cmp.Or(r.modified, c.start.UTC().Format(time.RFC3339)),
		ETag:         `"` + unquote(showETag(`"`+unquote(r.etag)+`"`)) + `"`,
	}

	for _, a := range checksum.All {
		if digest, ok := r.sums[a.ID]; ok {
			out.ChecksumType = r.kind
			out.Sums = append(
				out.Sums,
				xmlText{xml.Name{Local: "Checksum" + a.Name}, checksumText(digest, crypt.FullObject, 0)},
			)
		}
	}

	return c.answerDocument(out)
}

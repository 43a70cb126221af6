package s3api

import (
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
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
	asked  stored.Request      // the source, with the client's conditions
	choice keyring.Choice      // of the key for the copy
	wanted *checksum.Algorithm // the checksum of the copy; nil to keep that of the source
	moves  bool                // a rename: the copy is like the source, and is not answered

	// The present attempt, from 0.
	attempt int
	source  stored.Request  // the version that seen describes, and no other
	seen    *stored.Seen    // what was found out about the source
	made    *crypt.Envelope // of the copy

	flaw          *flaw // what the store made of an earlier attempt; nil for none
	unconditional bool  // the store does not implement If-Match: see onCondition
	refused       bool  // the store does not copy this object: see sendEnvelope
}

// copyAttempts limits how often a copy starts over because its source was
// overwritten. Of these, the store is asked to copy storeAttempts times:
// between HEAD and GET there is less time for an overwrite.
const (
	copyAttempts  = 8
	storeAttempts = 3
)

// errCopyAgain means that the copy must start over, usually because the
// source is no longer the object that was seen.
var errCopyAgain = errors.New("the copy starts over")

// copyObject copies an object in one of two ways. The store copies a
// single-PUT object: the body does not change, and its data key is wrapped
// for the new name (copyinstore.go). Other objects are read, and sealed as a
// single-PUT object (copyreseal.go).
//
// If the source is overwritten meanwhile, the copy starts over: the copy is
// one of the object before or of the object after, and never a mixture.
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

	return s.copyWhole(&objectCopy{call: c, asked: q, choice: choice, wanted: wanted})
}

// copyWhole starts over until the copy is complete, and removes a flawed one.
func (s *Server) copyWhole(c *objectCopy) (err error) {
	for c.attempt = range copyAttempts {
		if err = s.copyOnce(c); !errors.Is(err, errCopyAgain) {
			return s.withdraw(c, err)
		}
	}
	return s.withdraw(c, fmt.Errorf("%w: %w", stored.ErrOverwritten, err))
}

// copyOnce copies what the source is now. Its error is errCopyAgain if the
// source is overwritten before the copy is complete.
func (s *Server) copyOnce(c *objectCopy) (err error) {
	if c.seen, err = s.inspectSource(c.call, c.asked); err != nil {
		return err
	}
	if err := s.checkMarker(c.call, c.seen.Stored); err != nil {
		return err
	}
	if c.moves {
		if err := s.checkMove(c); err != nil {
			return err
		}
	}

	c.source = c.asked
	c.source.Header = http.Header{"If-Match": {c.seen.ETag}}
	if owner := c.Header.Get(sourceOwnerHeader); owner != "" {
		c.source.Header.Set(ownerHeader, owner)
	}
	if version := c.seen.Header.Get("X-Amz-Version-Id"); version != "" {
		c.w.Header().Set("X-Amz-Copy-Source-Version-Id", version)
	}

	if c.isLeftToStore() {
		return s.copyInStore(c)
	}
	return s.resealCopy(c)
}

// readSource reads the object that was seen.
func (c *objectCopy) readSource(r *stored.Range) (*stored.Object, error) {
	q := c.source
	q.Range = r
	o, err := c.reader.Get(c.Context(), q)
	return o, c.sourceError(err)
}

// sourceError converts the error of a request with the condition that the
// source has not changed.
func (c *objectCopy) sourceError(err error) error {
	if c.lostRace(err) || errors.Is(err, stored.ErrOverwritten) {
		return fmt.Errorf("%w: %w", errCopyAgain, err)
	}
	return err
}

// lostRace reports whether the store refused a condition because of another
// client's write. RGW answers 500 UnknownError if that write is not complete.
func (c *objectCopy) lostRace(err error) bool {
	return hasCode(err, "PreconditionFailed", "ConditionalRequestConflict") ||
		hasCode(err, "UnknownError") && stored.IsRGW(c.seen.Header)
}

// isOntoItself reports whether the current object is to be replaced by its
// own copy.
func (c *objectCopy) isOntoItself() bool {
	return c.asked.Object == c.object() && (c.asked.Version == "" || c.asked.Version == nullVersion)
}

// nullVersion is the id of the version that a write replaces in a bucket
// that does not keep versions.
const nullVersion = "null"

// onCondition sets the condition on the destination. An object must not be
// replaced by a copy of what it was before, if the store can tell. And the
// client's condition is already fulfilled if the object there is the flawed
// copy.
func (c *objectCopy) onCondition(header http.Header) {
	switch {
	case c.hasCondition() && c.flaw != nil && c.flaw.etag != "":
		header.Del("If-None-Match")
		header.Set("If-Match", c.etagForPut(c.flaw.etag))
	case !c.hasCondition() && c.isOntoItself() && !c.unconditional:
		header.Set("If-Match", c.etagForPut(c.seen.ETag))
	}
}

// etagForPut returns an ETag for If-Match of PutObject. RGW 16 compares it
// with quotes to one without.
func (c *objectCopy) etagForPut(etag string) string {
	if stored.IsRGW(c.seen.Header) {
		return unquote(etag)
	}
	return etag
}

// writeError converts the error of the request that writes the copy.
func (c *objectCopy) writeError(err error) error {
	changed := c.lostRace(err)
	switch {
	case c.hasCondition():
		if c.flaw != nil && c.flaw.etag != "" {
			c.flaw.gone = hasCode(err, "PreconditionFailed")
		}
		return err
	case hasCode(err, "NotImplemented") && c.isOntoItself() && !c.unconditional:
		c.unconditional = true
	case !changed:
		return err
	}
	return fmt.Errorf("%w: %w", errCopyAgain, err)
}

// checkDirectives refuses directives that S3 does not have.
func (c *call) checkDirectives() error {
	for _, name := range []string{"X-Amz-Metadata-Directive", "X-Amz-Tagging-Directive"} {
		if value := c.Header.Get(name); value != "" && value != "COPY" && value != "REPLACE" {
			return badRequest(
				"InvalidArgument",
				"Unknown "+strings.ToLower(name[len("X-Amz-"):len(name)-len("-Directive")])+" directive.",
			)
		}
	}
	if err := c.checkAnnotationDirective(); err != nil {
		return err
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
		return seen, q.Plaintext(seen.Stored)
	}
	return seen, c.checkCustomerKey(&stored.Object{CustomerKey: seen.KeyID() == crypt.CustomerKeyID})
}

// wantedSums returns the source's checksum of the wanted algorithm. If the
// source does not have it, wantedSums reads the source to compute it,
// because the envelope is sent before the body.
func wantedSums(c *objectCopy, sums digests) (digests, error) {
	digest, ok := sums[c.wanted.ID]
	if !ok {
		source, err := c.readSource(nil)
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

// lockPrefix is the prefix of the headers of an object lock.
const lockPrefix = "X-Amz-Object-Lock-"

// notCopied are headers that belong to one object and not to its copies.
var notCopied = []string{
	"X-Amz-Storage-Class", "X-Amz-Website-Redirect-Location",
	"X-Amz-Object-Lock-Mode", "X-Amz-Object-Lock-Retain-Until-Date", "X-Amz-Object-Lock-Legal-Hold",
	"X-Amz-Object-Lock-Event-Hold", "X-Amz-Object-Lock-Event-Hold-Duration-Days",
	"X-Amz-Object-Lock-Event-Hold-Duration-Years",
}

// copiedHeader returns the headers of the copy: the source's or the
// request's, depending on the directives, and the envelope.
func (s *Server) copiedHeader(
	c *objectCopy, source http.Header, e *crypt.Envelope, dek []byte,
) (http.Header, error) {
	c.made = e
	header := c.requestHeader()
	c.onCondition(header)
	if !c.replaces("Tagging") {
		header.Del("X-Amz-Tagging")
	}
	if c.replaces("Metadata") {
		return s.addEnvelope(c.call, header, c.Header, e, dek)
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
		if !slices.Contains(notCopied, name) || c.moves && !strings.HasPrefix(name, lockPrefix) {
			header[name] = values
		}
	}

	return s.addEnvelope(c.call, header, carried, e, dek)
}

// copyResult has the values for the document that answers a copy.
type copyResult struct {
	etag     string // the store's, from XML or a header
	modified string // "" if the store did not send it
	sums     digests
	kind     string // checksum type of sums; "" to leave it out
}

// answerCopied sends a CopyObjectResult.
func (c *objectCopy) answerCopied(header http.Header, r copyResult) error {
	if c.moves {
		return nil
	}
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

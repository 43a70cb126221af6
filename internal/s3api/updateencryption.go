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

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// encryptionUpdate is an UpdateObjectEncryption request while it is being
// served. The embedded objectCopy is of the object onto itself: only the
// envelope changes.
type encryptionUpdate struct {
	*objectCopy
	fresh   crypt.Envelope // for the same body, under the new key
	lease   *keyring.Lease // of the data key, which stays
	version string         // id of the version that was made; "" without versions
}

// updateObjectEncryption wraps the data key of a single-PUT object by another
// KMS key. The stored body does not change, so the ETag stays. Unlike at
// Amazon S3, the object is written again, so the time of its last modification
// changes, and in a bucket with versions there is a new one.
//
// A client that may do this may do the same by CopyObject, so it needs the
// same grants.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_UpdateObjectEncryption.html
func (s *Server) updateObjectEncryption(c *call) error {
	keyID, err := c.wantedEncryption()
	if err != nil {
		return err
	}
	if !c.client.MayObject(access.Read, c.bucket, c.key) {
		return accessDenied(fmt.Errorf("client %q has no grant to %s %q", c.client.Name, access.Read, c.resource()))
	}
	version := c.query.Get("versionId")
	c.query = nil // the requests to the store are of other operations

	u := &encryptionUpdate{objectCopy: &objectCopy{
		call: c, choice: keyring.Choice{KeyID: keyID},
		asked: stored.Request{Object: c.object(), Plaintext: func(int64) error {
			return badRequest("InvalidRequest", updatePlaintext)
		}},
	}}
	stop := s.keepAlive(c)
	for range copyAttempts {
		if err = s.updateOnce(u, version); !errors.Is(err, errCopyAgain) {
			break
		}
	}
	stop()

	switch {
	case errors.Is(err, errCopyAgain):
		return fmt.Errorf("%w: %w", stored.ErrOverwritten, err)
	case err != nil:
		return err
	case c.w.begun():
		return c.answerDocument(struct{ XMLName xml.Name }{rootNamed("UpdateObjectEncryptionResult")})
	}
	if u.version != "" {
		c.w.Header().Set("X-Amz-Version-Id", u.version)
	}
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// updateOnce moves the object that is there now. Its error is errCopyAgain if
// another one is there before it is done.
func (s *Server) updateOnce(u *encryptionUpdate, version string) (err error) {
	if u.seen, err = s.inspectSource(u.call, u.asked); err != nil {
		return err
	}
	if err := s.checkUpdate(u, version); err != nil {
		return err
	}
	u.source = u.asked
	if id := u.seen.Header.Get("X-Amz-Version-Id"); id != nullVersion {
		u.source.Version = id
	}

	have := u.seen.Envelope
	if u.lease, err = s.openKey(u.Context(), u.call, u.source.Object, have.KeyID, have.WrappedDEK); err != nil {
		return err
	}
	defer u.lease.Release()
	if err := have.Verify(u.lease.DEK(), u.source.Object); err != nil {
		return err
	}

	sealed, err := s.rewrapEnvelope(u)
	if err != nil {
		return err
	}
	defer sealed.Release()
	if u.isPinned() {
		return s.updateInStore(u)
	}
	return s.updateByPut(u)
}

// rewrapEnvelope makes the envelope under the new key, and proves that it can
// be opened.
func (s *Server) rewrapEnvelope(u *encryptionUpdate) (*keyring.DataKey, error) {
	wrapped, err := crypt.ParseWrappedKey(u.seen.Envelope.WrappedDEK)
	if err != nil {
		return nil, err
	}
	u.choice.Context = wrapped.Context

	sealed, err := u.keys.Rewrap(u.Context(), u.lease, u.source.Object, u.client.Name, u.choice)
	if err != nil {
		return nil, err
	}
	u.keyID, u.fresh = sealed.KeyID, *u.seen.Envelope
	u.fresh.KeyID, u.fresh.WrappedDEK = sealed.KeyID, sealed.Wrapped

	err = u.keys.Prove(u.Context(), sealed)
	if err == nil {
		err = u.fresh.Sign(u.lease.DEK(), u.source.Object)
	}
	if err != nil {
		sealed.Release()
		return nil, err
	}
	return sealed, nil
}

// isPinned reports whether the store can copy the object onto itself. The
// source is a version, which nobody can overwrite, and the store must not put
// the copy over a newer one.
func (u *encryptionUpdate) isPinned() bool {
	if u.source.Version == "" || u.seen.Stored == 0 || stored.IsRGW(u.seen.Header) && u.wantedTags() > 0 {
		return false
	}
	return u.able(capability.CopyIfMatch) == capability.Yes
}

// updateInStore makes the store copy the object onto itself.
func (s *Server) updateInStore(u *encryptionUpdate) error {
	header, err := u.header()
	if err != nil {
		return err
	}
	header.Set("X-Amz-Copy-Source", copySourceHeader(u.source.Object, u.source.Version))
	header.Set("X-Amz-Copy-Source-If-Match", u.seen.ETag)
	header.Set("X-Amz-Metadata-Directive", "REPLACE") // the envelope is metadata
	header.Set("X-Amz-Tagging-Directive", "COPY")
	header.Set("If-Match", u.seen.ETag)

	answer, _, err := s.sendCopy(u.call, header)
	if err != nil {
		return u.sourceError(err)
	}
	u.version = answer.Get("X-Amz-Version-Id")

	// A bad copy is removed by its version id; the version below it stays.
	err = s.confirmCopy(u.objectCopy, &u.fresh, u.version)
	if u.flaw != nil {
		err = fmt.Errorf("the store did not copy the object with its new envelope: %w", u.flaw.why)
	}
	return s.withdraw(u.objectCopy, err)
}

// updateByPut reads the stored body, and sends it back with the new envelope.
// Each byte is verified before it is sent. Without a condition that the store
// honors, a client's write in between would be lost.
func (s *Server) updateByPut(u *encryptionUpdate) error {
	header, err := u.header()
	if err != nil {
		return err
	}
	header.Set("If-Match", u.seen.ETag)
	if u.able(capability.PutIfMatch) != capability.Yes && u.able(capability.PutIfMatchBare) != capability.Yes {
		return &Error{
			Code: "NotImplemented",
			Message: "The store behind the proxy is not known to honor If-Match of PutObject, so a write at the same " +
				"time could be lost. Run cmekproxy rewrap while nothing writes to the object.",
		}
	}
	if err := u.checkPutConditions(header); err != nil {
		return err
	}

	tags, err := u.reader.Tags(u.Context(), u.source)
	if err != nil {
		return err
	}
	if tags != "" {
		header.Set("X-Amz-Tagging", tags)
	}
	answer, err := s.sendStored(u, header)
	if err != nil {
		return u.sourceError(err)
	}
	u.version = answer.Get("X-Amz-Version-Id")
	return nil
}

// header returns the headers of the object, with its new envelope.
func (u *encryptionUpdate) header() (http.Header, error) {
	metadata, err := u.fresh.Metadata()
	if err != nil {
		return nil, err
	}
	if err := checkMetadata(withoutEnvelope(u.seen.Header), metadata); err != nil {
		return nil, err
	}
	header, err := stored.Carry(u.seen.Header, metadata)
	for name := range header {
		if strings.HasPrefix(name, lockPrefix) { // of a retention that has ended
			delete(header, name)
		}
	}
	return header, err
}

// withoutEnvelope returns the user metadata of an object.
func withoutEnvelope(h http.Header) http.Header {
	own := make(http.Header)
	for name, values := range h {
		if strings.HasPrefix(name, metaPrefix) && !strings.HasPrefix(name, envelopePrefix) {
			own[name] = values
		}
	}
	return own
}

// sendStored sends the stored body back to the store.
func (s *Server) sendStored(u *encryptionUpdate, header http.Header) (http.Header, error) {
	if u.seen.Stored == 0 { // a directory marker
		resp, err := s.send(u.call, u.originRequestTo(http.MethodPut, nil, header, nil, 0))
		if err != nil {
			return nil, err
		}
		closeBody(resp)
		return resp.Header, nil
	}

	var query url.Values
	if u.source.Version != "" {
		query = url.Values{"versionId": {u.source.Version}}
	}
	from := u.originRequestTo(http.MethodGet, query, http.Header{"If-Match": {u.seen.ETag}}, nil, 0)
	source, err := s.send(u.call, from)
	if err != nil {
		return nil, err
	}
	defer closeBody(source)
	if source.Header.Get("Etag") != u.seen.ETag || source.ContentLength != u.seen.Stored {
		return nil, stored.ErrOverwritten
	}

	body, err := stored.CheckBody(u.Context(), source.Body, u.fresh.Size, u.fresh.Header, u.lease)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	up := &upload{sealer: io.NopCloser(body), c: u.call, lease: u.lease, size: u.seen.Stored}
	resp, err := s.sendSealed(u.call, nil, header, up)
	if err != nil {
		return nil, err
	}
	closeBody(resp)
	return resp.Header, nil
}

// The errors of UpdateObjectEncryption, in S3's words.
const (
	updatePlaintext = "The UpdateObjectEncryption operation doesn't supported unencrypted source objects. Only " +
		"source objects encrypted with SSE-S3 or SSE-KMS are supported."
	updateCustomer = "The UpdateObjectEncryption operation doesn't support source objects with the encryption type " +
		"DSSE-KMS or SSE-C. Only source objects encrypted with SSE-S3 or SSE-KMS are supported."
	updateType = "Requests that modify an object encryption configuration require a valid new encryption type. Valid " +
		"values are SSEKMS. Modify the request to specify SSE-KMS for the updated encryption type, and then try again."
	updateKey = "Requests that modify an object's encryption type to SSE-KMS require an Amazon Web Services KMS key " +
		"Amazon Resource Name (ARN). Modify the request to specify a KMS key ARN, and then try again."
	updateBucketKey = "The BucketKeyEnabled value isn't valid. Valid values are true or false. Modify the request to " +
		"specify a valid value, and then try again."
	updateLocked = "The encryption type for the specified object can't be updated because that object is protected " +
		"by S3 Object Lock. If the object has a governance-mode retention period or a legal hold, you must first " +
		"remove the Object Lock status on the object before you issue your UpdateObjectEncryption request. You " +
		"can't use the UpdateObjectEncryption operation with objects that have an Object Lock compliance mode " +
		"retention period applied to them."
)

// checkUpdate refuses objects whose encryption cannot be updated. version is
// the one that the client names, or "".
func (s *Server) checkUpdate(u *encryptionUpdate, version string) error {
	h := u.seen.Header
	current := cmp.Or(h.Get("X-Amz-Version-Id"), nullVersion)
	switch {
	case version != "" && version != current:
		q := u.asked
		q.Version = version
		if _, err := s.inspectSource(u.call, q); err != nil {
			return err // there is no such version
		}
		return notImplemented("UpdateObjectEncryption of a version that is not the current one",
			"the version would become the current one; copy it to where you need it")
	case u.seen.KeyID() == crypt.CustomerKeyID:
		return badRequest("InvalidRequest", updateCustomer)
	case s.isLocked(h):
		return &Error{Code: "AccessDenied", Message: updateLocked}
	case u.seen.Envelope == nil:
		return notImplemented("UpdateObjectEncryption of a multipart object",
			"each of its parts has an envelope in its body; run cmekproxy rewrap, or copy the object onto itself")
	}
	_, err := u.seen.Size() // fails if the stored size does not fit
	return err
}

// isLocked reports whether an object lock protects an object.
func (s *Server) isLocked(h http.Header) bool {
	for _, name := range []string{"X-Amz-Object-Lock-Legal-Hold", eventHoldHeader} {
		if value := h.Get(name); value != "" && !strings.EqualFold(value, "OFF") {
			return true
		}
	}
	if h.Get(lockModeHeader) == "" {
		return false
	}
	until, err := time.Parse(time.RFC3339, h.Get("X-Amz-Object-Lock-Retain-Until-Date"))
	return err != nil || s.Now().Before(until)
}

// wantedEncryption returns the KMS key in the request's document.
func (c *call) wantedEncryption() (keyID string, err error) {
	body, err := c.readBody()
	if err != nil {
		return "", err
	}
	var root struct{ XMLName xml.Name }
	if err := xml.Unmarshal(body, &root); err != nil || root.XMLName.Local != "ObjectEncryption" {
		return "", malformedXML(err)
	}

	var names []string
	err = eachElement(body, func(name, text string) error {
		if slices.Contains(names, name) { // two parsers could disagree about which one counts
			return malformedXML(errors.New("the element " + name + " occurs twice"))
		}
		names = append(names, name)
		switch name {
		case "KMSKeyArn":
			keyID = text
		case "BucketKeyEnabled": // the proxy does not share data keys that exist already
			if text != "true" && text != "false" {
				return badRequest("InvalidRequest", updateBucketKey)
			}
		case "SSE-KMS", "ObjectEncryption":
		default:
			return badRequest("InvalidRequest", updateType)
		}
		return nil
	})
	switch {
	case err != nil:
		return "", err
	case !slices.Contains(names, "SSE-KMS"):
		return "", badRequest("InvalidRequest", updateType)
	case keyID == "":
		return "", badRequest("InvalidRequest", updateKey)
	}
	return keyID, nil
}

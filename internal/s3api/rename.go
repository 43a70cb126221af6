package s3api

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

const (
	renamePrefix  = "X-Amz-Rename-Source"
	renameHeaders = "x-amz-rename-source x-amz-rename-source-if-match x-amz-rename-source-if-none-match" +
		" x-amz-rename-source-if-modified-since x-amz-rename-source-if-unmodified-since x-amz-client-token"
)

// renameObject copies a single-PUT object to its new name, with a new
// envelope, and then deletes it under the old one. A rename of the store is
// never used: the envelope is bound to the name.
//
// The source is deleted only after the copy was read back, and only if it is
// still the object that was copied. If the proxy dies in between, both are
// there.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_RenameObject.html
func (s *Server) renameObject(c *call) error {
	source, err := c.renameSource(s.KeyNames)
	if err != nil {
		return err
	}
	for _, action := range []access.Action{access.Read, access.Delete} {
		if !c.client.MayObject(action, c.bucket, source.Key) {
			return accessDenied(fmt.Errorf("client %q has no grant to %s %q", c.client.Name, action, pathOf(source)))
		}
	}
	c.query = nil // the requests to the store are of other operations

	token, err := c.renameToken(source)
	if err != nil {
		return err
	}
	if done, err := s.renames.find(token, s.Now()); done || err != nil {
		return err
	}

	if err := s.rename(c, source); err != nil {
		return err
	}
	s.renames.add(token, s.Now())

	c.w.Header().Del("X-Amz-Copy-Source-Version-Id")
	if c.w.begun() {
		return c.answerDocument(struct{ XMLName xml.Name }{rootNamed("RenameObjectResult")})
	}
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// rename is renameObject after the request was checked.
func (s *Server) rename(c *call, source crypt.Object) error {
	if c.able(capability.DeleteIfMatch) != capability.Yes {
		return &Error{
			Code: "NotImplemented",
			Message: "The store behind the proxy is not known to honor If-Match of DeleteObject, so a rename could " +
				"delete what another client writes at the same time. Copy the object, and delete it afterwards.",
		}
	}
	if err := s.takeTimeConditions(c); err != nil {
		return err
	}

	renamed := &objectCopy{call: c, moves: true, asked: stored.Request{
		Object: source, Header: sourceConditions(c.Header, renamePrefix+"-"), Plaintext: s.admitPlaintext(c, source),
	}}
	if err := s.copyWhole(renamed); err != nil {
		return err
	}
	return s.removeSource(renamed)
}

// checkMove refuses what cannot be renamed, and chooses the key of the new
// name: that of the object, if the rules allow it there.
func (s *Server) checkMove(c *objectCopy) error {
	switch {
	case c.seen.Plaintext || c.seen.Envelope == nil:
		return notImplemented("RenameObject of an object that was not put in one part",
			"it would be encrypted again; copy the object, and delete it afterwards")
	case s.isLocked(c.seen.Header):
		return &Error{Code: "AccessDenied", Message: "An object lock protects the source, so it cannot be renamed. " +
			"Copy it instead."}
	}

	wrapped, err := crypt.ParseWrappedKey(c.seen.Envelope.WrappedDEK)
	if err != nil {
		return err
	}
	c.choice = keyring.Choice{Context: wrapped.Context}
	if _, err := c.keys.KeyID(c.Context(), c.object(), c.client.Name, c.seen.Envelope.KeyID); err == nil {
		c.choice.KeyID = c.seen.Envelope.KeyID
	}
	return nil
}

// removeSource deletes the source of a rename, after a look at both objects.
// It goes on if the client is gone.
func (s *Server) removeSource(c *objectCopy) error {
	defer s.keepAlive(c.call)() // as the copy did
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), confirmTimeout)
	defer cancel()
	if err := c.checkMoved(ctx); err != nil {
		return err
	}

	r := c.requestAt(http.MethodDelete, storeURL(pathOf(c.source.Object), nil), http.Header{"If-Match": {c.seen.ETag}})
	resp, err := s.send(c.call, r.WithContext(ctx))
	switch {
	case err == nil:
		closeBody(resp)
		return nil
	case hasCode(err, notFound, "NoSuchKey"):
		return nil // another client has deleted it
	case hasCode(err, "PreconditionFailed", "ConditionalRequestConflict"):
		return errNotMoved("The source was overwritten while it was renamed", err)
	default:
		return errNotMoved("The source could not be deleted", err)
	}
}

// checkMoved checks that the copy is at its new name, with the envelope that
// was made for it and the body of the source. And that the source is not the
// same object under another name: a store with paths can take two keys for
// one.
func (c *objectCopy) checkMoved(ctx context.Context) error {
	copied, err := c.reader.Peek(ctx, stored.Request{Object: c.object()}, crypt.HeaderSize)
	if err != nil {
		return errNotMoved("The new object could not be verified", err)
	}
	if !sameEnvelope(copied.Envelope, c.made) || !bytes.Equal(copied.First, c.made.Header[:]) ||
		!crypt.Fits(c.made.Size, copied.Stored) {
		return errNotMoved("Another client has written to the new name", nil)
	}

	source, err := c.reader.Look(ctx, stored.Request{Object: c.source.Object})
	switch {
	case hasCode(err, notFound, "NoSuchKey"):
		return nil
	case err != nil:
		return errNotMoved("The source could not be looked at", err)
	case !sameEnvelope(source.Envelope, c.seen.Envelope):
		return errNotMoved("The source has changed while it was renamed", nil)
	}
	return nil
}

// errNotMoved is the error after the object was copied.
func errNotMoved(why string, cause error) *Error {
	return &Error{
		Code: "OperationAborted",
		Message: why + ". The object may be there under both names: compare them, and delete the one that is not " +
			"needed.",
		cause: cause,
	}
}

// renameSource parses x-amz-rename-source: a key in the same bucket, escaped,
// or /bucket/key. Amazon documents both. What could be either is refused.
func (c *call) renameSource(names keyname.Store) (source crypt.Object, err error) {
	const header = "x-amz-rename-source"
	text := c.Header.Get(header)
	key, err := url.PathUnescape(text)
	if err != nil || text == "" {
		return source, invalidArgument("Invalid rename source encoding", header, text)
	}

	rest, rooted := strings.CutPrefix(key, "/")
	inBucket, named := strings.CutPrefix(rest, c.bucket+"/")
	switch {
	case rooted && named:
		key = inBucket
	case rooted:
		return source, invalidArgument("The rename source must be in the same bucket: /"+c.bucket+"/key", header, text)
	case named:
		return source, invalidArgument(
			"The rename source starts with the name of the bucket, which could be a part of the key: "+
				"write /"+c.bucket+"/key", header, text)
	}

	source = crypt.Object{Bucket: c.bucket, Key: key}
	switch {
	case key == "" || names.Check(key, keyname.Read) != nil:
		return source, invalidArgument("Invalid rename source object key", header, text)
	case source == c.object():
		return source, badRequest("InvalidRequest", "The source and the destination of a rename must differ.")
	case strings.HasSuffix(key, "/") || strings.HasSuffix(c.key, "/"):
		return source, badRequest("InvalidRequest", "RenameObject does not support keys that end in a slash.")
	}
	return source, nil
}

// takeTimeConditions replaces If-Modified-Since and If-Unmodified-Since, which
// no store has for what a write replaces, by a condition on the ETag.
func (s *Server) takeTimeConditions(c *call) error {
	conditions := make(http.Header)
	for _, name := range []string{"If-Modified-Since", "If-Unmodified-Since"} {
		if value := c.Header.Get(name); value != "" {
			conditions.Set(name, value)
		}
	}
	if len(conditions) == 0 {
		return nil
	}
	if match := c.Header.Get("If-Match"); match != "" {
		conditions.Set("If-Match", storedETags(match))
	}

	c.Header = c.Header.Clone()
	seen, err := c.reader.Look(c.Context(), stored.Request{Object: c.object(), Header: conditions})
	missing := hasCode(err, notFound, "NoSuchKey")
	switch {
	case missing && conditions.Get("If-Modified-Since") == "" && c.Header.Get("If-Match") == "":
		c.Header.Set("If-None-Match", "*")
	case missing, err == nil && seen.NotModified:
		return errCondition()
	case err != nil:
		return err
	default:
		c.Header.Set("If-Match", showETag(seen.ETag))
	}
	c.Header.Del("If-Modified-Since")
	c.Header.Del("If-Unmodified-Since")
	return nil
}

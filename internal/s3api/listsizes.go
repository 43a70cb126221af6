package s3api

import (
	"bytes"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// sizeRequests is the number of concurrent HEAD requests for a listing.
const sizeRequests = 16

// listWithSizes rewrites the elements of a listing with this name. If the
// size of a plaintext does not follow from the stored size and the ETag, it
// sends a HEAD for the object, unless the size is cached.
func (s *Server) listWithSizes(c *call, doc []byte, name string) ([]byte, error) {
	list := parseListing(doc, name)
	if err := s.findSizes(c, list); err != nil {
		return nil, err
	}
	return list.rewrite(), nil
}

// listingPage is a listing of a store, and the places that change. There is one
// pass over its thousand entries to find them, and one to write the answer.
type listingPage struct {
	doc      []byte
	encoding string // of the keys
	entries  []listed
	edits    []edit // in order
}

// edit is a place of a listing that changes.
type edit struct {
	from, to int
	what     change
	entry    int
}

// change is what happens to a place of a listing.
type change int

const (
	showSize change = iota
	showTag         // the ETag
	leaveOut        // a checksum of ciphertext
)

// listed is an object of a listing, with its elements as in the store.
type listed struct {
	key, version, latest []byte
	etag, size           []byte
	plain                int64 // size of the plaintext; -1 to show the stored size
}

func parseListing(doc []byte, name string) *listingPage {
	begin, end := []byte("<"+name+">"), []byte("</"+name+">")
	encoding, _, _ := element(doc, "EncodingType")
	n := bytes.Count(doc, begin)
	list := &listingPage{doc: doc, encoding: string(encoding)}
	list.entries, list.edits = make([]listed, 0, n), make([]edit, 0, 2*n)

	for at := 0; ; {
		i := bytes.Index(doc[at:], begin)
		if i < 0 {
			return list
		}
		at += i + len(begin)
		length := bytes.Index(doc[at:], end)
		if length < 0 {
			return list
		}
		list.add(at, at+length)
		at += length + len(end)
	}
}

// add parses the entry whose elements are in doc[from:to]. Text in XML has no
// "<", so tags can be found without a parser.
func (list *listingPage) add(from, to int) {
	e := listed{plain: -1}
	for {
		child, next, ok := nextChild(list.doc, from, to)
		if !ok {
			break
		}
		text := list.doc[child.from:child.to]
		switch name := child.name; {
		case string(name) == "Key" && e.key == nil:
			e.key = text
		case string(name) == "VersionId" && e.version == nil:
			e.version = text
		case string(name) == "IsLatest" && e.latest == nil:
			e.latest = text
		case string(name) == "Size" && e.size == nil:
			e.size = text
			list.edits = append(list.edits, edit{child.from, child.to, showSize, len(list.entries)})
		case string(name) == "ETag" && e.etag == nil:
			e.etag = text
			list.edits = append(list.edits, edit{child.from, child.to, showTag, len(list.entries)})
		case bytes.HasPrefix(name, []byte("Checksum")):
			list.edits = append(list.edits, edit{child.begin, next, leaveOut, len(list.entries)})
		}
		from = next
	}
	list.entries = append(list.entries, e)
}

// childElement is an element inside of another one: its name, where it
// begins, and where its text is.
type childElement struct {
	name            []byte
	begin, from, to int
}

// nextChild returns the first element in doc[at:end], and where it ends.
func nextChild(doc []byte, at, end int) (child childElement, next int, ok bool) {
	i := bytes.IndexByte(doc[at:end], '<')
	if i < 0 {
		return child, 0, false
	}
	child.begin = at + i
	closes := bytes.IndexByte(doc[child.begin:end], '>')
	if closes < 0 {
		return child, 0, false
	}

	child.from = child.begin + closes + 1
	tag := doc[child.begin+1 : child.from-1]
	if bytes.HasSuffix(tag, []byte("/")) { // <Name/>
		child.to = child.from
		return child, child.from, true
	}
	child.name, _, _ = bytes.Cut(tag, []byte(" "))

	for at := child.from; ; {
		i := bytes.Index(doc[at:end], []byte("</"))
		if i < 0 {
			return child, 0, false
		}
		at += i + len("</")
		rest, found := bytes.CutPrefix(doc[at:end], child.name)
		if found && len(rest) > 0 && rest[0] == '>' {
			child.to = at - len("</")
			return child, at + len(child.name) + 1, true
		}
	}
}

// rewrite returns the listing as clients see it.
func (list *listingPage) rewrite() []byte {
	out := make([]byte, 0, len(list.doc)+len(list.doc)/32)
	at := 0
	for _, e := range list.edits {
		out = append(out, list.doc[at:e.from]...)
		text := list.doc[e.from:e.to]
		at = e.to
		switch plain := list.entries[e.entry].plain; {
		case e.what == leaveOut:
		case e.what == showTag:
			out = appendETag(out, text)
		case plain >= 0:
			out = strconv.AppendInt(out, plain, 10)
		default:
			out = append(out, text...)
		}
	}
	return append(out, list.doc[at:]...)
}

// appendETag appends an ETag in XML as clients see it; see showETagXML.
func appendETag(out, stored []byte) []byte {
	if len(stored) == 0 || bytes.IndexByte(stored, '-') >= 0 {
		return append(out, stored...)
	}
	for _, quote := range []string{"&quot;", "&#34;", `"`} {
		if text, ok := bytes.CutSuffix(stored, []byte(quote)); ok {
			if len(text) == 0 {
				return append(out, stored...)
			}
			return append(append(append(out, text...), etagMark...), quote...)
		}
	}
	return append(append(out, stored...), etagMark...)
}

// findSizes sets the sizes of the plaintexts.
func (s *Server) findSizes(c *call, list *listingPage) error {
	entries, encoding := list.entries, list.encoding
	counted := s.countsParts(c, entries)
	mayBePlain := c.keys.MayHavePlaintext(c.bucket)
	var asked errgroup.Group
	asked.SetLimit(sizeRequests)

	for i := range entries {
		e := &entries[i]
		e.plain = plaintextSize(e.etag, e.size)
		plaintext := mayBePlain && c.keys.AllowPlaintext(e.object(c.bucket, encoding), c.client.Name)
		if !e.hasSize() || counted && !plaintext {
			continue
		}

		asked.Go(func() error {
			return recovered(func() (err error) {
				e.plain, err = s.sizeOf(c, e, encoding)
				return err
			})
		})
	}

	return asked.Wait()
}

// hasSize reports whether the store names a size other than 0.
func (e *listed) hasSize() bool { return len(e.size) > 0 && string(e.size) != "0" }

// object returns the name of a listed object.
func (e *listed) object(bucket, encoding string) crypt.Object {
	key := html.UnescapeString(string(e.key))
	if encoding == "url" {
		if decoded, err := url.QueryUnescape(key); err == nil {
			key = decoded
		}
	}
	return crypt.Object{Bucket: bucket, Key: key}
}

// countsParts reports whether the store's ETags of multipart objects end in
// the number of parts. It asks the store only if a size depends on it.
func (s *Server) countsParts(c *call, entries []listed) bool {
	return slices.ContainsFunc(entries, func(e listed) bool { return e.hasSize() }) &&
		s.Capabilities(c.Context(), c.bucket, capability.PartCount)[capability.PartCount] == capability.Yes
}

// sizeOf returns the size of a listed object's plaintext. If the object was
// deleted in the meantime, or cannot be read, it returns -1.
func (s *Server) sizeOf(c *call, e *listed, encoding string) (int64, error) {
	n, err := strconv.ParseInt(string(e.size), 10, 64)
	if err != nil {
		return -1, nil //nolint:nilerr // without a size, the text is shown unchanged
	}
	version := string(e.version)
	if version == nullVersion && string(e.latest) == "true" {
		version = "" // a bucket without versions, whose store may not know the id null
	}
	q := stored.Request{Object: e.object(c.bucket, encoding), Version: version}
	size, err := c.reader.Size(c.Context(), q, `"`+unquote(string(e.etag))+`"`, n)
	if err != nil {
		if answer := asError(c.Context(), err); answer.Status() == http.StatusNotFound ||
			answer.Code == "ObjectIntegrityError" {
			return -1, nil
		}
		return 0, err
	}
	return size, nil
}

// plaintextSize returns the size of a plaintext from the stored size. A part
// count in the ETag means that it is a multipart object. For a size that no
// encrypted object can have, it returns -1.
func plaintextSize(etag, size []byte) int64 {
	n, ok := parseSize(size)
	if !ok {
		return -1
	}
	plain, err := crypt.PlaintextSize(n)
	if bytes.IndexByte(etag, '-') >= 0 {
		if parts, ok := stored.MultipartETag(unquote(string(etag))); ok {
			plain, err = stored.MultipartSize(n, parts)
		}
	}
	if err != nil {
		return -1
	}
	return plain
}

// parseSize is strconv.ParseInt without a string: a listing has a thousand
// sizes.
func parseSize(text []byte) (n int64, ok bool) {
	const most = 18 // digits that fit
	if len(text) == 0 || len(text) > most {
		return 0, false
	}
	for _, digit := range text {
		if digit < '0' || digit > '9' {
			return 0, false
		}
		n = 10*n + int64(digit-'0')
	}
	return n, true
}

// recovered turns a panic into an error. Outside the request's own
// goroutine, a panic would end the process.
func recovered(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return do()
}

// Package stored reads objects as they are in the store: whole objects and
// ranges, of single-PUT objects and multipart objects.
//
// It computes which stored bytes a range of the plaintext needs, reads them,
// and returns only verified bytes. It uses the store and the keys through
// two functions, so the proxy and `cmekproxy decrypt` share the same code.
//
//	reader.go        Reader, and the facts in the headers of an answer
//	get.go           whole objects; single-PUT objects
//	parts.go         multipart objects, and single parts of them
//	ranges.go        ranges; those of a multipart object need its layout
//	survey.go        finding the layout of a multipart object
//	head.go          objects without their bodies
//	object.go        Object, which Get and Head return
//	look.go          what the store says about an object, without a key
//	list.go          the objects of a bucket
//	range.go         the headers Range and Content-Range
//	cache.go         the cache of layouts
//	copyheader.go    the headers of a copy, and aws-chunked in them
//	tags.go          the tags of an object
//	checked.go       bodies that are verified before they are stored again
//	partchecksum.go  the store's checksum of a part
//
// There is no example: it needs a store. The tests show its use.
package stored

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// MetaPrefix is the prefix of user metadata headers.
const MetaPrefix = "X-Amz-Meta-"

var (
	// ErrIntegrity means that the stored object was altered. Errors of
	// package crypt mean the same.
	ErrIntegrity = errors.New("the stored object was altered")
	// ErrStore means that the store sent an invalid answer.
	ErrStore = errors.New("the store")
	// ErrOverwritten means that the object was overwritten repeatedly while
	// it was read.
	ErrOverwritten = errors.New("the object was overwritten while it was read")
	// ErrPartNumber means that the object has no part with this number.
	ErrPartNumber = errors.New("the object has no such part")
)

// RangeError means that a range is outside the object.
type RangeError struct{ Size int64 } // size of the plaintext

func (e *RangeError) Error() string {
	return fmt.Sprintf("the range is outside the object's %d bytes", e.Size)
}

// Lease is the right to use a data key for a limited time.
type Lease interface {
	DEK() []byte
	Check(ctx context.Context) error
	Release()
}

// Reader reads objects. It is safe for concurrent use.
type Reader struct {
	// Send sends a request, whose URL has only the path /bucket/key and the
	// query. It returns the answer if it is a success or 304 Not Modified,
	// and otherwise an error. If the store has answered, the error has a
	// method Status() int.
	Send func(*http.Request) (*http.Response, error)
	// Open returns the data key of an object or part.
	Open func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (Lease, error)
	// OpenEnd accepts objects whose last part is not marked as final; see
	// the setting origin.uniform_parts.
	OpenEnd bool
	// NoPartCount disregards the number of parts at the end of an ETag, and
	// finds the parts by their headers. A tool that has copied an object may
	// have cut it into other parts, so that the number is another one.
	NoPartCount bool
	// Cache remembers what is known about objects. It has no keys.
	Cache *Cache
}

// Request says what to read.
type Request struct {
	// Object is the name under which the object was written. Keys and MACs
	// are bound to it.
	Object crypt.Object
	// At is where the store has the object, if that is another name. Zero
	// means Object. Only an operator may say that an object is read under
	// another name.
	At      crypt.Object
	Version string      // version id; "" for the current version
	Query   url.Values  // further parameters for the store
	Header  http.Header // conditions and other headers for the store, with the store's ETags; no Range
	Range   *Range      // nil for the whole object
	// Part reads one part instead of a range. It is counted from 1, without
	// gaps, as S3 does; 0 for none.
	Part int
	// Plaintext is called if the object was never encrypted. Its error
	// refuses the object.
	Plaintext func(size int64) error
}

// location returns where the store has the object.
func (q *Request) location() crypt.Object {
	if q.At == (crypt.Object{}) {
		return q.Object
	}
	return q.At
}

// kind says how an object is stored.
type kind int

const (
	unknown   kind = iota
	plaintext      // not encrypted
	single         // single-PUT, with one envelope
	multipart
)

// facts are what the headers of an answer say about an object.
type facts struct {
	kind     kind
	envelope *crypt.Envelope // of a single-PUT object
	mark     *crypt.Mark     // of a multipart object
	etag     string
	size     int64 // stored size, in bytes
	parts    int   // from the ETag; -1 if the ETag does not have it
}

// facts is factsOf, but follows NoPartCount.
func (s *Reader) facts(h http.Header, size int64) (facts, error) {
	f, err := factsOf(h, size)
	if s.NoPartCount {
		f.parts = -1
	}
	return f, err
}

// factsOf parses the headers of a GET or HEAD answer. size is the size of
// the whole stored object.
func factsOf(h http.Header, size int64) (facts, error) {
	f := facts{etag: h.Get("Etag"), size: size, parts: partCount(h.Get("Etag"))}
	metadata := make(map[string]string, 16)
	for name, values := range h {
		if own, ok := strings.CutPrefix(name, MetaPrefix); ok {
			if len(own) < len(crypt.Prefix) || !strings.EqualFold(own[:len(crypt.Prefix)], crypt.Prefix) {
				continue // the client's
			}
			// The joined value of a repeated header is not valid.
			metadata[crypt.LowerName(own)] = strings.Join(values, ",")
		}
	}

	var err error
	f.envelope, err = crypt.ParseEnvelope(metadata)
	switch {
	case errors.Is(err, crypt.ErrNoEnvelope):
		f.kind = plaintext
		return f, nil
	case errors.Is(err, crypt.ErrMultipart):
		f.kind = multipart
		f.mark, err = crypt.ParseMark(metadata)
		return f, err
	default:
		f.kind = single
		return f, err
	}
}

// partCount parses the part count at the end of a multipart ETag.
func partCount(etag string) int {
	_, count, ok := strings.Cut(strings.Trim(etag, `"`), "-")
	n, err := strconv.Atoi(count)
	if !ok || err != nil || n < 1 || n > crypt.MaxPartNumber {
		return -1
	}
	return n
}

// plaintextSize returns the size that follows from the part count, or -1
// without one.
func (f facts) plaintextSize() (int64, error) {
	if f.parts < 0 {
		return -1, nil
	}
	return MultipartSize(f.size, f.parts)
}

// MultipartSize returns the plaintext size of a multipart object. It returns
// ErrIntegrity if the stored size is too small for the number of parts.
func MultipartSize(stored int64, parts int) (int64, error) {
	size := stored - int64(parts)*crypt.PartOverhead
	if size < 0 {
		return 0, fmt.Errorf("%w: %d stored bytes in %d parts", ErrIntegrity, stored, parts)
	}
	return size, nil
}

// MultipartETag returns the number of parts in a store's ETag. ok is false
// if it is not the ETag of a multipart object.
func MultipartETag(etag string) (parts int, ok bool) {
	n := partCount(etag)
	return n, n > 0
}

// request sends a request about the object, with the given headers.
func (s *Reader) request(ctx context.Context, method string, q Request, header http.Header) (*http.Response, error) {
	query := maps.Clone(q.Query)
	if q.Version != "" {
		if query == nil {
			query = make(url.Values)
		}
		query.Set("versionId", q.Version)
	}

	at := q.location()
	u := &url.URL{
		Path:     "/" + at.Bucket + "/" + at.Key,
		RawQuery: strings.ReplaceAll(query.Encode(), "+", "%20"),
	}
	u.RawPath = sigv4.EscapePath(u.Path)

	if header == nil {
		header = make(http.Header)
	}

	r := &http.Request{Method: method, URL: u, Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	resp, err := s.Send(r.WithContext(ctx))
	if err == nil && resp.StatusCode == http.StatusNotModified && header.Get("If-None-Match") == "" &&
		header.Get("If-Modified-Since") == "" {
		CloseBody(resp)
		return nil, fmt.Errorf("%w answered 304 to a request without a condition", ErrStore)
	}
	return resp, err
}

// requestRange sends a GET with the client's headers and the given Range.
func (s *Reader) requestRange(ctx context.Context, q Request, bytes string) (*http.Response, error) {
	header := maps.Clone(q.Header)
	if header == nil {
		header = make(http.Header)
	}
	if bytes != "" {
		header.Set("Range", bytes)
	}
	return s.request(ctx, http.MethodGet, q, header)
}

// fetch reads stored bytes into memory, from the object with this ETag.
func (s *Reader) fetch(ctx context.Context, q Request, etag string, start, end int64) ([]byte, error) {
	q.Query = nil
	resp, err := s.request(ctx, http.MethodGet, q, http.Header{
		"Range":    {fmt.Sprintf("bytes=%d-%d", start, end-1)},
		"If-Match": {etag},
	})
	if StatusOf(err) == http.StatusPreconditionFailed || StatusOf(err) == http.StatusNotFound {
		return nil, errChanged
	}
	if err != nil {
		return nil, err
	}
	defer CloseBody(resp)

	from, _, ok := parseContentRange(resp.Header.Get("Content-Range"))
	if resp.StatusCode != http.StatusPartialContent || !ok || from != start {
		return nil, fmt.Errorf("%w answered %d to a range", ErrStore, resp.StatusCode)
	}

	out := make([]byte, end-start)
	switch _, err := crypt.ReadFull(resp.Body, out); err {
	case nil:
		return out, nil
	case io.EOF, crypt.ErrTruncated: //nolint:errorlint // unwrapped: the answer is complete, but too short
		return nil, fmt.Errorf("%w: %w", ErrIntegrity, crypt.ErrTruncated)
	default:
		return nil, err
	}
}

// errChanged means that the object has changed during the reading, so what
// was learned about it is no longer valid.
var errChanged = errors.New("the object has changed")

// StatusOf returns the HTTP status of an error of Reader.Send, or 0 if the
// store has not answered.
func StatusOf(err error) int {
	var answered interface{ Status() int }
	if errors.As(err, &answered) {
		return answered.Status()
	}
	return 0
}

// CloseBody closes a response. It reads the rest of a short body, so that
// the connection can be reused.
func CloseBody(resp *http.Response) {
	const worthReading = 16 << 10
	_, _ = io.CopyN(io.Discard, resp.Body, worthReading)
	_ = resp.Body.Close()
}

// chunk is a range of a stored object in memory.
type chunk struct {
	start  int64
	bytes  []byte
	header http.Header // of the answer from which the bytes come
}

// maxChunk limits what is kept of an answer that does not fit the kind of
// object.
const maxChunk = 2 << 20

// readChunk reads a short answer to a range, and discards a long one.
func readChunk(resp *http.Response) (chunk, error) {
	defer CloseBody(resp)
	start, _, ok := parseContentRange(resp.Header.Get("Content-Range"))
	if !ok || resp.ContentLength < 0 || resp.ContentLength > maxChunk {
		return chunk{}, nil
	}
	var b bytes.Buffer
	b.Grow(int(resp.ContentLength))
	if _, err := b.ReadFrom(resp.Body); err != nil {
		return chunk{}, err
	}
	return chunk{start, b.Bytes(), resp.Header}, nil
}

// slice returns the stored bytes from start to end, or nil if the chunk does
// not have all of them.
func (c chunk) slice(start, end int64) []byte {
	if start < c.start || end < start || end > c.start+int64(len(c.bytes)) {
		return nil
	}
	return c.bytes[start-c.start : end-c.start]
}

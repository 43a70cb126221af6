// Package stored reads objects as the store has them: whole objects and
// ranges, put whole or in parts.
//
// It knows which stored bytes a stretch of the plaintext needs, gets them, and
// hands out nothing that has not verified. It speaks to the store and to the
// keys through two functions, so the proxy and `cmekproxy decrypt` read alike.
//
//	reader.go        Reader, and what the header of an answer says of an object
//	get.go           whole objects; single-PUT objects
//	parts.go         multipart objects, and single parts of them
//	ranges.go        ranges; those of a multipart object need its layout
//	survey.go        finding the layout
//	head.go          all but the body
//	object.go        Object, which Get and Head return
//	look.go          what the store says of an object, without a key
//	list.go          the objects of a bucket
//	range.go         the headers Range and Content-Range
//	cache.go         what is remembered of objects
//	copyheader.go    the header of a copy, and aws-chunked in it
//	tags.go          the tags of an object
//	partchecksum.go  the store's checksum of a part
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

// MetaPrefix starts the name of user metadata in a header.
const MetaPrefix = "X-Amz-Meta-"

var (
	// ErrIntegrity says that the stored object is not what was stored. Errors
	// of package crypt say so too.
	ErrIntegrity = errors.New("the stored object is not what was stored")
	// ErrStore says that the store answered what it should not have.
	ErrStore = errors.New("the store")
	// ErrOverwritten says that the object was overwritten again and again
	// while it was read.
	ErrOverwritten = errors.New("the object was overwritten while it was read")
	// ErrPartNumber says that the object has no part of that number.
	ErrPartNumber = errors.New("the object has no such part")
)

// RangeError says that a range lies outside the object.
type RangeError struct{ Size int64 } // of the plaintext

func (e *RangeError) Error() string {
	return fmt.Sprintf("the range lies outside the object's %d bytes", e.Size)
}

// Lease is the right to use a DEK for a bounded time.
type Lease interface {
	DEK() []byte
	Check(ctx context.Context) error
	Release()
}

// Reader reads objects. It is safe for concurrent use.
type Reader struct {
	// Send sends a request whose URL holds nothing but /bucket/key and the
	// query. It returns the answer if it is a good one or 304 Not Modified,
	// and otherwise an error, which has a method Status() int where the store
	// has answered.
	Send func(*http.Request) (*http.Response, error)
	// Open returns the DEK of an object or part.
	Open func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (Lease, error)
	// OpenEnd accepts objects whose last part is not marked as such; see the
	// setting origin.uniform_parts.
	OpenEnd bool
	// Cache remembers what is known of objects. It holds no key.
	Cache *Cache
}

// Request says what is to be read.
type Request struct {
	Object  crypt.Object
	Version string      // version id; "" for the current one
	Query   url.Values  // further parameters for the store
	Header  http.Header // for the store: conditions and so on, in the store's terms. No Range
	Range   *Range      // nil for the whole object
	Part    int         // in place of a range, a part by its place among the object's, from 1, as S3 counts; 0 for none
	// Plaintext is asked when the object was never encrypted; an error refuses
	// it.
	Plaintext func() error
}

// kind is how an object was put.
type kind int

const (
	unknown   kind = iota
	plaintext      // without encryption
	single         // with one envelope
	multipart
)

// facts are what an answer's header says of an object.
type facts struct {
	kind     kind
	envelope *crypt.Envelope // of a single one
	mark     crypt.Mark      // of a multipart one
	etag     string
	size     int64 // stored
	parts    int   // as the ETag has it; -1 if it does not say
}

// factsOf reads the header of a GET or HEAD answer; size is that of the whole
// stored object.
func factsOf(h http.Header, size int64) (facts, error) {
	f := facts{etag: h.Get("Etag"), size: size, parts: partCount(h.Get("Etag"))}
	metadata := make(map[string]string)
	for name, values := range h {
		if own, ok := strings.CutPrefix(name, MetaPrefix); ok {
			metadata[strings.ToLower(own)] = strings.Join(values, ",") // a repeated one is refused by its joined value
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

// partCount reads the number at the end of a multipart ETag.
func partCount(etag string) int {
	_, count, ok := strings.Cut(strings.Trim(etag, `"`), "-")
	n, err := strconv.Atoi(count)
	if !ok || err != nil || n < 1 || n > crypt.MaxPartNumber {
		return -1
	}
	return n
}

// plaintextSize is the size that the part count gives, -1 if there is none.
func (f facts) plaintextSize() (int64, error) {
	if f.parts < 0 {
		return -1, nil
	}
	return MultipartSize(f.size, f.parts)
}

// MultipartSize is the plaintext size of a multipart object, or ErrIntegrity
// if no object is of that size and number of parts.
func MultipartSize(stored int64, parts int) (int64, error) {
	size := stored - int64(parts)*crypt.PartOverhead
	if size < 0 {
		return 0, fmt.Errorf("%w: %d stored bytes in %d parts", ErrIntegrity, stored, parts)
	}
	return size, nil
}

// MultipartETag returns the number of parts that an ETag of the store names;
// ok is false if it is no multipart one.
func MultipartETag(etag string) (parts int, ok bool) {
	n := partCount(etag)
	return n, n > 0
}

// request sends a request of the reading's own, in addition to those of the
// client's.
func (s *Reader) request(ctx context.Context, method string, q Request, header http.Header) (*http.Response, error) {
	query := maps.Clone(q.Query)
	if q.Version != "" {
		if query == nil {
			query = make(url.Values)
		}
		query.Set("versionId", q.Version)
	}

	u := &url.URL{
		Path:     "/" + q.Object.Bucket + "/" + q.Object.Key,
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

// requestRange sends the client's own request, with a Range of ours.
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

// fetch reads some stored bytes of the object that has this ETag into memory.
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
	case io.EOF, crypt.ErrTruncated: //nolint:errorlint // bare: the answer is whole, and too short
		return nil, fmt.Errorf("%w: %w", ErrIntegrity, crypt.ErrTruncated)
	default:
		return nil, err
	}
}

// errChanged says that the object is another one than a moment ago: what was
// found out of it is void.
var errChanged = errors.New("the object has changed")

// StatusOf returns the HTTP status of an error of Reader.Send: 0 if the store
// has not answered.
func StatusOf(err error) int {
	var answered interface{ Status() int }
	if errors.As(err, &answered) {
		return answered.Status()
	}
	return 0
}

// CloseBody ends a response. It reads the rest of a short one, so that the
// connection can be used again.
func CloseBody(resp *http.Response) {
	const worthReading = 16 << 10
	_, _ = io.CopyN(io.Discard, resp.Body, worthReading)
	_ = resp.Body.Close()
}

// chunk is a stretch of a stored object in memory.
type chunk struct {
	start  int64
	bytes  []byte
	header http.Header // of the answer that it came with
}

// maxChunk bounds what is kept of an answer that turned out to be to the wrong
// question.
const maxChunk = 2 << 20

// readChunk reads a short answer to a range, and gives up a long one.
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

// slice returns the stored bytes from start to end, nil if they are not all
// there.
func (c chunk) slice(start, end int64) []byte {
	if start < c.start || end < start || end > c.start+int64(len(c.bytes)) {
		return nil
	}
	return c.bytes[start-c.start : end-c.start]
}

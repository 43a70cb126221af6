package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// store is an S3-like store that keeps objects in memory. It costs little,
// so that the proxies in front of it are what is measured: it checks no
// signature and no checksum, and its ETags are numbers. It knows what a
// proxy needs to put, read and list objects. Everything else is refused with
// 501.
type store struct {
	mu      sync.RWMutex
	objects map[string]*object // by path, "/bucket/key"
	uploads map[string]*upload // by upload id
	pages   map[pageName][]byte

	lastETag atomic.Int64
}

// object is a stored object. It does not change, so that it can be sent
// without a lock.
type object struct {
	header http.Header // metadata, and the headers of a response
	parts  [][]byte
	size   int64
}

type upload struct {
	header http.Header
	parts  map[int]*object
}

func newStore() *store {
	return &store{
		objects: make(map[string]*object),
		uploads: make(map[string]*upload),
		pages:   make(map[pageName][]byte),
	}
}

// ServeHTTP implements http.Handler.
func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "bench")
	w.Header().Set("X-Amz-Request-Id", "0000000000000000")

	err := s.serve(w, r)
	if refusal := (*refused)(nil); errors.As(err, &refusal) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(refusal.status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", refusal.code, refusal.code)
	} else if err != nil {
		panic(http.ErrAbortHandler) // the client has left, or sent a wrong length
	}
}

// refused is an error response.
type refused struct {
	status int
	code   string
}

func (e *refused) Error() string { return e.code }

var (
	errNoKey          = &refused{http.StatusNotFound, "NoSuchKey"}
	errNoUpload       = &refused{http.StatusNotFound, "NoSuchUpload"}
	errPart           = &refused{http.StatusBadRequest, "InvalidPart"}
	errCondition      = &refused{http.StatusPreconditionFailed, "PreconditionFailed"}
	errRange          = &refused{http.StatusRequestedRangeNotSatisfiable, "InvalidRange"}
	errNotImplemented = &refused{http.StatusNotImplemented, "NotImplemented"}
)

func (s *store) serve(w http.ResponseWriter, r *http.Request) error {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if key == "" {
		return s.serveBucket(w, r, bucket)
	}

	if r.URL.RawQuery == "" {
		switch r.Method {
		case http.MethodGet, http.MethodHead:
			return s.get(w, r)
		case http.MethodPut:
			return s.put(w, r)
		case http.MethodDelete:
			return s.remove(w, r)
		}
	}

	query := r.URL.Query()
	switch {
	case query.Has("uploadId"):
		return s.serveUpload(w, r, query)
	case query.Has("uploads") && r.Method == http.MethodPost:
		return s.createUpload(w, r, bucket, key)
	case !query.Has("x-id") && !query.Has("partNumber"): // x-id names the operation, and changes nothing
		return errNotImplemented
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		return s.get(w, r)
	case r.Method == http.MethodPut:
		return s.put(w, r)
	case r.Method == http.MethodDelete:
		return s.remove(w, r)
	default:
		return errNotImplemented
	}
}

// serveBucket lists a bucket. Any other request for a bucket succeeds:
// buckets need not be created.
func (s *store) serveBucket(w http.ResponseWriter, r *http.Request, bucket string) error {
	query := r.URL.Query()
	if r.Method != http.MethodGet {
		return nil
	}
	if query.Get("list-type") != "2" {
		return errNotImplemented
	}

	page := s.page(bucket, query)
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", strconv.Itoa(len(page)))
	_, err := w.Write(page)
	return err
}

// page returns a listing. It is made once, and then returned until an object
// is stored or removed in the bucket.
func (s *store) page(bucket string, query url.Values) []byte {
	name := pageName{bucket, query.Get("prefix"), query.Get("encoding-type")}
	s.mu.RLock()
	page := s.pages[name]
	s.mu.RUnlock()
	if page != nil {
		return page
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	page = s.list(name)
	s.pages[name] = page
	return page
}

// pageName is what a listing depends on.
type pageName struct{ bucket, prefix, encoding string }

// list writes the first page of a listing, of at most 1,000 keys.
func (s *store) list(name pageName) []byte {
	const most = 1000
	var keys []string
	prefix := "/" + name.bucket + "/" + name.prefix
	for path := range s.objects {
		if strings.HasPrefix(path, prefix) {
			keys = append(keys, path)
		}
	}
	slices.Sort(keys)
	keys = keys[:min(len(keys), most)]

	page := listing{
		Name: name.bucket, Prefix: name.prefix, KeyCount: len(keys), MaxKeys: most,
		EncodingType: name.encoding,
	}
	for _, path := range keys {
		o := s.objects[path]
		page.Contents = append(page.Contents, listed{
			Key: strings.TrimPrefix(path, "/"+name.bucket+"/"), LastModified: "2026-01-01T00:00:00.000Z",
			ETag: o.header.Get("Etag"), Size: o.size, StorageClass: "STANDARD",
		})
	}
	return document(page)
}

// listing is a ListBucketResult of ListObjectsV2.
type listing struct {
	XMLName      xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
	Name         string
	Prefix       string
	KeyCount     int
	MaxKeys      int
	EncodingType string `xml:",omitempty"`
	IsTruncated  bool
	Contents     []listed
}

type listed struct {
	Key          string
	LastModified string
	ETag         string
	Size         int64
	StorageClass string
}

// document returns an XML document.
func document(v any) []byte {
	text, err := xml.Marshal(v)
	if err != nil {
		panic(err) // only for a type that XML cannot express
	}
	return append([]byte(xml.Header), text...)
}

// keep makes o the object at a path, or removes the one there if o is nil.
func (s *store) keep(path string, o *object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o == nil {
		delete(s.objects, path)
	} else {
		s.objects[path] = o
	}

	bucket, _, _ := strings.Cut(path[1:], "/")
	for name := range s.pages {
		if name.bucket == bucket {
			delete(s.pages, name)
		}
	}
}

func (s *store) put(w http.ResponseWriter, r *http.Request) error {
	if r.Header.Get("X-Amz-Copy-Source") != "" {
		return errNotImplemented
	}

	data, err := readUpload(r)
	if err != nil {
		return err
	}
	o := s.newObject(r.Header, [][]byte{data})
	s.keep(r.URL.Path, o)
	w.Header()["Etag"] = o.header["Etag"]
	return nil
}

// newObject returns an object with the metadata of an upload.
func (s *store) newObject(uploaded http.Header, parts [][]byte) *object {
	o := &object{header: make(http.Header), parts: parts}
	for name, values := range uploaded {
		if slices.Contains(keptHeaders, name) || strings.HasPrefix(name, "X-Amz-Meta-") {
			o.header[name] = values
		}
	}

	encoding := strings.TrimPrefix(strings.TrimPrefix(uploaded.Get("Content-Encoding"), "aws-chunked"), ",")
	if encoding != "" {
		o.header.Set("Content-Encoding", encoding)
	}
	for _, part := range parts {
		o.size += int64(len(part))
	}

	o.header.Set("Etag", s.newETag())
	o.header.Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
	o.header.Set("Accept-Ranges", "bytes")
	return o
}

var keptHeaders = []string{
	"Content-Type", "Content-Disposition", "Content-Language", "Cache-Control", "Expires",
}

func (s *store) newETag() string { return fmt.Sprintf(`"%032x"`, s.lastETag.Add(1)) }

func (s *store) remove(w http.ResponseWriter, r *http.Request) error {
	s.keep(r.URL.Path, nil)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *store) get(w http.ResponseWriter, r *http.Request) error {
	s.mu.RLock()
	o := s.objects[r.URL.Path]
	s.mu.RUnlock()
	if o == nil {
		return errNoKey
	}
	if match := r.Header.Get("If-Match"); match != "" && match != o.header.Get("Etag") {
		return errCondition
	}

	from, to, err := o.selected(r)
	if err != nil {
		return err
	}

	header, status := w.Header(), http.StatusOK
	maps.Copy(header, o.header)
	header.Set("Content-Length", strconv.FormatInt(to-from, 10))
	if to-from != o.size {
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, o.size))
		status = http.StatusPartialContent
	}
	if number := r.URL.Query().Get("partNumber"); number != "" && len(o.parts) > 1 {
		header.Set("X-Amz-Mp-Parts-Count", strconv.Itoa(len(o.parts)))
	}

	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return nil
	}
	return o.write(w, from, to)
}

// selected returns the bytes that a request asks for, from "from" to before
// "to".
func (o *object) selected(r *http.Request) (from, to int64, err error) {
	if r.URL.RawQuery != "" && r.URL.Query().Has("partNumber") {
		return o.part(r.URL.Query().Get("partNumber"))
	}
	spec, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if !ok {
		return 0, o.size, nil
	}

	first, last, _ := strings.Cut(spec, "-")
	if first == "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n == 0 {
			return 0, 0, errRange
		}
		return max(0, o.size-n), o.size, nil
	}

	if from, err = strconv.ParseInt(first, 10, 64); err != nil || from >= o.size {
		return 0, 0, errRange
	}
	if last == "" {
		return from, o.size, nil
	}
	if to, err = strconv.ParseInt(last, 10, 64); err != nil || to < from {
		return 0, 0, errRange
	}
	return from, min(to+1, o.size), nil
}

// part returns where a part begins and ends.
func (o *object) part(number string) (from, to int64, err error) {
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > len(o.parts) {
		return 0, 0, errRange
	}
	for _, part := range o.parts[:n-1] {
		from += int64(len(part))
	}
	return from, from + int64(len(o.parts[n-1])), nil
}

func (o *object) write(w http.ResponseWriter, from, to int64) error {
	begin := int64(0)
	for _, part := range o.parts {
		end := begin + int64(len(part))
		if from < end && to > begin {
			if _, err := w.Write(part[max(0, from-begin) : min(end, to)-begin]); err != nil {
				return err
			}
		}
		begin = end
	}
	return nil
}

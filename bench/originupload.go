package main

import (
	"bufio"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// sinkSuffix ends the names of buckets whose objects are not kept: many
// large uploads at a time would take much memory.
const sinkSuffix = "-sink"

// readUpload reads the body of an upload. If it has aws-chunked framing, the
// framing is removed, and the trailer is not checked.
func readUpload(r *http.Request) ([]byte, error) {
	bucket, _, _ := strings.Cut(r.URL.Path[1:], "/")
	if strings.HasSuffix(bucket, sinkSuffix) {
		_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, 256<<10))
		return nil, err
	}

	length, chunked := r.Header["X-Amz-Decoded-Content-Length"]
	if !chunked || !strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
		if r.ContentLength < 0 {
			return nil, errNotImplemented
		}
		data := make([]byte, r.ContentLength)
		_, err := io.ReadFull(r.Body, data)
		return data, err
	}

	n, err := strconv.ParseUint(length[0], 10, 40)
	if err != nil {
		return nil, err
	}
	return unframe(r.Body, make([]byte, n))
}

// unframe fills data with the chunks of an aws-chunked body, and reads the
// body to its end. See
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html.
func unframe(body io.Reader, data []byte) ([]byte, error) {
	in := bufio.NewReaderSize(body, 4<<10)
	rest := data
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return nil, err
		}

		size, _, _ := strings.Cut(strings.TrimSpace(string(line)), ";")
		n, err := strconv.ParseUint(size, 16, 40)
		if err != nil || n > uint64(len(rest)) {
			return nil, fmt.Errorf("chunk of %q bytes, %d are left", size, len(rest))
		}
		if n == 0 {
			break
		}

		if _, err := io.ReadFull(in, rest[:n]); err != nil {
			return nil, err
		}
		rest = rest[n:]
		if _, err := in.Discard(len("\r\n")); err != nil {
			return nil, err
		}
	}

	if len(rest) > 0 {
		return nil, errors.New("the body is shorter than announced")
	}
	_, err := io.Copy(io.Discard, in)
	return data, err
}

func (s *store) createUpload(w http.ResponseWriter, r *http.Request, bucket, key string) error {
	id := strings.Trim(s.newETag(), `"`)
	s.mu.Lock()
	s.uploads[id] = &upload{header: r.Header.Clone(), parts: make(map[int]*object)}
	s.mu.Unlock()

	_, err := w.Write(document(struct {
		XMLName               xml.Name `xml:"InitiateMultipartUploadResult"`
		Bucket, Key, UploadId string
	}{Bucket: bucket, Key: key, UploadId: id}))
	return err
}

// serveUpload serves the requests for an upload that exists.
func (s *store) serveUpload(w http.ResponseWriter, r *http.Request, query url.Values) error {
	id := query.Get("uploadId")
	s.mu.RLock()
	u := s.uploads[id]
	s.mu.RUnlock()
	if u == nil {
		return errNoUpload
	}

	switch r.Method {
	case http.MethodPut:
		return s.putPart(w, r, u, query.Get("partNumber"))
	case http.MethodGet:
		return s.listParts(w, u, id)
	case http.MethodPost:
		return s.complete(w, r, u, id)
	case http.MethodDelete:
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.uploads, id)
		w.WriteHeader(http.StatusNoContent)
		return nil
	default:
		return errNotImplemented
	}
}

func (s *store) putPart(w http.ResponseWriter, r *http.Request, u *upload, number string) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return errPart
	}
	data, err := readUpload(r)
	if err != nil {
		return err
	}

	o := s.newObject(nil, [][]byte{data})
	s.mu.Lock()
	u.parts[n] = o
	s.mu.Unlock()
	w.Header()["Etag"] = o.header["Etag"]
	return nil
}

func (s *store) listParts(w http.ResponseWriter, u *upload, id string) error {
	type part struct {
		PartNumber   int
		LastModified string
		ETag         string
		Size         int64
	}
	list := struct {
		XMLName     xml.Name `xml:"ListPartsResult"`
		UploadId    string
		MaxParts    int
		IsTruncated bool
		Part        []part
	}{UploadId: id, MaxParts: 10000}

	s.mu.RLock()
	for _, n := range slices.Sorted(maps.Keys(u.parts)) {
		o := u.parts[n]
		list.Part = append(list.Part, part{n, "2026-01-01T00:00:00.000Z", o.header.Get("Etag"), o.size})
	}
	s.mu.RUnlock()

	_, err := w.Write(document(list))
	return err
}

// complete makes an object of the parts that the body lists.
func (s *store) complete(w http.ResponseWriter, r *http.Request, u *upload, id string) error {
	var list struct {
		Part []struct {
			PartNumber int
			ETag       string
		}
	}
	if err := xml.NewDecoder(r.Body).Decode(&list); err != nil {
		return errPart
	}

	var parts [][]byte
	s.mu.Lock()
	for _, listed := range list.Part {
		if o := u.parts[listed.PartNumber]; o != nil && o.header.Get("Etag") == listed.ETag {
			parts = append(parts, o.parts...)
		}
	}
	delete(s.uploads, id)
	s.mu.Unlock()
	if len(parts) != len(list.Part) || len(parts) == 0 {
		return errPart
	}

	o := s.newObject(u.header, parts)
	etag := fmt.Sprintf(`"%s-%d"`, strings.Trim(o.header.Get("Etag"), `"`), len(parts))
	o.header.Set("Etag", etag)
	s.keep(r.URL.Path, o)
	_, err := w.Write(document(struct {
		XMLName xml.Name `xml:"CompleteMultipartUploadResult"`
		ETag    string
	}{ETag: etag}))
	return err
}

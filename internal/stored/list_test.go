package stored_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// pages answers requests in turn, and records their queries.
type pages struct {
	bodies  []string
	queries []url.Values
}

func (p *pages) store() *stored.Reader {
	return &stored.Reader{Cache: stored.NewCache(), Send: func(r *http.Request) (*http.Response, error) {
		if r.URL.Path != "/bucket" || r.Method != http.MethodGet {
			return nil, errors.New("not a listing: " + r.URL.String())
		}
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil || strings.Contains(r.URL.RawQuery, "+") {
			return nil, errors.New("an ambiguous query: " + r.URL.RawQuery)
		}
		p.queries = append(p.queries, query)
		body := p.bodies[0]
		p.bodies = p.bodies[1:]
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(body))}, nil
	}}
}

func TestListPages(t *testing.T) {
	p := &pages{bodies: []string{
		`<ListBucketResult><IsTruncated>true</IsTruncated><EncodingType>url</EncodingType><NextContinuationToken>to+ken/=</NextContinuationToken>
		 <Contents><Key>a%0Ab+c</Key><Size>7</Size><ETag>x</ETag></Contents><Contents><Key>a%2Bb</Key><Size>8</Size></Contents></ListBucketResult>`,
		`<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>raw+%41</Key><Size>9</Size></Contents></ListBucketResult>`,
	}}

	var got []stored.Entry
	for e, err := range p.store().List(t.Context(), stored.Listing{Bucket: "bucket", Prefix: "a b", After: "a c"}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}

	want := []stored.Entry{
		{Key: "a\nb c", Latest: true, Size: 7},
		{Key: "a+b", Latest: true, Size: 8},
		{Key: "raw+%41", Latest: true, Size: 9},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}

	if q := p.queries[0]; q.Get("prefix") != "a b" || q.Get("start-after") != "a c" || q.Get("list-type") != "2" {
		t.Errorf("%v", q)
	}
	if q := p.queries[1]; q.Get("continuation-token") != "to+ken/=" || q.Get("prefix") != "a b" {
		t.Errorf("%v", q)
	}
}

func TestListVersions(t *testing.T) {
	p := &pages{bodies: []string{
		`<ListVersionsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker><NextVersionIdMarker>v1</NextVersionIdMarker>
		 <Version><Key>k</Key><VersionId>v2</VersionId><IsLatest>true</IsLatest><Size>1</Size></Version>
		 <DeleteMarker><Key>gone</Key><VersionId>v9</VersionId><IsLatest>true</IsLatest></DeleteMarker>
		 <Version><Key>k</Key><VersionId>v1</VersionId><IsLatest>false</IsLatest><Size>2</Size></Version></ListVersionsResult>`,
		`<ListVersionsResult><IsTruncated>false</IsTruncated><Version><Key>n</Key><VersionId>null</VersionId><IsLatest>true</IsLatest></Version>
		 <Version><Key>o</Key><VersionId>null</VersionId><IsLatest>false</IsLatest></Version></ListVersionsResult>`,
	}}

	var got []stored.Entry
	for e, err := range p.store().List(t.Context(), stored.Listing{Bucket: "bucket", Versions: true}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}

	want := []stored.Entry{
		{Key: "k", Version: "v2", Latest: true, Size: 1},
		{Key: "k", Version: "v1", Size: 2},
		{Key: "n", Latest: true},
		{Key: "o", Version: "null"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}

	if q := p.queries[1]; q.Get("key-marker") != "k" || q.Get("version-id-marker") != "v1" {
		t.Errorf("%v", q)
	}
}

func TestListFails(t *testing.T) {
	for name, body := range map[string]string{
		"no XML":          "<html>",
		"no way on":       `<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>`,
		"a bad encoding":  `<ListBucketResult><EncodingType>url</EncodingType><Contents><Key>%zz</Key></Contents></ListBucketResult>`,
		"no number":       `<ListBucketResult><Contents><Key>k</Key><Size>x</Size></Contents></ListBucketResult>`,
		"an empty answer": ``,
	} {
		var last error
		for _, err := range (&pages{bodies: []string{body}}).store().List(t.Context(), stored.Listing{Bucket: "bucket"}) {
			last = err
		}
		if last == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// answers returns a reader of a store with one object.
func answers(header http.Header, body []byte) *stored.Reader {
	return &stored.Reader{Cache: stored.NewCache(), Send: func(r *http.Request) (*http.Response, error) {
		resp := &http.Response{
			StatusCode:    http.StatusOK,
			Header:        header.Clone(),
			ContentLength: int64(len(body)),
			Body:          http.NoBody,
		}

		if r.Method == http.MethodHead {
			return resp, nil
		}

		piece := stored.ParseRange(r.Header.Get("Range"))
		offset, length, ok := piece.Of(int64(len(body)))
		if !ok {
			return nil, errors.New("not satisfiable")
		}
		resp.StatusCode, resp.ContentLength = http.StatusPartialContent, length
		resp.Header.Set("Content-Range", stored.ContentRange(offset, length, int64(len(body))))
		resp.Body = io.NopCloser(bytes.NewReader(body[offset : offset+length]))

		return resp, nil
	}}
}

func TestPartHeadersOfWhatIsNone(t *testing.T) {
	mark := http.Header{
		"Etag":                  {`"x-2"`},
		"X-Amz-Meta-Cmek-V":     {"1"},
		"X-Amz-Meta-Cmek-Suite": {"1"},
		"X-Amz-Meta-Cmek-Type":  {"multipart"},
		"X-Amz-Meta-Cmek-Key":   {"id"},
	}

	for name, body := range map[string][]byte{
		"short":   make([]byte, 100),
		"zeros":   make([]byte, 20_000),
		"garbage": bytes.Repeat([]byte("cmekpart\x01\x01"), 2000),
	} {
		s := answers(mark, body)
		seen, err := s.Look(t.Context(), stored.Request{})
		if err != nil || seen.Mark == nil || seen.Mark.KeyID != "id" || seen.Parts != 2 {
			t.Fatalf("%+v, %v", seen, err)
		}
		var last error
		n := 0

		for _, err := range s.PartHeaders(context.Background(), stored.Request{}, seen) {
			last = err
			n++
		}
		if last == nil || n != 1 {
			t.Errorf("%s: %v after %d headers", name, last, n)
		}
	}
}

func TestPeek(t *testing.T) {
	s := answers(http.Header{"Etag": {`"x"`}}, []byte("hello"))
	seen, err := s.Peek(t.Context(), stored.Request{}, 3)
	if size, sizeErr := seen.Size(); err != nil || sizeErr != nil || !seen.Plaintext || string(seen.First) != "hel" ||
		size != 5 {
		t.Errorf("%+v, %v, %v", seen, err, sizeErr)
	}
}

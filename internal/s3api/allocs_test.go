package s3api_test

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/tracing"
)

// memoryStore accepts PUT, answers GET and HEAD with the object that was
// stored last, and lists 1,000 objects. It costs almost nothing, so the
// allocations counted are the proxy's, with the signing of its own requests.
type memoryStore struct {
	header http.Header
	body   []byte
	list   []byte
}

func (m *memoryStore) RoundTrip(r *http.Request) (*http.Response, error) {
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: r}
	if r.Method == http.MethodPut {
		m.body = m.body[:0]
		if r.Body == nil {
			return resp, nil
		}
		for {
			m.body = slices.Grow(m.body, 16<<10)
			n, err := r.Body.Read(m.body[len(m.body):cap(m.body)])
			m.body = m.body[:len(m.body)+n]
			if err == io.EOF {
				break
			}
			if err != nil {
				return nil, err
			}
		}
		if err := r.Body.Close(); err != nil {
			return nil, err
		}
		sum := md5.Sum(m.body)
		m.header = http.Header{"Etag": {`"` + hex.EncodeToString(sum[:]) + `"`}}

		for name, values := range r.Header {
			if strings.HasPrefix(name, "X-Amz-Meta-") {
				m.header[name] = values
			}
		}
		resp.Header.Set("Etag", m.header.Get("Etag"))
		return resp, nil
	}

	if r.URL.Query().Has("list-type") {
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(m.list)), int64(len(m.list))
		resp.Header.Set("Content-Type", "application/xml")
		return resp, nil
	}
	resp.Header, resp.ContentLength = m.header.Clone(), int64(len(m.body))
	if r.Method == http.MethodGet {
		resp.Body = io.NopCloser(bytes.NewReader(m.body))
	}
	return resp, nil
}

// maxAllocs limits the allocations of the proxy for a PUT, GET and HEAD of an
// object of 4 KiB, and for a listing of 1,000 objects. They only go down.
var maxAllocs = map[string]float64{"PUT": 290, "GET": 194, "HEAD": 163, "LIST": 145}

// TestAllocsOfARequest guards the number of allocations.
func TestAllocsOfARequest(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates too")
	}
	for method, serve := range wholePath(t) {
		t.Run(method, func(t *testing.T) {
			if got := testing.AllocsPerRun(200, serve); got > maxAllocs[method] {
				t.Errorf("%.0f allocations, want at most %.0f", got, maxAllocs[method])
			}
		})
	}
}

func BenchmarkWholePath(b *testing.B) {
	for method, serve := range wholePath(b) {
		b.Run(method, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				serve()
			}
		})
	}
}

// listingOf returns a store's listing of n single-PUT objects.
func listingOf(n int) []byte {
	var doc strings.Builder
	doc.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n" +
		`<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix></Prefix>` +
		`<KeyCount>1000</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>`)
	for i := range n {
		fmt.Fprintf(&doc, `<Contents><Key>dir/object-%06d</Key><LastModified>2026-11-30T09:00:00.000Z</LastModified>`+
			`<ETag>&quot;%032x&quot;</ETag><Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>`, i, i, 4096+56)
	}
	doc.WriteString(`</ListBucketResult>`)
	return []byte(doc.String())
}

// wholePath returns, by method, functions that serve a PUT and a GET of one
// object of 4 KiB without the network. Their signatures are valid for 15
// minutes.
func wholePath(t testing.TB, options ...option) map[string]func() {
	p := newProxy(t, options...)
	path, text := "/"+p.bucket+"/k", randomText(4096)
	cfg := proxytest.OriginConfig(&memoryStore{list: listingOf(1000)})
	cfg.Uploads = origin.Always(origin.Uploads{}) // the store does not know trailers
	cfg.Transport = &tracing.StoreTransport{Next: cfg.Transport}
	p.origin.next = origin.New(cfg)
	out := make(map[string]func())

	for name, r := range map[string]request{
		"PUT": {method: "PUT", path: path, body: text}, "GET": {method: "GET", path: path},
		"HEAD": {method: "HEAD", path: path}, "LIST": {method: "GET", path: "/" + p.bucket + "?list-type=2"},
	} {
		signed := p.sign(r)
		signed.RequestURI, signed.RemoteAddr, signed.URL = r.path, "127.0.0.1:1", must(url.Parse(r.path))
		out[name] = func() {
			again := signed.Clone(t.Context())
			again.Body = io.NopCloser(bytes.NewReader(r.body))
			w := httptest.NewRecorder()
			p.server.Config.Handler.ServeHTTP(w, again)
			if w.Code != http.StatusOK {
				t.Fatalf("%s: %d %s", name, w.Code, w.Body)
			}
		}
	}

	out["PUT"]() // so that there is an object to GET
	return out
}

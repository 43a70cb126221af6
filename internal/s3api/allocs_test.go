package s3api_test

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// memoryStore accepts PUT, and answers GET with the object that was stored
// last. It costs almost nothing, so the allocations counted are the proxy's.
type memoryStore struct {
	header http.Header
	body   []byte
}

func (m *memoryStore) RoundTrip(r *http.Request) (*http.Response, error) {
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: r}
	if r.Method == http.MethodPut {
		var err error
		if m.body, err = io.ReadAll(r.Body); err != nil {
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

	resp.Header, resp.Body, resp.ContentLength = m.header.Clone(), io.NopCloser(
		bytes.NewReader(m.body),
	), int64(
		len(m.body),
	)
	return resp, nil
}

// maxAllocs limits the allocations of the proxy for a PUT and a GET of 4
// KiB. When this was written, they took 395 and 273.
var maxAllocs = map[string]float64{"PUT": 410, "GET": 290}

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

// wholePath returns, by method, functions that serve a PUT and a GET of one
// object of 4 KiB without the network. Their signatures are valid for 15
// minutes.
func wholePath(t testing.TB) map[string]func() {
	p := newProxy(t)
	path, text := "/"+p.bucket+"/k", randomText(4096)
	p.origin.next = &memoryStore{}
	out := make(map[string]func())

	for _, r := range []request{{method: "PUT", path: path, body: text}, {method: "GET", path: path}} {
		signed := p.sign(r)
		signed.RequestURI, signed.RemoteAddr, signed.URL = path, "127.0.0.1:1", &url.URL{Path: path}
		out[r.method] = func() {
			again := signed.Clone(t.Context())
			again.Body = io.NopCloser(bytes.NewReader(r.body))
			w := httptest.NewRecorder()
			p.server.Config.Handler.ServeHTTP(w, again)
			if w.Code != http.StatusOK {
				t.Fatalf("%s: %d %s", r.method, w.Code, w.Body)
			}
		}
	}

	out["PUT"]() // so that there is an object to GET
	return out
}

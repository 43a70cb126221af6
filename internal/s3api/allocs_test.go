package s3api_test

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// memoryStore answers PUT, and GET with the object that was put last. It costs
// next to nothing, so that what is counted is the proxy's.
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
			if len(name) > 11 && name[:11] == "X-Amz-Meta-" {
				m.header[name] = values
			}
		}
		resp.Header.Set("Etag", m.header.Get("Etag"))
		return resp, nil
	}
	resp.Header, resp.Body, resp.ContentLength = m.header.Clone(), io.NopCloser(bytes.NewReader(m.body)), int64(len(m.body))
	return resp, nil
}

// BenchmarkWholePath is one PUT and one GET of 4 KiB, without the network: what
// the proxy allocates for a request.
func BenchmarkWholePath(b *testing.B) {
	p := newProxy(b)
	text := randomText(4096)
	p.origin.next = &memoryStore{}
	path := "/" + p.bucket + "/k"
	for _, r := range []request{{method: "PUT", path: path, body: text}, {method: "GET", path: path}} {
		b.Run(r.method, func(b *testing.B) {
			signed := p.sign(r)
			signed.RequestURI, signed.URL = path, signed.URL.JoinPath()
			signed.URL.Opaque, signed.URL.Path, signed.URL.Scheme, signed.URL.Host = "", path, "", ""
			signed.RemoteAddr = "127.0.0.1:1"
			handler := p.server.Config.Handler
			began := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				if time.Since(began) > time.Minute { // a signature is good for 15 minutes
					b.Fatal("the benchmark runs too long")
				}
				again := signed.Clone(b.Context())
				again.Body = io.NopCloser(bytes.NewReader(r.body))
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, again)
				if w.Code != http.StatusOK {
					b.Fatalf("%d %s", w.Code, w.Body)
				}
			}
		})
	}
}

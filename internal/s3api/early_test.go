package s3api_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// A store may refuse an upload before it has read the body. The client gets
// that answer, and not that of a connection that broke.
func TestAnUploadThatTheStoreRefusesEarly(t *testing.T) {
	p := newProxy(t)
	p.put("exists", []byte("text"))
	exists := "/" + p.bucket + "/exists"
	part := exists + "?partNumber=1&uploadId=0d8dc1ad-2fb9-4a5e-9c62-0b7a7a7b8f55"
	const tries = 20

	for _, size := range []int{4 << 10, 256 << 10, 2 << 20} {
		for _, row := range []struct {
			name, path, code string
			header           http.Header
			status           int
		}{
			{"condition", exists, "PreconditionFailed", http.Header{"If-None-Match": {"*"}}, http.StatusPreconditionFailed},
			{"no bucket", "/no-such-bucket-here/k", "NoSuchBucket", nil, http.StatusNotFound},
			{"no upload", part, "NoSuchUpload", nil, http.StatusNotFound},
		} {
			t.Run(row.name+" "+strconv.Itoa(size), func(t *testing.T) {
				body := make([]byte, size)
				for range tries {
					r := request{method: http.MethodPut, path: row.path, header: row.header, body: body, hash: "UNSIGNED-PAYLOAD"}
					if a := p.send(r); a.StatusCode != row.status || a.Code != row.code {
						t.Fatalf("%d %s", a.StatusCode, a.body)
					}
				}
			})
		}
	}
	if text := p.mustGet("exists"); string(text) != "text" {
		t.Errorf("it was changed: %.20q", text)
	}
}

// A success before the store has the whole body is none: it cannot have
// stored it.
func TestASuccessBeforeTheWholeBodyIsAnError(t *testing.T) {
	p := newProxy(t)
	m := p.create("target")
	accept := func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Etag", `"0"`) }
	server := httptest.NewServer(http.HandlerFunc(accept)) // net/http answers without reading a long body
	t.Cleanup(server.Close)
	endpoint, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := origin.NewTransport(origin.TransportConfig{ResponseTimeout: time.Minute})
	t.Cleanup(transport.CloseIdleConnections)
	cfg := proxytest.OriginConfig(transport)
	cfg.Endpoint = endpoint
	p.origin.next = origin.New(cfg)

	for _, row := range []struct{ name, path string }{
		{"object", "/" + p.bucket + "/k"},
		{"part", "/" + p.bucket + "/target?partNumber=1&uploadId=" + m.id},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := p.send(request{method: http.MethodPut, path: row.path, body: make([]byte, 8<<20)})
			if a.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
		})
	}
}

package s3api_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
)

// Some HTTP clients send a body with GET or DELETE. It means nothing, is
// verified, and does not reach the store.
func TestABodyThatMeansNothing(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("text"))
	p.put("gone", []byte("text"))
	taken := p.record()
	body := []byte(`{"not": "used"}`)
	long := bytes.Repeat([]byte("x"), 64<<10+1)
	key, gone, other := "/"+p.bucket+"/k", "/"+p.bucket+"/gone", strings.Repeat("0", 64)

	for _, row := range []struct {
		name   string
		r      request
		status int
	}{
		{"GET", request{method: http.MethodGet, path: key, body: body}, http.StatusOK},
		{"GET, not hashed", request{method: http.MethodGet, path: key, body: body, hash: "UNSIGNED-PAYLOAD"}, http.StatusOK},
		{"GET of a listing", request{method: http.MethodGet, path: "/" + p.bucket + "?list-type=2", body: body}, http.StatusOK},
		{"GET, with another hash", request{method: http.MethodGet, path: key, body: body, hash: other}, http.StatusBadRequest},
		{"GET, too long", request{method: http.MethodGet, path: key, body: long}, http.StatusBadRequest},
		{"DELETE, with another hash", request{method: http.MethodDelete, path: gone, body: body, hash: other}, http.StatusBadRequest},
		{"DELETE", request{method: http.MethodDelete, path: gone, body: body}, http.StatusNoContent},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.name == "DELETE" && !p.isStored("gone") {
				t.Error("it was deleted by a request that was refused")
			}
			if a := p.send(row.r); a.StatusCode != row.status {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
			for _, r := range taken() {
				if r.ContentLength != 0 {
					t.Errorf("%s %s has a body of %d bytes", r.Method, r.URL, r.ContentLength)
				}
			}
		})
	}
}

// The decoded length of a plain payload changes nothing.
func TestADecodedLengthOfAPlainPayload(t *testing.T) {
	p := newProxy(t)
	for _, hash := range []string{"", "UNSIGNED-PAYLOAD"} {
		a := p.send(request{
			method: http.MethodPut, path: "/" + p.bucket + "/k", body: []byte("text"), hash: hash,
			header: http.Header{"X-Amz-Decoded-Content-Length": {"4"}},
		})
		if a.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", a.StatusCode, a.body)
		}
		if text := p.mustGet("k"); string(text) != "text" {
			t.Errorf("%q", text)
		}
	}
}

// Some clients return what ListParts has said of a part.
func TestACompletionWithSizes(t *testing.T) {
	p := newProxy(t)
	m := p.create("k")
	m.send(1, []byte("text"))
	document := bytes.Replace(m.document(), []byte("</Part>"), []byte("<Size>4</Size></Part>"), 1)
	if !bytes.Contains(document, []byte("<Size>")) {
		t.Fatalf("%s", document)
	}

	a := p.send(request{method: http.MethodPost, path: "/" + p.bucket + "/k?uploadId=" + m.id, body: document})
	if a.StatusCode != http.StatusOK || string(p.mustGet("k")) != "text" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

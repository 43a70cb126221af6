package s3api_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// An empty object whose key ends in "/" has no body in the store; in this
// store, it is a directory.
func TestDirectoryMarkers(t *testing.T) {
	p := newProxy(t)
	p.put("dir/", nil, func(in *s3.PutObjectInput) { in.Metadata = map[string]string{"mine": "1"} })
	p.put("dir/file", []byte("text"))
	if body, _ := p.stored("dir/"); len(body) != 0 {
		t.Errorf("stored with %d bytes", len(body))
	}

	got, out, err := p.get("dir/")
	if err != nil || len(got) != 0 || *out.ContentLength != 0 || out.Metadata["mine"] != "1" || out.SSEKMSKeyId == nil {
		t.Errorf("GET: %d bytes, %+v, %v", len(got), out, err)
	}
	if size := p.listed("dir/"); size != 0 {
		t.Errorf("listed with %d bytes", size)
	}

	if a := p.send(request{method: "HEAD", path: "/" + p.bucket + "/dir/"}); a.StatusCode != 200 ||
		a.ContentLength != 0 {
		t.Errorf("HEAD: %d, %d bytes", a.StatusCode, a.ContentLength)
	}

	for spec, want := range map[string]int{"bytes=0-0": 416, "bytes=-0": 416, "bytes=5-": 416, "bytes=-1": 200} {
		t.Run(spec, func(t *testing.T) {
			if a := p.send(request{
				method: "GET", path: "/" + p.bucket + "/dir/", header: http.Header{"Range": {spec}},
			}); a.StatusCode != want {
				t.Errorf("%d %s", a.StatusCode, a.Code)
			}
		})
	}

	p.mustCopy("dir/", "copy/")
	if got, _, err := p.get("copy/"); err != nil || len(got) != 0 {
		t.Errorf("a copy: %q, %v", got, err)
	}

	// The end of the client's body is verified anyway.
	header := http.Header{
		"X-Amz-Content-Sha256":         {"STREAMING-UNSIGNED-PAYLOAD-TRAILER"},
		"X-Amz-Decoded-Content-Length": {"0"},
		"X-Amz-Trailer":                {"x-amz-checksum-crc32"},
	}

	bad := request{
		method: "PUT",
		path:   "/" + p.bucket + "/bad/",
		header: header,
		body:   []byte("0\r\nx-amz-checksum-crc32:AAAABB==\r\n\r\n"),
		hash:   "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
	}
	if a := p.send(bad); a.StatusCode != 400 || p.isStored("bad/") {
		t.Errorf("a checksum that is wrong: %d %s", a.StatusCode, a.Code)
	}

	// An object with content is not taken for an empty one if its body is
	// removed.
	p.put("full", []byte("text"))
	_, metadata := p.stored("full")
	p.store("full", nil, metadata)

	if a := p.send(request{method: "GET", path: "/" + p.bucket + "/full"}); a.Code != "ObjectIntegrityError" {
		t.Errorf("without its body: %d %s", a.StatusCode, a.Code)
	}

	// The envelope of an empty object is not valid for another object.
	_, metadata = p.stored("dir/")
	p.store("moved", nil, metadata)
	if a := p.send(request{method: "GET", path: "/" + p.bucket + "/moved"}); a.Code != "ObjectIntegrityError" {
		t.Errorf("an empty object that was moved: %d %s", a.StatusCode, a.Code)
	}

	if bytes.Contains([]byte(strings.ToLower(p.log.String())), []byte("panic")) {
		t.Error("a panic")
	}
}

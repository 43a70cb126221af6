package s3api_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/access"
)

// The JavaScript SDK puts x-amz-copy-source and its like into the query of a
// presigned URL.
func TestPresignedCopy(t *testing.T) {
	p := newProxy(t)
	text := randomText(1000)
	put := p.put("a b+c", text)
	source := "&x-amz-copy-source=" + url.QueryEscape(p.bucket+"/a%20b%2Bc")
	m := p.create("parts")

	for name, row := range map[string]struct {
		key, query string
		header     http.Header
		unsigned   bool // the query is not signed: the request has a signature in its header
		status     int
	}{
		"copy":               {key: "copy", query: source, status: 200},
		"in capital letters": {key: "copy", query: strings.Replace(source, "x-amz", "X-Amz", 1), status: 200},
		"with a condition": {
			key: "copy", query: source + "&x-amz-copy-source-if-match=" + url.QueryEscape(*put.ETag), status: 200,
		},
		"with a condition that does not hold": {
			key: "copy", query: source + "&x-amz-copy-source-if-match=%22other-0%22", status: 412,
		},
		"part": {
			key: "parts", query: "&partNumber=1&uploadId=" + m.id + source + "&x-amz-copy-source-range=bytes%3D0-99", status: 200,
		},
		"no source": {key: "copy", query: "&x-amz-copy-source=", status: 400},
		"two sources": {
			key: "copy", query: source + "&X-Amz-Copy-Source=" + p.bucket + "%2Fother", status: 400,
		},
		"the same in the header": {
			key: "copy", query: source, header: http.Header{"X-Amz-Copy-Source": {p.bucket + "/a%20b%2Bc"}}, status: 200,
		},
		"another in the header": {
			key: "copy", query: source, header: http.Header{"X-Amz-Copy-Source": {p.bucket + "/other"}}, status: 400,
		},
		"a key of the source in the URL": {
			key: "copy", query: source + "&x-amz-copy-source-server-side-encryption-customer-key=a", status: 501,
		},
		"signed in the header":                     {key: "copy", query: source, unsigned: true, status: 501},
		"signed in the header, with a signature":   {key: "copy", query: source + "&X-Amz-Signature=0", unsigned: true, status: 400},
		"not of a source that cannot be read here": {key: "copy", query: "&x-amz-copy-source=other%2F..%2Fx", status: 400},
	} {
		t.Run(name, func(t *testing.T) {
			p.storeDo(http.MethodDelete, "copy", nil, nil)
			path := "/" + p.bucket + "/" + row.key + "?X-Amz-Expires=60" + row.query
			r := request{method: http.MethodPut, path: path, header: row.header, presign: !row.unsigned}
			req := p.sign(r)
			if r.presign && row.header != nil {
				req = p.signInURL(path, row.header, nil)
			}

			resp, err := p.server.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != row.status {
				t.Errorf("%d, want %d", resp.StatusCode, row.status)
			}
			if p.isStored("copy") != (row.status == 200 && row.key == "copy") {
				t.Errorf("%d, and there is a copy: %v", resp.StatusCode, p.isStored("copy"))
			}
			if p.isStored("copy") && string(p.mustGet("copy")) != string(text) {
				t.Error("the copy is not the source")
			}
		})
	}
}

// The signature covers the source in the query, and the client needs a grant
// to read it.
func TestPresignedCopyIsAuthorized(t *testing.T) {
	p := newProxy(t, withClients(own(access.Write)))
	p.put("source", []byte("text"))
	target := p.newBucket("logs-")
	path := "/" + target + "/copy?X-Amz-Expires=60&x-amz-copy-source=" + p.bucket + "%2Fsource"

	signed := p.sign(request{method: http.MethodPut, path: path, presign: true}).URL.String()
	altered := strings.Replace(signed, "%2Fsource", "%2Fother", 1)
	if altered == signed {
		t.Fatal(signed)
	}
	if resp, body := p.unsigned(http.MethodPut, strings.TrimPrefix(altered, p.url), nil); resp.StatusCode != 403 {
		t.Errorf("another source than signed: %d %s", resp.StatusCode, body)
	}

	a := p.send(request{
		method: http.MethodPut, path: path, presign: true, accessKey: readerAccess, secret: readerSecret,
	})
	if a.StatusCode != 403 {
		t.Errorf("without a grant: %d %s", a.StatusCode, a.body)
	}
}

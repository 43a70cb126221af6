package s3api_test

import (
	"net/http"
	"strings"
	"testing"
)

// A request that fits no operation of S3 gets S3's answer, signed or not. The
// answer is the same for a bucket that does not exist.
func TestMisplaced(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("text"))
	source := http.Header{"X-Amz-Copy-Source": {p.bucket + "/k"}}
	const onlyCopies = "<Message>You can only specify a copy source header for copy requests.</Message>" +
		"<ArgumentName>x-amz-copy-source</ArgumentName>"

	for _, row := range []struct {
		name, method, path string // without the bucket; "-" for the service
		header             http.Header
		status             int
		text               string
	}{
		{"POST of the service", "POST", "-", nil, 405, "<Method>POST</Method><ResourceType>SERVICE</ResourceType>"},
		{"HEAD of the service", "HEAD", "-", nil, 405, ""},
		{"POST of an object", "POST", "/k", nil, 405, "<Method>POST</Method><ResourceType>OBJECT</ResourceType>"},
		{
			"uploads of an object", "GET", "/k?uploads", nil, 400,
			"<Code>InvalidRequest</Code><Message>Key is not expected for the GET method ?uploads subresource</Message>",
		},
		{
			"versions of an object", "GET", "/k?versions", nil, 400,
			"<Code>InvalidRequest</Code><Message>There is no such thing as the ?versions sub-resource for a key</Message>",
		},
		{
			"a part without an upload", "PUT", "/k?partNumber=1", nil, 400,
			"<Message>This operation does not accept partNumber without uploadId</Message>" +
				"<ArgumentName>partNumber</ArgumentName><ArgumentValue>partNumber</ArgumentValue>",
		},
		{
			"an upload without a part", "PUT", "/k?uploadId=a", nil, 405,
			"<Method>PUT</Method><ResourceType>UPLOAD</ResourceType>",
		},
		{"a source of GET", "GET", "/k", source, 400, onlyCopies},
		{"a source of HEAD", "HEAD", "/k", source, 400, ""},
		{"a source of DELETE", "DELETE", "/k", source, 400, onlyCopies},
		{"a source of a listing", "GET", "", source, 400, onlyCopies},
		{"a source of a completion", "POST", "/k?uploadId=a", source, 400, onlyCopies},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, bucket := range []string{"/" + p.bucket, "/no-such-bucket"} {
				path := strings.TrimPrefix(bucket+row.path, bucket+"-")
				if path == "" {
					path = "/"
				}

				a := p.send(request{method: row.method, path: path, header: row.header})
				resp, body := p.unsigned(row.method, path, row.header)
				for name, got := range map[string]answer{
					"signed": a, "unsigned": {Response: resp, body: []byte(body)},
				} {
					if got.StatusCode != row.status || !strings.Contains(string(got.body), row.text) {
						t.Errorf("%s: %d %s", name, got.StatusCode, got.body)
					}
					if (got.Header.Get("Allow") != "") != (row.status == http.StatusMethodNotAllowed) {
						t.Errorf("%s: allowed is %q", name, got.Header.Get("Allow"))
					}
				}
			}
		})
	}

	if string(p.mustGet("k")) != "text" {
		t.Error("the object has changed")
	}
}

// What is in its place still needs a signature.
func TestPlacedNeedsASignature(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("text"))
	for _, row := range []struct{ method, path string }{
		{"GET", "/"},
		{"GET", "/k"},
		{"HEAD", "/k"},
		{"DELETE", "/k"},
		{"PUT", "/k"},
		{"GET", "?uploads"},
		{"GET", "?versions"},
		{"POST", "/k?uploads"},
		{"POST", "/k?uploadId=a"},
		{"PUT", "/k?partNumber=1&uploadId=a"},
		{"POST", "/k?unheard-of"},
		{"GET", "/k?uploadId=a"},
	} {
		t.Run(row.method+" "+row.path, func(t *testing.T) {
			path := "/" + p.bucket + row.path
			if row.path == "/" {
				path = "/"
			}
			if resp, body := p.unsigned(row.method, path, nil); resp.StatusCode != http.StatusForbidden {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
		})
	}
}

// An unsigned link cannot choose response headers, whether or not there is a
// client that does not sign.
func TestUnsignedOverrides(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("text"))
	for _, method := range []string{"GET", "HEAD"} {
		resp, body := p.unsigned(method, "/"+p.bucket+"/k?response-content-type=text/html", nil)
		if resp.StatusCode != http.StatusBadRequest || method == "GET" && !strings.Contains(body,
			"<Code>InvalidRequest</Code><Message>Request specific response headers cannot be used for anonymous GET requests.") {
			t.Errorf("%s: %d %s", method, resp.StatusCode, body)
		}
	}
}

// Names that no header can have are told apart from names that the store does
// not allow. The answer to the latter is the same for every bucket.
func TestPreflightNames(t *testing.T) {
	p := newProxy(t)
	var answers []string
	for _, bucket := range []string{p.bucket, "no-such-bucket"} {
		for _, bad := range []string{"invalid header", "X(Custom)", " Bad/Header", "tab\tchar"} {
			resp, body := p.unsigned("OPTIONS", "/"+bucket+"/k", preflight(page, "GET", "Date,"+bad))
			if resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "contains invalid character.") {
				t.Errorf("%q: %d %s", bad, resp.StatusCode, body)
			}
		}

		_, body := p.unsigned("OPTIONS", "/"+bucket+"/k", preflight(page, "GET", "date, x-amz-date"))
		before, _, _ := strings.Cut(body, "<Resource>")
		answers = append(answers, before)
	}
	if answers[0] != answers[1] || !strings.Contains(answers[0], "AccessForbidden") {
		t.Errorf("%q", answers)
	}
}

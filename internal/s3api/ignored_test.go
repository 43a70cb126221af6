package s3api_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// ignoredExample is a request with names that have no effect.
type ignoredExample struct {
	method, path string // the path after the bucket, without the names
	query        string
	header       http.Header
	body         string
}

// ignoredExamples has examples of each row of the table of names without an
// effect.
var ignoredExamples = map[s3api.IgnoredRow][]ignoredExample{
	{In: "header", Names: "unknown", Ops: "GET and HEAD"}: {
		{method: "GET", path: "/k", header: http.Header{"X-Amz-Te": {"append-md5"}}},
		{method: "GET", path: "/k", header: http.Header{"X-Amz-Twice": {"a", "b"}}},
		{method: "HEAD", path: "/k", header: http.Header{"X-Amz-Unheard-Of": {"a"}}},
		{method: "GET", path: "/k?tagging", header: http.Header{"X-Amz-Unheard-Of": {"a"}}},
		{method: "GET", path: "?list-type=2", header: http.Header{"X-Amz-Unheard-Of": {"a"}}},
		{method: "GET", path: "?versions", header: http.Header{"X-Amz-Unheard-Of": {"a"}}},
	},
	{In: "header", Names: "x-amz-api-version", Ops: "every operation"}: inEveryKind("X-Amz-Api-Version", "2006-03-01"),
	{In: "header", Names: "x-amz-cf-id", Ops: "every operation"}:       inEveryKind("X-Amz-Cf-Id", "abc=="),
	{In: "query", Names: "unknown", Ops: "GetObject HeadObject"}: {
		{method: "GET", path: "/k", query: "v=1.2.3"},
		{method: "GET", path: "/k", query: "1475278069"},
		{method: "GET", path: "/k", query: "=x"},
		{method: "GET", path: "/k", query: "v=1&v=2&utm_source=a%20b"},
		{method: "HEAD", path: "/k", query: "v=1"},
		{method: "GET", path: "/k", query: "X-Amz-Cf-Id=abc"},
		// Of other operations, where the proxy would check their values.
		{method: "GET", path: "/k", query: "id=../../x&prefix=../x&marker=../y"},
		{method: "GET", path: "/k", query: "upload-id-marker=none"},
	},
	{In: "query", Names: "list-type=1 start-after", Ops: "ListObjects"}: {
		{method: "GET", query: "list-type=1"},
		{method: "GET", query: "start-after=z"},
		{method: "GET", query: "list-type=1&start-after=../z"},
	},
	{In: "query", Names: "metadata unsorted", Ops: "ListObjectsV2 ListObjects ListObjectVersions"}: {
		{method: "GET", path: "?list-type=2", query: "metadata=true"},
		{method: "GET", query: "metadata=true&unsorted=true"},
		{method: "GET", path: "?versions", query: "unsorted=true"},
	},
}

func inEveryKind(name, value string) []ignoredExample {
	h := http.Header{name: {value}}
	return []ignoredExample{
		{method: "GET", path: "/k", header: h},
		{method: "HEAD", path: "/k", header: h},
		{method: "PUT", path: "/new", header: h, body: "text"},
		{method: "PUT", path: "/k?tagging", header: h, body: "<Tagging><TagSet></TagSet></Tagging>"},
		{method: "POST", path: "/new?uploads", header: h},
		{method: "POST", path: "?delete", header: h, body: "<Delete><Object><Key>none</Key></Object></Delete>"},
		{method: "DELETE", path: "/none", header: h},
		{method: "GET", path: "?list-type=2", header: h},
	}
}

// A name without an effect changes neither what the store gets nor what the
// client gets, with a signature in the header or in the URL.
func TestIgnored(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("text"))

	for _, row := range s3api.IgnoredRows() {
		if row.In == "presigned URL" {
			continue // TestChecksumInURL
		}
		examples := ignoredExamples[row]
		if len(examples) == 0 {
			t.Errorf("%+v has no example", row)
		}

		for _, e := range examples {
			for _, presign := range []bool{false, true} {
				name := fmt.Sprintf("%s %s %v %s%s presigned=%v", e.method, e.path, e.header, row.In, e.query, presign)
				t.Run(name, func(t *testing.T) {
					want, got := p.exchange(ignoredExample{method: e.method, path: e.path, body: e.body}, presign),
						p.exchange(e, presign)
					if got != want {
						t.Errorf("%s\nwithout it:\n%s", got, want)
					}
					if strings.HasPrefix(want, "4") || strings.HasPrefix(want, "5") {
						t.Errorf("the example is refused anyway: %s", want)
					}
				})
			}
		}
	}

	for row := range ignoredExamples {
		if !slices.Contains(s3api.IgnoredRows(), row) {
			t.Errorf("the example of %+v has no row", row)
		}
	}
}

// exchange sends a request, and returns what the store got and what the
// client got, without what differs every time.
func (p *proxy) exchange(e ignoredExample, presign bool) string {
	p.t.Helper()
	var out strings.Builder
	p.origin.condition = func(r *http.Request) {
		names := slices.DeleteFunc(slices.Sorted(maps.Keys(r.Header)), func(name string) bool {
			return strings.HasPrefix(name, "X-Amz-Meta-Cmek")
		})
		fmt.Fprintf(&out, "store: %s %s?%s %s\n", r.Method, r.URL.Path, r.URL.RawQuery, strings.Join(names, " "))
	}
	defer func() { p.origin.condition = nil }()

	r := request{method: e.method, path: "/" + p.bucket + e.path, header: e.header, presign: presign}
	if e.body != "" {
		r.body = []byte(e.body)
	}
	more := []string{e.query}
	if presign {
		more = append(more, "X-Amz-Expires=60")
		r.header = nil
		for name, values := range e.header {
			more = append(more, strings.ToLower(name)+"="+url.QueryEscape(values[0]))
		}
	}

	for _, parameter := range more {
		if parameter != "" {
			r.path += map[bool]string{true: "&", false: "?"}[strings.Contains(r.path, "?")] + parameter
		}
	}
	a := p.send(r)
	if e.method == "POST" && strings.Contains(e.path, "uploads") {
		a.body = nil // the id
	}
	return fmt.Sprintf("%d %s\n%s%s", a.StatusCode, a.Code, out.String(), a.body)
}

// What another operation of S3 has is refused, and so is what a write does
// not have.
func TestKnownNamesAreNotIgnored(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("x"))
	unheard := http.Header{"X-Amz-Unheard-Of": {"a"}}
	for _, row := range []struct {
		method, path string
		header       http.Header
		code         string
	}{
		{"GET", "/k?torrent", nil, "NotImplemented"},
		{"GET", "/k?policy", nil, "NotImplemented"},
		{"GET", "/k?uploads", nil, "InvalidRequest"},
		{"GET", "/k?versions", nil, "InvalidRequest"},
		{"GET", "/k?list-type=2", nil, "NotImplemented"},
		{"GET", "/k?select&select-type=2", nil, "NotImplemented"},
		{"GET", "/k?renameObject", nil, "NotImplemented"},
		{"GET", "/k?annotation", nil, "NotImplemented"},
		{"GET", "/k?v=1&encryption", nil, "NotImplemented"},
		{"HEAD", "/k?acl", nil, ""},
		{"HEAD", "/k?uploadId=u", nil, ""},
		{"GET", "/k?x-amz-server-side-encryption-customer-key=a", nil, "NotImplemented"},
		{"GET", "/k?v=1&versionId=a&versionId=b", nil, "InvalidArgument"},
		{"GET", "/k?attributes&v=1", nil, "NotImplemented"},
		{"GET", "/k?tagging&v=1", nil, "NotImplemented"},
		{"GET", "?list-type=3", nil, "NotImplemented"},
		{"GET", "?list-type=1&list-type=1", nil, "NotImplemented"},
		{"GET", "?list-type=2&v=1", nil, "NotImplemented"},
		{"GET", "?v=1", nil, "NotImplemented"},
		{"PUT", "/k?v=1", nil, "NotImplemented"},
		{"PUT", "/k?x-amz-checksum-crc32=AAAAAA%3D%3D", nil, "NotImplemented"},
		{"POST", "/k?uploads&v=1", nil, "NotImplemented"},
		{"DELETE", "/k?v=1", nil, "NotImplemented"},
		{"PUT", "/k", unheard, "NotImplemented"},
		{"POST", "/k?uploads", unheard, "NotImplemented"},
		{"POST", "?delete", unheard, "NotImplemented"},
		{"DELETE", "/k", unheard, "NotImplemented"},
		{"GET", "/k", http.Header{"X-Amz-Server-Side-Encryption": {"aws:kms"}}, "NotImplemented"},
		{"GET", "/k", http.Header{"X-Amz-Write-Offset-Bytes": {"1"}}, "NotImplemented"},
		{"GET", "/k", http.Header{"X-Amz-Copy-Source": {"a/b"}}, "InvalidArgument"},
		{"GET", "/k", http.Header{"X-Amz-Checksum-Unheard-Of": {"a"}}, "InvalidRequest"},
		{
			"GET", "/k?tagging", http.Header{"X-Amz-Server-Side-Encryption-Customer-Key": {"a"}}, "NotImplemented",
		},
	} {
		for _, presign := range []bool{false, true} {
			if presign && (row.header != nil || strings.Contains(row.path, "x-amz-checksum")) {
				continue // the signer puts headers into the query; see TestHoistedUnknown
			}
			t.Run(fmt.Sprintf("%s %s %v presigned=%v", row.method, row.path, row.header, presign), func(t *testing.T) {
				p.origin.take()
				path := "/" + p.bucket + row.path
				if presign {
					path += "&X-Amz-Expires=60"
				}

				a := p.send(request{method: row.method, path: path, header: row.header, presign: presign})
				if a.StatusCode < 400 || a.Code != row.code {
					t.Errorf("%d %s, want %s", a.StatusCode, a.Code, row.code)
				}
				if sent := p.origin.take(); len(sent) > 0 {
					t.Errorf("the store got %q", sent)
				}
			})
		}
	}

	if string(p.mustGet("k")) != "x" {
		t.Error("the object was changed")
	}
}

// Signers put x-amz- headers into the query of a presigned URL.
func TestHoistedUnknown(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("x"))
	for method, status := range map[string]int{"GET": 200, "HEAD": 200, "PUT": 501, "DELETE": 501} {
		t.Run(method, func(t *testing.T) {
			path := "/" + p.bucket + "/k?X-Amz-Expires=60&X-Amz-Unheard-Of=a"
			if a := p.send(request{method: method, path: path, presign: true}); a.StatusCode != status {
				t.Errorf("%d %s, want %d", a.StatusCode, a.Code, status)
			}
		})
	}
}

// The signature covers what has no effect.
func TestIgnoredIsSigned(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("x"))
	signed := p.sign(request{method: "GET", path: "/" + p.bucket + "/k?X-Amz-Expires=60&v=1", presign: true}).URL.String()

	for name, row := range map[string]struct {
		url    string
		header http.Header
		status int
	}{
		"as signed":           {signed, nil, 200},
		"altered":             {strings.Replace(signed, "v=1", "v=2", 1), nil, 403},
		"removed":             {strings.Replace(signed, "v=1", "", 1), nil, 403},
		"added":               {signed + "&w=1", nil, 403},
		"an unsigned header":  {signed, http.Header{"X-Amz-Unheard-Of": {"a"}}, 403},
		"an unsigned version": {signed, http.Header{"X-Amz-Api-Version": {"2006-03-01"}}, 403},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := p.unsigned("GET", strings.TrimPrefix(row.url, p.url), row.header)
			if resp.StatusCode != row.status {
				t.Errorf("%d %s, want %d", resp.StatusCode, body, row.status)
			}
		})
	}
}

func TestIgnoredByAnonymous(t *testing.T) {
	p := newProxy(t, withClients(access.Client{Name: "everybody", Anonymous: true, Allow: []access.Grant{
		{Buckets: []string{"test-*"}, Actions: []access.Action{access.Read}},
	}}))
	p.put("style.css", []byte("body{}"))

	for query, status := range map[string]int{
		"": 200, "?v=1.2.3": 200, "?1475278069": 200, "?utm_source=x": 200, "?policy": 501,
		"?v=1&response-content-type=text/html": 400, "?v=1&X-Amz-Signature=0": 400,
	} {
		t.Run(query, func(t *testing.T) {
			resp, body := p.unsigned("GET", "/"+p.bucket+"/style.css"+query, http.Header{"X-Amz-Cf-Id": {"abc"}})
			if resp.StatusCode != status || status == 200 && body != "body{}" {
				t.Errorf("%d %s, want %d", resp.StatusCode, body, status)
			}
		})
	}
}

// Names of ignored headers are in the log at debug. Values are not, nor are
// query parameters, whose name alone may be a secret.
func TestIgnoredIsLogged(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("x"))
	p.send(request{
		method: "GET", path: "/" + p.bucket + "/k?secret-in-query=1", header: http.Header{
			"X-Amz-Unheard-Of": {"secret-in-header"}, "X-Amz-Cf-Id": {"secret-of-cdn"},
		},
	})

	log := p.log.String()
	if !strings.Contains(log, `"headers":["x-amz-cf-id","x-amz-unheard-of"]`) {
		t.Errorf("the log does not name the headers: %s", log)
	}
	if strings.Contains(log, "secret-") {
		t.Errorf("the log has a secret: %s", log)
	}
}

// The JavaScript SDK signs the checksum of an empty body into the query of
// every presigned upload. S3 ignores a checksum there: it verifies, stores and
// returns none. PutObject gets the default one.
func TestChecksumInURL(t *testing.T) {
	p := newProxy(t)
	upload, err := p.client.CreateMultipartUpload(
		t.Context(), &s3.CreateMultipartUploadInput{Bucket: &p.bucket, Key: new("parts")},
	)
	if err != nil {
		t.Fatal(err)
	}

	part := "/parts?partNumber=1&uploadId=" + url.QueryEscape(*upload.UploadId) + "&"
	for _, row := range []struct{ name, path string }{
		{"PutObject", "/k?"},
		{"UploadPart", part},
	} {
		for name, query := range map[string]string{
			"of nothing":    "x-amz-checksum-crc32=AAAAAA%3D%3D&x-amz-sdk-checksum-algorithm=CRC32",
			"upper case":    "X-Amz-Checksum-Crc32=AAAAAA%3D%3D&X-Amz-Sdk-Checksum-Algorithm=CRC32",
			"two":           "x-amz-checksum-crc32=AAAAAA%3D%3D&x-amz-checksum-sha256=AAAA",
			"not a digest":  "x-amz-checksum-sha256=nonsense",
			"no header":     "x-amz-checksum-sha256=%0a",
			"SHA256, empty": "x-amz-checksum-sha256=" + url.QueryEscape(checksum(nil)),
		} {
			t.Run(row.name+" "+name, func(t *testing.T) {
				a := p.send(request{
					method: "PUT", path: "/" + p.bucket + row.path + "X-Amz-Expires=60&" + query,
					presign: true, body: []byte("hello"),
				})
				if a.StatusCode != http.StatusOK {
					t.Fatalf("%d %s", a.StatusCode, a.body)
				}
				if row.name == "UploadPart" {
					wantNoChecksum(t, a.Header)
				} else {
					wantDefault(t, a.Header, []byte("hello")) // as if there were none
				}
			})
		}
	}

	if string(p.mustGet("k")) != "hello" {
		t.Error("another object is stored")
	}
	a := p.send(request{method: "HEAD", path: "/" + p.bucket + "/k", header: withMode})
	wantDefault(t, a.Header, []byte("hello"))
}

// A checksum in a signed header is verified, whatever the query has.
func TestChecksumInHeaderAndURL(t *testing.T) {
	p := newProxy(t)
	for _, row := range []struct{ name, inURL, inHeader, code string }{
		{"right, and another in the URL", checksum(nil), checksum([]byte("hello")), ""},
		{"wrong, and the right one in the URL", checksum([]byte("hello")), checksum(nil), "BadDigest"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := p.signInURL("/"+p.bucket+"/k?X-Amz-Expires=60&x-amz-sdk-checksum-algorithm=CRC32&x-amz-checksum-sha256="+
				url.QueryEscape(row.inURL), http.Header{"X-Amz-Checksum-Sha256": {row.inHeader}}, []byte("hello"))
			resp, err := p.server.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()

			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if (resp.StatusCode == http.StatusOK) != (row.code == "") || !bytes.Contains(body, []byte(row.code)) {
				t.Errorf("%d %s, want %s", resp.StatusCode, body, row.code)
			}
			if got := resp.Header.Get("X-Amz-Checksum-Sha256"); row.code == "" && got != row.inHeader {
				t.Errorf("the answer has the checksum %q, want %q", got, row.inHeader)
			}
		})
	}
}

// signInURL returns a PUT with a presigned URL whose headers are signed as
// headers.
func (p *proxy) signInURL(path string, header http.Header, body []byte) *http.Request {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), http.MethodPut, p.url+path, bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header = header.Clone()

	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping, o.DisableHeaderHoisting = true, true })
	creds := aws.Credentials{AccessKeyID: clientAccess, SecretAccessKey: clientSecret}
	signed, _, err := signer.PresignHTTP(p.t.Context(), creds, r, "UNSIGNED-PAYLOAD", "s3", region, time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	if r.URL, err = url.Parse(signed); err != nil {
		p.t.Fatal(err)
	}
	return r
}

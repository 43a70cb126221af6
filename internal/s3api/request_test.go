package s3api_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

func TestSignatures(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("x"))
	path := "/" + p.bucket + "/k"
	for _, row := range []struct {
		name   string
		r      request
		status int
		code   string
	}{
		{"good", request{method: "GET", path: path}, 200, ""},
		{"wrong secret", request{method: "GET", path: path, secret: "another"}, 403, "SignatureDoesNotMatch"},
		{
			"replayed after 16 minutes",
			request{method: "GET", path: path, at: time.Now().Add(-16 * time.Minute)},
			403,
			"RequestTimeTooSkewed",
		},
		{
			"from the future",
			request{method: "GET", path: path, at: time.Now().Add(16 * time.Minute)},
			403,
			"RequestTimeTooSkewed",
		},
		{"good presigned", request{method: "GET", path: path + "?X-Amz-Expires=60", presign: true}, 200, ""},
		{"presigned HEAD", request{method: "HEAD", path: path + "?X-Amz-Expires=60", presign: true}, 200, ""},
		{
			"presigned PUT",
			request{method: "PUT", path: path + "-p?X-Amz-Expires=60", presign: true, body: []byte("y")},
			200,
			"",
		},
		{"presigned DELETE", request{method: "DELETE", path: path + "-p?X-Amz-Expires=60", presign: true}, 204, ""},
		{
			"presigned, expired",
			request{method: "GET", path: path + "?X-Amz-Expires=60", presign: true, at: time.Now().Add(-2 * time.Minute)},
			403,
			"AccessDenied",
		},
		{
			"presigned for 8 days",
			request{method: "GET", path: path + "?X-Amz-Expires=691200", presign: true},
			400,
			"AuthorizationQueryParametersError",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			if a := p.send(row.r); a.StatusCode != row.status || a.Code != row.code {
				t.Errorf("%d %s, want %d %s", a.StatusCode, a.Code, row.status, row.code)
			}
		})
	}

	if _, err := p.as("AKIANOBODY", "x").GetObject(t.Context(), &s3.GetObjectInput{
		Bucket: &p.bucket, Key: new("k"),
	}); code(err) != "InvalidAccessKeyId" {
		t.Errorf("unknown access key: %v", err)
	}
	resp, err := p.server.Client().Get(p.url + path)
	if err != nil {
		t.Fatal(err)
	}

	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("anonymous: %d", resp.StatusCode)
	}
}

func TestPresignedBySDK(t *testing.T) {
	p := newProxy(t)
	presign := s3.NewPresignClient(p.client)
	put, err := presign.PresignPutObject(t.Context(), &s3.PutObjectInput{Bucket: &p.bucket, Key: new("a b/ü+")})
	if err != nil {
		t.Fatal(err)
	}

	get, err := presign.PresignGetObject(
		t.Context(),
		&s3.GetObjectInput{Bucket: &p.bucket, Key: new("a b/ü+"), ResponseContentType: new("text/x-asked")},
	)
	if err != nil {
		t.Fatal(err)
	}

	do := func(method, url string, header http.Header, body string) (int, string, http.Header) {
		r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}

		for name, values := range header {
			if name != "Host" && name != "Content-Length" {
				r.Header[name] = values
			}
		}

		resp, err := p.server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()

		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text), resp.Header
	}
	if status, text, _ := do("PUT", put.URL, put.SignedHeader, "presigned"); status != 200 {
		t.Fatalf("PUT: %d %s", status, text)
	}

	if status, text, h := do("GET", get.URL, get.SignedHeader, ""); status != 200 || text != "presigned" ||
		h.Get("Content-Type") != "text/x-asked" {
		t.Errorf("GET: %d %s %s", status, text, h.Get("Content-Type"))
	}
	if status, _, _ := do("DELETE", get.URL, nil, ""); status != http.StatusForbidden {
		t.Errorf("a GET URL used for DELETE: %d", status)
	}

	if status, _, _ := do(
		"GET", strings.Replace(get.URL, "text%2Fx-asked", "text%2Fhtml", 1), nil, "",
	); status != http.StatusForbidden {
		t.Errorf("an altered override: %d", status)
	}
}

// The bucket may be in the host, below any of the domains s3.test,
// other.s3.test and test.
func TestVirtualHostStyle(t *testing.T) {
	p := newProxy(t)
	p.put("dir/k", []byte("virtual"))
	port := p.url[strings.LastIndex(p.url, ":"):]

	for _, row := range []struct{ host, path, want string }{
		{p.bucket + ".s3.test", "/dir/k", "virtual"},
		{p.bucket + ".s3.test" + port, "/dir/k", "virtual"},
		{p.bucket + ".s3.test.", "/dir/k", "virtual"},
		{p.bucket + ".S3.Test." + port, "/dir/k", "virtual"},
		{p.bucket + ".other.s3.test", "/dir/k", "virtual"},
		{p.bucket + ".test", "/dir/k", "virtual"},
		{"s3.test.", "/" + p.bucket + "/dir/k", "virtual"},
		{"other.s3.test", "/" + p.bucket + "/dir/k", "virtual"}, // and not the bucket other
		{"127.0.0.1", "/" + p.bucket + "/dir/k", "virtual"},
		{p.bucket + ".s3.test", "/" + p.bucket + "/dir/k", "NoSuchKey"},
		{p.bucket + ".nots3.tests", "/dir/k", "NoSuchBucket"},
		{".s3.test", "/dir/k", "InvalidBucketName"},
		{p.bucket + ".s3.test..", "/dir/k", "NoSuchBucket"}, // no domain
	} {
		t.Run(row.host+row.path, func(t *testing.T) {
			if resp, text := p.sendTo(row.host, http.MethodGet, row.path, nil); !strings.Contains(text, row.want) {
				t.Errorf("%d %s", resp.StatusCode, text)
			}
		})
	}
}

// URLs in answers are those that the client used.
func TestLocationOfVirtualHost(t *testing.T) {
	p := newProxy(t)
	host := p.bucket + ".s3.test"
	u := p.form("a b", []byte("x"))
	body, contentType := u.body()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	r.Header.Set("Content-Type", contentType)
	resp, err := p.server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Location"); got != "http://"+host+"/a%20b" {
		t.Errorf("%d, Location %q", resp.StatusCode, got)
	}
}

// sendTo sends a signed request with this Host header.
func (p *proxy) sendTo(host, method, path string, body io.Reader) (*http.Response, string) {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), method, p.url+path, body)
	if err != nil {
		p.t.Fatal(err)
	}
	r.Host = host
	r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
	creds := aws.Credentials{AccessKeyID: clientAccess, SecretAccessKey: clientSecret}
	if err := v4.NewSigner().SignHTTP(
		p.t.Context(), creds, r, "UNSIGNED-PAYLOAD", "s3", region, time.Now(),
	); err != nil {
		p.t.Fatal(err)
	}

	resp, err := p.server.Client().Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp, string(text)
}

// Stores have buckets whose names S3 does not allow for new ones. They can
// be reached, and not created.
func TestOldBucketNames(t *testing.T) {
	p := newProxy(t)
	for _, bucket := range []string{"My_Bucket", "UPPER", "a_b", "ends_", strings.Repeat("l", 255)} {
		t.Run(bucket, func(t *testing.T) {
			for _, path := range []string{"/" + bucket, "/" + bucket + "/k"} {
				p.origin.take()
				if a := p.send(request{method: "GET", path: path}); len(p.origin.take()) == 0 {
					t.Errorf("%s does not reach the store: %d %s", path, a.StatusCode, a.Code)
				}
			}

			p.origin.take()
			a := p.send(request{method: "PUT", path: "/" + bucket})
			if a.StatusCode != http.StatusBadRequest || a.Code != "InvalidBucketName" || len(p.origin.take()) > 0 {
				t.Errorf("creating it: %d %s", a.StatusCode, a.Code)
			}
		})
	}
}

// "/" has only ListBuckets.
func TestServiceMethods(t *testing.T) {
	p := newProxy(t)
	for _, method := range []string{"POST", "HEAD", "PUT", "DELETE", "OPTIONS"} {
		t.Run(method, func(t *testing.T) {
			a := p.send(request{method: method, path: "/"})
			if a.StatusCode != http.StatusMethodNotAllowed || a.Header.Get("Allow") != "GET" ||
				method != "HEAD" && a.Code != "MethodNotAllowed" {
				t.Errorf("%d %s %v", a.StatusCode, a.Code, a.Header)
			}
		})
	}
}

// Every operation and parameter that is not in the table is refused by name.
func TestUnknownIsRefused(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("x"))
	b := "/" + p.bucket
	for _, row := range []request{
		{method: "POST", path: b + "/k?select&select-type=2"},
		{method: "GET", path: b + "/k?torrent"},
		{method: "PUT", path: b + "/k?never-heard-of", body: []byte("more")},
		{method: "GET", path: b + "?location&=x"}, // a parameter without a name
		{method: "PATCH", path: b + "/k"},
		{method: "POST", path: b + "/k?never-heard-of"},
		{method: "POST", path: "/WriteGetObjectResponse"},
		{method: "GET", path: b + "?session"},
		{method: "GET", path: "/?x-id=ListDirectoryBuckets"},
		{method: "PUT", path: b + "/k?annotation&annotationName=a", body: []byte("in clear")},
		{method: "POST", path: b + "?metadataConfiguration", body: []byte("<MetadataConfiguration/>")},
		{method: "PUT", path: b + "/k", header: http.Header{"X-Amz-Write-Offset-Bytes": {"1"}}, body: []byte("more")},
		{method: "PUT", path: b + "/k", header: http.Header{"X-Amz-Acl": {"public-read"}}, body: []byte("more")},
		{
			method: "PUT", path: b + "/k",
			header: http.Header{"X-Amz-Grant-Read": {"uri=http://acs.amazonaws.com/groups/global/AllUsers"}},
			body:   []byte("more"),
		},
	} {
		t.Run(row.method+" "+row.path, func(t *testing.T) {
			if a := p.send(row); a.StatusCode != http.StatusNotImplemented || a.Code != "NotImplemented" {
				t.Errorf("%s %s: %d %s", row.method, row.path, a.StatusCode, a.Code)
			}
		})
	}

	if !bytes.Equal(p.mustGet("k"), []byte("x")) {
		t.Error("the object was changed")
	}

	for _, path := range []string{b + "/k?x-id=GetObject", b + "/k?x-my-tracking=5"} {
		t.Run(path, func(t *testing.T) {
			if a := p.send(request{method: "GET", path: path}); a.StatusCode != 200 {
				t.Errorf("%d %s", a.StatusCode, a.Code)
			}
		})
	}
}

func TestMalformedRequests(t *testing.T) {
	p := newProxy(t)
	for _, row := range []struct {
		r      request
		status int
		code   string
	}{
		{request{method: "GET", path: "/UPPER/k"}, 400, "InvalidBucketName"}, // this store says so,
		{request{method: "GET", path: "/_a/k"}, 400, "InvalidBucketName"},
		{request{method: "GET", path: "/a..b/k"}, 400, "InvalidBucketName"},
		{request{method: "GET", path: "/a%20b/k"}, 400, "InvalidBucketName"},
		{request{method: "GET", path: "/%C3%BCber/k"}, 400, "InvalidBucketName"},
		{request{method: "GET", path: "/" + strings.Repeat("l", 256) + "/k"}, 400, "InvalidBucketName"},
		{request{method: "GET", path: "/a/k"}, 400, "InvalidBucketName"},
		{request{method: "GET", path: "/../etc/passwd"}, 400, "InvalidBucketName"},
		{request{method: "GET", path: "//k"}, 400, "InvalidBucketName"},
		{request{method: "GET", path: "/" + p.bucket + "/" + strings.Repeat("k", 1025)}, 400, "KeyTooLongError"},
		{request{method: "GET", path: "/" + p.bucket + "/%FF%FE"}, 400, "InvalidURI"},
		{request{method: "PUT", path: "/" + p.bucket + "?list-type=2"}, 501, "NotImplemented"},
		{
			request{method: "POST", path: "/" + p.bucket + "?delete", body: bytes.Repeat([]byte("x"), 3<<20)},
			400,
			"MaxMessageLengthExceeded",
		},
		{request{method: "GET", path: "/" + p.bucket + "/k?versionId=a&versionId=b"}, 400, "InvalidArgument"},
		{
			request{method: "GET", path: "/" + p.bucket + "/k", body: bytes.Repeat([]byte("x"), 64<<10+1)},
			400,
			"MaxMessageLengthExceeded",
		},
		{
			request{method: "PUT", path: "/" + p.bucket + "/k", header: http.Header{"X-Amz-Acl": {"invalid_acl"}}},
			400,
			"InvalidArgument",
		},
		{
			request{method: "PUT", path: "/" + p.bucket + "/k", header: http.Header{"X-Amz-Checksum-Invalid": {"invalid"}}},
			400, "InvalidRequest",
		},
		{request{method: "GET", path: "/" + p.bucket + "/k?attributes"}, 400, "InvalidRequest"},
		{request{method: "GET", path: "/no-such-bucket/k?attributes"}, 404, "NoSuchBucket"},
	} {
		t.Run(row.r.method+" "+row.r.path, func(t *testing.T) {
			if a := p.send(row.r); a.StatusCode != row.status || a.Code != row.code {
				t.Errorf(
					"%s %s: %d %s, want %d %s",
					row.r.method,
					row.r.path,
					a.StatusCode,
					a.Code,
					row.status,
					row.code,
				)
			}
		})
	}
}

// Requests that no client library would send. None may cause a 5xx, a panic
// or a hang.
func TestRawNonsense(t *testing.T) {
	p := newProxy(t)
	addr := strings.TrimPrefix(p.url, "http://")
	for _, raw := range []string{
		"GET /%zz/k HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET /" + p.bucket + "/%00 HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET * HTTP/1.1\r\nHost: h\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET http://else.where/b/k HTTP/1.1\r\nHost: h\r\n\r\n",
		"PUT /" + p.bucket + "/k HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\n",
		"PUT /" + p.bucket + "/k HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
		"PUT /" + p.bucket + "/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: AWS4-HMAC-SHA256 \r\n\r\n",
		"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: AWS4-HMAC-SHA256 Credential=a/b/c/d/e,SignedHeaders=,Signature=\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Basic YTpi\r\n\r\n",
		"GET /?X-Amz-Algorithm=x HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET /?a=%zz HTTP/1.1\r\nHost: h\r\n\r\n",
		"BREW /pot HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET / HTTP/1.0\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01",
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}

		fmt.Fprint(conn, raw)
		if len(raw) < 16 {
			fmt.Fprint(conn, "\r\n\r\n")
		}

		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%q: %v", raw, err)
		} else if resp.StatusCode < 400 || resp.StatusCode >= 500 {
			t.Errorf("%q: %d", raw, resp.StatusCode)
		}
		conn.Close()
	}

	if strings.Contains(p.log.String(), "panic") {
		t.Error("something panicked:\n", p.log.String())
	}
}

// dialPut opens a connection and sends the headers of a signed PUT with a
// body of length bytes.
func (p *proxy) dialPut(length int) net.Conn {
	p.t.Helper()
	r := p.sign(
		request{method: "PUT", path: "/" + p.bucket + "/slow", body: make([]byte, length), hash: "UNSIGNED-PAYLOAD"},
	)

	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })

	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
	fmt.Fprintf(conn, "PUT /%s/slow HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n", p.bucket, r.Host, length)
	if err := r.Header.Write(conn); err != nil {
		p.t.Fatal(err)
	}

	fmt.Fprint(conn, "\r\n")
	return conn
}

func TestClientThatStalls(t *testing.T) {
	p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) {
		cfg.Settings.IdleTimeout = 400 * time.Millisecond
	})
	conn := p.dialPut(1000)
	fmt.Fprint(conn, "ten bytes.")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err, p.log.String())
	}
	defer resp.Body.Close()

	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusBadRequest || !bytes.Contains(body, []byte("<Code>RequestTimeout<")) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if p.isStored("slow") {
		t.Error("stored all the same")
	}
}

func TestTooManyRequests(t *testing.T) {
	p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.Settings.MaxConcurrent = 1 })
	reached, release := make(chan struct{}), make(chan struct{})
	p.origin.set(func(*http.Request) (*http.Response, error) {
		close(reached)
		<-release
		return nil, errors.New("released")
	}, nil)

	first := make(chan answer, 1)
	go func() { first <- p.send(request{method: "GET", path: "/" + p.bucket + "/k"}) }()
	<-reached

	second := p.send(request{method: "GET", path: "/" + p.bucket + "/k"})
	if second.StatusCode != http.StatusServiceUnavailable || second.Code != "SlowDown" ||
		second.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", second.StatusCode, second.Code)
	}
	close(release)
	<-first
}

// A chunked payload with an altered last chunk must not be stored, even if
// the body ends after its data and before the end of its framing, where the
// signature is checked.
func TestForgedChunkIsNotStored(t *testing.T) {
	p := newProxy(t)
	const text, forged = "the text that was signed", "the text that was forged"
	chunk := func(data, signature string) string {
		return fmt.Sprintf("%x;chunk-signature=%s\r\n%s", len(data), signature, data)
	}

	for _, tail := range []string{"", "\r", "\r\n", "\r\n0;chunk-signature=" + strings.Repeat("0", 64) + "\r\n\r\n"} {
		const hash = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
		r := p.sign(request{method: "PUT", path: "/" + p.bucket + "/k", hash: hash, header: http.Header{
			"X-Amz-Decoded-Content-Length": {fmt.Sprint(len(text))}, "Content-Encoding": {"aws-chunked"},
		}})
		body := chunk(forged, strings.Repeat("a", 64)) + tail
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))

		resp, err := p.server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()

		if resp.StatusCode < 400 || resp.StatusCode >= 500 {
			t.Errorf("ending in %q: %d", tail, resp.StatusCode)
		}
		if p.isStored("k") {
			t.Errorf("ending in %q: stored", tail)
		}
	}
}

// Framing is allowed for object content only. S3's errors say where it is
// wrong.
func TestFraming(t *testing.T) {
	p := newProxy(t)
	const unexpected, number = "The request body terminated unexpectedly", "You did not provide the number of bytes specified by the Content-Length HTTP header"
	for _, row := range []struct{ path, body, code, message string }{
		{"/k", "5\r\nabcde\r\n0\r\n\r\n", "", ""},
		{"/k", "5\r\nabcde\r\n0\r\n", "IncompleteBody", unexpected},
		{"/k", "5\r\nabcde", "IncompleteBody", unexpected},
		{"/k", "6\r\nabcde\r\n0\r\n\r\n", "IncompleteBody", unexpected},
		{"/k", "6\r\nabcdef\r\n0\r\n\r\n", "IncompleteBody", number},
		{"/k", "4\r\nabcd\r\n0\r\n\r\n", "IncompleteBody", number},
		{"?cors", "5\r\nabcde\r\n0\r\n\r\n", "InvalidRequest", "The value of x-amz-content-sha256 header is invalid."},
		{"?delete", "5\r\nabcde\r\n0\r\n\r\n", "InvalidRequest", "The value of x-amz-content-sha256 header is invalid."},
		{
			"/k?uploadId=u", "5\r\nabcde\r\n0\r\n\r\n", "InvalidRequest",
			"The value of x-amz-content-sha256 header is invalid.",
		},
	} {
		t.Run(row.body, func(t *testing.T) {
			method := "PUT"
			if row.path == "?delete" || strings.Contains(row.path, "uploadId") {
				method = "POST"
			}

			a := p.send(request{
				method: method, path: "/" + p.bucket + row.path, body: []byte(row.body), hash: "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
				header: http.Header{"X-Amz-Decoded-Content-Length": {"5"}},
			})
			if a.Code != row.code ||
				row.code != "" && !bytes.Contains(a.body, []byte("<Message>"+row.message+"</Message>")) {
				t.Errorf("%s %q: %d %s", row.path, row.body, a.StatusCode, a.body)
			}
		})
	}

	if string(p.mustGet("k")) != "abcde" {
		t.Error("another object is stored")
	}
}

// A parameter that becomes a header must be valid as one.
func TestHoistedNonsenseIsTheClientsFault(t *testing.T) {
	p := newProxy(t)
	for _, parameter := range []string{
		"x-amz-meta-a%20b=1", "x-amz-meta-a=1%0Ab", "x-amz-meta-a=%00", "x-amz-meta-%C3%BC=1", "x-amz-meta-a%0D%0Ax=1",
		"x-amz-meta-cmek%20v=1",
	} {
		t.Run(parameter, func(t *testing.T) {
			a := p.send(
				request{
					method:  "PUT",
					path:    "/" + p.bucket + "/k?X-Amz-Expires=60&" + parameter,
					presign: true,
					body:    []byte("x"),
				},
			)
			if a.StatusCode != http.StatusBadRequest || a.Code != "InvalidArgument" {
				t.Errorf("%d %s", a.StatusCode, a.Code)
			}

			if p.isStored("k") {
				t.Fatalf("stored")
			}
		})
	}
}

func TestRepeatedHeadersAreRefused(t *testing.T) {
	p := newProxy(t)
	for _, name := range []string{"Range", "X-Amz-Storage-Class", "X-Amz-Server-Side-Encryption"} {
		t.Run(name, func(t *testing.T) {
			a := p.send(
				request{
					method: "PUT",
					path:   "/" + p.bucket + "/k",
					header: http.Header{name: {"bytes=0-1", "bytes=5-6"}},
					body:   []byte("x"),
				},
			)
			if a.Code != "InvalidArgument" {
				t.Errorf("%d %s", a.StatusCode, a.Code)
			}
		})
	}
}

// A client that waits for 100 Continue need not send its body in vain: a
// request that is refused because of its headers is answered at once.
func TestExpectContinue(t *testing.T) {
	p := newProxy(t)
	first := func(secret, body string) string {
		r := p.sign(
			request{
				method: "PUT",
				path:   "/" + p.bucket + "/k",
				body:   []byte(body),
				hash:   "UNSIGNED-PAYLOAD",
				secret: secret,
			},
		)

		conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()

		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}

		fmt.Fprintf(
			conn,
			"PUT /%s/k HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n",
			p.bucket,
			r.Host,
			len(body),
		)

		if err := r.Header.Write(conn); err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, "\r\n")
		answers := bufio.NewReader(conn)

		line, err := answers.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}

		if strings.Contains(line, "100 Continue") {
			fmt.Fprint(conn, body)
			if _, err := answers.ReadString('\n'); err != nil { // the empty line
				t.Fatal(err)
			}

			next, err := answers.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			line += next
		}

		return line
	}
	if got := first("", ""); got != "HTTP/1.1 100 Continue\r\nHTTP/1.1 200 OK\r\n" {
		t.Errorf("with an empty body: %q", got)
	}

	if got := first("", "body"); got != "HTTP/1.1 100 Continue\r\nHTTP/1.1 200 OK\r\n" {
		t.Errorf("%q", got)
	}
	if got := first("wrong", "body"); got != "HTTP/1.1 403 Forbidden\r\n" {
		t.Errorf("with a bad signature: %q", got)
	}
}

func TestHeaderThatIsTooLong(t *testing.T) {
	p := newProxy(t)
	for n, code := range map[int]string{7000: "MetadataTooLarge", 8 << 10: "RequestHeaderSectionTooLarge"} {
		a := p.send(
			request{
				method: http.MethodPut,
				path:   "/" + p.bucket + "/k",
				header: http.Header{"X-Amz-Meta-Long": {strings.Repeat("x", n)}},
				body:   []byte("text"),
			},
		)
		if a.StatusCode != http.StatusBadRequest || a.Code != code || p.isStored("k") {
			t.Errorf("%d bytes: %d %s", n, a.StatusCode, a.Code)
		}
	}
}

package sigv4_test

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// exampleRequest parses a request as printed in the AWS documentation.
func exampleRequest(t *testing.T, head, body string) *http.Request {
	t.Helper()
	wire := strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n" + body
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(wire)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const exampleAuth = "\nAuthorization: AWS4-HMAC-SHA256 " +
	"Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"

// The published examples, which must never change:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html,
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html,
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html and
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html.
var examples = []struct {
	name, head, body string
	want, trailer    string // payload, and its CRC32C in the trailer
	presigned        bool
}{
	{
		name: "GET object",
		head: "GET /test.txt HTTP/1.1\nHost: examplebucket.s3.amazonaws.com\nRange: bytes=0-9\n" +
			"x-amz-content-sha256: " + emptyHash + "\nx-amz-date: 20130524T000000Z" + exampleAuth +
			"SignedHeaders=host;range;x-amz-content-sha256;x-amz-date," +
			"Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
	},
	{
		name: "PUT object",
		head: "PUT /test$file.text HTTP/1.1\nHost: examplebucket.s3.amazonaws.com\nDate: Fri, 24 May 2013 " +
			"00:00:00 GMT\nContent-Length: 21\n" +
			"x-amz-date: 20130524T000000Z\nx-amz-storage-class: REDUCED_REDUNDANCY\n" +
			"x-amz-content-sha256: 44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072" + exampleAuth +
			"SignedHeaders=date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class," +
			"Signature=98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
		body: "Welcome to Amazon S3.", want: "Welcome to Amazon S3.",
	},
	{
		name: "GET bucket lifecycle",
		head: "GET /?lifecycle HTTP/1.1\nHost: examplebucket.s3.amazonaws.com\nx-amz-date: 20130524T000000Z\n" +
			"x-amz-content-sha256: " + emptyHash + exampleAuth +
			"SignedHeaders=host;x-amz-content-sha256;x-amz-date," +
			"Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
	},
	{
		name: "list objects",
		head: "GET /?max-keys=2&prefix=J HTTP/1.1\nHost: examplebucket.s3.amazonaws.com\nx-amz-date: " +
			"20130524T000000Z\nx-amz-content-sha256: " + emptyHash + exampleAuth +
			"SignedHeaders=host;x-amz-content-sha256;x-amz-date," +
			"Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
	},
	{
		name: "presigned URL",
		head: "GET /test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&" +
			"X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request" +
			"&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host" +
			"&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404 HTTP/1.1\n" +
			"Host: examplebucket.s3.amazonaws.com",
		presigned: true,
	},
	{
		name: "chunked upload",
		head: "PUT /examplebucket/chunkObject.txt HTTP/1.1\nHost: s3.amazonaws.com\nx-amz-date: " +
			"20130524T000000Z\nx-amz-storage-class: REDUCED_REDUNDANCY\n" +
			"x-amz-content-sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD\nContent-Encoding: aws-chunked\n" +
			"x-amz-decoded-content-length: 66560\nContent-Length: 66824" + exampleAuth +
			"SignedHeaders=content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;" +
			"x-amz-decoded-content-length;x-amz-storage-class," +
			"Signature=4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
		body: "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n" +
			strings.Repeat("a", 65536) + "\r\n" +
			"400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n" +
			strings.Repeat("a", 1024) + "\r\n" +
			"0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n",
		want: strings.Repeat("a", 66560),
	},
	{
		name: "chunked upload with a trailer",
		head: "PUT /examplebucket/chunkObject.txt HTTP/1.1\nHost: s3.amazonaws.com\nx-amz-date: " +
			"20130524T000000Z\nx-amz-storage-class: REDUCED_REDUNDANCY\n" +
			"x-amz-content-sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER\nContent-Encoding: aws-chunked\n" +
			"x-amz-decoded-content-length: 66560\n" +
			"x-amz-trailer: x-amz-checksum-crc32c\nContent-Length: 66946" + exampleAuth +
			"SignedHeaders=content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;" +
			"x-amz-storage-class;x-amz-trailer," +
			"Signature=106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
		body: "10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n" +
			strings.Repeat("a", 65536) + "\r\n" +
			"400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n" +
			strings.Repeat("a", 1024) + "\r\n" +
			"0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n" +
			"x-amz-checksum-crc32c:sOO8/Q==\r\n" +
			"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n",
		want: strings.Repeat("a", 66560), trailer: "sOO8/Q==",
	},
}

func TestPublishedExamples(t *testing.T) {
	for _, e := range examples {
		t.Run(e.name, func(t *testing.T) {
			r := exampleRequest(t, e.head, e.body)
			auth, err := verifierAt(exampleTime).Verify(r)
			if err != nil {
				t.Fatal(err)
			}
			if auth.AccessKey != accessKey || auth.Presigned != e.presigned ||
				auth.DecodedLength() != int64(len(e.want)) {
				t.Errorf("got %s, presigned %t, length %d", auth.AccessKey, auth.Presigned, auth.DecodedLength())
			}

			body := auth.Body(r.Body)
			data, err := io.ReadAll(body)
			if err != nil || string(data) != e.want {
				t.Errorf("got %d bytes and error %v, want %d bytes", len(data), err, len(e.want))
			}
			if got := body.Trailer().Get("X-Amz-Checksum-Crc32c"); got != e.trailer {
				t.Errorf("trailer %q, want %q", got, e.trailer)
			}
		})
	}
}

func TestPublishedExamplesAltered(t *testing.T) {
	for _, e := range examples {
		t.Run(e.name, func(t *testing.T) {
			r := exampleRequest(t, strings.Replace(e.head, "test", "tesT", 1), e.body)
			r.Host = "other" + r.Host
			_, err := verifierAt(exampleTime).Verify(r)
			wantCode(t, err, "SignatureDoesNotMatch")
		})
	}
}

func TestEscapePath(t *testing.T) {
	for _, row := range []struct{ path, want string }{
		{"", "/"},
		{"/", "/"},
		{"/test$file.text", "/test%24file.text"},
		{"/a b+c%2F~-_.", "/a%20b%2Bc%252F~-_."},
		{"/ü/\x00\xff", "/%C3%BC/%00%FF"},
		{"/!\"#$&'()*,/:;<=>?@[]^`{|}", "/%21%22%23%24%26%27%28%29%2A%2C/%3A%3B%3C%3D%3E%3F%40%5B%5D%5E%60%7B%7C%7D"},
	} {
		t.Run(row.path, func(t *testing.T) {
			if got := sigv4.EscapePath(row.path); got != row.want {
				t.Errorf("EscapePath(%q) = %q, want %q", row.path, got, row.want)
			}
		})
	}
}

func TestUnescapePath(t *testing.T) {
	for _, row := range []struct{ raw, want string }{
		{"", ""},
		{"/a+b", "/a+b"},
		{"/%41%2f%2F", "/A//"},
		{"/%2541", "/%41"},
	} {
		t.Run(row.raw, func(t *testing.T) {
			if got, err := sigv4.UnescapePath(row.raw); err != nil || got != row.want {
				t.Errorf("UnescapePath(%q) = %q, %v, want %q", row.raw, got, err, row.want)
			}
		})
	}

	for _, raw := range []string{"%", "/%4", "/%4g", "/%+4", "/%-4", "/%4_", "/%%41"} {
		t.Run(raw, func(t *testing.T) {
			_, err := sigv4.UnescapePath(raw)
			wantCode(t, err, "InvalidURI")
		})
	}
}

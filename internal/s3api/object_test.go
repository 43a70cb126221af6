package s3api_test

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

func code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return fmt.Sprint(err)
}

func TestRoundTrips(t *testing.T) {
	p := newProxy(t)
	for _, size := range []int{0, 1, 65495, 65496, 65497, 65535, 65536, 65537, 1 << 20, 5 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			key, text := fmt.Sprintf("object-%d", size), randomText(size)
			put := p.put(key, text)
			got, out, err := p.get(key)
			if err != nil || !bytes.Equal(got, text) {
				t.Fatalf("%d bytes: got %d, %v", size, len(got), err)
			}
			if *out.ContentLength != int64(size) || *out.ETag != *put.ETag || !strings.HasSuffix(*out.ETag, `-0"`) {
				t.Errorf("%d bytes: length %d, ETag %s and %s", size, *out.ContentLength, *put.ETag, *out.ETag)
			}

			if out.ServerSideEncryption != types.ServerSideEncryptionAwsKms || out.SSEKMSKeyId == nil {
				t.Errorf("%d bytes: the answer does not say what encrypts the object", size)
			}
			head, err := p.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &p.bucket, Key: &key})
			if err != nil || *head.ContentLength != int64(size) || *head.ETag != *put.ETag {
				t.Errorf("%d bytes: HEAD %+v, %v", size, head, err)
			}

			body, _ := p.stored(key)
			if size >= 16 && bytes.Contains(body, text[:16]) {
				t.Errorf("%d bytes: the store has plaintext", size)
			}
		})
	}
}

func TestGetCostsOneRequest(t *testing.T) {
	p := newProxy(t)
	p.put("k", randomText(300_000))
	p.origin.take()
	for _, header := range []string{"", "bytes=0-0", "bytes=70000-", "bytes=-5", "bytes=100000-200000"} {
		t.Run(header, func(t *testing.T) {
			a := p.send(request{method: "GET", path: "/" + p.bucket + "/k", header: http.Header{"Range": {header}}})
			if n := len(p.origin.take()); n != 1 || a.StatusCode >= 300 {
				t.Errorf("range %q: %d requests to the store, status %d", header, n, a.StatusCode)
			}
		})
	}
}

// Property: for any range, a client gets that part of the plaintext, or 416.
func TestRanges(t *testing.T) {
	p := newProxy(t)
	r := rand.New(rand.NewPCG(5, 6))
	for _, size := range []int{0, 1, 65496, 65497, 200_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			key, text := fmt.Sprint(size), randomText(size)
			p.put(key, text)
			headers := []string{
				"bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0", "bytes=-999999999", fmt.Sprintf("bytes=%d-", size),
				fmt.Sprintf("bytes=%d-", max(size-1, 0)),
				fmt.Sprintf(
					"bytes=0-%d",
					size,
				), "bytes=5-2", "bytes=0-1,3-4", "bytes=a-b", "bytes=", "bytes=-", "items=0-1", "bytes=0-99999999999999999999",
				"bytes=99999999999999999999-", "bytes=65495-65496", "bytes=65496-65496", "bytes=1000000-2000000",
			}

			for range 15 {
				a, b := r.IntN(size+10), r.IntN(size+10)
				headers = append(headers, fmt.Sprintf("bytes=%d-%d", min(a, b), max(a, b)), fmt.Sprintf("bytes=-%d", a))
			}
			for _, header := range headers {
				checkRange(t, p, key, text, header)
			}
		})
	}
}

// checkRange compares with Go's file server, which implements RFC 9110. Only
// several ranges in one request are handled as in S3.
func checkRange(t *testing.T, p *proxy, key string, text []byte, header string) {
	t.Helper()
	path := "/" + p.bucket + "/" + key
	got := p.send(request{method: "GET", path: path, header: http.Header{"Range": {header}}})
	head := p.send(request{method: "HEAD", path: path, header: http.Header{"Range": {header}}})

	status, want, contentRange := reference(text, header)
	if got.StatusCode != status || head.StatusCode != status {
		t.Errorf("%d bytes, %s: GET %d, HEAD %d, want %d", len(text), header, got.StatusCode, head.StatusCode, status)
		return
	}

	if got.Header.Get("Content-Range") != contentRange {
		t.Errorf(
			"%d bytes, %s: Content-Range %q, want %q",
			len(text),
			header,
			got.Header.Get("Content-Range"),
			contentRange,
		)
	}

	if status == http.StatusRequestedRangeNotSatisfiable {
		if got.Code != "InvalidRange" ||
			!bytes.Contains(got.body, fmt.Appendf(nil, "<ActualObjectSize>%d<", len(text))) {
			t.Errorf("%d bytes, %s: %s", len(text), header, got.body)
		}
		return
	}

	if !bytes.Equal(got.body, want) || head.ContentLength != int64(len(want)) {
		t.Errorf(
			"%d bytes, %s: GET %d bytes, HEAD says %d, want %d",
			len(text),
			header,
			len(got.body),
			head.ContentLength,
			len(want),
		)
	}
}

// reference resolves a range according to RFC 9110, independently of the
// proxy's code.
func reference(text []byte, header string) (status int, body []byte, contentRange string) {
	size := len(text)
	spec, isBytes := strings.CutPrefix(header, "bytes=")
	var a, b int

	switch {
	case !isBytes || strings.Contains(spec, ",") || spec == "-" || spec == "" || spec == "5-2" || spec == "a-b":
		return 200, text, ""
	case strings.HasPrefix(spec, "99999999999999999999"):
		a, b = size, size
	case strings.HasPrefix(spec, "-"):
		fmt.Sscanf(spec, "-%d", &a)
		if size == 0 && a > 0 {
			return 200, text, "" // as in S3
		}
		a, b = max(size-a, 0), size-1
	case strings.HasSuffix(spec, "-"), strings.HasSuffix(spec, "99999999999999999999"):
		fmt.Sscanf(spec, "%d-", &a)
		b = size - 1
	default:
		fmt.Sscanf(spec, "%d-%d", &a, &b)
		b = min(b, size-1)
	}

	if a >= size || a > b {
		return 416, nil, fmt.Sprintf("bytes */%d", size)
	}
	return 206, text[a : b+1], fmt.Sprintf("bytes %d-%d/%d", a, b, size)
}

func TestConditions(t *testing.T) {
	p := newProxy(t)
	etag := *p.put("k", []byte("text")).ETag
	past, future := time.Now().Add(
		-time.Hour,
	).UTC().Format(
		http.TimeFormat,
	), time.Now().Add(
		time.Hour,
	).UTC().Format(
		http.TimeFormat,
	)

	raw := strings.Replace(etag, `-0"`, `"`, 1)
	for _, row := range []struct {
		method, header, value string
		status                int
	}{
		{"GET", "If-Match", etag, 200},
		{"GET", "If-Match", "*", 200},
		{"GET", "If-Match", `"00000000000000000000000000000000-0"`, 412},
		{"GET", "If-None-Match", etag, 304},
		{"GET", "If-None-Match", strings.Trim(etag, `"`), 304},
		{"GET", "If-None-Match", `"00000000000000000000000000000000-0"`, 200},
		{"HEAD", "If-None-Match", etag, 304},
		{"HEAD", "If-Match", `"00000000000000000000000000000000"`, 412},
		{"GET", "If-Modified-Since", past, 200},
		{"GET", "If-Modified-Since", future, 200}, // a date in the future is not valid, RFC 9110 and S3
		{"GET", "If-Unmodified-Since", past, 412},
		{"GET", "If-Unmodified-Since", future, 200},
		{"PUT", "If-None-Match", "*", 412},
		{"PUT", "If-Match", `"00000000000000000000000000000000-0"`, 412},
		{"PUT", "If-Match", etag, 200},
	} {
		t.Run(row.method+" "+row.header+" "+row.value, func(t *testing.T) {
			var body []byte
			if row.method == "PUT" {
				body = []byte("text")
			}

			a := p.send(
				request{
					method: row.method,
					path:   "/" + p.bucket + "/k",
					header: http.Header{row.header: {row.value}},
					body:   body,
				},
			)
			if a.StatusCode != row.status && (row.header != "If-Modified-Since" || row.value != future) {
				t.Errorf(
					"%s %s: %s gave %d %s, want %d",
					row.method,
					row.header,
					row.value,
					a.StatusCode,
					a.Code,
					row.status,
				)
			}

			if shown := a.Header.Get("Etag"); a.StatusCode == 304 &&
				(shown != etag && shown != "" || len(a.body) != 0) {
				t.Errorf("304 with ETag %q and %d bytes", shown, len(a.body))
			}
		})
	}

	if raw == etag {
		t.Error("the shown ETag is the store's")
	}
	if a := p.send(request{
		method: "PUT", path: "/" + p.bucket + "/new", header: http.Header{"If-None-Match": {"*"}}, body: []byte("x"),
	}); a.StatusCode != 200 {
		t.Errorf("If-None-Match: * on a new key: %d", a.StatusCode)
	}
}

func TestMetadataAndHeadersAreKept(t *testing.T) {
	p := newProxy(t)
	header := http.Header{
		"Content-Type": {
			"text/x-test; charset=utf-8",
		}, "Cache-Control": {"max-age=5"}, "Content-Disposition": {`attachment; filename="a b"`},
		"Content-Language": {
			"de",
		}, "Content-Encoding": {"aws-chunked, gzip"}, "Expires": {"Wed, 21 Oct 2037 07:28:00 GMT"},
		"X-Amz-Meta-Color": {"blue"}, "X-Amz-Meta-Two-Words": {"a b"},
	}

	path := "/" + p.bucket + "/k"
	if a := p.send(request{method: "PUT", path: path, header: header, body: []byte("text")}); a.StatusCode != 200 {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}

	for _, method := range []string{"GET", "HEAD"} {
		t.Run(method, func(t *testing.T) {
			a := p.send(request{method: method, path: path, header: http.Header{"Accept-Encoding": {"identity"}}})
			for name, values := range header {
				want := values[0]
				if name == "Content-Encoding" {
					want = "gzip"
				}
				if got := a.Header.Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}

			for name := range a.Header {
				if strings.Contains(strings.ToLower(name), "cmek-") {
					t.Errorf("shows %s", name)
				}
			}
		})
	}

	a := p.send(
		request{
			method: "GET",
			path:   path + "?response-content-type=text%2Fplain&response-cache-control=no-store&response-content-disposition=inline&response-content-language=fr&response-expires=Thu%2C%2001%20Jan%202037%2000%3A00%3A00%20GMT&response-content-encoding=br",
		},
	)

	for name, want := range map[string]string{
		"Content-Type": "text/plain", "Cache-Control": "no-store", "Content-Disposition": "inline",
		"Content-Language": "fr", "Content-Encoding": "br",
	} {
		t.Run(name, func(t *testing.T) {
			if got := a.Header.Get(name); got != want {
				t.Errorf("response override of %s: %q, want %q", name, got, want)
			}
		})
	}
}

func TestMetadataRefusals(t *testing.T) {
	p := newProxy(t)
	path := "/" + p.bucket + "/k"
	for _, row := range []struct {
		name, value, code string
	}{
		{"X-Amz-Meta-Cmek-V", "1", "InvalidArgument"},
		{"X-Amz-Meta-Cmek-Anything", "1", "InvalidArgument"},
		{"X-Amz-Meta-Big", strings.Repeat("x", 2048), "MetadataTooLarge"},
		{"X-Amz-Meta-Big", strings.Repeat("x", 1900), "MetadataTooLarge"}, // fits, but not with the envelope
		{"X-Amz-Server-Side-Encryption", "rot13", "InvalidEncryptionAlgorithmError"},
		{"X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", "main", "InvalidArgument"},
		{"X-Amz-Server-Side-Encryption-Customer-Algorithm", "AES256", "InvalidArgument"},
		{"X-Amz-Object-Lock-Mode", "GOVERNANCE", "InvalidArgument"}, // the store requires a date with it
		{"X-Amz-Rename-Source", "a", "NotImplemented"},
		{"X-Amz-Write-Offset-Bytes", "3", "NotImplemented"},
		{"X-Amz-Acl", "public-read", "NotImplemented"},
		{"X-Amz-Never-Heard-Of", "3", "NotImplemented"},
		{"X-Amz-Copy-Source", "/a/b", "MaxMessageLengthExceeded"},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := p.send(
				request{method: "PUT", path: path, header: http.Header{row.name: {row.value}}, body: []byte("x")},
			)
			if a.Code != row.code {
				t.Errorf("%s: %d %s, want %s", row.value, a.StatusCode, a.Code, row.code)
			}

			if p.isStored("k") {
				t.Fatalf("stored all the same")
			}
		})
	}

	if a := p.send(request{
		method: "PUT", path: path, header: http.Header{"X-Amz-Meta-Big": {strings.Repeat("x", 1200)}}, body: []byte("x"),
	}); a.StatusCode != 200 {
		t.Errorf("1,200 bytes of metadata: %d %s", a.StatusCode, a.Code)
	}
}

func TestChosenKey(t *testing.T) {
	p := newProxy(t)
	header := http.Header{
		"X-Amz-Server-Side-Encryption":                {"aws:kms"},
		"X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": {"main"},
	}
	if a := p.send(request{
		method: "PUT", path: "/" + p.bucket + "/k", header: header, body: []byte("x"),
	}); a.StatusCode != 200 {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	header.Set("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", "another")
	if a := p.send(request{
		method: "PUT", path: "/" + p.bucket + "/other", header: header, body: []byte("x"),
	}); a.Code != "KMS.NotFoundException" ||
		p.isStored("other") {
		t.Errorf("a key that is not configured: %d %s", a.StatusCode, a.Code)
	}
}

func TestChecksums(t *testing.T) {
	p := newProxy(t)
	text := randomText(100_000)
	for _, algorithm := range types.ChecksumAlgorithmCrc32.Values() {
		if !slices.Contains([]string{"CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"}, string(algorithm)) {
			continue
		}
		key := string(algorithm)
		put := p.put(key, text, func(in *s3.PutObjectInput) { in.ChecksumAlgorithm = algorithm })

		got, out, err := p.get(key, func(in *s3.GetObjectInput) { in.ChecksumMode = types.ChecksumModeEnabled })
		if err != nil || !bytes.Equal(got, text) {
			t.Fatalf("%s: %v", key, err)
		}

		a, b := sums(
			put.ChecksumCRC32,
			put.ChecksumCRC32C,
			put.ChecksumCRC64NVME,
			put.ChecksumSHA1,
			put.ChecksumSHA256,
		),
			sums(
				out.ChecksumCRC32,
				out.ChecksumCRC32C,
				out.ChecksumCRC64NVME,
				out.ChecksumSHA1,
				out.ChecksumSHA256,
			)
		if len(a) != 1 || !maps.Equal(a, b) {
			t.Errorf("%s: PUT answered %v, GET %v", key, a, b)
		}

		_, out, err = p.get(key)
		if err != nil ||
			len(
				sums(
					out.ChecksumCRC32,
					out.ChecksumCRC32C,
					out.ChecksumCRC64NVME,
					out.ChecksumSHA1,
					out.ChecksumSHA256,
				),
			) != 0 {
			t.Errorf("%s: a checksum was answered unasked, %v", key, err)
		}

		head, err := p.client.HeadObject(
			t.Context(),
			&s3.HeadObjectInput{Bucket: &p.bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled},
		)
		if err != nil ||
			!maps.Equal(
				a,
				sums(
					head.ChecksumCRC32,
					head.ChecksumCRC32C,
					head.ChecksumCRC64NVME,
					head.ChecksumSHA1,
					head.ChecksumSHA256,
				),
			) {
			t.Errorf("%s: HEAD %+v, %v", key, head, err)
		}

		_, header := p.stored(key)
		for sum := range a {
			for name, values := range header {
				if strings.Contains(strings.Join(values, ""), strings.SplitN(sum, ":", 2)[1]) {
					t.Errorf("%s: the store can read the plaintext's checksum in %s", key, name)
				}
			}
		}
	}
}

// The digests of "abc" come from the test vectors of the algorithms.
func TestChecksumAlgorithms(t *testing.T) {
	p := newProxy(t)
	for name, digest := range map[string]string{
		"Crc32": "352441c2", "Crc32c": "364b3fb7", "Md5": "900150983cd24fb0d6963f7d28e17f72",
		"Sha1":     "a9993e364706816aba3e25717850c26c9cd0d89d",
		"Sha256":   "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
		"Sha512":   "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
		"Xxhash64": "44bc2cf5ad770999", "Xxhash3": "78af5f94892f3950", "Xxhash128": "06b05ab6733a618578af5f94892f3950",
	} {
		t.Run(name, func(t *testing.T) {
			sum, err := hex.DecodeString(digest)
			if err != nil {
				t.Fatal(err)
			}

			text, header := base64.StdEncoding.EncodeToString(sum), "X-Amz-Checksum-"+name
			path := "/" + p.bucket + "/" + name
			if a := p.send(request{
				method: "PUT", path: path, header: http.Header{header: {text}}, body: []byte("abd"),
			}); a.Code != "BadDigest" ||
				p.isStored(name) {
				t.Errorf("of another text: %d %s", a.StatusCode, a.Code)
			}
			if a := p.send(request{
				method: "PUT", path: path, header: http.Header{header: {text}}, body: []byte("abc"),
			}); a.StatusCode != 200 ||
				a.Header.Get(header) != text {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}

			if a := p.send(request{
				method: "HEAD", path: path, header: http.Header{"X-Amz-Checksum-Mode": {"ENABLED"}},
			}); a.Header.Get(header) != text || a.Header.Get("X-Amz-Checksum-Type") != "FULL_OBJECT" {
				t.Errorf("HEAD %v", a.Header)
			}
		})
	}
}

func sums(values ...*string) map[string]bool {
	out := make(map[string]bool)
	for i, value := range values {
		if value != nil {
			out[fmt.Sprintf("%d:%s", i, *value)] = true
		}
	}
	return out
}

// All digests that a client sends are verified before the store can keep the
// body.
func TestABodyThatIsNotWhatWasSaidIsNotStored(t *testing.T) {
	p := newProxy(t)
	text := randomText(3 << 20)
	wrong := md5.Sum([]byte("something else"))
	right := md5.Sum(text)

	b64 := base64.StdEncoding.EncodeToString
	for _, row := range []struct {
		name, header, value, code string
		hash                      string
	}{
		{"wrong Content-MD5", "Content-Md5", b64(wrong[:]), "BadDigest", ""},
		{"malformed Content-MD5", "Content-Md5", "zzz", "InvalidDigest", ""},
		{"short Content-MD5", "Content-Md5", b64([]byte("short")), "InvalidDigest", ""},
		{"wrong CRC32", "X-Amz-Checksum-Crc32", "AAAAAA==", "BadDigest", ""},
		{"wrong CRC32C", "X-Amz-Checksum-Crc32c", "AAAAAA==", "BadDigest", ""},
		{"wrong CRC64NVME", "X-Amz-Checksum-Crc64nvme", b64(make([]byte, 8)), "BadDigest", ""},
		{"wrong SHA1", "X-Amz-Checksum-Sha1", b64(make([]byte, 20)), "BadDigest", ""},
		{"wrong SHA256", "X-Amz-Checksum-Sha256", b64(make([]byte, 32)), "BadDigest", ""},
		{"malformed CRC32", "X-Amz-Checksum-Crc32", "AAAA", "InvalidRequest", ""},
		{"unknown checksum", "X-Amz-Checksum-Crc99", "AAAA", "InvalidRequest", ""},
		{"another SHA-256", "X-Amz-Meta-A", "b", "XAmzContentSHA256Mismatch", strings.Repeat("ab", 32)},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := p.send(
				request{
					method: "PUT",
					path:   "/" + p.bucket + "/k",
					header: http.Header{row.header: {row.value}},
					body:   text,
					hash:   row.hash,
				},
			)
			if a.Code != row.code || a.StatusCode != http.StatusBadRequest {
				t.Errorf("%d %s, want %s", a.StatusCode, a.Code, row.code)
			}

			if p.isStored("k") {
				body, _ := p.stored("k")
				t.Fatalf("%d bytes stored all the same", len(body))
			}
		})
	}

	if a := p.send(request{
		method: "PUT", path: "/" + p.bucket + "/k", header: http.Header{"Content-Md5": {b64(right[:])}}, body: text,
	}); a.StatusCode != 200 {
		t.Errorf("the right Content-MD5: %d %s", a.StatusCode, a.body)
	}
}

func TestABodyOfAnotherLengthIsNotStored(t *testing.T) {
	p := newProxy(t)
	text := randomText(200_000)
	r := p.sign(request{method: "PUT", path: "/" + p.bucket + "/short", body: text, hash: "UNSIGNED-PAYLOAD"})
	r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(text[:150_000]), failing{}))
	if _, err := p.server.Client().Do(r); err == nil {
		t.Error("a body cut short was answered")
	}

	time.Sleep(50 * time.Millisecond)
	if p.isStored("short") {
		t.Error("a body cut short was stored")
	}
	r = p.sign(request{method: "PUT", path: "/" + p.bucket + "/none", hash: "UNSIGNED-PAYLOAD"})
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader("x")), -1 // chunked transfer coding, without a length

	resp, err := p.server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()

	if resp.StatusCode != http.StatusLengthRequired {
		t.Errorf("no length: %d", resp.StatusCode)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the client dies") }

var oddKeys = []string{
	"a b", "a+b", "100%", "%2F", "%252F", "ü/日本語", "a&b=c", "quote\"'", "semi;colon", "star*", "tilde~", "a=b?c#d",
	"brace{}", "pipe|",
	"back\\slash", "<xml>&amp;", "ends.", "-dash", "comma,", "at@", "colon:", "dollar$", "hat^", "tick`", "caps/ÄÖÜ",
	strings.Repeat("k", 255),
}

func TestOddKeys(t *testing.T) {
	p := newProxy(t)
	for _, key := range oddKeys {
		text := []byte("text of " + key)
		p.put(key, text)
		if got := p.mustGet(key); !bytes.Equal(got, text) {
			t.Errorf("%q: got %q", key, got)
		}
	}

	list, err := p.client.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &p.bucket})
	if err != nil {
		t.Fatal(err)
	}

	var keys []string
	for _, o := range list.Contents {
		keys = append(keys, *o.Key)
		if want := int64(len("text of " + *o.Key)); *o.Size != want || !strings.HasSuffix(*o.ETag, `-0"`) {
			t.Errorf("%q: size %d, want %d; ETag %s", *o.Key, *o.Size, want, *o.ETag)
		}
	}

	want := slices.Sorted(slices.Values(oddKeys))
	if !slices.Equal(keys, want) {
		t.Errorf("listed %q\nwant   %q", keys, want)
	}
}

// Dot segments and doubled slashes are part of a key, and are sent to the store
// unchanged.
func TestPathsAreNotCleaned(t *testing.T) {
	p := newProxy(t)
	for sent, key := range map[string]string{
		"/a//b": "/a//b", "/a/../c": "/a/../c", "/./d": "/./d", "/a/%2e%2e/c": "/a/../c", "//x": "//x",
		"/a%2Fb%2f%2Fc": "/a/b//c", "/a+b%2Bc": "/a+b+c",
	} {
		t.Run(sent, func(t *testing.T) {
			p.origin.take()
			r := p.sign(request{method: "GET", path: "/" + p.bucket + sigv4.EscapePath(key)})
			r.URL.Opaque = "//" + r.URL.Host + "/" + p.bucket + sent // not encoded as it was signed
			resp, err := p.server.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}

			resp.Body.Close()
			if got := p.origin.take(); len(got) != 1 || got[0] != "GET /"+p.bucket+key+" " {
				t.Errorf("the store was asked %q, want %s; answer %d", got, key, resp.StatusCode)
			}
		})
	}
}

func TestDelete(t *testing.T) {
	p := newProxy(t)
	for _, key := range []string{"a", "b b", "c&c", "d"} {
		p.put(key, []byte("x"))
	}
	if _, err := p.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &p.bucket, Key: new("a")}); err != nil {
		t.Error(err)
	}

	if _, err := p.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{
		Bucket: &p.bucket, Key: new("never"),
	}); err != nil {
		t.Error("deleting what is not there:", err)
	}

	out, err := p.client.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{Bucket: &p.bucket, Delete: &types.Delete{
		Objects: []types.ObjectIdentifier{{Key: new("b b")}, {Key: new("c&c")}, {Key: new("never")}},
	}})
	if err != nil || len(out.Deleted) != 3 || len(out.Errors) != 0 {
		t.Errorf("%+v, %v", out, err)
	}

	list, err := p.client.ListObjects(t.Context(), &s3.ListObjectsInput{Bucket: &p.bucket})
	if err != nil || len(list.Contents) != 1 || *list.Contents[0].Key != "d" {
		t.Errorf("left: %+v, %v", list, err)
	}
	if _, _, err := p.get("a"); code(err) != "NoSuchKey" {
		t.Errorf("GET of a deleted object: %v", err)
	}

	for name, body := range map[string]string{
		"no XML": "delete everything", "empty": "<Delete></Delete>", "no key": "<Delete><Object></Object></Delete>",
		"unclosed":    "<Delete><Object><Key>d</Key>",
		"1,001 keys":  "<Delete>" + strings.Repeat("<Object><Key>d</Key></Object>", 1001) + "</Delete>",
		"another doc": "<Erase><Object><Key>d</Key></Object></Erase>",
	} {
		t.Run(name, func(t *testing.T) {
			if a := p.send(request{
				method: "POST", path: "/" + p.bucket + "?delete", body: []byte(body),
			}); a.Code != "MalformedXML" {
				t.Errorf("%d %s", a.StatusCode, a.Code)
			}
		})
	}

	conditional := "<Delete><Object><Key>d</Key><Size>5</Size></Object></Delete>"
	if a := p.send(request{
		method: "POST", path: "/" + p.bucket + "?delete", body: []byte(conditional),
	}); a.Code != "NotImplemented" {
		t.Errorf("a condition we cannot translate: %d %s", a.StatusCode, a.Code)
	}
	if !p.isStored("d") {
		t.Error("d was removed")
	}
}

func TestListing(t *testing.T) {
	p := newProxy(t)
	sizes := map[string]int{"a/1": 0, "a/2": 1, "b/1": 65496, "b/2": 65497, "c": 200_000, "d": 12}
	for key, size := range sizes {
		p.put(key, randomText(size))
	}

	seen := make(map[string]int64)
	pages := s3.NewListObjectsV2Paginator(
		p.client,
		&s3.ListObjectsV2Input{Bucket: &p.bucket, MaxKeys: new(int32(2)), FetchOwner: new(true)},
	)
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Contents {
			seen[*o.Key] = *o.Size
		}
	}

	for key, size := range sizes {
		if seen[key] != int64(size) {
			t.Errorf("%s: listed with %d bytes, has %d", key, seen[key], size)
		}
	}

	for _, encoding := range []types.EncodingType{"", types.EncodingTypeUrl} {
		t.Run(string(encoding), func(t *testing.T) {
			v1, err := p.client.ListObjects(
				t.Context(),
				&s3.ListObjectsInput{Bucket: &p.bucket, Delimiter: new("/"), EncodingType: encoding},
			)
			if err != nil || len(v1.CommonPrefixes) != 2 || len(v1.Contents) != 2 || *v1.Contents[0].Size != 200_000 {
				t.Errorf("V1 with a delimiter: %+v, %v", v1, err)
			}
		})
	}

	v2, err := p.client.ListObjectsV2(
		t.Context(),
		&s3.ListObjectsV2Input{Bucket: &p.bucket, Prefix: new("b/"), StartAfter: new("b/1")},
	)
	if err != nil || len(v2.Contents) != 1 || *v2.Contents[0].Size != 65497 {
		t.Errorf("V2 with prefix and start-after: %+v, %v", v2, err)
	}
}

func TestBuckets(t *testing.T) {
	p := newProxy(t)
	name := p.newBucket("made-")
	if _, err := p.client.HeadBucket(t.Context(), &s3.HeadBucketInput{Bucket: &name}); err != nil {
		t.Error(err)
	}
	if _, err := p.client.GetBucketLocation(t.Context(), &s3.GetBucketLocationInput{Bucket: &name}); err != nil {
		t.Error(err)
	}

	list, err := p.client.ListBuckets(t.Context(), &s3.ListBucketsInput{})
	if err != nil || !slices.ContainsFunc(list.Buckets, func(b types.Bucket) bool { return *b.Name == name }) {
		t.Errorf("%+v, %v", list, err)
	}
	reader := p.as(readerAccess, readerSecret)
	shared := p.newBucket("shared-")

	list, err = reader.ListBuckets(t.Context(), &s3.ListBucketsInput{})
	if err != nil || !slices.ContainsFunc(list.Buckets, func(b types.Bucket) bool { return *b.Name == shared }) {
		t.Errorf("%+v, %v", list, err)
	}
	for _, b := range list.Buckets {
		if !strings.HasPrefix(*b.Name, "shared-") {
			t.Errorf("the reader sees %s", *b.Name)
		}
	}

	if _, err := reader.HeadBucket(t.Context(), &s3.HeadBucketInput{Bucket: &shared}); err != nil {
		t.Error(err)
	}
	if _, err := p.client.DeleteBucket(t.Context(), &s3.DeleteBucketInput{Bucket: &name}); err != nil {
		t.Error(err)
	}

	if _, err := p.client.HeadBucket(t.Context(), &s3.HeadBucketInput{Bucket: &name}); err == nil {
		t.Error("a deleted bucket is still there")
	}
	if _, err := p.client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &shared}); err == nil ||
		code(err) == "InternalError" {
		t.Errorf("creating a bucket twice: %v", err)
	}

	if _, _, err := p.get(
		"none", func(in *s3.GetObjectInput) { in.Bucket = new("no-such-bucket-here") },
	); code(err) != "NoSuchBucket" {
		t.Errorf("no such bucket: %v", err)
	}
}

func TestAuthorization(t *testing.T) {
	p := newProxy(t)
	shared := p.newBucket("shared-")
	p.put("k", []byte("x"))
	p.bucket, shared = shared, p.bucket
	p.put("k", []byte("shared"))

	reader := p.as(readerAccess, readerSecret)
	if _, err := reader.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &p.bucket, Key: new("k")}); err != nil {
		t.Error(err)
	}

	_, err := reader.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &shared, Key: new("k")})
	if code(err) != "AccessDenied" {
		t.Errorf("read outside the grant: %v", err)
	}

	_, err = reader.PutObject(
		t.Context(),
		&s3.PutObjectInput{Bucket: &p.bucket, Key: new("w"), Body: strings.NewReader("x")},
	)
	if code(err) != "AccessDenied" || p.isStored("w") {
		t.Errorf("write with a read grant: %v", err)
	}

	_, err = reader.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &p.bucket, Key: new("k")})
	if code(err) != "AccessDenied" || !p.isStored("k") {
		t.Errorf("delete with a read grant: %v", err)
	}
}

// A condition on the size is about the plaintext. The object that is deleted is
// the one that had that size.
func TestDeleteIfSize(t *testing.T) {
	p := newProxy(t)
	path := "/" + p.bucket + "/k"
	remove := func(size string) answer {
		return p.send(
			request{method: http.MethodDelete, path: path, header: http.Header{"X-Amz-If-Match-Size": {size}}},
		)
	}
	if a := remove("4"); a.StatusCode != http.StatusNoContent {
		t.Errorf("what is not there: %d %s", a.StatusCode, a.Code)
	}

	// The store sends it for the ciphertext.
	a := p.send(request{method: http.MethodPut, path: path, body: []byte("text")})
	if size := a.Header.Get("X-Amz-Object-Size"); size != "4" {
		t.Errorf("stored with %s bytes", size)
	}

	for size, code := range map[string]string{
		"60": "PreconditionFailed", "5": "PreconditionFailed", "-1": "InvalidArgument", "four": "InvalidArgument",
	} {
		t.Run(size, func(t *testing.T) {
			if a := remove(size); a.Code != code || !p.isStored("k") {
				t.Errorf("size %s: %d %s", size, a.StatusCode, a.Code)
			}
		})
	}

	p.origin.set(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodDelete {
			p.replica().put("k", []byte("next"))
		}
		return nil, nil
	}, nil)

	if a := remove("4"); a.Code != "PreconditionFailed" || string(p.mustGet("k")) != "next" {
		t.Errorf("overwritten in the meantime: %d %s", a.StatusCode, a.Code)
	}
	p.origin.set(nil, nil)
	if a := remove("4"); a.StatusCode != http.StatusNoContent || p.isStored("k") {
		t.Errorf("its size: %d %s", a.StatusCode, a.Code)
	}
}

package s3api_test

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	algorithms "github.com/cmekproxy/cmekproxy/internal/checksum" // a test function has the name checksum
)

const defaultHeader = "X-Amz-Checksum-Crc64nvme"

var withMode = http.Header{"X-Amz-Checksum-Mode": {"ENABLED"}}

// wantDefault fails unless a response has the default checksum of text, and no
// other one.
func wantDefault(t *testing.T, h http.Header, text []byte) {
	t.Helper()
	if got, want := h.Get(defaultHeader), sumOf("CRC64NVME", text); got != want {
		t.Errorf("the checksum is %q, want %q", got, want)
	}
	if kind := h.Get("X-Amz-Checksum-Type"); kind != "FULL_OBJECT" {
		t.Errorf("the checksum's type is %q", kind)
	}

	h = h.Clone()
	h.Del(defaultHeader)
	h.Del("X-Amz-Checksum-Type")
	wantNoChecksum(t, h)
}

func wantNoChecksum(t *testing.T, h http.Header) {
	t.Helper()
	for name := range h {
		if strings.HasPrefix(name, "X-Amz-Checksum-") {
			t.Errorf("the answer has %s", name)
		}
	}
}

// Amazon S3 computes the CRC64NVME of an object for which the client sends no
// checksum. The proxy does it for a body that it can hold until the sum is
// known.
func TestDefaultChecksum(t *testing.T) {
	p := newProxy(t)
	text := randomText(1 << 20)
	sum := md5.Sum(text)
	long := randomText(1<<20 + 1)
	mine := newCustomer(1).headers(customerHeader)

	for _, row := range []struct {
		name, key    string
		header, read http.Header
		body         []byte
		want         bool
	}{
		{"1 MiB", "k", nil, nil, text, true},
		{"over 1 MiB", "k", nil, nil, long, false},
		{"nothing", "k", nil, nil, nil, true},
		{"a directory marker", "dir/", nil, nil, nil, true},
		{"with Content-MD5", "k", http.Header{"Content-Md5": {algorithms.Encode(sum[:])}}, nil, text, true},
		{"with a customer key", "k", mine, mine, text, true},
		{"an algorithm is named", "k", http.Header{"X-Amz-Sdk-Checksum-Algorithm": {"CRC32"}}, nil, text, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := "/" + p.bucket + "/" + row.key
			put := p.send(request{method: "PUT", path: path, header: row.header, body: row.body})
			head := p.send(request{method: "HEAD", path: path, header: merge(row.read, withMode)})
			get := p.send(request{method: "GET", path: path, header: merge(row.read, withMode)})
			for _, a := range []answer{put, head, get} {
				if a.StatusCode != http.StatusOK {
					t.Fatalf("%s: %d %s", a.Request.Method, a.StatusCode, a.body)
				}
				if row.want {
					wantDefault(t, a.Header, row.body)
				} else {
					wantNoChecksum(t, a.Header)
				}
			}

			if !bytes.Equal(get.body, row.body) {
				t.Error("another text")
			}
			wantNoChecksum(t, p.send(request{method: "GET", path: path, header: row.read}).Header)
		})
	}
}

// The default checksum is not in a range, and the store sees nothing of it.
func TestDefaultChecksumIsSealed(t *testing.T) {
	p := newProxy(t)
	path, text := "/"+p.bucket+"/k", []byte("a text")
	p.send(request{method: "PUT", path: path, body: text})

	a := p.send(request{method: "GET", path: path, header: merge(withMode, http.Header{"Range": {"bytes=0-1"}})})
	if a.StatusCode != http.StatusPartialContent {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	wantNoChecksum(t, a.Header)

	a = p.send(request{
		method: "GET", path: path + "?attributes", header: http.Header{"X-Amz-Object-Attributes": {"Checksum"}},
	})
	want := "<Checksum><ChecksumCRC64NVME>" + sumOf("CRC64NVME", text) +
		"</ChecksumCRC64NVME><ChecksumType>FULL_OBJECT</ChecksumType></Checksum>"
	if !bytes.Contains(a.body, []byte(want)) {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}

	_, header := p.stored("k")
	for name, values := range header {
		if strings.Contains(strings.Join(values, " "), sumOf("CRC64NVME", text)) {
			t.Errorf("the store can read the checksum in %s", name)
		}
	}
}

// A body that does not verify is not stored, although its checksum would be
// computed from what came.
func TestDefaultChecksumOfAWrongBody(t *testing.T) {
	p := newProxy(t)
	other := sha256.Sum256([]byte("abd"))
	a := p.send(request{
		method: "PUT", path: "/" + p.bucket + "/k", body: []byte("abc"), hash: hex.EncodeToString(other[:]),
	})
	if a.Code != "XAmzContentSHA256Mismatch" || p.isStored("k") {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

// Chunks without a trailer have no checksum, and a form has none either.
func TestDefaultChecksumOfOtherBodies(t *testing.T) {
	p := newProxy(t)
	a := p.send(request{
		method: "PUT", path: "/" + p.bucket + "/chunks", hash: "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
		header: http.Header{"X-Amz-Decoded-Content-Length": {"11"}}, body: []byte("B\r\nhello world\r\n0\r\n\r\n"),
	})
	if a.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	wantDefault(t, a.Header, []byte("hello world"))

	if resp, text := p.form("form", []byte("hello")).post(); resp.StatusCode != http.StatusNoContent {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	a = p.send(request{method: "HEAD", path: "/" + p.bucket + "/form", header: withMode})
	wantDefault(t, a.Header, []byte("hello"))
}

// A copy has the checksum of its source.
func TestDefaultChecksumOfACopy(t *testing.T) {
	p := newProxy(t)
	text := []byte("a text")
	p.send(request{method: "PUT", path: "/" + p.bucket + "/k", body: text})
	out := p.mustCopy("k", "copy").CopyObjectResult
	if out.ChecksumCRC64NVME == nil || *out.ChecksumCRC64NVME != sumOf("CRC64NVME", text) {
		t.Errorf("%+v", out)
	}
	wantDefault(t, p.send(request{method: "HEAD", path: "/" + p.bucket + "/copy", header: withMode}).Header, text)
}

// An upload for which the client asks for no checksum gets the default one,
// which follows from those of its parts. It is answered by the completion, and
// kept if the object has a record.
func TestDefaultChecksumOfAnUpload(t *testing.T) {
	for _, row := range []struct {
		name  string
		sizes []int
		kept  bool
	}{
		{"an end that is appended", []int{5*mib + 7, 6 * mib}, true},
		{"a short end", []int{5 * mib, 100}, false},
		{"one short part", []int{100}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newProxy(t)
			m := p.create("k")
			for i, size := range row.sizes {
				wantNoChecksum(t, m.sendBare(i+1, randomText(size)))
			}
			m.sendBare(1, randomText(row.sizes[0])) // again

			if parts := m.list(); parts.ChecksumAlgorithm != "null" || parts.Parts[0].ChecksumCRC64NVME != nil {
				t.Errorf("%+v", parts)
			}

			out, want := m.mustComplete(), sumOf("CRC64NVME", m.text())
			if out.ChecksumCRC64NVME == nil || *out.ChecksumCRC64NVME != want ||
				out.ChecksumType != types.ChecksumTypeFullObject {
				t.Errorf("the completion answers %v, %s, want %s", out.ChecksumCRC64NVME, out.ChecksumType, want)
			}

			a := p.send(request{method: "HEAD", path: "/" + p.bucket + "/k", header: withMode})
			if row.kept {
				wantDefault(t, a.Header, m.text())
			} else {
				wantNoChecksum(t, a.Header)
			}
		})
	}
}

// Clients that send checksums of the parts need not have asked for one of the
// object, nor repeat them in the completion: the Go SDK does neither.
func TestDefaultChecksumBesideThoseOfParts(t *testing.T) {
	p := newProxy(t)
	m := p.create("k")
	for number, algorithm := range map[int32]types.ChecksumAlgorithm{
		1: types.ChecksumAlgorithmCrc32, 2: types.ChecksumAlgorithmSha256, 3: types.ChecksumAlgorithmCrc64nvme,
	} {
		m.send(number, randomText(5*mib), func(in *s3.UploadPartInput) { in.ChecksumAlgorithm = algorithm })
	}

	a := p.send(request{method: "POST", path: "/" + p.bucket + "/k?uploadId=" + m.id, body: m.document()})
	if want := "<ChecksumCRC64NVME>" + sumOf("CRC64NVME", m.text()) + "<"; !bytes.Contains(a.body, []byte(want)) {
		t.Errorf("%d %s, want %s", a.StatusCode, a.body, want)
	}
	wantDefault(t, p.send(request{method: "HEAD", path: "/" + p.bucket + "/k", header: withMode}).Header, m.text())
}

// The client's checksums take precedence, and a checksum that cannot be
// verified is refused.
func TestClaimsOnAnUploadWithoutAlgorithm(t *testing.T) {
	p := newProxy(t)
	text := randomText(5 * mib)
	wrong := sumOf("CRC64NVME", []byte("other"))
	type input = s3.CompleteMultipartUploadInput
	first := func(in *input) *types.CompletedPart {
		in.MultipartUpload = &types.CompletedMultipartUpload{
			Parts: append([]types.CompletedPart(nil), in.MultipartUpload.Parts...),
		}
		return &in.MultipartUpload.Parts[0]
	}

	for _, row := range []struct {
		name   string
		change func(*input)
		code   string
	}{
		{"the object's", func(in *input) { in.ChecksumCRC64NVME = new(sumOf("CRC64NVME", text)) }, ""},
		{"another object's", func(in *input) { in.ChecksumCRC64NVME = &wrong }, "BadDigest"},
		{"CRC32 of the object", func(in *input) { in.ChecksumCRC32 = new(sumOf("CRC32", text)) }, "InvalidRequest"},
		{"the part's", func(in *input) { first(in).ChecksumCRC64NVME = new(sumOf("CRC64NVME", text)) }, ""},
		{"another part's", func(in *input) { first(in).ChecksumCRC64NVME = &wrong }, "InvalidPart"},
		{"SHA256 of the part", func(in *input) { first(in).ChecksumSHA256 = new(sumOf("SHA256", text)) }, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := p.create("claims")
			m.sendBare(1, text)
			if _, err := m.complete(row.change); err == nil && row.code != "" || err != nil && code(err) != row.code {
				t.Errorf("%v, want %q", err, row.code)
			}
		})
	}
}

// A replica that has not seen the whole upload cannot compute its checksum. It
// still completes it.
func TestDefaultChecksumAcrossReplicas(t *testing.T) {
	p := newProxy(t)
	other := p.replica()
	for _, row := range []struct {
		name             string
		second, complete *proxy
	}{
		{"a part elsewhere", other, p},
		{"completed elsewhere", p, other},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := p.create("k")
			m.sendBare(1, randomText(5*mib))
			m.p = row.second
			m.sendBare(2, randomText(5*mib))
			m.p = row.complete

			if out := m.mustComplete(); out.ChecksumCRC64NVME != nil || out.ChecksumType != "" {
				t.Errorf("%+v", out)
			}
			a := p.send(request{method: "HEAD", path: "/" + p.bucket + "/k", header: withMode})
			wantNoChecksum(t, a.Header)
		})
	}
}

// Parts that are copied count too. CopyPartResult has the checksum only if the
// upload was created with one.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyPartResult.html
func TestDefaultChecksumOfCopiedParts(t *testing.T) {
	p := newProxy(t)
	text := randomText(6 * mib)
	p.put("source", text)
	m := p.create("k")

	path := fmt.Sprintf("/%s/k?partNumber=1&uploadId=%s", p.bucket, m.id)
	a := p.send(request{method: "PUT", path: path, header: http.Header{"X-Amz-Copy-Source": {p.bucket + "/source"}}})
	if a.StatusCode != http.StatusOK || bytes.Contains(a.body, []byte("Checksum")) {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}

	etag, _, _ := strings.Cut(string(bytes.SplitN(a.body, []byte("<ETag>"), 2)[1]), "</ETag>")
	m.keep(partOf(1, new(strings.ReplaceAll(etag, "&#34;", `"`))), text)
	if out := m.mustComplete(); out.ChecksumCRC64NVME == nil || *out.ChecksumCRC64NVME != sumOf("CRC64NVME", text) {
		t.Errorf("%+v", out)
	}
}

// The record is sealed under the customer's key, or has no default checksum:
// it would be readable without that key.
func TestDefaultChecksumUnderACustomerKey(t *testing.T) {
	p := newProxy(t)
	mine := newCustomer(1)
	header := mine.headers(customerHeader)
	for name, complete := range map[string]http.Header{"completed with the key": header, "completed without it": nil} {
		t.Run(name, func(t *testing.T) {
			m := p.create("k", func(in *s3.CreateMultipartUploadInput) {
				in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = mine.algorithm, mine.key, mine.md5
			})

			text := randomText(5 * mib)
			path := fmt.Sprintf("/%s/k?partNumber=1&uploadId=%s", p.bucket, m.id)
			a := p.send(request{method: "PUT", path: path, header: header, body: text})
			m.keep(partOf(1, new(a.Header.Get("Etag"))), text)

			path = fmt.Sprintf("/%s/k?uploadId=%s", p.bucket, m.id)
			if a := p.send(request{method: "POST", path: path, header: complete, body: m.document()}); a.Code != "" {
				t.Fatalf("%d %s", a.StatusCode, a.body)
			}

			a = p.send(request{method: "HEAD", path: "/" + p.bucket + "/k", header: merge(header, withMode)})
			if a.StatusCode != http.StatusOK {
				t.Fatalf("%d", a.StatusCode)
			}
			if complete != nil {
				wantDefault(t, a.Header, text)
			} else {
				wantNoChecksum(t, a.Header)
			}
		})
	}
}

// Metadata that fitted without the default checksum still fits.
func TestDefaultChecksumGivesWayToMetadata(t *testing.T) {
	p := newProxy(t)
	path := "/" + p.bucket + "/k"
	put := func(size int) answer {
		header := http.Header{"X-Amz-Meta-A": {strings.Repeat("x", size-1)}}
		return p.send(request{method: "PUT", path: path, header: header, body: []byte("text")})
	}

	const limit = 2048
	var refusal struct{ EncryptionEnvelopeSize int }
	if err := xml.Unmarshal(put(limit).body, &refusal); err != nil || refusal.EncryptionEnvelopeSize == 0 {
		t.Fatalf("%+v, %v", refusal, err)
	}

	room := limit - refusal.EncryptionEnvelopeSize
	if a := put(room + 1); a.Code != "MetadataTooLarge" {
		t.Errorf("%d bytes: %d %s", room+1, a.StatusCode, a.body)
	}
	a := put(room)
	if a.StatusCode != http.StatusOK {
		t.Fatalf("%d bytes: %d %s", room, a.StatusCode, a.body)
	}
	wantNoChecksum(t, a.Header)
	wantNoChecksum(t, p.send(request{method: "HEAD", path: path, header: withMode}).Header)

	wantDefault(t, put(room-100).Header, []byte("text"))
}

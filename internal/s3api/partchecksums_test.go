package s3api_test

import (
	"bytes"
	"crypto/md5"
	"encoding/xml"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	algorithms "github.com/cmekproxy/cmekproxy/internal/checksum" // a test function has the name checksum
)

// sumOf returns a checksum as S3 writes it.
func sumOf(name string, text []byte) string {
	h := algorithms.Named(name).New()
	h.Write(text)
	return algorithms.Encode(h.Sum(nil))
}

func withAlgorithm(a types.ChecksumAlgorithm, kind types.ChecksumType) func(*s3.CreateMultipartUploadInput) {
	return func(in *s3.CreateMultipartUploadInput) { in.ChecksumAlgorithm, in.ChecksumType = a, kind }
}

// sendBare sends a part without a checksum, and returns the headers of the
// response.
func (m *multipart) sendBare(number int, text []byte) http.Header {
	m.p.t.Helper()
	a := m.p.send(
		request{
			method: "PUT",
			path:   fmt.Sprintf("/%s/%s?partNumber=%d&uploadId=%s", m.p.bucket, m.key, number, m.id),
			body:   text,
		},
	)
	if a.StatusCode != http.StatusOK {
		m.p.t.Fatalf("part %d: %d %s", number, a.StatusCode, a.body)
	}
	m.keep(types.CompletedPart{PartNumber: new(int32(number)), ETag: new(a.Header.Get("ETag"))}, text)
	return a.Header
}

func (m *multipart) list() *s3.ListPartsOutput {
	m.p.t.Helper()
	out, err := m.p.client.ListParts(
		m.p.t.Context(),
		&s3.ListPartsInput{Bucket: &m.p.bucket, Key: &m.key, UploadId: &m.id},
	)
	if err != nil {
		m.p.t.Fatal(err)
	}
	return out
}

// If the upload has a checksum for the full object, the proxy computes those
// of the parts, and the completion need not repeat them.
func TestPartsWithoutChecksums(t *testing.T) {
	p := newProxy(t)
	m := p.create("full", withAlgorithm(types.ChecksumAlgorithmCrc32c, types.ChecksumTypeFullObject))
	m.sendBare(1, randomText(5*mib))

	for number, size := range map[int]int{1: 5*mib + 1, 2: 300_000} { // part 1 is sent again
		text := randomText(size)
		if got := m.sendBare(number, text).Get("X-Amz-Checksum-Crc32c"); got != sumOf("CRC32C", text) {
			t.Errorf("part %d has the checksum %q", number, got)
		}
	}

	parts := m.list()
	if parts.ChecksumAlgorithm != types.ChecksumAlgorithmCrc32c || parts.ChecksumType != types.ChecksumTypeFullObject ||
		len(parts.Parts) != 2 {
		t.Errorf("parts: %+v", parts)
	}

	for _, part := range parts.Parts {
		if part.ChecksumCRC32C == nil || *part.ChecksumCRC32C != sumOf("CRC32C", m.texts[*part.PartNumber]) {
			t.Errorf("part %d is listed with %v", *part.PartNumber, part.ChecksumCRC32C)
		}
	}

	m.p = p.replica() // it does not know the upload
	if parts := m.list(); parts.ChecksumAlgorithm != "" || parts.Parts[0].ChecksumCRC32C != nil {
		t.Errorf("at another replica: %+v", parts)
	}
	m.p = p
	whole := sumOf("CRC32C", m.text())

	if _, err := m.complete(
		func(in *s3.CompleteMultipartUploadInput) { in.ChecksumCRC32C = new(sumOf("CRC32C", []byte("other"))) },
	); code(err) != "BadDigest" {
		t.Errorf("another checksum of the object: %v", err)
	}
	out := m.mustComplete(func(in *s3.CompleteMultipartUploadInput) { in.ChecksumCRC32C = &whole })
	if out.ChecksumCRC32C == nil || *out.ChecksumCRC32C != whole || out.ChecksumType != types.ChecksumTypeFullObject {
		t.Errorf("%+v", out)
	}

	if got := p.mustGet("full"); !bytes.Equal(got, m.text()) {
		t.Error("another text")
	}
}

// If an upload has no checksum, its parts are listed without one, even if
// they were sent with one.
func TestListPartsNamesNoOtherChecksums(t *testing.T) {
	p := newProxy(t)
	m := p.create("none")
	m.send(1, []byte("text"), func(in *s3.UploadPartInput) { in.ChecksumAlgorithm = types.ChecksumAlgorithmSha256 })
	a := p.send(request{method: "GET", path: "/" + p.bucket + "/none?uploadId=" + m.id})
	if a.StatusCode != http.StatusOK || bytes.Contains(a.body, []byte("ChecksumSHA256")) ||
		!bytes.Contains(a.body, []byte("<PartNumber>1</PartNumber>")) {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

// A copied part gets the checksum algorithm of its upload, computed from the
// copied bytes.
func TestChecksumOfACopiedPart(t *testing.T) {
	p := newProxy(t)
	text := randomText(6 * mib)
	p.put("source", text)
	m := p.create("copy", withAlgorithm(types.ChecksumAlgorithmSha256, types.ChecksumTypeComposite))
	want := sumOf("SHA256", text[5:5242891])

	// A checksum of the empty payload does not apply to the copied bytes.
	for name, header := range map[string]http.Header{
		"plain": {}, "with one of the payload": {"X-Amz-Checksum-Sha256": {sumOf("SHA256", nil)}},
	} {
		t.Run(name, func(t *testing.T) {
			header.Set("X-Amz-Copy-Source", p.bucket+"/source")
			header.Set("X-Amz-Copy-Source-Range", "bytes=5-5242890")
			a := p.send(
				request{method: "PUT", path: "/" + p.bucket + "/copy?partNumber=1&uploadId=" + m.id, header: header},
			)

			var result struct{ ETag, ChecksumSHA256, ChecksumType string }
			if err := xml.Unmarshal(a.body, &result); err != nil || a.StatusCode != http.StatusOK ||
				result.ChecksumSHA256 != want ||
				result.ChecksumType != "" {
				t.Fatalf("%d %s", a.StatusCode, a.body)
			}

			m.keep(
				types.CompletedPart{
					PartNumber:     new(int32(1)),
					ETag:           &result.ETag,
					ChecksumSHA256: &result.ChecksumSHA256,
				},
				text[5:5242891],
			)
		})
	}

	m.parts[0].ChecksumSHA256 = new(sumOf("SHA256", nil))
	if _, err := m.complete(); code(err) != "InvalidPart" {
		t.Errorf("the checksum of other bytes: %v", err)
	}

	m.parts[0].ChecksumSHA256 = &want
	if out := m.mustComplete(); out.ChecksumSHA256 == nil || !strings.HasSuffix(*out.ChecksumSHA256, "-1") {
		t.Errorf("%+v", out)
	}
}

// Each of these gets S3's error.
func TestCompletionsWithWrongChecksums(t *testing.T) {
	p := newProxy(t)
	m := p.create("k", withAlgorithm(types.ChecksumAlgorithmCrc32, types.ChecksumTypeComposite))
	for i, size := range []int{5 * mib, 100} {
		m.send(
			int32(i+1),
			randomText(size),
			func(in *s3.UploadPartInput) { in.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32 },
		)
	}

	crc, sha := *m.parts[0].ChecksumCRC32, sumOf("SHA1", nil)
	for name, row := range map[string]struct {
		change func(*types.CompletedPart, *s3.CompleteMultipartUploadInput)
		code   string
		text   []string
	}{
		"no base64": {
			func(p *types.CompletedPart, _ *s3.CompleteMultipartUploadInput) { p.ChecksumCRC32 = new("none") },
			"InvalidArgument",
			[]string{"Invalid Base64 or multiple checksums present in request"},
		},
		"two of a part": {
			func(p *types.CompletedPart, _ *s3.CompleteMultipartUploadInput) { p.ChecksumSHA1 = &sha },
			"InvalidArgument",
			[]string{"Invalid Base64 or multiple checksums present in request"},
		},
		"another algorithm": {
			func(p *types.CompletedPart, _ *s3.CompleteMultipartUploadInput) {
				p.ChecksumCRC32, p.ChecksumSHA1 = nil, &sha
			},
			"BadDigest",
			[]string{"The sha1 you specified for part 1 did not match what we received."},
		},
		"another digest": {
			func(p *types.CompletedPart, _ *s3.CompleteMultipartUploadInput) { p.ChecksumCRC32 = new("AAAAAA==") },
			"InvalidPart", nil,
		},
		"none": {
			func(p *types.CompletedPart, _ *s3.CompleteMultipartUploadInput) { p.ChecksumCRC32 = nil },
			"InvalidRequest",
			[]string{"created using a crc32 checksum", "missing for part 1"},
		},
		"none of any part": {
			func(_ *types.CompletedPart, in *s3.CompleteMultipartUploadInput) {
				in.MultipartUpload = &types.CompletedMultipartUpload{
					Parts: []types.CompletedPart{partOf(1, m.parts[0].ETag), partOf(2, m.parts[1].ETag)},
				}
			},
			"InvalidRequest",
			[]string{"created using a crc32 checksum", "missing for part 1"},
		},
		"two of the object": {
			func(_ *types.CompletedPart, in *s3.CompleteMultipartUploadInput) {
				in.ChecksumCRC32, in.ChecksumSHA1, in.ChecksumType = &crc, &sha, types.ChecksumTypeFullObject
			},
			"InvalidRequest",
			[]string{"Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."},
		},
		"a size below 0": {
			func(_ *types.CompletedPart, in *s3.CompleteMultipartUploadInput) { in.MpuObjectSize = new(int64(-1)) },
			"InvalidRequest",
			[]string{"less than zero: '-1'"},
		},
		"another size": {
			func(_ *types.CompletedPart, in *s3.CompleteMultipartUploadInput) { in.MpuObjectSize = new(int64(7)) },
			"InvalidRequest",
			[]string{"header value 7 does not match what was computed: 5242980"},
		},
		"a part below 1": {
			func(p *types.CompletedPart, _ *s3.CompleteMultipartUploadInput) { p.PartNumber = new(int32(-4)) },
			"InvalidArgument",
			[]string{"PartNumber must be >= 1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := m.complete(func(in *s3.CompleteMultipartUploadInput) {
				in.MultipartUpload = &types.CompletedMultipartUpload{
					Parts: append([]types.CompletedPart(nil), m.parts...),
				}
				row.change(&in.MultipartUpload.Parts[0], in)
			})
			if code(err) != row.code {
				t.Errorf("%v", err)
				return
			}

			for _, text := range row.text {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%v", err)
				}
			}
		})
	}

	doc := []byte(
		"<CompleteMultipartUpload><Part><ETag>" + *m.parts[0].ETag + "</ETag></Part></CompleteMultipartUpload>",
	)
	if a := p.send(request{
		method: "POST", path: "/" + p.bucket + "/k?uploadId=" + m.id, body: doc,
	}); a.Code != "MalformedXML" {
		t.Errorf("a part without a number: %d %s", a.StatusCode, a.body)
	}

	doc = []byte(
		"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>none</ETag></Part></CompleteMultipartUpload>",
	)

	a := p.send(request{method: "POST", path: "/" + p.bucket + "/k?uploadId=" + m.id, body: doc})
	if want := "<UploadId>" + m.id + "</UploadId><PartNumber>1</PartNumber><ETag>none</ETag>"; a.Code != "InvalidPart" ||
		!bytes.Contains(a.body, []byte(want)) {
		t.Errorf("another part: %d %s", a.StatusCode, a.body)
	}

	out := m.mustComplete() // the type is that of the upload
	if out.ChecksumCRC32 == nil || out.ChecksumType != types.ChecksumTypeComposite {
		t.Errorf("%+v", out)
	}
}

// Two checksums are always refused.
func TestSeveralChecksums(t *testing.T) {
	p := newProxy(t)
	for name, header := range map[string]http.Header{
		"two":            {"X-Amz-Checksum-Crc32": {"NSRBwg=="}, "X-Amz-Checksum-Sha1": {sumOf("SHA1", []byte("abc"))}},
		"two empty ones": {"X-Amz-Checksum-Crc32": {""}, "X-Amz-Checksum-Sha1": {""}},
		"another for the trailer": {
			"X-Amz-Checksum-Crc32": {"no"}, "X-Amz-Trailer": {"x-amz-checksum-crc32"}, "X-Amz-Decoded-Content-Length": {"3"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := request{method: "PUT", path: "/" + p.bucket + "/k", header: header, body: []byte("abc")}
			if header.Get("X-Amz-Trailer") != "" {
				r.hash, r.body = "STREAMING-UNSIGNED-PAYLOAD-TRAILER", []byte(
					"3\r\nabc\r\n0\r\nx-amz-checksum-crc32:NSRBwg==\r\n\r\n",
				)
			}

			a := p.send(r)
			if a.Code != "InvalidRequest" ||
				!bytes.Contains(a.body, []byte("Multiple checksum Types are not allowed.")) ||
				p.isStored("k") {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
		})
	}
}

func TestWrongDigestsAreTold(t *testing.T) {
	p := newProxy(t)
	right, wrong := md5.Sum([]byte("abc")), md5.Sum([]byte("abd"))
	for text, want := range map[string]string{
		"none": "<Code>InvalidDigest</Code><Message>The Content-Md5 you specified is not valid.</Message><Content-MD5>none</Content-MD5>",
		algorithms.Encode(wrong[:]): fmt.Sprintf(
			"<ExpectedDigest>%x</ExpectedDigest><CalculatedDigest>%s</CalculatedDigest>", wrong, algorithms.Encode(right[:]),
		),
		algorithms.Encode(wrong[:15]): "<Code>InvalidDigest</Code>",
	} {
		t.Run(text, func(t *testing.T) {
			a := p.send(
				request{
					method: "PUT",
					path:   "/" + p.bucket + "/k",
					header: http.Header{"Content-Md5": {text}},
					body:   []byte("abc"),
				},
			)
			if a.StatusCode != http.StatusBadRequest || !bytes.Contains(a.body, []byte(want)) || p.isStored("k") {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
		})
	}
}

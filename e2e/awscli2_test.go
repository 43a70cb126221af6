package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// awsCLI2 sends bodies exactly as version 2 of aws-cli does by default, which
// Debian does not have: since 2.34.32, all have a CRC64NVME. Over TLS, the
// body is aws-chunked in chunks of 1 MiB with the checksum in an unsigned
// trailer, and has no Content-Length. Over plain HTTP, the checksum is in a
// header and the body is signed. See awscli/botocore/httpchecksum.py.
//
// No other client sends the same. The streams of minio-go over plain HTTP,
// with a signed trailer, are in TestClients.
type awsCLI2 struct {
	endpoint endpoint
	client   *http.Client
}

// upload sends a PutObject or, with a query, an UploadPart. It returns the
// headers of the answer. A sum that is not empty replaces the right one.
func (c *awsCLI2) upload(t *testing.T, path, query string, data []byte, sum string) (status int, header http.Header, answer string) {
	t.Helper()
	if sum == "" {
		sum = checksum(t, "CRC64NVME", data)
	}
	u := url.URL{Path: path, RawQuery: query}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, c.endpoint.url+u.String(), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}

	hash := fmt.Sprintf("%x", sha256.Sum256(data))
	request.Header.Set("User-Agent", "aws-cli/2.34.32 md/awscrt#0.31.2 ua/2.1 os/linux md/command#s3.cp")
	request.Header.Set("Expect", "100-continue")
	request.Header.Set("X-Amz-Sdk-Checksum-Algorithm", "CRC64NVME")
	if c.endpoint.ca == "" {
		request.Header.Set("X-Amz-Checksum-Crc64nvme", sum)
	} else {
		hash = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
		request.Header.Set("Content-Encoding", "aws-chunked")
		request.Header.Set("X-Amz-Trailer", "x-amz-checksum-crc64nvme")
		request.Header.Set("X-Amz-Decoded-Content-Length", fmt.Sprint(len(data)))
		request.Body, request.ContentLength, request.GetBody = io.NopCloser(awsChunked(data, "x-amz-checksum-crc64nvme:"+sum)), -1, nil
	}
	request.Header.Set("X-Amz-Content-Sha256", hash)

	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	who := aws.Credentials{AccessKeyID: c.endpoint.accessKey, SecretAccessKey: c.endpoint.secret}
	if err := signer.SignHTTP(t.Context(), who, request, hash, "s3", region, time.Now()); err != nil {
		t.Fatal(err)
	}
	response, err := c.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(text)
}

// awsChunked encodes a body with a trailer. Chunks have no signatures.
func awsChunked(data []byte, trailer string) io.Reader {
	var readers []io.Reader
	for len(data) > 0 {
		chunk := data[:min(len(data), mib)]
		data = data[len(chunk):]
		readers = append(readers, strings.NewReader(fmt.Sprintf("%x\r\n", len(chunk))), bytes.NewReader(chunk), strings.NewReader("\r\n"))
	}
	return io.MultiReader(append(readers, strings.NewReader("0\r\n"+trailer+"\r\n\r\n"))...)
}

func TestAWSCLI2(t *testing.T) {
	s := startStack(t)
	for _, e := range s.endpoints {
		t.Run(e.name, func(t *testing.T) {
			transport := &http.Transport{TLSClientConfig: trust(e), ExpectContinueTimeout: time.Second}
			defer transport.CloseIdleConnections()
			c, sdk, bucket := &awsCLI2{e, &http.Client{Transport: transport}}, newGoSDK(e), "cli2-"+e.name
			if err := sdk.createBucket(bucket); err != nil {
				t.Fatal(err)
			}
			_, data := randomFile(t, 24*mib)
			t.Run("put", func(t *testing.T) { c.checkPut(t, sdk, bucket, data) })
			t.Run("multipart", func(t *testing.T) { c.checkMultipart(t, sdk, bucket, data) })
			t.Run("delete", func(t *testing.T) { checkDeleteWithChecksum(t, sdk, bucket) })
		})
	}
}

// checkPut stores, copies and reads objects. A wrong checksum is refused.
func (c *awsCLI2) checkPut(t *testing.T, sdk *goSDK, bucket string, data []byte) {
	for _, size := range []int{0, 1, 65_497, mib, 8*mib - 1} {
		key := fmt.Sprintf("put-%d", size)
		status, header, answer := c.upload(t, "/"+bucket+"/"+key, "", data[:size], "")
		sum := checksum(t, "CRC64NVME", data[:size])
		if status != http.StatusOK || header.Get("X-Amz-Checksum-Crc64nvme") != sum {
			t.Errorf("%s: %d %q, not %q, %s", key, status, header.Get("X-Amz-Checksum-Crc64nvme"), sum, answer)
			continue
		}
		// A checksum in a trailer comes too late for the metadata of a body
		// of more than 1 MiB.
		kept := c.endpoint.ca == "" || size <= mib
		hasFullChecksum(t, sdk, bucket, key, data[:size], kept, kept)

		// aws-cli copies without naming a checksum.
		if err := sdk.copy(bucket, key, key+" copied"); err != nil {
			t.Error(err)
		}
		hasFullChecksum(t, sdk, bucket, key+" copied", data[:size], kept, kept)
	}

	wrong := checksum(t, "CRC64NVME", []byte("something else"))
	if status, _, answer := c.upload(t, "/"+bucket+"/wrong", "", data[:1000], wrong); status != http.StatusBadRequest || !strings.Contains(answer, "<Code>BadDigest<") {
		t.Errorf("a wrong checksum: %d %s", status, answer)
	}
	if _, err := sdk.head(bucket, "wrong"); !refusedAs(err, http.StatusNotFound, "NotFound") {
		t.Errorf("after a wrong checksum: %v", err)
	}
}

// checkMultipart uploads parts of 8 MiB, as aws-cli does. It names the
// algorithm, not the type, which is FULL_OBJECT for a CRC64NVME.
func (c *awsCLI2) checkMultipart(t *testing.T, sdk *goSDK, bucket string, data []byte) {
	const key = "large"
	upload, err := sdk.s3.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{
		Bucket: &bucket, Key: aws.String(key), ChecksumAlgorithm: types.ChecksumAlgorithmCrc64nvme,
	})
	if err != nil {
		t.Fatal(err)
	}

	put := func(number int32, part []byte, sum string) (int, http.Header, string) {
		query := url.Values{"partNumber": {fmt.Sprint(number)}, "uploadId": {*upload.UploadId}}
		return c.upload(t, "/"+bucket+"/"+key, query.Encode(), part, sum)
	}
	wrong := checksum(t, "CRC64NVME", []byte("something else"))
	if status, _, answer := put(1, data[:1000], wrong); status != http.StatusBadRequest || !strings.Contains(answer, "<Code>BadDigest<") {
		t.Errorf("a part with a wrong checksum: %d %s", status, answer)
	}

	var parts []types.CompletedPart
	for rest := data; len(rest) > 0; {
		part := rest[:min(len(rest), 8*mib)]
		rest = rest[len(part):]
		number := int32(len(parts) + 1)
		status, header, answer := put(number, part, "")
		sum := header.Get("X-Amz-Checksum-Crc64nvme")
		if status != http.StatusOK || sum != checksum(t, "CRC64NVME", part) {
			t.Fatalf("part %d: %d %q %s", number, status, sum, answer)
		}
		parts = append(parts, types.CompletedPart{PartNumber: &number, ETag: aws.String(header.Get("Etag")), ChecksumCRC64NVME: &sum})
	}

	done, err := sdk.s3.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{
		Bucket: &bucket, Key: aws.String(key), UploadId: upload.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	if err != nil {
		t.Fatal(err)
	}
	if sum := checksum(t, "CRC64NVME", data); aws.ToString(done.ChecksumCRC64NVME) != sum || done.ChecksumType != types.ChecksumTypeFullObject {
		t.Errorf("completed with %q %s, not %q", aws.ToString(done.ChecksumCRC64NVME), done.ChecksumType, sum)
	}
	hasFullChecksum(t, sdk, bucket, key, data, false, true) // a GET of a multipart object does not return it
	if err := sdk.copy(bucket, key, key+" copied"); err != nil {
		t.Error(err)
	}
	hasFullChecksum(t, sdk, bucket, key+" copied", data, true, true)
}

// checkDeleteWithChecksum deletes with the checksum of the list of keys.
func checkDeleteWithChecksum(t *testing.T, sdk *goSDK, bucket string) {
	var objects []types.ObjectIdentifier
	sizes, err := sdk.list(bucket, "")
	for key := range sizes {
		objects = append(objects, types.ObjectIdentifier{Key: &key})
	}
	if err != nil || len(objects) == 0 {
		t.Fatalf("%d objects, %v", len(objects), err)
	}

	out, err := sdk.s3.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{
		Bucket: &bucket, ChecksumAlgorithm: types.ChecksumAlgorithmCrc64nvme, Delete: &types.Delete{Objects: objects},
	})
	if err != nil || len(out.Deleted) != len(objects) {
		t.Errorf("%d objects: %v, %v", len(objects), out, err)
	}
}

// hasFullChecksum reads an object. GET and HEAD must return the CRC64NVME of
// the whole object if inGet and inHead are set, and no other in any case.
func hasFullChecksum(t *testing.T, sdk *goSDK, bucket, key string, want []byte, inGet, inHead bool) {
	t.Helper()
	sum := checksum(t, "CRC64NVME", want)
	got, sums, err := sdk.getVerified(bucket, key)
	same(t, key, got, err, want)
	if found := sums["CRC64NVME"]; found != sum && (inGet || found != "") {
		t.Errorf("GET of %s: the checksums are %v, not %q", key, sums, sum)
	}

	head, err := sdk.s3.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		t.Errorf("HEAD of %s: %v", key, err)
		return
	}
	found := aws.ToString(head.ChecksumCRC64NVME)
	if found != sum && (inHead || found != "") || found != "" && head.ChecksumType != types.ChecksumTypeFullObject {
		t.Errorf("HEAD of %s: %q %s, not %q", key, found, head.ChecksumType, sum)
	}
}

package origin

import (
	"net/http"
	"strings"
)

// SSE is the encryption that the store is asked for, on top of the proxy's.
// A bucket policy at the store may deny writes without it. It encrypts
// ciphertext once more, under keys that the store can use.
//
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/serv-side-encryption.html
type SSE struct {
	Algorithm string // AES256, aws:kms or aws:kms:dsse; "none" and "" ask for nothing
	KeyID     string // of the store's KMS; "" for the default key of the bucket or the store
	BucketKey bool   // an S3 Bucket Key, for aws:kms
}

const (
	sseAlgorithm = "X-Amz-Server-Side-Encryption"
	sseKeyID     = "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id"
	sseBucketKey = "X-Amz-Server-Side-Encryption-Bucket-Key-Enabled"
)

// askFor adds the headers to a request that makes an object. S3 refuses them
// on all others, such as UploadPart.
func (s SSE) askFor(r *http.Request) {
	if s.Algorithm == "" || s.Algorithm == "none" || !makesObject(r) {
		return
	}
	r.Header.Set(sseAlgorithm, s.Algorithm)
	if s.KeyID != "" {
		r.Header.Set(sseKeyID, s.KeyID)
	}
	if s.BucketKey {
		r.Header.Set(sseBucketKey, "true")
	}
}

// makesObject recognizes PutObject and CopyObject, which have no parameters,
// and CreateMultipartUpload.
func makesObject(r *http.Request) bool {
	if _, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); key == "" {
		return false
	}
	return r.Method == http.MethodPut && r.URL.RawQuery == "" ||
		r.Method == http.MethodPost && r.URL.Query().Has("uploads")
}

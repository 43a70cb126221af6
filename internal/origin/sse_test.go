package origin_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// The store's encryption is asked for by the requests that make an object,
// and S3 refuses it on all others.
func TestAskingForTheStoresEncryption(t *testing.T) {
	key := origin.SSE{Algorithm: "aws:kms", KeyID: "arn:aws:kms:eu-central-1:1:key/k", BucketKey: true}
	for name, row := range map[string]struct {
		sse          origin.SSE
		method, path string // with the query
		header       http.Header
		want         string // the algorithm
	}{
		"PutObject":         {sse: key, method: "PUT", path: "/bucket/a b", want: "aws:kms"},
		"AES256":            {sse: origin.SSE{Algorithm: "AES256"}, method: "PUT", path: "/bucket/k", want: "AES256"},
		"nothing":           {sse: origin.SSE{}, method: "PUT", path: "/bucket/k"},
		"none":              {sse: origin.SSE{Algorithm: "none"}, method: "PUT", path: "/bucket/k"},
		"directory":         {sse: key, method: "PUT", path: "/bucket/dir/", want: "aws:kms"},
		"CreateMultipart":   {sse: key, method: "POST", path: "/bucket/k?uploads=", want: "aws:kms"},
		"UploadPart":        {sse: key, method: "PUT", path: "/bucket/k?partNumber=1&uploadId=u"},
		"Complete":          {sse: key, method: "POST", path: "/bucket/k?uploadId=u"},
		"DeleteObjects":     {sse: key, method: "POST", path: "/bucket?delete="},
		"GetObject":         {sse: key, method: "GET", path: "/bucket/k"},
		"HeadObject":        {sse: key, method: "HEAD", path: "/bucket/k"},
		"DeleteObject":      {sse: key, method: "DELETE", path: "/bucket/k"},
		"CreateBucket":      {sse: key, method: "PUT", path: "/bucket"},
		"PutObjectTagging":  {sse: key, method: "PUT", path: "/bucket/k?tagging="},
		"PutBucketPolicy":   {sse: key, method: "PUT", path: "/bucket?policy="},
		"ListUploads":       {sse: key, method: "GET", path: "/bucket?uploads="},
		"POST to a bucket":  {sse: key, method: "POST", path: "/bucket?uploads="},
		"CreateBucket with": {sse: key, method: "PUT", path: "/bucket/"},
		"CopyObject": {
			sse: key, method: "PUT", path: "/bucket/k",
			header: http.Header{"X-Amz-Copy-Source": {"/bucket/source"}}, want: "aws:kms",
		},
	} {
		for _, pathStyle := range []bool{true, false} {
			t.Run(name+map[bool]string{false: " with the bucket in the host"}[pathStyle], func(t *testing.T) {
				o, received := newStore(t, func(cfg *origin.Config) {
					cfg.SSE, cfg.PathStyle = row.sse, pathStyle
					if !pathStyle {
						cfg.Transport = toHost(cfg.Endpoint.Host)
					}
				})
				path, query, _ := strings.Cut(row.path, "?")
				header := row.header.Clone()
				if header == nil {
					header = http.Header{}
				}
				r := &http.Request{
					Method: row.method, Header: header,
					URL: &url.URL{Path: path, RawPath: sigv4.EscapePath(path), RawQuery: query},
				}
				resp, err := o.RoundTrip(r.WithContext(t.Context()))
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()

				wantKey, wantBucketKey := "", ""
				if row.want == "aws:kms" {
					wantKey, wantBucketKey = key.KeyID, "true"
				}
				h := received.header
				if received.authErr != nil || h.Get("X-Amz-Server-Side-Encryption") != row.want ||
					h.Get("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id") != wantKey ||
					h.Get("X-Amz-Server-Side-Encryption-Bucket-Key-Enabled") != wantBucketKey {
					t.Errorf("%v, %v, want %q", received.authErr, h, row.want)
				}
				if len(header) != len(row.header) {
					t.Errorf("the request was modified: %v", header)
				}
			})
		}
	}
}

// toHost sends requests for all host names to one address.
type toHost string

func (h toHost) RoundTrip(r *http.Request) (*http.Response, error) {
	r.URL.Host = string(h)
	return http.DefaultTransport.RoundTrip(r)
}

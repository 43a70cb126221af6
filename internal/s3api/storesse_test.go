package s3api_test

import (
	"net/http"
	"strings"
	"testing"
)

// What the store says about its own encryption is not what clients get: they
// get the KMS key of the proxy.
func TestEncryptionOfTheStore(t *testing.T) {
	p := newProxy(t)
	mine := newCustomer(1)
	p.put("k", []byte("text"))
	p.put("mine", []byte("text"), mine.put)
	p.upload("parts", []int{100})
	key := p.ringKeys[0].Wrapper.KeyID()
	m := p.create("up")

	p.origin.set(nil, func(resp *http.Response) {
		for name, value := range map[string]string{
			"": "aws:kms:dsse", "-Aws-Kms-Key-Id": "key-of-the-store", "-Bucket-Key-Enabled": "true",
			"-Context": "e30=", "-Customer-Algorithm": "of-the-store", "-Customer-Key-Md5": "of-the-store",
		} {
			resp.Header.Set("X-Amz-Server-Side-Encryption"+name, value)
		}
	})

	b := "/" + p.bucket
	for name, row := range map[string]struct {
		request
		want string // the KMS key; "" for none
	}{
		"GetObject":       {request{method: "GET", path: b + "/k"}, key},
		"HeadObject":      {request{method: "HEAD", path: b + "/k"}, key},
		"GET of parts":    {request{method: "GET", path: b + "/parts"}, key},
		"HEAD of parts":   {request{method: "HEAD", path: b + "/parts"}, key},
		"customer key":    {request{method: "GET", path: b + "/mine", header: mine.headers(customerHeader)}, ""},
		"PutObject":       {request{method: "PUT", path: b + "/new", body: []byte("x")}, key},
		"empty directory": {request{method: "PUT", path: b + "/dir/"}, key},
		"CopyObject": {
			request{method: "PUT", path: b + "/copy", header: http.Header{"X-Amz-Copy-Source": {b + "/k"}}}, key,
		},
		"Create":       {request{method: "POST", path: b + "/up?uploads"}, key},
		"UploadPart":   {request{method: "PUT", path: b + "/up?partNumber=1&uploadId=" + m.id, body: []byte("x")}, key},
		"ListParts":    {request{method: "GET", path: b + "/up?uploadId=" + m.id}, ""},
		"DeleteObject": {request{method: "DELETE", path: b + "/new"}, ""},
		"NoSuchKey":    {request{method: "GET", path: b + "/nothing"}, ""},
		"tags":         {request{method: "GET", path: b + "/k?tagging"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := p.send(row.request)
			if got := a.Header.Get("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id"); got != row.want {
				t.Errorf("%d, key %q, want %q", a.StatusCode, got, row.want)
			}
			if got := a.Header.Get("X-Amz-Server-Side-Encryption"); (got == "aws:kms") != (row.want != "") {
				t.Errorf("algorithm %q", got)
			}
			for name, values := range a.Header {
				value := strings.Join(values, ",")
				if strings.Contains(value, "of-the-store") || strings.HasSuffix(name, "-Context") ||
					strings.HasSuffix(name, "-Bucket-Key-Enabled") {
					t.Errorf("%s: %s", name, value)
				}
			}
		})
	}
}

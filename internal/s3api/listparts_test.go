package s3api_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// A listing of parts that never ends is an error.
func TestListingInCircles(t *testing.T) {
	for name, next := range map[string][]string{
		"two pages": {"1", "2", "1"}, "backwards": {"9", "8", "7", "6"}, "no number": {"x", "y"},
		"beyond the last part": {"10000", "20000", "30000"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t)
			m := p.create("k")
			m.send(1, []byte("text"))
			asked := 0

			p.origin.set(func(r *http.Request) (*http.Response, error) {
				if r.Method != http.MethodGet || r.URL.Query().Get("uploadId") == "" {
					return nil, nil
				}
				if asked++; asked > 20 {
					return nil, fmt.Errorf("asked too often")
				}
				body := "<ListPartsResult><IsTruncated>true</IsTruncated><NextPartNumberMarker>" + next[(asked-1)%len(
					next,
				)] + "</NextPartNumberMarker></ListPartsResult>"

				return &http.Response{
					StatusCode:    http.StatusOK,
					Header:        http.Header{},
					Body:          io.NopCloser(strings.NewReader(body)),
					ContentLength: int64(len(body)),
				}, nil
			}, nil)

			if _, err := m.complete(); err == nil || asked > len(next) {
				t.Errorf("asked %d times, %v", asked, err)
			}
		})
	}
}

// The upload is looked up before the list of parts is parsed.
func TestUploadIsLookedUpFirst(t *testing.T) {
	p := newProxy(t)
	body := []byte("<CompleteMultipartUpload>" + strings.Repeat("<Part/>", 500_000) + "</CompleteMultipartUpload>")
	a := p.send(request{method: "POST", path: "/" + p.bucket + "/k?uploadId=" + p.create("other").id, body: body})
	if a.Code != "NoSuchUpload" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

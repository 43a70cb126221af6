package s3api_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// A client repeats CompleteMultipartUpload if the answer was lost. The
// answer is 200 only if the object is that of the upload, also at stores
// that answer ListParts of a completed upload with NoSuchKey.
func TestCompleteSentAgain(t *testing.T) {
	for name, row := range map[string]struct {
		sizes  []int
		change func(*multipart)
		want   string // the error code; "" for success
	}{
		"the same list":           {sizes: []int{5 * mib, 100}},
		"with an appended part":   {sizes: []int{5 * mib}},
		"one empty part":          {sizes: []int{0}},
		"fewer parts":             {[]int{5 * mib, 100}, func(m *multipart) { m.parts = m.parts[:1] }, "NoSuchUpload"},
		"more parts":              {[]int{100}, anotherPart, "NoSuchUpload"},
		"as many as are appended": {[]int{5 * mib}, anotherPart, "NoSuchUpload"},
		"another upload":          {[]int{100}, func(m *multipart) { m.id += "x" }, "NoSuchUpload"},
		"no list":                 {[]int{100}, func(m *multipart) { m.parts = nil }, "NoSuchUpload"},
		"overwritten": {
			[]int{100}, func(m *multipart) { m.p.put(m.key, []byte("text")) }, "NoSuchUpload",
		},
		"overwritten by another upload": {
			[]int{100}, func(m *multipart) { m.p.upload(m.key, []int{100}) }, "NoSuchUpload",
		},
		"overwritten by plaintext": {
			[]int{100}, func(m *multipart) { m.p.store(m.key, []byte("text"), nil) }, "NoSuchUpload",
		},
		"removed": {
			[]int{100}, func(m *multipart) { m.p.storeDo(http.MethodDelete, m.key, nil, nil) }, "NoSuchUpload",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t)
			p.origin.set(nil, func(resp *http.Response) {
				if resp.StatusCode == http.StatusNotFound && resp.Request.Method == http.MethodGet &&
					resp.Request.URL.Query().Has("uploadId") {
					resp.Body = io.NopCloser(strings.NewReader("<Error><Code>NoSuchKey</Code></Error>"))
				}
			})
			m := p.create("k")
			for i, size := range row.sizes {
				m.send(int32(i+1), randomText(size))
			}
			first := m.mustComplete()
			if row.change != nil {
				row.change(m)
			}

			again, err := m.complete()
			if row.want == "" && (err != nil || *again.ETag != *first.ETag) || row.want != "" && code(err) != row.want {
				t.Errorf("%v, want %q", err, row.want)
			}
		})
	}
}

// anotherPart adds a part to the list that was not in it.
func anotherPart(m *multipart) {
	m.parts = append(m.parts, types.CompletedPart{PartNumber: new(int32(len(m.parts) + 1)), ETag: m.parts[0].ETag})
}

package s3api_test

import (
	"bytes"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

var uploadIDElement = regexp.MustCompile(`<UploadId>([^<]+)</UploadId>`)

// TestAnUploadIDThatIsGivenTwice: the id binds parts to their upload, so a
// store that reuses an id could mix parts.
func TestAnUploadIDThatIsGivenTwice(t *testing.T) {
	p := newProxy(t)
	create := func() answer { return p.send(request{method: "POST", path: "/" + p.bucket + "/k?uploads"}) }
	first := create()
	found := uploadIDElement.FindSubmatch(first.body)
	if first.StatusCode != http.StatusOK || found == nil {
		t.Fatalf("%d: %s", first.StatusCode, first.body)
	}

	p.origin.set(nil, func(resp *http.Response) {
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Error(err)
		}
		resp.Body.Close()
		id, _, _ := strings.Cut(string(found[1]), ".cmek.")
		body = uploadIDElement.ReplaceAll(body, []byte("<UploadId>"+id+"</UploadId>"))
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))

		resp.Header.Del("Content-Length")
	})

	if again := create(); again.StatusCode != http.StatusServiceUnavailable || again.Code != "ServiceUnavailable" {
		t.Errorf("an id of before: %d %s", again.StatusCode, again.body)
	}
	p.origin.set(nil, nil)
	if other := create(); other.StatusCode != http.StatusOK {
		t.Errorf("an id of its own: %d %s", other.StatusCode, other.body)
	}
}

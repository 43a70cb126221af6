package s3api_test

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// Error codes in the source: as an argument, and as a field.
var usedCodes = []*regexp.Regexp{
	regexp.MustCompile(`\b(?:badRequest|fail)\(\s*"([A-Za-z.]+)"`),
	regexp.MustCompile(`\bCode\b[^"\n(]{0,30}[:=]\s*"([A-Za-z.]+)"`),
}

// Each error code that the proxy uses has one status: what is not in the
// table would be 400.
func TestEveryCodeHasAStatus(t *testing.T) {
	found := make(map[string]string)
	for _, dir := range []string{".", "../sigv4"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}

		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, re := range usedCodes {
				for _, match := range re.FindAllSubmatch(text, -1) {
					found[string(match[1])] = file
				}
			}
		}
	}

	statuses := s3api.Statuses()
	for code, file := range found {
		if statuses[code] == 0 {
			t.Errorf("%s of %s has no status", code, file)
		}
	}
	if len(found) < 40 {
		t.Errorf("only %d codes were found", len(found))
	}
}

// A condition that does not hold is 412 in every operation.
func TestAConditionThatDoesNotHoldIs412(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("text"))
	m := p.create("target")
	path := "/" + p.bucket + "/"
	const otherETag, past = `"0123456789abcdef0123456789abcdef"`, "Mon, 02 Jan 2006 15:04:05 GMT"
	etag := p.send(request{method: http.MethodHead, path: path + "k"}).Header.Get("Etag")

	var rows []request
	for name, value := range map[string]string{
		"If-Match": otherETag, "If-None-Match": etag, "If-Unmodified-Since": past,
	} {
		source := http.Header{"X-Amz-Copy-Source": {p.bucket + "/k"}, "X-Amz-Copy-Source-" + name: {value}}
		rows = append(rows,
			request{method: http.MethodPut, path: path + "copy", header: source},
			request{method: http.MethodPut, path: path + "target?partNumber=1&uploadId=" + m.id, header: source})
	}
	rows = append(rows,
		request{method: http.MethodPut, path: path + "k", header: http.Header{"If-None-Match": {"*"}}, body: []byte("b")},
		request{method: http.MethodPut, path: path + "k", header: http.Header{"If-Match": {otherETag}}, body: []byte("b")},
		request{method: http.MethodGet, path: path + "k", header: http.Header{"If-Match": {otherETag}}},
		request{method: http.MethodDelete, path: path + "k", header: http.Header{"X-Amz-If-Match-Size": {"5"}}},
		request{method: http.MethodDelete, path: path + "k", header: http.Header{"If-Match": {otherETag}}},
	)

	for _, r := range rows {
		name := r.method + " " + strings.TrimPrefix(r.path, path)
		for header := range r.header {
			if header != "X-Amz-Copy-Source" {
				name += " " + header
			}
		}
		t.Run(name, func(t *testing.T) {
			if a := p.send(r); a.StatusCode != http.StatusPreconditionFailed || a.Code != "PreconditionFailed" {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
		})
	}
	if text := p.mustGet("k"); string(text) != "text" {
		t.Errorf("it was changed: %q", text)
	}
}

// An object that does not exist is deleted, whatever its size was to be. The
// store is not asked to delete it, because it may exist by then.
func TestDeletingAMissingObjectBySize(t *testing.T) {
	p := newProxy(t)
	p.origin.take()
	sized := http.Header{"X-Amz-If-Match-Size": {"5"}}
	if a := p.send(request{
		method: http.MethodDelete, path: "/" + p.bucket + "/nothing", header: sized,
	}); a.StatusCode != http.StatusNoContent {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	for _, sent := range p.origin.take() {
		if strings.HasPrefix(sent, http.MethodDelete) {
			t.Error(sent)
		}
	}

	if a := p.send(request{
		method: http.MethodDelete, path: "/no-such-bucket-here/nothing", header: sized,
	}); a.StatusCode != http.StatusNotFound || a.Code != "NoSuchBucket" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

// The encryption of an upload is chosen when it is created.
func TestEncryptionOfAPartIsRefusedInS3sWords(t *testing.T) {
	p := newProxy(t)
	m := p.create("k")
	m.send(1, []byte("text"))
	p.put("source", []byte("text"))
	path := "/" + p.bucket + "/k?uploadId=" + m.id

	for _, row := range []struct {
		name string
		r    request
	}{
		{"UploadPart", request{method: http.MethodPut, path: path + "&partNumber=2", body: []byte("text")}},
		{"UploadPartCopy", request{method: http.MethodPut, path: path + "&partNumber=2", header: http.Header{
			"X-Amz-Copy-Source": {p.bucket + "/source"},
		}}},
		{"CompleteMultipartUpload", request{method: http.MethodPost, path: path, body: m.document()}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := row.r
			r.header = r.header.Clone()
			if r.header == nil {
				r.header = http.Header{}
			}
			r.header.Set("X-Amz-Server-Side-Encryption", "AES256")

			a := p.send(r)
			const message = "<Message>x-amz-server-side-encryption header is not supported for this operation.</Message>"
			if a.StatusCode != http.StatusBadRequest || a.Code != "InvalidArgument" ||
				!strings.Contains(string(a.body), message) {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}

			if a := p.send(row.r); a.StatusCode != http.StatusOK {
				t.Errorf("without the header: %d %s", a.StatusCode, a.body)
			}
		})
	}
}

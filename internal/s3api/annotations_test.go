package s3api_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

const (
	noAnnotations = `<ListObjectAnnotationsResult><AnnotationCount>0</AnnotationCount><Annotations/>` +
		`</ListObjectAnnotationsResult>`
	oneAnnotation = `<ListObjectAnnotationsResult><AnnotationCount>1</AnnotationCount><Annotations><AnnotationEntry>` +
		`<AnnotationName>summary</AnnotationName></AnnotationEntry></Annotations></ListObjectAnnotationsResult>`
)

// annotations makes the store answer requests for the list of annotations.
func (p *proxy) annotations(status int, doc string) {
	p.origin.set(func(r *http.Request) (*http.Response, error) {
		if !r.URL.Query().Has("annotation") {
			return nil, nil
		}
		return &http.Response{
			StatusCode: status, Header: http.Header{"X-Amz-Request-Id": {"1"}}, Request: r,
			Body: io.NopCloser(strings.NewReader(doc)), ContentLength: int64(len(doc)),
		}, nil
	}, nil)
}

// A copy that the store makes has the directive. The proxy does not read
// annotations, so it makes no copy by itself that was to have some.
func TestAnnotationDirective(t *testing.T) {
	p := newProxy(t)
	text := randomText(1000)
	p.put("whole", text)
	m := p.create("parts")
	m.send(1, text)
	m.mustComplete()

	const denied = `<Error><Code>AccessDenied</Code><Message>no</Message></Error>`
	const unknown = `<Error><Code>NotImplemented</Code><Message>no</Message></Error>`
	for name, row := range map[string]struct {
		from, directive string
		listed          int // status of the store's list; 0: versitygw, which ignores the parameter
		list            string
		status          int
		sent            string // the directive in the request that writes the copy
	}{
		"in the store, copy":              {from: "whole", directive: "COPY", listed: 200, list: oneAnnotation, status: 200, sent: "COPY"},
		"in the store, exclude":           {from: "whole", directive: "EXCLUDE", status: 200, sent: "EXCLUDE"},
		"in the store, by default":        {from: "whole", status: 200},
		"another value":                   {from: "whole", directive: "REPLACE", status: 400},
		"in small letters":                {from: "whole", directive: "copy", status: 400},
		"streamed, none there":            {from: "parts", directive: "COPY", listed: 200, list: noAnnotations, status: 200},
		"streamed, one there":             {from: "parts", directive: "COPY", listed: 200, list: oneAnnotation, status: 501},
		"streamed, not told":              {from: "parts", directive: "COPY", listed: 403, list: denied, status: 501},
		"streamed, unknown to the store":  {from: "parts", directive: "COPY", listed: 501, list: unknown, status: 200},
		"streamed, ignored by the store":  {from: "parts", directive: "COPY", status: 200},
		"streamed, no XML":                {from: "parts", directive: "COPY", listed: 200, list: noAnnotations[:60], status: 503},
		"streamed, the store is away":     {from: "parts", directive: "COPY", listed: 503, list: "", status: 503},
		"streamed, exclude with one":      {from: "parts", directive: "EXCLUDE", listed: 200, list: oneAnnotation, status: 200},
		"streamed, by default":            {from: "parts", status: 200},
		"onto itself, one there":          {from: "copy", directive: "COPY", listed: 200, list: oneAnnotation, status: 501},
		"onto itself, exclude, one there": {from: "copy", directive: "EXCLUDE", listed: 200, list: oneAnnotation, status: 200},
	} {
		t.Run(name, func(t *testing.T) {
			p.put("copy", text)
			if row.listed > 0 {
				p.annotations(row.listed, row.list)
				defer p.origin.set(nil, nil)
			}
			var sent []string
			p.origin.condition = func(r *http.Request) {
				if r.Method == http.MethodPut {
					sent = append(sent, r.Header.Get("X-Amz-Object-Annotation-Directive"))
				}
			}
			defer func() { p.origin.condition = nil }()

			header := http.Header{
				"X-Amz-Copy-Source": {p.bucket + "/" + row.from}, "X-Amz-Storage-Class": {"STANDARD"},
			}
			if row.directive != "" {
				header.Set("X-Amz-Object-Annotation-Directive", row.directive)
			}
			a := p.send(request{method: http.MethodPut, path: "/" + p.bucket + "/copy", header: header})
			if a.StatusCode != row.status {
				t.Fatalf("%d %s, want %d", a.StatusCode, a.body, row.status)
			}
			if row.status == 200 && (len(sent) != 1 || sent[0] != row.sent) || row.status != 200 && len(sent) > 0 {
				t.Errorf("the store got %q, want %q", sent, row.sent)
			}
			if row.status == 501 && !strings.Contains(string(a.body), "EXCLUDE") {
				t.Errorf("the error does not say what to do: %s", a.body)
			}
			p.origin.set(nil, nil)
			if !bytes.Equal(p.mustGet("copy"), text) {
				t.Error("the copy is not the source")
			}
		})
	}
}

// A directive in the query is for presigned URLs.
func TestPresignedAnnotationDirective(t *testing.T) {
	p := newProxy(t)
	p.put("whole", []byte("text"))
	var sent string
	p.origin.condition = func(r *http.Request) {
		if r.Method == http.MethodPut {
			sent = r.Header.Get("X-Amz-Object-Annotation-Directive")
		}
	}
	a := p.send(request{
		method: http.MethodPut, presign: true, path: "/" + p.bucket + "/copy?X-Amz-Expires=60&x-amz-copy-source=" +
			p.bucket + "%2Fwhole&x-amz-object-annotation-directive=EXCLUDE",
	})
	if a.StatusCode != 200 || sent != "EXCLUDE" {
		t.Errorf("%d %s; the store got %q", a.StatusCode, a.body, sent)
	}
}

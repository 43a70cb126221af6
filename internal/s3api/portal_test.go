package s3api_test

import (
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// pageOf answers every request like a login page or a load balancer.
func pageOf(status int, contentType, text string) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		body := text
		if r.Method == http.MethodHead {
			body = ""
		}

		header := http.Header{"Content-Type": {contentType}, "Content-Length": {strconv.Itoa(len(text))}}
		return &http.Response{
			StatusCode:    status,
			Header:        header,
			Body:          io.NopCloser(strings.NewReader(body)),
			ContentLength: int64(len(text)),
			Request:       r,
		}, nil
	}
}

// triggers are the requests whose body or headers do not follow from the
// row.
var triggers = map[string]request{
	"DeleteObjects": {body: []byte("<Delete><Object><Key>k</Key></Object></Delete>")},
	"CompleteMultipartUpload": {
		body: []byte(
			"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>e</ETag></Part></CompleteMultipartUpload>",
		),
	},
	"PutBucketEncryption": {
		body: []byte(
			"<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>aws:kms</SSEAlgorithm>" +
				"</ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>",
		),
	},
	"PutBucketAcl":        {header: http.Header{"X-Amz-Acl": {"private"}}},
	"PutObjectAcl":        {header: http.Header{"X-Amz-Acl": {"private"}}},
	"RestoreObject":       {body: []byte("<RestoreRequest><Days>1</Days></RestoreRequest>")},
	"GetObjectAttributes": {header: http.Header{"X-Amz-Object-Attributes": {"ETag"}}},
	"UploadPart":          {body: []byte("part")},
	"PutObject":           {body: []byte("text")},
	"OptionsBucket": {
		header: http.Header{"Origin": {"https://page.example"}, "Access-Control-Request-Method": {"GET"}},
	},
	"OptionsObject": {
		header: http.Header{"Origin": {"https://page.example"}, "Access-Control-Request-Method": {"GET"}},
	},
	"CreateBucket": {}, "UploadPartCopy": {}, "CopyObject": {}, "CreateMultipartUpload": {},
}

// trigger returns a request for the operation of a row.
func (p *proxy) trigger(row s3api.Row) request {
	r, special := triggers[row.Op]
	r.method, r.header = row.Method, r.header.Clone()
	if r.header == nil {
		r.header = http.Header{}
	}

	query := url.Values{}
	for match := range strings.FieldsSeq(row.Match) {
		if name, ok := strings.CutPrefix(match, "header:"); ok {
			r.header.Set(name, p.bucket+"/source")
			continue
		}
		name, value, _ := strings.Cut(match, "=")
		query.Set(name, value)

		if name == "uploadId" || name == "id" {
			query.Set(name, "x")
		}
	}

	if strings.HasPrefix(row.Op, "UploadPart") {
		query.Set("partNumber", "1")
	}
	r.path = strings.NewReplacer("{bucket}", p.bucket, "{key:.+}", "k").Replace(row.Path)
	if len(query) > 0 {
		r.path += "?" + query.Encode()
	}

	if !special && (r.method == http.MethodPut || r.method == http.MethodPost) {
		r.body = []byte("<Document/>")
	}
	return r
}

// wantNoSuccess checks that a response is an error that SDKs retry.
func wantNoSuccess(t *testing.T, name string, a answer) {
	t.Helper()
	if a.StatusCode != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" {
		t.Errorf("%s: %d %s %.200s", name, a.StatusCode, a.Code, a.body)
	}
	for header := range a.Header {
		if lower := strings.ToLower(header); lower == "etag" || strings.HasPrefix(lower, "x-amz-server-side") ||
			strings.HasPrefix(lower, "x-amz-checksum") {
			t.Errorf("%s: it vouches by %s", name, header)
		}
	}
}

// If something other than the store answers 200 to everything, no operation
// succeeds.
func TestAPortalInFrontOfEveryOperation(t *testing.T) {
	p := newProxy(t)
	sent := make(map[string]bool)
	for _, row := range s3api.Rows() {
		if row.Refused || row.Op == "PostObject" {
			continue
		}

		for name, portal := range map[string]func(*http.Request) (*http.Response, error){
			"a page": pageOf(
				200, "text/html; charset=utf-8", "<!DOCTYPE html>\n<html lang=en><body>Please log in<br></body></html>",
			),
			"a bare page": pageOf(200, "text/html", "<HTML><p>Please log in"),
			"a word":      pageOf(200, "text/plain", "OK\n"),
			"other XML": pageOf(
				200, "application/xml", `<?xml version="1.0" encoding="ISO-8859-1"?><html xmlns="http://www.w3.org/1999/xhtml"/>`,
			),
			"nothing": pageOf(200, "", ""),
		} {
			t.Run(name, func(t *testing.T) {
				ask := p.trigger(row)
				told := false // whether the test can tell: the response to HEAD has no body, and some successes have none either
				p.origin.set(func(r *http.Request) (*http.Response, error) {
					op := s3api.SentAs(r)
					sent[op] = true
					what := answerOf(op)
					told = told || what != "nothing" || r.Method != http.MethodHead && name != "nothing" ||
						r.Method == http.MethodHead && strings.HasSuffix(name, "page")
					return portal(r)
				}, nil)

				a := p.send(ask)
				if told {
					wantNoSuccess(t, row.Op+", "+name, a)
				}
			})
		}
	}

	for _, row := range s3api.Rows() {
		if row.Refused && row.Answer != "" && row.Op != "ListObjectAnnotations" { // asked by CopyObject
			t.Errorf("%s is refused, and has an answer of the store's", row.Op)
		}
		if sent[row.Op] && row.Answer == "" {
			t.Errorf("%s is sent to the store, and what a success of it is was not said", row.Op)
		}
	}

	if len(sent) < 70 {
		t.Errorf("only %d operations were sent", len(sent))
	}
}

func answerOf(op string) string {
	rows := s3api.Rows()
	return rows[slices.IndexFunc(rows, func(row s3api.Row) bool { return row.Op == op })].Answer
}

// The same in the middle of an operation: if it needs several requests to
// the store, the portal answers each of them in turn.
func TestAPortalInTheMiddleOfAnOperation(t *testing.T) {
	portal := pageOf(200, "text/html", "<!DOCTYPE html><html>Please log in</html>")
	p := newProxy(t)
	p.put("whole", randomText(100_000))
	p.upload("parts", []int{5 << 20, 5 << 20})
	m := p.create("target")
	m.send(1, randomText(5<<20))
	b := "/" + p.bucket

	from := func(key string) http.Header { return http.Header{"X-Amz-Copy-Source": {b + "/" + key}} }
	for name, ask := range map[string]func() answer{
		"completion": func() answer {
			return p.send(request{method: "POST", path: b + "/target?uploadId=" + m.id, body: m.document()})
		},
		"copy of whole": func() answer { return p.send(request{method: "PUT", path: b + "/copy", header: from("whole")}) },
		"copy of parts": func() answer { return p.send(request{method: "PUT", path: b + "/copy", header: from("parts")}) },
		"part copy": func() answer {
			return p.send(request{method: "PUT", path: b + "/target?partNumber=2&uploadId=" + m.id, header: from("whole")})
		},
		"deletion by size": func() answer {
			return p.send(request{method: "DELETE", path: b + "/whole", header: http.Header{"X-Amz-If-Match-Size": {"100000"}}})
		},
		"range of parts": func() answer {
			return p.send(request{method: "GET", path: b + "/parts", header: http.Header{"Range": {"bytes=5242870-5242890"}}})
		},
		"attributes": func() answer {
			return p.send(request{
				method: "GET", path: b + "/parts?attributes", header: http.Header{"X-Amz-Object-Attributes": {"ObjectParts"}},
			})
		},
		"upload by a form": func() answer {
			resp, text := p.form("form", []byte("text")).post()
			return answer{Response: resp, body: []byte(text)}
		},
		"deletion of a few": func() answer {
			return p.send(request{
				method: "POST", path: b + "?delete", body: []byte("<Delete><Object><Key>k</Key></Object></Delete>"),
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			var ops []string
			for turn := 0; turn == 0 || turn < len(ops); turn++ {
				n, failed := 0, ""
				var seen []string
				p.origin.set(func(r *http.Request) (*http.Response, error) {
					op := s3api.SentAs(r)
					seen = append(seen, op)
					if n++; n-1 == turn {
						failed = op
						return portal(r)
					}
					return nil, nil
				}, nil)

				a := ask()
				if turn == 0 {
					ops = nil
				}
				if len(seen) > len(ops) {
					ops = seen
				}

				if failed == "" {
					break
				}
				wantNoSuccess(t, name+", at its "+failed, a)
			}

			if len(ops) == 0 {
				t.Errorf("the store was asked nothing")
			}
		})
	}
}

// For some operations, S3 sends an empty body and some stores send a
// document. S3 itself reports some errors with status 200.
func TestAnswersThatAreNotQuiteS3s(t *testing.T) {
	p := newProxy(t)
	for _, row := range []struct {
		name   string
		r      request
		answer string
		status int
		code   string
	}{
		{
			"a new bucket",
			request{method: "PUT", path: "/another"},
			"<CreateBucketResponse><Bucket>another</Bucket></CreateBucketResponse>", 200, "",
		},
		{
			"a configuration",
			request{method: "PUT", path: "/" + p.bucket + "?versioning", body: []byte("<X/>")},
			" \n", 200,
			"",
		},
		{
			"an object is deleted",
			request{method: "DELETE", path: "/" + p.bucket + "/k"},
			"<DeleteResponse/>", 503,
			"ServiceUnavailable",
		},
		{
			"an object is stored",
			request{method: "PUT", path: "/" + p.bucket + "/k", body: []byte("x")},
			"<PutResponse/>",
			503, "ServiceUnavailable",
		},
		{
			"a failure",
			request{method: "GET", path: "/" + p.bucket + "?list-type=2"},
			"<?xml version=\"1.0\"?>\n <Error><Code>SlowDown</Code></Error>", 503, "SlowDown",
		},
		{
			"a failure to configure",
			request{method: "PUT", path: "/" + p.bucket + "?versioning", body: []byte("<X/>")},
			"<Error><Code>InternalError</Code></Error>", 500, "InternalError",
		},
		{
			"another listing",
			request{method: "GET", path: "/" + p.bucket + "?list-type=2"},
			"<ListVersionsResult/>", 503,
			"ServiceUnavailable",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.origin.set(func(r *http.Request) (*http.Response, error) {
				resp, err := pageOf(200, "application/xml", row.answer)(r)
				resp.Header.Set("Etag", `"0123456789abcdef0123456789abcdef"`)
				return resp, err
			}, nil)

			if a := p.send(row.r); a.StatusCode != row.status || a.Code != row.code {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
		})
	}
}

package s3api_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	mimeform "mime/multipart"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// upload is a form as a browser sends it.
type upload struct {
	p          *proxy
	fields     map[string]string
	conditions []any // in addition to one for each field
	expires    time.Duration
	filename   string
	file       []byte
	behind     func(*mimeform.Writer)  // fields after the file
	change     func(map[string]string) // applied after the policy was signed
	cut        int                     // bytes missing at the end
	header     http.Header
	access     string
}

func (p *proxy) form(key string, file []byte) *upload {
	return &upload{
		p:        p,
		fields:   map[string]string{"key": key},
		file:     file,
		filename: "photo.jpg",
		expires:  time.Hour,
		access:   clientAccess,
	}
}

// body signs the form like an SDK, and writes it.
func (u *upload) body() (*bytes.Buffer, string) {
	now := time.Now().UTC()
	scope := now.Format("20060102") + "/" + region + "/s3/aws4_request"
	fields := maps.Clone(u.fields)
	fields["x-amz-algorithm"], fields["x-amz-credential"], fields["x-amz-date"] = "AWS4-HMAC-SHA256", u.access+"/"+scope, now.Format(
		"20060102T150405Z",
	)
	conditions := append([]any{map[string]string{"bucket": u.p.bucket}}, u.conditions...)

	for name, value := range fields {
		if strings.Contains(value, "${filename}") {
			conditions = append(
				conditions,
				[]string{"starts-with", "$" + name, strings.ReplaceAll(value, "${filename}", "")},
			)
		} else {
			conditions = append(conditions, map[string]string{name: value})
		}
	}

	policy, err := json.Marshal(
		map[string]any{"expiration": now.Add(u.expires).Format(time.RFC3339), "conditions": conditions},
	)
	if err != nil {
		u.p.t.Fatal(err)
	}
	fields["policy"] = base64.StdEncoding.EncodeToString(policy)

	key := []byte("AWS4" + clientSecret)
	if u.access == readerAccess {
		key = []byte("AWS4" + readerSecret)
	}

	for _, text := range append(strings.Split(scope, "/"), fields["policy"]) {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(text))
		key = mac.Sum(nil)
	}
	fields["x-amz-signature"] = hex.EncodeToString(key)

	if u.change != nil {
		u.change(fields)
	}
	return u.write(fields)
}

func (u *upload) write(fields map[string]string) (*bytes.Buffer, string) {
	var body bytes.Buffer
	w := mimeform.NewWriter(&body)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if err := w.WriteField(name, fields[name]); err != nil {
			u.p.t.Fatal(err)
		}
	}

	if u.file != nil {
		part, err := w.CreateFormFile("file", u.filename)
		if err != nil {
			u.p.t.Fatal(err)
		}
		part.Write(u.file)
	}

	if u.behind != nil {
		u.behind(w)
	}
	w.Close()
	body.Truncate(body.Len() - u.cut)
	return &body, w.FormDataContentType()
}

func (u *upload) post() (*http.Response, string) {
	u.p.t.Helper()
	body, contentType := u.body()
	return u.p.postBody(body, int64(body.Len()), contentType, u.header)
}

func (p *proxy) postBody(
	body io.Reader,
	length int64,
	contentType string,
	header http.Header,
) (*http.Response, string) {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, p.url+"/"+p.bucket, body)
	if err != nil {
		p.t.Fatal(err)
	}
	maps.Copy(r.Header, header)
	r.Header.Set("Content-Type", contentType)

	r.ContentLength = length
	client := &http.Client{
		Transport:     p.server.Client().Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}

	resp, err := client.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()

	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp, string(answer)
}

func TestPostObject(t *testing.T) {
	p := newProxy(t)
	for _, size := range []int{0, 1, 100, 65_495, 65_496, 65_497, 1 << 20, 1<<20 - 200, 1<<20 + 1, 9 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			text := randomText(size)
			key := fmt.Sprintf("size/%d", size)
			resp, answer := p.form(key, text).post()
			if resp.StatusCode != http.StatusNoContent || answer != "" ||
				resp.Header.Get("Location") != p.url+"/"+p.bucket+"/"+key {
				t.Fatalf("%d bytes: %d %s %v", size, resp.StatusCode, answer, resp.Header)
			}

			if !bytes.Equal(p.mustGet(key), text) {
				t.Errorf("%d bytes: other bytes come back", size)
			}

			head, err := p.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &p.bucket, Key: &key})
			if err != nil || *head.ETag != resp.Header.Get("ETag") || *head.ContentLength != int64(size) ||
				head.ServerSideEncryption != types.ServerSideEncryptionAwsKms {
				t.Errorf("%d bytes: %+v, %v", size, head, err)
			}

			if stored, _ := p.stored(key); size > 16 && bytes.Contains(stored, text[:16]) {
				t.Errorf("%d bytes: the store has plaintext", size)
			}
		})
	}

	if !strings.Contains(p.log.String(), `"operation":"PostObject"`) {
		t.Error("it is not in the log")
	}
}

func TestPostObjectFields(t *testing.T) {
	p := newProxy(t)
	text := randomText(70_000)
	sum := md5.Sum(text)
	u := p.form("user/${filename}", text)
	u.filename = `C:\Users\me\ü b.txt`

	maps.Copy(u.fields, map[string]string{
		"Content-Type": "text/plain", "Cache-Control": "no-cache", "Content-Disposition": "attachment",
		"Expires":        "Wed, 02 Jan 2030 03:04:05 GMT",
		"x-amz-meta-One": "1 & ${filename}", "acl": "private", "x-amz-server-side-encryption": "AES256",
		"tagging": "<Tagging><TagSet><Tag><Key>a b</Key><Value>c+d</Value></Tag></TagSet></Tagging>",
		"content-md5": base64.StdEncoding.EncodeToString(
			sum[:],
		), "x-amz-checksum-sha256": checksum(text), "authenticity_token": "x",
		"success_action_status": "201",
	})

	u.behind = func(w *mimeform.Writer) { w.WriteField("submit", "Upload\r\nit") }
	u.change = func(f map[string]string) { f["x-ignore-this"] = "whatever" }
	resp, answer := u.post()
	var doc struct {
		XMLName                     xml.Name
		Location, Bucket, Key, ETag string
	}

	key := "user/ü b.txt"
	if err := xml.Unmarshal([]byte(answer), &doc); err != nil || resp.StatusCode != http.StatusCreated ||
		doc.XMLName.Local != "PostResponse" ||
		doc.Bucket != p.bucket ||
		doc.Key != key ||
		doc.ETag != resp.Header.Get("ETag") ||
		!strings.HasSuffix(doc.Location, "/user/%C3%BC%20b.txt") {
		t.Fatalf("%d %s, %v", resp.StatusCode, answer, err)
	}

	if !bytes.Equal(p.mustGet(key), text) {
		t.Error("other bytes come back")
	}

	head, err := p.client.HeadObject(
		t.Context(),
		&s3.HeadObjectInput{Bucket: &p.bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled},
	)
	if err != nil || *head.ContentType != "text/plain" || *head.CacheControl != "no-cache" ||
		*head.ContentDisposition != "attachment" ||
		head.Metadata["one"] != "1 & ü b.txt" ||
		*head.ExpiresString != "Wed, 02 Jan 2030 03:04:05 GMT" ||
		head.ChecksumSHA256 == nil ||
		*head.ChecksumSHA256 != checksum(text) {
		t.Errorf("%+v, %v", head, err)
	}

	r := (&http.Request{
		Method: http.MethodGet, URL: &url.URL{Path: "/" + p.bucket + "/" + key, RawQuery: "tagging="},
		Header: make(http.Header),
	}).WithContext(
		t.Context(),
	)
	tagging, err := p.origin.next.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer tagging.Body.Close()

	if tags, err := io.ReadAll(tagging.Body); err != nil ||
		!strings.Contains(string(tags), "<Key>a b</Key><Value>c+d</Value>") {
		t.Errorf("tags: %s, %v", tags, err)
	}
}

func checksum(text []byte) string {
	sum := sha256.Sum256(text)
	return base64.StdEncoding.EncodeToString(sum[:])
}

func TestPostObjectAnswers(t *testing.T) {
	p := newProxy(t)
	for name, row := range map[string]struct {
		fields   map[string]string
		status   int
		location string
	}{
		"nothing":           {nil, 204, p.url + "/" + p.bucket + "/k"},
		"200":               {map[string]string{"success_action_status": "200"}, 200, p.url + "/" + p.bucket + "/k"},
		"an invalid status": {map[string]string{"success_action_status": "500"}, 204, p.url + "/" + p.bucket + "/k"},
		"redirect": {
			map[string]string{"success_action_redirect": "https://example.com/done?x=y", "success_action_status": "201"},
			303,
			"https://example.com/done?bucket=" + p.bucket + "&etag=%22",
		},
		"redirect, as before": {
			map[string]string{"redirect": "http://example.com/"}, 303, "http://example.com/?bucket=" + p.bucket + "&etag=%22",
		},
		"no address": {
			map[string]string{"success_action_redirect": "javascript:alert(1)"}, 204, p.url + "/" + p.bucket + "/k",
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := p.form("k", []byte(name))
			maps.Copy(u.fields, row.fields)
			resp, answer := u.post()
			if resp.StatusCode != row.status || !strings.HasPrefix(resp.Header.Get("Location"), row.location) ||
				answer != "" && row.status != 201 {
				t.Errorf("%d %q %s", resp.StatusCode, resp.Header.Get("Location"), answer)
			}

			if !bytes.Equal(p.mustGet("k"), []byte(name)) {
				t.Errorf("other bytes come back")
			}
		})
	}
}

// Refused forms store nothing.
func TestPostObjectIsRefused(t *testing.T) {
	p := newProxy(t)
	field := func(name, value string) func(*upload) { return func(u *upload) { u.fields[name] = value } }
	later := func(name, value string) func(*upload) {
		return func(u *upload) { u.change = func(f map[string]string) { f[name] = value } }
	}

	condition := func(list ...any) func(*upload) {
		return func(u *upload) { u.conditions = append(u.conditions, list) }
	}

	sized := func(size int) func(func(*upload)) func(*upload) {
		return func(then func(*upload)) func(*upload) {
			return func(u *upload) {
				u.file = randomText(size)
				then(u)
			}
		}
	}
	large, long := sized(2<<20), sized(7<<20) // buffered, and in two parts
	for name, row := range map[string]struct {
		change func(*upload)
		status int
		want   string // text in the response
	}{
		"another key": {later("key", "other"), 403, "Policy Condition failed: [&#34;eq&#34;, &#34;$key&#34;"},
		"a field more": {
			later("x-amz-meta-a", "b"), 403, "Invalid according to Policy: Extra input fields: x-amz-meta-a",
		},
		"another signature":      {later("x-amz-signature", strings.Repeat("0", 64)), 403, "SignatureDoesNotMatch"},
		"an unknown client":      {func(u *upload) { u.access = "nobody" }, 403, "InvalidAccessKeyId"},
		"a client without grant": {func(u *upload) { u.access = readerAccess }, 403, "AccessDenied"},
		"expired": {
			func(u *upload) { u.expires = -time.Second }, 403, "Invalid according to Policy: Policy expired.",
		},
		"anonymous": {func(u *upload) {
			u.change = func(f map[string]string) { maps.DeleteFunc(f, func(k, _ string) bool { return k != "key" }) }
		}, 403, "AccessDenied"},
		"too long": {condition("content-length-range", 0, 99), 400, "EntityTooLarge"},
		"too short": {
			condition("content-length-range", 101, 200), 400, "<ProposedSize>100</ProposedSize><MinSizeAllowed>101</MinSizeAllowed>",
		},
		"too long, and large": {large(condition("content-length-range", 0, 2<<20-1)), 400, "EntityTooLarge"},
		"a condition": {
			condition("starts-with", "$Content-Type", "image/"), 403, "Policy Condition failed",
		},
		"no key": {
			func(u *upload) { delete(u.fields, "key") }, 400, "Bucket POST must contain a field named",
		},
		"an empty key":           {field("key", ""), 400, "UserKeyMustBeSpecified"},
		"a key that is too long": {field("key", strings.Repeat("k", 1025)), 400, "KeyTooLongError"},
		"no file": {
			func(u *upload) { u.file = nil }, 400, "POST requires exactly one file upload per request.",
		},
		"two files": {
			func(u *upload) { u.behind = func(w *mimeform.Writer) { w.CreateFormFile("file", "b") } }, 400,
			"POST requires exactly one file upload per request.",
		},
		"no end":                 {func(u *upload) { u.cut = 6 }, 400, "MalformedPOSTRequest"},
		"no end of a large":      {large(func(u *upload) { u.cut = 6 }), 400, "MalformedPOSTRequest"},
		"no end of a long":       {long(func(u *upload) { u.cut = 6 }), 400, "MalformedPOSTRequest"},
		"no delimiter of a long": {long(func(u *upload) { u.cut = 80 }), 400, "MalformedPOSTRequest"},
		"two files, and a long": {
			long(func(u *upload) { u.behind = func(w *mimeform.Writer) { w.CreateFormFile("file", "b") } }), 400,
			"POST requires exactly one file upload per request.",
		},
		"too much behind a long": {
			long(func(u *upload) {
				u.behind = func(w *mimeform.Writer) { w.WriteField("more", strings.Repeat("x", 1<<20)) }
			}), 501, "make the file the last field",
		},
		"another checksum of a long": {long(field("x-amz-checksum-sha256", checksum(nil))), 400, "BadDigest"},
		"too long, and a long":       {long(condition("content-length-range", 0, 7<<20-1)), 400, "EntityTooLarge"},
		"too long, and much too long": {
			long(condition("content-length-range", 0, 1<<20)), 400, "EntityTooLarge",
		},
		"too short, and a long": {
			long(condition("content-length-range", 7<<20+1, 1<<30)), 400, "<ProposedSize>7340032</ProposedSize>",
		},
		"fields that are too long": {
			field("x-amz-meta-a", strings.Repeat("a", 21<<10)), 400, "MaxPostPreDataLengthExceeded",
		},
		"another MD5":                 {field("content-md5", "AAAAAAAAAAAAAAAAAAAAAA=="), 400, "BadDigest"},
		"another checksum":            {field("x-amz-checksum-sha256", checksum(nil)), 400, "BadDigest"},
		"another checksum of a large": {large(field("x-amz-checksum-sha256", checksum(nil))), 400, "BadDigest"},
		"tags of no XML":              {field("tagging", "a=b"), 400, "MalformedXML"},
		"tags of two": {
			field("tagging", "<Tagging><TagSet><Tag><Key>a</Key></Tag><Tag><Key>a</Key></Tag></TagSet></Tagging>"), 400,
			"InvalidTag",
		},
		"a public ACL":             {field("acl", "public-read"), 501, "The canned ACL public-read"},
		"a field of S3's":          {field("x-amz-object-lock-event-hold", "ON"), 501, "x-amz-object-lock-event-hold"},
		"the envelope's own":       {field("x-amz-meta-cmek-key", "x"), 400, "reserved for the proxy"},
		"another encryption":       {field("x-amz-server-side-encryption", "rot13"), 400, "InvalidEncryptionAlgorithmError"},
		"a line break in a header": {field("x-amz-meta-a", "b\r\nx-amz-meta-c: d"), 400, "not valid as a header"},
		"another bucket in a field": {func(u *upload) {
			u.conditions = []any{map[string]string{"bucket": "other"}}
			u.change = func(f map[string]string) { f["bucket"] = "other" }
		}, 400, "a different bucket"},
		"a header of S3's": {
			func(u *upload) { u.header = http.Header{"X-Amz-Acl": {"public-read"}} }, 501, "The header x-amz-acl",
		},
		"a session token": {field("x-amz-security-token", "t"), 400, "InvalidToken"},
	} {
		t.Run(name, func(t *testing.T) {
			u := p.form("refused", randomText(100))
			row.change(u)
			resp, answer := u.post()
			if resp.StatusCode != row.status || !strings.Contains(answer, row.want) {
				t.Errorf("%d %s", resp.StatusCode, answer)
			}

			list, err := p.client.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &p.bucket})
			if err != nil || len(list.Contents) > 0 {
				t.Fatalf("something is stored: %v, %v", list.Contents, err)
			}
			uploads, err := p.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &p.bucket})
			if err != nil || len(uploads.Uploads) > 0 {
				t.Fatalf("an upload is left: %v, %v", uploads.Uploads, err)
			}
		})
	}
}

// Bodies that no form library writes.
func TestPostObjectOddBodies(t *testing.T) {
	p := newProxy(t)
	body, contentType := p.form("k", []byte("0123456789")).body()
	_, boundary, _ := strings.Cut(contentType, "boundary=")

	whole := body.String()
	for name, row := range map[string]struct {
		body, contentType string
		status            int
		code              string
	}{
		"an empty body":    {"", contentType, 400, "MalformedPOSTRequest"},
		"another boundary": {whole, strings.Replace(contentType, boundary, "other", 1), 400, "MalformedPOSTRequest"},
		"no boundary":      {whole, "multipart/form-data", 400, "MalformedPOSTRequest"},
		"no form":          {whole, "application/x-www-form-urlencoded", 412, "PreconditionFailed"},
		"the end at once":  {"--" + boundary + "--\r\n", contentType, 400, "MalformedPOSTRequest"},
		"a part without name": {
			strings.Replace(whole, `name="key"`, `x="key"`, 1), contentType, 400, "MalformedPOSTRequest",
		},
		"one in quoted": {strings.Replace(
			whole, "Content-Disposition", "Content-Transfer-Encoding: quoted-printable\r\nContent-Disposition", 1,
		), contentType, 400, "MalformedPOSTRequest"},
		"a field twice": {
			strings.Replace(whole, `name="policy"`, `name="key"`, 1), contentType, 400, "InvalidArgument",
		},
		"words behind the end": {whole + "and so on", contentType, 204, ""},
	} {
		t.Run(name, func(t *testing.T) {
			resp, answer := p.postBody(strings.NewReader(row.body), int64(len(row.body)), row.contentType, nil)
			if resp.StatusCode != row.status || !strings.Contains(answer, row.code) {
				t.Errorf("%d %s", resp.StatusCode, answer)
			}
			if p.isStored("k") != (row.status == 204) {
				t.Errorf("stored: %t", p.isStored("k"))
			}

			p.storeDo(http.MethodDelete, "k", nil, nil)
		})
	}

	if resp, answer := p.postBody(
		strings.NewReader(whole), -1, contentType, nil,
	); resp.StatusCode != http.StatusLengthRequired ||
		!strings.Contains(answer, "MissingContentLength") {
		t.Errorf("without a length: %d %s", resp.StatusCode, answer)
	}
	if got := p.send(request{method: "POST", path: "/" + p.bucket}); got.StatusCode != http.StatusPreconditionFailed {
		t.Errorf("signed as any other request: %d", got.StatusCode)
	}
}

// A file ends with the first delimiter, wherever reads end. Here, what follows
// it is not a form. Similar bytes are content.
func TestPostObjectDelimiterInTheFile(t *testing.T) {
	p := newProxy(t)
	const short, long, tail = 2 << 20, 8 << 20, 1 << 20
	for _, row := range []struct{ size, at, status int }{
		{short, 0, 400},
		{short, 1, 400},
		{short, 4096 - 30, 400},
		{short, short - 100, 400},
		{long, 0, 501},
		{long, 1, 501},
		{long, 4096 - 30, 501},
		{long, 20<<10 - 7, 501},
		{long, long - tail - 10, 501},
		{long, long - tail + 40, 501},
		{long, long - tail + 400, 400},
		{long, long - 100, 400},
	} {
		t.Run(fmt.Sprintf("%d at %d", row.size, row.at), func(t *testing.T) {
			u := p.form("k", randomText(row.size))
			body, contentType := u.body()
			_, boundary, _ := strings.Cut(contentType, "boundary=")
			from := bytes.Index(body.Bytes(), u.file[:64])
			copy(body.Bytes()[from+row.at:], "\r\n--"+boundary)

			resp, answer := p.postBody(body, int64(body.Len()), contentType, nil)
			if resp.StatusCode != row.status || p.isStored("k") {
				t.Errorf("%d %s", resp.StatusCode, answer)
			}
		})
	}

	u := p.form("k", randomText(2<<20))
	body, contentType := u.body()
	_, boundary, _ := strings.Cut(contentType, "boundary=")
	from := bytes.Index(body.Bytes(), u.file[:64])

	for _, at := range []int{100, 70_000, 2<<20 - 200} {
		like := "\r\n--" + boundary[:len(boundary)-1] + "!" // never equal to the boundary
		copy(body.Bytes()[from+at:], like)
		copy(u.file[at:], like)
	}

	if resp, answer := p.postBody(body, int64(body.Len()), contentType, nil); resp.StatusCode != http.StatusNoContent ||
		!bytes.Equal(p.mustGet("k"), u.file) {
		t.Errorf("what only looks like it: %d %s", resp.StatusCode, answer)
	}
}

// Fields after the file are ignored, whatever the size of the file.
func TestPostObjectFieldsAfterTheFile(t *testing.T) {
	p := newProxy(t)
	submit := func(w *mimeform.Writer) { w.WriteField("submit", "Upload to Amazon S3") }
	// The second field is so long that the file ends with its first part.
	twoFields := func(w *mimeform.Writer) {
		submit(w)
		w.WriteField("more", strings.Repeat("x", 1<<20-600))
	}
	for name, row := range map[string]struct {
		size   int
		behind func(*mimeform.Writer)
	}{
		"short":            {100, submit},
		"buffered":         {1<<20 + 1, submit},
		"three MiB":        {3 << 20, submit},
		"nearly too long":  {6<<20 - 200, submit},
		"in two parts":     {6<<20 + 1, submit},
		"long":             {20 << 20, submit},
		"much behind it":   {20 << 20, twoFields},
		"much behind less": {5 << 20, twoFields},
	} {
		t.Run(name, func(t *testing.T) {
			u := p.form("k", randomText(row.size))
			u.behind = row.behind
			u.fields["x-amz-checksum-sha256"] = checksum(u.file)
			u.fields["x-amz-meta-a"] = "b"
			resp, answer := u.post()
			if resp.StatusCode != http.StatusNoContent || !bytes.Equal(p.mustGet("k"), u.file) {
				t.Fatalf("%d %s", resp.StatusCode, answer)
			}

			head, err := p.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &p.bucket, Key: aws.String("k")})
			if err != nil || *head.ETag != resp.Header.Get("ETag") || *head.ContentLength != int64(row.size) ||
				head.Metadata["a"] != "b" || head.ServerSideEncryption != types.ServerSideEncryptionAwsKms {
				t.Errorf("%+v, %v", head, err)
			}
		})
	}
}

// While all buffers are in use, a form without fields after its file is
// streamed, and another one is told to come again.
func TestPostObjectWithoutBuffer(t *testing.T) {
	p := newProxy(t)
	var held []io.Closer
	for range s3api.FormBufferCount {
		held = append(held, p.startForm(randomText(2<<20)))
	}
	p.wait("for all buffers to be in use", func() bool { return p.formsInMemory() == s3api.FormBufferCount })

	u := p.form("k", randomText(2<<20))
	if resp, answer := u.post(); resp.StatusCode != http.StatusNoContent || !bytes.Equal(p.mustGet("k"), u.file) {
		t.Errorf("with nothing after the file: %d %s", resp.StatusCode, answer)
	}

	u = p.form("other", randomText(2<<20))
	u.behind = func(w *mimeform.Writer) { w.WriteField("submit", "x") }
	if resp, answer := u.post(); resp.StatusCode != http.StatusServiceUnavailable ||
		!strings.Contains(answer, "SlowDown") || resp.Header.Get("Retry-After") == "" || p.isStored("other") {
		t.Errorf("with a field after the file: %d %s", resp.StatusCode, answer)
	}

	for _, conn := range held {
		conn.Close()
	}
	p.wait("for the buffers to be free", func() bool { return p.formsInMemory() == 0 })
	if resp, answer := u.post(); resp.StatusCode != http.StatusNoContent || !bytes.Equal(p.mustGet("other"), u.file) {
		t.Errorf("again: %d %s", resp.StatusCode, answer)
	}
}

func (p *proxy) formsInMemory() int {
	server, ok := p.server.Config.Handler.(*s3api.Server)
	if !ok {
		p.t.Fatal("another handler")
	}
	return server.FormsInMemory()
}

// startForm sends a form without its last bytes.
func (p *proxy) startForm(file []byte) io.Closer {
	p.t.Helper()
	body, contentType := p.form("held", file).body()
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(
		conn, "POST /%s HTTP/1.1\r\nHost: p\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n",
		p.bucket, contentType, body.Len(),
	)
	conn.Write(body.Bytes()[:body.Len()-100])
	return conn
}

// If a client disconnects within its file, nothing is stored.
func TestPostObjectBrokenOff(t *testing.T) {
	for name, size := range map[string]int{"buffered": 2 << 20, "in two parts": 9 << 20} {
		t.Run(name, func(t *testing.T) { breakForm(t, size) })
	}
}

func breakForm(t *testing.T, size int) {
	p := newProxy(t)
	body, contentType := p.form("k", randomText(size)).body()
	length := int64(body.Len())
	body.Truncate(size - 1<<20)

	r, err := http.NewRequestWithContext(
		t.Context(),
		http.MethodPost,
		p.url+"/"+p.bucket,
		io.MultiReader(body, failing{}),
	)
	if err != nil {
		t.Fatal(err)
	}

	r.Header.Set("Content-Type", contentType)
	r.ContentLength = length
	if resp, err := p.server.Client().Do(r); err == nil {
		resp.Body.Close()
		t.Errorf("%d", resp.StatusCode)
	}
	time.Sleep(300 * time.Millisecond)

	if p.isStored("k") {
		t.Error("it is stored")
	}
	p.wait("for the upload to be aborted", func() bool {
		uploads, err := p.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &p.bucket})
		return err == nil && len(uploads.Uploads) == 0
	})
}

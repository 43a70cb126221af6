package s3api

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"golang.org/x/net/http/httpguts"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// sent is a transport that records what a store would get.
type sent struct {
	t       *testing.T
	request *http.Request
}

func (s *sent) RoundTrip(r *http.Request) (*http.Response, error) {
	var wire bytes.Buffer
	if err := r.Write(&wire); err != nil {
		s.t.Fatal(err)
	}
	read, err := http.ReadRequest(bufio.NewReader(&wire))
	if err != nil {
		s.t.Fatalf("the store cannot read %q: %v", r.URL, err)
	}
	s.request = read
	return nil, io.EOF
}

// FuzzLocate checks that the path of the signature, the bucket and key, the
// route, and the request to the store agree.
func FuzzLocate(f *testing.F) {
	for _, target := range []string{
		"/bucket/key", "/bucket", "/bucket/", "/", "/bucket//", "/bucket/a//b", "/bucket/a/../b", "/bucket/../b",
		"/bucket/%2e%2e/b",
		"/bucket/a%2fb", "/bucket/a%252fb", "/bucket/a+b", "/bucket/%0a", "/bucket/%00", "/bucket/?acl",
		"/bucket/k?uploadId=x&versionId=y",
		"/bucket/k?a=%26b%3d", "//bucket/key", "//?acl", "///", "http://host/bucket/key", "/bucket/k?x=1;y=2",
		"/bucket/%ff", `/bucket/..\b`, "*", "/bucket/k%3facl",
	} {
		for _, host := range []string{"proxy", "bucket.s3.test", "bucket.S3.test:9000", "s3.test", "Bucket_1.s3.test.", ".s3.test", "..s3.test"} {
			f.Add("GET", target, host)
		}
	}

	s := &Server{matcher: newMatcher()}
	f.Fuzz(func(t *testing.T, method, target, host string) {
		text := method + " " + target + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
		if err != nil {
			t.Skip()
		}

		c := &call{Request: r, logged: logged{op: "Unknown"}}
		if c.locate([]string{"s3.test"}) != nil {
			return
		}

		rawPath, rawQuery := sigv4.RequestTarget(r)
		verified, err := sigv4.UnescapePath(rawPath)
		if err != nil {
			t.Fatalf("%q was located, and cannot be verified: %v", target, err)
		}
		located := strings.TrimSuffix(c.resource(), "/")

		if _, ok := bucketOfHost(r.Host, []string{"s3.test"}); ok && c.bucket != "" {
			verified = "/" + c.bucket + verified
		}
		if c.key == "" {
			verified = strings.TrimSuffix(verified, "/")
		}

		if c.key != "" && c.resource() != verified || c.key == "" && located != verified {
			t.Fatalf("%q at %q: verified %q, located %q", target, host, verified, c.resource())
		}

		if c.route = s.matcher.find(c); c.route == nil || s.checkPathNames(c) != nil {
			return
		}
		if want := map[bool]string{true: object, false: bucket}[c.key != ""]; c.bucket != "" && c.route.path != want &&
			c.route.path != objectLambda {
			t.Fatalf("%q is of the route %s", c.resource(), c.route.path)
		}

		if again, err := url.ParseQuery(rawQuery); err != nil || !reflect.DeepEqual(again, c.query) {
			t.Fatalf("query %q: %v, %v", rawQuery, c.query, err)
		}
		checkSent(t, c)
	})
}

// checkSent sends a call to a store that records requests.
func checkSent(t *testing.T, c *call) {
	t.Helper()
	store := &sent{t: t}
	_, _ = origin.New(origin.Config{
		Endpoint: &url.URL{
			Scheme: "http",
			Host:   "store",
		}, Region: "us-east-1", PathStyle: true, Now: time.Now, Transport: store,
		Credentials: credentials.NewStaticCredentialsProvider("access", "secret", ""),
	}).RoundTrip(c.originRequest(http.MethodGet, http.Header{}, 0))

	if store.request == nil {
		t.Fatalf("%q is not sent", c.resource())
	}

	rawPath, rawQuery := sigv4.RequestTarget(store.request)
	got, err := sigv4.UnescapePath(rawPath)
	if err != nil || got != c.resource() || got != store.request.URL.Path {
		t.Fatalf("%q is sent as %q, which net/http reads as %q: %v", c.resource(), got, store.request.URL.Path, err)
	}
	if query, err := url.ParseQuery(rawQuery); err != nil ||
		len(query)+len(c.originQuery()) > 0 && !reflect.DeepEqual(query, c.originQuery()) {
		t.Fatalf("the query %v is sent as %v, %v", c.originQuery(), query, err)
	}

	if c.key != "" && !strings.HasPrefix(path.Clean(got), "/"+c.bucket+"/") {
		t.Fatalf("%q leads to %q", got, path.Clean(got))
	}
}

// FuzzCopySource checks that an accepted source is one object, and that the
// store gets the same one.
func FuzzCopySource(f *testing.F) {
	for _, source := range []string{
		"bucket/key", "/bucket/key", "bucket/a/../b", "bucket/../b", "bucket/%2e%2e/b", "bucket/k?versionId=v",
		"bucket/k?versionId=../v",
		"bucket/k%3fversionId=v", "bucket/a//b", "bucket/", "127.0.0.1/k", "bucket/%ff", "bucket/k?versionId=a&versionId=b",
		"arn:aws:s3:::b/k",
	} {
		f.Add(source)
	}

	f.Fuzz(func(t *testing.T, text string) {
		src, version, err := parseCopySource(text, keyname.Unknown)
		if err != nil {
			return
		}
		if !validBucket(src.Bucket) && !strings.Contains(src.Bucket, "..") || src.Key == "" {
			t.Fatalf("%q names the bucket %q and the key %q", text, src.Bucket, src.Key)
		}

		if clean := path.Clean("/" + src.Bucket + "/" + src.Key); !strings.HasPrefix(clean, "/"+src.Bucket+"/") {
			t.Fatalf("%q leads to %q", text, clean)
		}
		if keyname.CheckID(version) != nil {
			t.Fatalf("%q has the version %q", text, version)
		}

		again, sameVersion, err := parseCopySource(copySourceHeader(src, version), keyname.Unknown)
		if err != nil || again != src || sameVersion != version {
			t.Fatalf(
				"%q is %v of version %q, and sent as %v of version %q: %v",
				text,
				src,
				version,
				again,
				sameVersion,
				err,
			)
		}
	})
}

// FuzzUploadID checks that an accepted id has one form, and leads out of no
// folder.
func FuzzUploadID(f *testing.F) {
	for _, id := range []string{
		"", "x", "../..", "a/b+c==", "x.cmek.", "x.cmek.e30", "..cmek.e30", "x.cmek.eyJrZXkiOiJtYWluIn0",
		"x.cmek.eyJrZXkiOiJtYWluIn1",
		"x.cmek.eyJyYW5kb20iOiJBUUlEQkFVR0J3Z0pDZ3NNRFE0UEVBPT0ifQ",
		"x.cmek.eyJyYW5kb20iOiJBUUlEQkFVR0J3Z0pDZ3NNRFE0UEVBPT0iLCJtZXRhIjp0cnVlfQ", "x.cmek.eyJtZXRhIjp0cnVlfQ",
		"x.cmek.eyJyYW5kb20iOiJBQUFBQUFBQUFBQUFBQUFBQUFBQUFBPT0ifQ", "x.cmek.eyJyYW5kb20iOiJBQUFBIn0",
		"x.cmek.eyJjb250ZXh0Ijp7ImEiOiJiIn19", "x.cmek.eyJzZWFsZWQiOiJBQUFBIn0", "x.cmek.eyJr\nZXkiOiJtYWluIn0",
	} {
		f.Add(id)
	}

	f.Fuzz(func(t *testing.T, shown string) {
		ref, err := parseUploadRef(shown)
		if err != nil {
			return
		}
		if clean := path.Join("/uploads", ref.stored); ref.stored != "" && !strings.HasPrefix(clean+"/", "/uploads/") {
			t.Fatalf("%q leads to %q", shown, clean)
		}

		wanted, sealed := ref.wanted, &keyring.DataKey{Wrapped: ref.sealed}
		if ref.sealed != nil {
			wanted.CustomerKey = []byte{1}
		}

		again, err := newUploadRef(ref.stored, wanted, sealed, markOf(&ref))
		if err != nil || again.shown != shown || ref.shown != shown {
			t.Fatalf("%q is another form of %q, %v", shown, again.shown, err)
		}
	})
}

// markOf returns the mark of the upload of a reference.
func markOf(ref *uploadRef) *crypt.Mark {
	m := &crypt.Mark{Random: ref.random}
	if ref.sealedMeta {
		m.Meta = []byte{1}
	}
	return m
}

// FuzzHoist checks that a parameter of a presigned URL becomes a header with
// the same value, or remains a parameter. A customer key never comes from a
// URL.
func FuzzHoist(f *testing.F) {
	for _, query := range []string{
		"", "x-amz-acl=private", "X-Amz-Acl=private&X-Amz-Meta-A=b", "x-amz-meta-a=%0a", "x-amz-meta-%20=b", "versionId=x",
		"x-amz-object-lock-mode=COMPLIANCE", "x-amz-copy-source=/b/k", "x-amz-storage-class=A&X-Amz-Storage-Class=B",
		"x-amz-server-side-encryption-customer-key=a", "X-Amz-Signature=x", "x-id=PutObject",
		"x-amz-checksum-crc32=AAAAAA%3D%3D&x-amz-sdk-checksum-algorithm=CRC32", "x-amz-api-version=2006-03-01",
	} {
		f.Add(query, "X-Amz-Acl", "private")
		f.Add(query, "X-Amz-Meta-A", "c")
	}

	row := routes[slices.IndexFunc(routes, func(r route) bool { return r.op == "PutObject" })]
	f.Fuzz(func(t *testing.T, rawQuery, name, value string) {
		query, err := url.ParseQuery(rawQuery)
		if err != nil || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			t.Skip()
		}

		header := http.Header{http.CanonicalHeaderKey(name): {value}}
		c := &call{
			Request: &http.Request{Header: header.Clone()},
			route:   &row,
			query:   maps.Clone(query),
			auth:    &sigv4.Auth{Presigned: true},
		}
		if c.takeHoisted() != nil {
			return
		}

		for name, values := range query {
			if kept, ok := c.query[name]; ok {
				if !slices.Equal(kept, values) {
					t.Fatalf("%q was %q and is %q", name, values, kept)
				}
				continue
			}

			if row.ignoresHoisted(strings.ToLower(name)) {
				continue // it is no header; see below
			}
			if got := c.Header.Values(name); !slices.Equal(got, values) {
				t.Fatalf("the parameter %q is %q, and the header %q", name, values, got)
			}
			if customerNames.has(strings.ToLower(name)) {
				t.Fatalf("a customer's key comes from %q", name)
			}
		}

		for name, values := range c.Header {
			fromQuery := slices.ContainsFunc(
				slices.Collect(maps.Keys(query)),
				func(p string) bool {
					return http.CanonicalHeaderKey(p) == name && !row.ignoresHoisted(strings.ToLower(p))
				},
			)
			if !fromQuery && !slices.Equal(values, header[name]) {
				t.Fatalf("the header %q is %q out of nothing", name, values)
			}

			for _, v := range values {
				if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(v) {
					t.Fatalf("%q: %q cannot be a header", name, v)
				}
			}
		}
	})
}

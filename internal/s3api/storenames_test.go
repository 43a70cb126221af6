package s3api_test

import (
	"bytes"
	"context"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// withStore makes the proxy know what the store can do.
func withStore(set capability.Set) option {
	return func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.Capabilities = capability.Always(set) }
}

// If origin.keys is not set, the store says which keys it would take for
// others. Objects under those could not be read.
func TestKeysThatTheStoreChanges(t *testing.T) {
	for name, row := range map[string]struct {
		key     string
		store   capability.Set
		refused bool
	}{
		"nothing known":               {"a//b", capability.Set{}, false},
		"slashes kept":                {"a//b", capability.Set{capability.LiteralSlashes: capability.Yes}, false},
		"slashes folded":              {"a//b", capability.Set{capability.LiteralSlashes: capability.No}, true},
		"slashes folded, another key": {"a/b", capability.Set{capability.LiteralSlashes: capability.No}, false},
		"a leading slash":             {"/a", capability.Set{capability.LiteralLeadingSlash: capability.No}, true},
		"a leading slash, elsewhere":  {"a/", capability.Set{capability.LiteralLeadingSlash: capability.No}, false},
		"a backslash":                 {`a\b`, capability.Set{capability.LiteralBackslash: capability.No}, true},
		"dots":                        {"a/./b", capability.Set{capability.LiteralDots: capability.No}, true},
		"dots in a segment":           {"a/.b", capability.Set{capability.LiteralDots: capability.No}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t, withStore(row.store))
			p.put("source", []byte("text"))
			path := "/" + p.bucket + "/" + strings.ReplaceAll(url.PathEscape(row.key), "%2F", "/")
			for _, r := range []request{
				{method: "PUT", path: path, body: []byte("x")},
				{method: "PUT", path: path, header: http.Header{"X-Amz-Copy-Source": {"/" + p.bucket + "/source"}}},
				{method: "POST", path: path + "?uploads="},
			} {
				if got := p.send(r); (got.Code == "InvalidArgument") != row.refused {
					t.Errorf("%s: %d %s", r.method, got.StatusCode, got.body)
				}
			}
			// What is there can be read and removed.
			for _, method := range []string{"GET", "DELETE"} {
				if got := p.send(request{method: method, path: path}); got.Code == "InvalidArgument" {
					t.Errorf("%s: %d %s", method, got.StatusCode, got.body)
				}
			}
		})
	}
}

// The store is asked only for clients that may write there: the answer costs
// requests, which write into the bucket.
func TestTheStoreIsAskedOnlyForClientsThatMayWrite(t *testing.T) {
	var asked atomic.Int64
	p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) {
		cfg.Capabilities = func(_ context.Context, _ string, _ ...capability.Capability) (s capability.Set) {
			asked.Add(1)
			return s
		}
	})

	path := "/" + p.bucket + "/a//b"
	for _, r := range []request{
		{method: "PUT", path: path, body: []byte("x"), accessKey: readerAccess, secret: readerSecret},
		{method: "PUT", path: path, body: []byte("x"), accessKey: "unknown", secret: readerSecret},
		{method: "PUT", path: path, body: []byte("x"), secret: readerSecret},
		{method: "GET", path: path},
	} {
		p.send(r)
		if n := asked.Load(); n > 0 {
			t.Errorf("%s as %q: the store was asked", r.method, r.accessKey)
		}
	}

	p.send(request{method: "PUT", path: path, body: []byte("x")})
	if asked.Load() == 0 {
		t.Error("the store was not asked for a client that may write")
	}
}

// A store that drops the metadata of directory markers keeps no envelope of
// them. An empty marker can be read all the same, and nothing else.
func TestMarkersWithoutMetadata(t *testing.T) {
	for name, row := range map[string]struct {
		able                 capability.Answer
		key                  string
		body                 string // as the store returns it
		put, get, head, copy int
	}{
		"a marker":                   {capability.No, "dir/", "", 200, 200, 200, 200},
		"a marker, store keeps it":   {capability.Yes, "dir/", "", 200, 403, 403, 403},
		"a marker, nothing known":    {capability.Unknown, "dir/", "", 200, 403, 403, 403},
		"a body":                     {capability.No, "dir/", "text", 400, 403, 403, 403},
		"an empty object, no marker": {capability.No, "file", "", 200, 403, 403, 403},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t, withStore(capability.Set{
				capability.PartCount: capability.Yes, capability.MarkerMetadata: row.able,
			}))
			path := "/" + p.bucket + "/" + row.key
			_, err := p.client.PutObject(t.Context(), &s3.PutObjectInput{
				Bucket: &p.bucket, Key: &row.key, Body: strings.NewReader(row.body),
			})
			if refused := err != nil; refused != (row.put != http.StatusOK) {
				t.Errorf("PUT: %v", err)
			}

			// What the store has, without an envelope. versitygw keeps no body of
			// a marker; another store may.
			p.store(row.key, nil, nil)
			p.origin.set(nil, func(resp *http.Response) {
				r := resp.Request
				if strings.HasSuffix(r.URL.Path, "/"+row.key) && r.URL.RawQuery == "" && r.Method != http.MethodPut {
					maps.DeleteFunc(resp.Header, func(name string, _ []string) bool {
						return strings.HasPrefix(name, "X-Amz-Meta-")
					})
					resp.ContentLength = int64(len(row.body))
					resp.Body = io.NopCloser(strings.NewReader(row.body))
				}
			})
			if got := p.send(request{method: "GET", path: path}); got.StatusCode != row.get ||
				row.get == 200 && len(got.body) > 0 {
				t.Errorf("GET: %d %s", got.StatusCode, got.body)
			}
			if got := p.send(request{method: "HEAD", path: path}); got.StatusCode != row.head {
				t.Errorf("HEAD: %d", got.StatusCode)
			}
			copied := request{
				method: "PUT", path: "/" + p.bucket + "/copy/",
				header: http.Header{"X-Amz-Copy-Source": {"/" + p.bucket + "/" + row.key}},
			}
			if got := p.send(copied); got.StatusCode != row.copy {
				t.Errorf("CopyObject: %d %s", got.StatusCode, got.body)
			}
			if got := p.send(request{method: "POST", path: path + "?uploads="}); strings.HasSuffix(row.key, "/") &&
				bytes.Contains(got.body, []byte("metadata")) != (row.able == capability.No) {
				t.Errorf("CreateMultipartUpload: %d %s", got.StatusCode, got.body)
			}
		})
	}
}

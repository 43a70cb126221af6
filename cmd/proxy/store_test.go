//go:build !nodev

package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// refuseTrailers starts a store like the real one that refuses checksum
// trailers, as Ceph 16 does. It keeps bodies that are cut short.
func refuseTrailers(t *testing.T, store string) string {
	t.Helper()
	target, err := url.Parse(store)
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host
	}}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Amz-Trailer") == "" {
			forward.ServeHTTP(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, "<Error><Code>XAmzContentSHA256Mismatch</Code></Error>")
	}))
	t.Cleanup(front.Close)
	return front.URL
}

// At the first use of a store, the proxy finds out what it can do, and acts
// accordingly.
func TestServeFindsOutWhatTheStoreCanDo(t *testing.T) {
	real := proxytest.ServeStore(t)
	const fixed = "checksum_trailer: true, etag_part_count: true"

	for name, row := range map[string]struct {
		store, settings string
		fail            string // the code of the error for uploads
		metric          string
	}{
		"a store with trailers": {
			real, "keys: path", "", `cmekproxy_store_capability{capability="trailer"} 1`,
		},
		"one without keeps what was cut": {
			refuseTrailers(t, real), "keys: path", "NotImplemented",
			`cmekproxy_store_capability{capability="cut_bodies"} 0`,
		},
		"the same is accepted": {
			refuseTrailers(t, real), "truncated_uploads: accept", "",
			`cmekproxy_store_capability{capability="trailer"} 0`,
		},
		"nothing to find out": {real, fixed + ", keys: path", "", `cmekproxy_store_capability{capability="trailer"} 1`},
	} {
		t.Run(name, func(t *testing.T) {
			listen, admin := freePort(t), freePort(t)
			s := start(t, "serve", "--config", writeConfig(t, row.store, listen, admin, fixed, row.settings,
				"actions: [read, write]", "actions: [read, write, list, admin, delete]"))
			waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
			c := client(listen, "appkey", "appsecretappsecret")

			bucket := "bucket-" + strings.ToLower(filepath.Base(t.TempDir())) + strings.ReplaceAll(name[:3], " ", "-")
			if _, err := c.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
				t.Fatal(err)
			}
			_, err := c.PutObject(t.Context(), &s3.PutObjectInput{
				Bucket: &bucket, Key: aws.String("key"), Body: strings.NewReader("text"),
			})
			if row.fail == "" && err != nil || row.fail != "" && (err == nil || !strings.Contains(err.Error(), row.fail)) {
				t.Errorf("PutObject: %v, want %s", err, row.fail)
			}

			list, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &bucket})
			switch {
			case err != nil:
				t.Error(err)
			case row.fail == "" && (len(list.Contents) != 1 || *list.Contents[0].Size != 4),
				row.fail != "" && len(list.Contents) != 0:
				t.Errorf("listed: %d objects", len(list.Contents))
			}

			status, body := adminDo(t, http.MethodPost, "http://"+admin+"/admin/store?bucket="+bucket, nil)
			if status != http.StatusOK || !strings.Contains(string(body), `"part_count": "yes"`) {
				t.Errorf("POST /admin/store: %d %s", status, body)
			}
			if status, body = adminDo(t, http.MethodGet, "http://"+admin+"/admin/store", nil); status != http.StatusOK ||
				!strings.Contains(string(body), `"put_if_match": "yes"`) {
				t.Errorf("GET /admin/store: %d %s", status, body)
			}

			_, body = adminDo(t, http.MethodGet, "http://"+admin+"/metrics", nil)
			metrics := string(body)
			if !strings.Contains(metrics, row.metric) {
				t.Errorf("metrics without %s", row.metric)
			}
			if code := s.end(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

//go:build !nodev

package main

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// breakingStore is a proxy to the store that ends the connection within the
// body of each answer to a GET that is longer than limit, if limit is not 0.
func breakingStore(t *testing.T, store *url.URL) (front *httptest.Server, limit *atomic.Int64) {
	t.Helper()
	limit = new(atomic.Int64)
	through := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(store)
		r.Out.Host = r.In.Host // the signature covers it
	}}

	front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if limit.Load() == 0 || r.Method != http.MethodGet || r.URL.Query().Has("list-type") {
			through.ServeHTTP(w, r)
			return
		}
		answer := httptest.NewRecorder()
		through.ServeHTTP(answer, r)
		maps.Copy(w.Header(), answer.Header())

		w.Header().Set("Content-Length", strconv.Itoa(answer.Body.Len()))
		w.WriteHeader(answer.Code)
		http.NewResponseController(w).Flush()
		if n, err := io.CopyN(w, answer.Body, limit.Load()); err == nil && n == limit.Load() {
			panic(http.ErrAbortHandler) // ends the connection
		}
	}))

	t.Cleanup(front.Close)
	return front, limit
}

// If the connection to the store ends within a body, it is not reported as
// damage.
func TestCommandsAtAStoreThatBreaksOff(t *testing.T) {
	store, err := url.Parse(proxytest.ServeStore(t))
	if err != nil {
		t.Fatal(err)
	}
	front, limit := breakingStore(t, store)
	listen, admin := freePort(t), freePort(t)
	config := writeConfig(t, front.URL, listen, admin)

	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	bucket := "bucket"
	if _, err := client(store.Host, proxytest.AccessKey, proxytest.SecretKey).CreateBucket(t.Context(), &s3.CreateBucketInput{
		Bucket: &bucket,
	}); err != nil {
		t.Fatal(err)
	}

	app := client(listen, "appkey", "appsecretappsecret")
	whole := bytes.Repeat([]byte("0123456789abcdef"), 30_000)
	if _, err := app.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &bucket, Key: new("whole"), Body: bytes.NewReader(whole),
	}); err != nil {
		t.Fatal(err)
	}
	putParts(t, app, bucket, "parts", bytes.Repeat([]byte("x"), 5<<20), whole)
	s.stop()
	s.end(t)

	for _, after := range []int64{1, 300_000} {
		limit.Store(after)
		for _, args := range [][]string{
			{"decrypt", "s3://bucket/whole", "--config", config, "-o", "-"},
			{"decrypt", "s3://bucket/parts", "--config", config, "-o", "-"},
			{"verify", "s3://bucket", "--config", config, "--format", "json"},
		} {
			var out bytes.Buffer
			code := run(t.Context(), args, &out, &out)
			text := out.String()
			if args[0] == "decrypt" && after > 1 { // each answer has some of the object, so it goes on
				if code != 0 || !strings.Contains(text, "continuing at byte") {
					t.Errorf("%v, cut after %d bytes: exit code %d", args[:2], after, code)
				}
				continue
			}
			if code == 0 || !strings.Contains(text, "ended before the response was complete") {
				t.Errorf(
					"%v, cut after %d bytes: exit code %d: %.300s",
					args[:2],
					after,
					code,
					text[max(0, len(text)-300):],
				)
			}

			for _, wrong := range []string{"truncated", " crypt:", "was altered", `"integrity"`} {
				if strings.Contains(text, wrong) {
					t.Errorf("%v, cut after %d bytes: it speaks of damage (%s)", args[:2], after, wrong)
				}
			}
		}
	}

	// What decrypt has put together is the object.
	limit.Store(300_000)
	file := filepath.Join(t.TempDir(), "whole")
	var out bytes.Buffer
	if code := run(t.Context(), []string{
		"decrypt", "s3://bucket/whole", "--config", config, "-o", file,
	}, &out, &out); code != 0 {
		t.Errorf("exit code %d: %s", code, out.String())
	}
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// pages starts a server that answers every request with a page, as a portal
// or a load balancer does.
func pages(t *testing.T, status int) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(status)
		io.WriteString(w, "<!DOCTYPE html><html><body>Please log in</body></html>")
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// A page in every answer is neither an empty bucket nor a successful write.
func TestCommandsInFrontOfAPortal(t *testing.T) {
	config := writeConfig(t, pages(t, http.StatusOK), freePort(t), freePort(t))
	missing := writeConfig(t, pages(t, http.StatusNotFound), freePort(t), freePort(t))
	var all sync.WaitGroup // most of them wait before they repeat a request
	for _, args := range [][]string{
		{"check"},
		{"decrypt", "s3://bucket/key", "-o", "-"},
		{"verify", "s3://bucket"},
		{"inventory", "s3://bucket"},
		{"rewrap", "s3://bucket", "--dry-run"},
		{"rewrap", "s3://bucket"},
		{"encrypt", "s3://bucket", "--dry-run"},
		{"encrypt", "s3://bucket"},
	} {
		all.Go(func() {
			var out bytes.Buffer
			code := run(t.Context(), append(args, "--config", config), &out, &out)
			if code == 0 || code == 2 || !strings.Contains(out.String(), "something other than the store answered") {
				t.Errorf("%v: exit code %d: %s", args, code, out.String())
			}

			if args[0] != "verify" && args[0] != "decrypt" {
				return
			}
			out.Reset()

			if code := run(t.Context(), append(args, "--config", missing), &out, &out); code != 1 ||
				!strings.Contains(out.String(), "something other than the store answered") {
				t.Errorf("%v, 404: exit code %d: %s", args, code, out.String())
			}
		})
	}

	all.Wait()
}

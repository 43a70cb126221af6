//go:build !nodev

package main

import (
	"bytes"
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// The check's results for a real store, where it leaves nothing behind.
func TestCheckStore(t *testing.T) {
	store := proxytest.ServeStore(t)
	direct, bucket := client(strings.TrimPrefix(store, "http://"), proxytest.AccessKey, proxytest.SecretKey), "bucket"
	if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}

	const settings = "checksum_trailer: true, etag_part_count: true"
	for name, row := range map[string]struct {
		setting string
		code    int
		line    string
	}{
		"both settings": {settings, 0, "ok    store: keys: // FOLDED into one"},
		"trailer auto":  {"checksum_trailer: auto", 0, "ok    store: multipart uploads\n"},
		"no trailer": {
			"checksum_trailer: false", 1, "FAIL  store: checksum trailers, truncated bodies: the store keeps bodies that are cut short, " +
				"but discards them with a checksum trailer: set origin.checksum_trailer to auto",
		},
		"no part count": {"etag_part_count: false", 0, "ok    store: part counts in ETags\n"},
		"path":          {"keys: path", 0, "ok    store: keys: // FOLDED into one"},
		"literal":       {"keys: literal", 1, "FAIL  store: keys: the store takes keys as paths"},
		"uniform":       {"uniform_parts: true", 0, "with origin.uniform_parts: false, the end of each object would be authenticated"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			config := writeConfig(t, store, "127.0.0.1:0", "127.0.0.1:0", settings, row.setting)
			code := run(t.Context(), []string{"check", "--config", config, "--bucket", bucket}, &out, &out)
			if code != row.code || !strings.Contains(out.String(), row.line) {
				t.Errorf("exit code %d\n%s", code, out.String())
			}
		})
	}
	wantNothingLeft(t, direct, bucket)
}

// wantNothingLeft waits until a bucket has neither objects nor uploads.
func wantNothingLeft(t *testing.T, direct *s3.Client, bucket string) {
	t.Helper()
	var left []string
	for range 300 {
		left = nil
		objects, err := direct.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &bucket})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects.Contents {
			left = append(left, *o.Key)
		}

		uploads, err := direct.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &bucket})
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range uploads.Uploads {
			left = append(left, "an upload of "+*u.Key)
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("left in the bucket: %q", left)
}

// plainBuild builds the program without the race detector, which makes a
// process that lives for some milliseconds several times slower.
func plainBuild(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "cmekproxy")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// A check that is killed leaves nothing behind, at whatever request that changes
// the store it is killed, and whether the store has answered that or not. Every
// second request is enough: each kind of request is sent several times.
func TestCheckIsKilled(t *testing.T) {
	store := proxytest.ServeStore(t)
	direct, bucket := client(strings.TrimPrefix(store, "http://"), proxytest.AccessKey, proxytest.SecretKey), "bucket"
	if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	k := &killer{binary: plainBuild(t), store: store, bucket: bucket}

	methods := k.check(t, 0, nil) // not killed
	killed := 0
	for signal, step := range map[os.Signal]int{syscall.SIGKILL: 2, syscall.SIGTERM: 10} {
		for at := 1; at <= len(methods); at += step {
			if method := methods[at-1]; method == http.MethodGet || method == http.MethodHead {
				continue
			}
			k.check(t, at, signal)
			killed++
		}
	}
	if killed < 30 {
		t.Errorf("the check was killed %d times only, in %q", killed, methods)
	}
	wantNothingLeft(t, direct, bucket)
}

// killer kills checks of a store.
type killer struct{ binary, store, bucket string }

// check runs a check. At its request number at, it gets the signal: before the
// store answers if half the number is even, else after that. check returns the
// methods of its requests.
func (k *killer) check(t *testing.T, at int, signal os.Signal) (methods []string) {
	t.Helper()
	target, err := url.Parse(k.store)
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu      sync.Mutex
		started = make(chan *os.Process, 1)
		forward = httputil.NewSingleHostReverseProxy(target)
	)
	kill := func() {
		p := <-started
		_ = p.Signal(signal) // it may have ended
		started <- p
	}
	forward.ErrorLog = log.New(io.Discard, "", 0)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		methods = append(methods, r.Method)
		now := len(methods) == at
		mu.Unlock()
		if now && at/2%2 == 0 {
			kill()
		}
		forward.ServeHTTP(w, r.WithContext(context.WithoutCancel(r.Context())))
		if now {
			kill()
		}
	}))
	t.Cleanup(front.Close) // the cleaner needs it

	config := writeConfig(t, front.URL, "127.0.0.1:0", "127.0.0.1:0", "checksum_trailer: true", "checksum_trailer: auto")
	check := exec.CommandContext(t.Context(), k.binary, "check", "--config", config, "--bucket", k.bucket)
	// The cleaner outlives the check, so it must not have its pipes.
	if err := check.Start(); err != nil {
		t.Fatal(err)
	}
	started <- check.Process
	_ = check.Wait()

	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(methods)
}

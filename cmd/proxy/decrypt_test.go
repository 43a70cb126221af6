//go:build !nodev

package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/origin/embedded"
)

// realStore starts a store, and returns its URL.
func realStore(t *testing.T) string {
	t.Helper()
	return startStore(t, embedded.Config{Dir: t.TempDir()})
}

func startStore(t *testing.T, cfg embedded.Config) string {
	t.Helper()
	cfg.AccessKey, cfg.SecretKey, cfg.Region = "storekey", "storesecretstoresecret", "us-east-1"
	socket, stop, err := embedded.Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	server := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: r.In.Host})
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}},
	})
	t.Cleanup(server.Close)
	return server.URL
}

// putParts uploads an object in parts.
func putParts(t *testing.T, c *s3.Client, bucket, key string, parts ...[]byte) {
	t.Helper()
	upload, err := c.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	var done []types.CompletedPart
	for i, text := range parts {
		number := int32(i + 1)
		out, err := c.UploadPart(t.Context(), &s3.UploadPartInput{Bucket: &bucket, Key: &key, UploadId: upload.UploadId, PartNumber: &number, Body: bytes.NewReader(text)})
		if err != nil {
			t.Fatal(err)
		}
		done = append(done, types.CompletedPart{PartNumber: &number, ETag: out.ETag})
	}
	if _, err := c.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{
		Bucket: &bucket, Key: &key, UploadId: upload.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
	}); err != nil {
		t.Fatal(err)
	}
}

func TestDecrypt(t *testing.T) {
	store := realStore(t)
	listen, admin := freePort(t), freePort(t)
	config := writeConfig(t, store, listen, admin)
	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	bucket := "bucket"
	direct := client(strings.TrimPrefix(store, "http://"), "storekey", "storesecretstoresecret")
	if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 12<<20)
	rand.Read(text)
	app := client(listen, "appkey", "appsecretappsecret")
	for key, n := range map[string]int{"single": 300_000, "empty": 0} {
		if _, err := app.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(text[:n])}); err != nil {
			t.Fatal(err)
		}
	}
	putParts(t, app, bucket, "dir/parts", text[:5<<20], text[5<<20:10<<20], text[10<<20:])
	putParts(t, app, bucket, "appended", text[:6<<20], text[6<<20:])
	s.stop()
	s.end(t) // no proxy is running

	dir := t.TempDir()
	decrypted := func(key string, want []byte) {
		t.Helper()
		var out bytes.Buffer
		file := filepath.Join(dir, filepath.Base(key))
		if code := run(t.Context(), []string{"decrypt", "s3://bucket/" + key, "--config", config, "-o", file}, &out, &out); code != 0 {
			t.Fatalf("%s: exit code %d: %s", key, code, out.String())
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d of %d bytes, %v", key, len(got), len(want), err)
		}
	}
	decrypted("single", text[:300_000])
	decrypted("empty", nil)
	decrypted("dir/parts", text)
	decrypted("appended", text)

	var out bytes.Buffer
	if code := run(t.Context(), []string{"decrypt", "--config", config, "-o", "-", "s3://bucket/dir/parts"}, &out, &out); code != 0 || !bytes.Equal(out.Bytes(), text) {
		t.Errorf("to standard output: exit code %d, %d bytes", code, out.Len())
	}
	resumed(t, config, dir, text)
	refused(t, config, store, dir)
}

// A store that has no time for a request is asked again, whatever the command.
func TestDecryptOfAStoreThatFalters(t *testing.T) {
	store, err := url.Parse(realStore(t))
	if err != nil {
		t.Fatal(err)
	}
	var falters atomic.Bool
	var asked, refused atomic.Int32
	through := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(store)
		r.Out.Host = r.In.Host // which is signed
	}}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if falters.Load() && asked.Add(1)%2 == 1 {
			refused.Add(1)
			http.Error(w, "<Error><Code>SlowDown</Code></Error>", http.StatusServiceUnavailable)
			return
		}
		through.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	listen, admin := freePort(t), freePort(t)
	config := writeConfig(t, front.URL, listen, admin)
	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	bucket := "bucket"
	if _, err := client(store.Host, "storekey", "storesecretstoresecret").CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	putParts(t, client(listen, "appkey", "appsecretappsecret"), bucket, "k", bytes.Repeat([]byte("x"), 5<<20), []byte("end"))
	s.stop()
	s.end(t)
	falters.Store(true)
	file := filepath.Join(t.TempDir(), "k")
	var out bytes.Buffer
	if code := run(t.Context(), []string{"decrypt", "s3://bucket/k", "--config", config, "-o", file}, &out, &out); code != 0 || refused.Load() < 2 {
		t.Errorf("exit code %d after %d refusals: %s", code, refused.Load(), out.String())
	}
	if got, err := os.ReadFile(file); err != nil || len(got) != 5<<20+3 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// Data keys that are more than what the KMS gave, and keys that clients bring.
func TestDecryptOtherDataKeys(t *testing.T) {
	store := realStore(t)
	listen, admin := freePort(t), freePort(t)
	config := writeConfig(t, store, listen, admin, `buckets: ["*"], key: main`, `buckets: ["*"], key: main, dek_reuse: {max_age: 1h}`)
	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	bucket := "bucket"
	direct := client(strings.TrimPrefix(store, "http://"), "storekey", "storesecretstoresecret")
	if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	app := client(listen, "appkey", "appsecretappsecret")
	key := bytes.Repeat([]byte{0x80}, 32)
	sum := md5.Sum(key)
	put := func(name string, change func(*s3.PutObjectInput)) {
		t.Helper()
		in := &s3.PutObjectInput{Bucket: &bucket, Key: &name, Body: strings.NewReader("text of " + name)}
		change(in)
		if _, err := app.PutObject(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	put("shared", func(*s3.PutObjectInput) {})
	put("context", func(in *s3.PutObjectInput) {
		in.ServerSideEncryption, in.SSEKMSEncryptionContext = types.ServerSideEncryptionAwsKms, new(base64.StdEncoding.EncodeToString([]byte(`{"tenant":"acme"}`)))
	})
	put("customer", func(in *s3.PutObjectInput) {
		in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = new("AES256"), new(base64.StdEncoding.EncodeToString(key)), new(base64.StdEncoding.EncodeToString(sum[:]))
	})
	s.stop()
	s.end(t)
	dir := t.TempDir()
	for name, k := range map[string][]byte{"good": key, "bad": bytes.Repeat([]byte{0x81}, 32)} {
		if err := os.WriteFile(filepath.Join(dir, name), k, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		object, key string
		code        int
		want        string
	}{
		{"shared", "", 0, "text of shared"},
		{"context", "", 0, "text of context"},
		{"customer", "good", 0, "text of customer"},
		{"customer", "", 1, "--sse-customer-key"},
		{"customer", "bad", 1, "wrong customer key"},
	} {
		args := []string{"decrypt", "s3://bucket/" + row.object, "--config", config, "-o", "-"}
		if row.key != "" {
			args = append(args, "--sse-customer-key", filepath.Join(dir, row.key))
		}
		var out bytes.Buffer
		if code := run(t.Context(), args, &out, &out); code != row.code || !strings.Contains(out.String(), row.want) {
			t.Errorf("%v: exit code %d: %s", args, code, out.String())
		}
	}
}

// resumed cuts a reading off in the middle, as by a store that breaks down,
// and has it go on.
func resumed(t *testing.T, config, dir string, text []byte) {
	t.Helper()
	file := filepath.Join(dir, "cut")
	var out bytes.Buffer
	args := []string{"decrypt", "--config", config, "s3://bucket/dir/parts", "-o", file}
	if code := run(t.Context(), args, &out, &out); code != 0 {
		t.Fatal(out.String())
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "unwritable", "cut")
	if code := run(t.Context(), append(args[:5:5], broken), &out, &out); code != 1 {
		t.Errorf("a file that cannot be written: exit code %d", code)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if code := run(ctx, args, &out, &out); code != 1 {
		t.Errorf("cancelled: exit code %d", code)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a reading that was cut off leaves a file that looks whole")
	}
	// The name of the partial file is the program's business: it makes an
	// empty one, which is filled here in its place.
	probe := filepath.Join(dir, "probe")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 5 << 20, 5<<20 + 70_000, 11 << 20, len(text)} {
		part := partName(t, config, file)
		if err := os.WriteFile(part, text[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if code := run(t.Context(), args, &out, &out); code != 0 {
			t.Fatalf("going on at byte %d: %s", n, out.String())
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, text) {
			t.Errorf("going on at byte %d: %d bytes, %v", n, len(got), err)
		}
		if _, err := os.Stat(part); err == nil {
			t.Errorf("going on at byte %d: the partial file is left", n)
		}
	}
}

// partName finds the name of the partial file by having the KMS key missing,
// which ends a reading before its first byte.
func partName(t *testing.T, config, file string) string {
	t.Helper()
	key := filepath.Join(filepath.Dir(config), "kms.key")
	other := writeConfig(t, storeOf(t, config), "127.0.0.1:0", "127.0.0.1:1")
	var out bytes.Buffer
	if code := run(t.Context(), []string{"decrypt", "--config", other, "s3://bucket/dir/parts", "-o", file}, &out, &out); code != 1 {
		t.Fatalf("another KMS key decrypts it: %s", out.String())
	}
	names, err := filepath.Glob(file + ".*.part")
	if err != nil || len(names) != 1 {
		t.Fatalf("%v, %v: %s, %s", names, err, key, out.String())
	}
	return names[0]
}

func storeOf(t *testing.T, config string) string {
	t.Helper()
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), `endpoint: "`)
	endpoint, _, _ := strings.Cut(after, `"`)
	return endpoint
}

func refused(t *testing.T, config, store, dir string) {
	t.Helper()
	bucket, key := "bucket", "plain"
	direct := client(strings.TrimPrefix(store, "http://"), "storekey", "storesecretstoresecret")
	if _, err := direct.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x")}); err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]string{
		"s3://bucket/plain":   "no encryption envelope",
		"s3://bucket/nothing": "404",
		"s3://bucket":         "is not of the form",
		"bucket/key":          "is not of the form",
	} {
		var out bytes.Buffer
		file := filepath.Join(dir, "never")
		if code := run(t.Context(), []string{"decrypt", target, "--config", config, "-o", file}, &out, &out); code == 0 || !strings.Contains(out.String(), want) {
			t.Errorf("%s: exit code %d, %s", target, code, out.String())
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s: a file came of it", target)
		}
	}
}

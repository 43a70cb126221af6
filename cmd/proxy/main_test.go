package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// output collects what a command prints while it runs.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// started is a command that runs until it is stopped.
type started struct {
	out  output
	stop context.CancelFunc
	code chan int
}

func start(t *testing.T, args ...string) *started {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	s := &started{stop: stop, code: make(chan int, 1)}
	go func() { s.code <- run(ctx, args, &s.out, &s.out) }()
	t.Cleanup(stop)
	return s
}

// end stops the command and returns its exit code.
func (s *started) end(t *testing.T) int {
	t.Helper()
	s.stop()
	select {
	case code := <-s.code:
		return code
	case <-time.After(time.Minute):
		t.Fatal("the command does not end:\n", s.out.String())
		return -1
	}
}

// TestMain runs check, and what it starts, if the test binary is started as
// the program.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "check" || os.Args[1] == cleanerName) {
		ctx, _ := begin() // as in main
		os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// nextPort is where freePort looks next. Ports below 32768 are not handed out
// to outgoing connections, so that none of them takes a port that was free a
// moment ago; each test process begins elsewhere.
var nextPort = func() *atomic.Int64 {
	var next atomic.Int64
	next.Store(int64(12_000 + os.Getpid()*97%18_000))
	return &next
}()

// freePort returns the address of a port on which nothing listens.
func freePort(t *testing.T) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", nextPort.Add(1))
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

// waitStatus polls an admin endpoint until it returns the wanted status, and
// fails the test if it never does.
func waitStatus(t *testing.T, url string, want int) {
	t.Helper()
	var last string
	for range 600 {
		resp, err := http.Get(url)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == want {
				return
			}
			last = resp.Status
		} else {
			last = err.Error()
		}

		time.Sleep(50 * time.Millisecond)
	}

	t.Fatalf("%s: %s, not %d", url, last, want)
}

func waitMetric(t *testing.T, url, line string) {
	t.Helper()
	for range 600 {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()

		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), line) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}

	t.Fatalf("%s never says %s", url, line)
}

func client(addr, access, secret string) *s3.Client {
	url := "http://" + addr
	return s3.New(s3.Options{
		BaseEndpoint: &url, Region: "us-east-1", UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(access, secret, ""),
	})
}

// A new user's first five minutes: start, store, look at the ciphertext,
// stop, start again, read.
func TestDev(t *testing.T) {
	t.Chdir(t.TempDir()) // the embedded store changes it
	dir := filepath.Join(t.TempDir(), "data")
	listen, admin := freePort(t), freePort(t)
	text := strings.Repeat("top secret ", 20_000)
	bucket, key := "demo", "dir/hello.txt"

	dev := func() *started {
		s := start(t, "dev", "--listen", listen, "--admin-listen", admin, "--data", dir)
		waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
		return s
	}
	c := client(listen, devAccessKey, devSecretKey)

	s := dev()
	for _, want := range []string{
		"http://" + listen, devAccessKey, devSecretKey, "aws s3 cp", "aws s3 ls", filepath.Join(dir, "buckets"),
	} {
		if !strings.Contains(s.out.String(), want) {
			t.Errorf("the greeting has no %q:\n%s", want, s.out.String())
		}
	}

	if _, err := c.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &bucket, Key: &key, Body: strings.NewReader(text),
	}); err != nil {
		t.Fatal(err)
	}

	stored, err := os.ReadFile(filepath.Join(dir, "buckets", bucket, key))
	if err != nil || bytes.Contains(stored, []byte("top secret")) || len(stored) < len(text) {
		t.Errorf("the store has %d bytes, plaintext among them or an error: %v", len(stored), err)
	}

	info, err := os.Stat(filepath.Join(dir, "kms.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key file: %v, %v", info.Mode(), err)
	}
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d:\n%s", code, s.out.String())
	}

	s = dev()
	got, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()

	if back, err := io.ReadAll(got.Body); err != nil || string(back) != text {
		t.Errorf("after a restart: %d bytes, %v", len(back), err)
	}
	s.end(t)
}

func TestDevListensOnLoopbackOnly(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:9000", ":9000", "192.0.2.1:9000", "[::]:9000", "example.com:9000", "nonsense"} {
		for _, flag := range []string{"--listen", "--admin-listen"} {
			var out bytes.Buffer
			dir := filepath.Join(t.TempDir(), "data")
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // in case it serves
			code := run(ctx, []string{"dev", "--data", dir, flag, addr}, &out, &out)
			cancel()

			if code != 2 {
				t.Errorf("%s %s: exit code %d:\n%s", flag, addr, code, out.String())
			}
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("%s %s: made a data directory before it refused", flag, addr)
			}
		}
	}
}

func TestCommandLines(t *testing.T) {
	for _, row := range []struct {
		args []string
		code int
		want string
	}{
		{nil, 0, "Usage"},
		{[]string{"help"}, 0, "Usage"},
		{[]string{"version"}, 0, "cmekproxy "},
		{[]string{"serve", "-h"}, 0, "-config"},
		{[]string{"destroy"}, 2, `unknown command "destroy"`},
		{[]string{"serve"}, 2, "give --config FILE or set CMEKPROXY_CONFIG"},
		{[]string{"check"}, 2, "give --config FILE"},
		{[]string{"serve", "--confg", "x"}, 2, "confg"},
		{[]string{"serve", "--config", "x", "y"}, 2, `unexpected argument "y"`},
		{[]string{"serve", "--config", "/does/not/exist"}, 1, "/does/not/exist"},
	} {
		var out bytes.Buffer
		if code := run(t.Context(), row.args, &out, &out); code != row.code ||
			!strings.Contains(out.String(), row.want) {
			t.Errorf("%q: exit code %d, printed %q", row.args, code, out.String())
		}
	}
}

// writeConfig returns the path of a configuration for a store at endpoint.
// changes are pairs of old and new text.
func writeConfig(t *testing.T, endpoint, listen, admin string, changes ...string) string {
	t.Helper()
	dir := t.TempDir()
	keyFile := filepath.Join(dir, "kms.key")
	if err := kms.CreateLocalKeyFile(keyFile); err != nil {
		t.Fatal(err)
	}

	text := strings.NewReplacer(changes...).Replace(fmt.Sprintf(`listen: %s
admin_listen: %s
origin: {endpoint: "%s", region: us-east-1, access_key: storekey, secret_key: storesecretstoresecret, checksum_trailer: true, etag_part_count: true}
clients:
  - {name: app, access_key: appkey, secret_key: appsecretappsecret, allow: [{buckets: ["*"], actions: [read, write]}]}
keys: [{name: main, provider: local, key_file: %s}]
encryption: {customer_keys: allow, rules: [{buckets: ["*"], key: main}]}
limits: {shutdown_grace: 20s}
tls: {ends_on_this_machine: true}
`, listen, admin, endpoint, keyFile))

	path := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// sink is a store that keeps nothing: it reads each body to the end and
// reports success.
func sink(t *testing.T) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("ETag", `"00112233445566778899aabbccddeeff"`)
	}))
	t.Cleanup(server.Close)
	return server
}

// refusing returns the URL of a store that refuses every request. Unlike a
// store that is away, it is asked once.
func refusing(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// When the proxy stops, /readyz changes, a running upload can finish, and
// new connections are refused.
func TestServeDrains(t *testing.T) {
	listen, admin := freePort(t), freePort(t)
	s := start(t, "serve", "--config", writeConfig(t, sink(t).URL, listen, admin))
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)

	const size = 1 << 20
	body, feed := io.Pipe()
	bucket, key := "bucket", "key"
	done := make(chan error, 1)

	go func() {
		presigned, err := s3.NewPresignClient(
			client(listen, "appkey", "appsecretappsecret"),
		).PresignPutObject(
			context.Background(),
			&s3.PutObjectInput{Bucket: &bucket, Key: &key},
		)
		if err != nil {
			done <- err
			return
		}

		r, err := http.NewRequest(http.MethodPut, presigned.URL, body)
		if err != nil {
			done <- err
			return
		}
		r.ContentLength = size

		resp, err := http.DefaultTransport.RoundTrip(r)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				err = fmt.Errorf("answered %s", resp.Status)
			}
		}

		done <- err
	}()

	if _, err := feed.Write(make([]byte, size/2)); err != nil {
		t.Fatal(err)
	}
	waitMetric(t, "http://"+admin+"/metrics", "cmekproxy_requests_in_flight 1")
	s.stop()
	waitStatus(t, "http://"+admin+"/readyz", http.StatusServiceUnavailable)
	waitStatus(t, "http://"+admin+"/healthz", http.StatusOK)

	if _, err := feed.Write(make([]byte, size/2)); err != nil {
		t.Fatal(err)
	}
	if err := feed.Close(); err != nil {
		t.Fatal(err)
	}

	if err := <-done; err != nil {
		t.Error("the running upload was not let finish:", err)
	}
	if code := s.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}

	if conn, err := net.Dial("tcp", listen); err == nil {
		conn.Close()
		t.Error("it still accepts connections")
	}
}

func TestShutdownIsBounded(t *testing.T) {
	listen, admin := freePort(t), freePort(t)
	s := start(
		t,
		"serve",
		"--config",
		writeConfig(t, sink(t).URL, listen, admin, "shutdown_grace: 20s", "shutdown_grace: 100ms"),
	)

	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	conn, err := net.Dial("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "PUT /bucket/key HTTP/1.1\r\nHost: h\r\nContent-Le") // a request that never ends

	time.Sleep(100 * time.Millisecond)
	s.end(t)
}

func TestStrictConfiguration(t *testing.T) {
	for _, row := range []struct{ old, new, want string }{
		{
			"admin_listen:", "admin_lisen:",
			`config.yaml:2:1: unknown key "admin_lisen" in the file (did you mean "admin_listen"?)`,
		},
		{"key: main", "key: mian", `did you mean "main"?`},
		{"{shutdown_grace: 20s}", "{shutdown_grace: soon}", "config.yaml:8:"},
		{"storesecretstoresecret", `"${NOT_SET_ANYWHERE}"`, "NOT_SET_ANYWHERE"},
		{"limits:", "dek_cache: {ttl: 0s}\nlimits:", "config.yaml:8:"},
		{"provider: local", "provider: locla", "local"},
	} {
		for _, command := range []string{"serve", "check"} {
			var out bytes.Buffer
			path := writeConfig(t, "http://127.0.0.1:1", "127.0.0.1:0", "127.0.0.1:0", row.old, row.new)
			if code := run(t.Context(), []string{command, "--config", path}, &out, &out); code != 1 ||
				!strings.Contains(out.String(), row.want) {
				t.Errorf("%s, %s: exit code %d, printed\n%s", command, row.new, code, out.String())
			}

			if strings.Contains(out.String(), "storesecretstoresecret") ||
				strings.Contains(out.String(), "appsecretappsecret") {
				t.Errorf("%s, %s: a secret was printed", command, row.new)
			}
		}
	}
}

func TestCheckFailsWithoutAStoreOrAKey(t *testing.T) {
	var out bytes.Buffer
	path := writeConfig(t, "http://127.0.0.1:1", "127.0.0.1:0", "127.0.0.1:0")
	if code := run(t.Context(), []string{"check", "--config", path}, &out, &out); code != 1 ||
		!strings.Contains(out.String(), "FAIL  store") ||
		!strings.Contains(out.String(), "ok    key main") {
		t.Errorf("exit code %d, printed\n%s", code, out.String())
	}

	out.Reset()
	path = writeConfig(t, refusing(t), "127.0.0.1:0", "127.0.0.1:0")
	if err := os.Remove(filepath.Join(filepath.Dir(path), "kms.key")); err != nil {
		t.Fatal(err)
	}

	if code := run(t.Context(), []string{"check", "--config", path}, &out, &out); code != 1 ||
		!strings.Contains(out.String(), "FAIL  key main") {
		t.Errorf("without the key file: exit code %d, printed\n%s", code, out.String())
	}
}

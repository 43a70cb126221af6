//go:build !nodev

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// drained is a proxy in front of a real store, with an object that a client
// reads slowly while the proxy stops.
type drained struct {
	listen, admin string
	config, key   string // paths
	app           *s3.Client
}

const drainSize = 64 << 20

func newDrained(t *testing.T, limits string) *drained {
	t.Helper()
	d := &drained{listen: freePort(t), admin: freePort(t)}
	store := proxytest.ServeStore(t)
	d.config = writeConfig(t, store, d.listen, d.admin, "limits: {shutdown_grace: 20s}", limits)
	d.key = filepath.Join(filepath.Dir(d.config), "kms.key")
	d.app = client(d.listen, "appkey", "appsecretappsecret")

	bucket := "bucket"
	direct := client(strings.TrimPrefix(store, "http://"), proxytest.AccessKey, proxytest.SecretKey)
	if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	return d
}

// put stores the object, and returns a URL for reading it.
func (d *drained) put(t *testing.T) string {
	t.Helper()
	waitStatus(t, "http://"+d.admin+"/readyz", http.StatusOK)
	bucket, key := "bucket", "key"
	put := &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(make([]byte, drainSize))}
	once := func(o *s3.Options) { // a drain would wait for an idle connection
		o.HTTPClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	}
	if _, err := d.app.PutObject(t.Context(), put, once); err != nil {
		t.Fatal(err)
	}

	signed, err := s3.NewPresignClient(
		d.app,
	).PresignGetObject(
		t.Context(),
		&s3.GetObjectInput{Bucket: &bucket, Key: &key},
	)
	if err != nil {
		t.Fatal(err)
	}

	return signed.URL
}

// slowly starts a download with a small receive buffer, so that most of the
// object stays in the proxy.
func slowly(t *testing.T, url string) io.ReadCloser {
	t.Helper()
	dialer := &net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(
			func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 32<<10) },
		)
	}}
	transport := &http.Transport{DialContext: dialer.DialContext, ReadBufferSize: 4096}

	t.Cleanup(transport.CloseIdleConnections)
	resp, err := (&http.Client{Transport: transport}).Get(url)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	t.Cleanup(func() { resp.Body.Close() })

	if _, err := io.ReadFull(resp.Body, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	return resp.Body
}

// mustBeCut reads the rest of a download, which must be cut.
func mustBeCut(t *testing.T, body io.Reader) {
	t.Helper()
	n, err := io.Copy(io.Discard, body)
	if err == nil {
		t.Errorf("the download ended well, after %d bytes more", n)
	}
	if n > 8<<20 {
		t.Errorf("%d bytes came after the cut", n)
	}
}

func TestKeysAreProbedDuringTheDrain(t *testing.T) {
	d := newDrained(t, "limits: {shutdown_grace: 10m}\ndek_cache: {ttl: 5m, revocation_probe: 1s}")
	s := start(t, "serve", "--config", d.config)
	body := slowly(t, d.put(t))

	s.stop()
	waitStatus(t, "http://"+d.admin+"/readyz", http.StatusServiceUnavailable)
	if err := os.Rename(d.key, d.key+".away"); err != nil {
		t.Fatal(err)
	}
	if code := s.end(t); code != 0 { // it ends when the download is cut, because nothing else is running
		t.Errorf("exit code %d", code)
	}
	mustBeCut(t, body)
}

func TestSignalsDuringTheDrain(t *testing.T) {
	d := newDrained(t, "limits: {shutdown_grace: 10m}\ndek_cache: {ttl: 5m, revocation_probe: 0}")
	s := start(t, "serve", "--config", d.config)
	body := slowly(t, d.put(t))
	s.stop()
	waitStatus(t, "http://"+d.admin+"/readyz", http.StatusServiceUnavailable)

	signal := func(sig syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), sig); err != nil { // the proxy runs in this process
			t.Fatal(err)
		}
	}

	text, err := os.ReadFile(d.config)
	if err != nil {
		t.Fatal(err)
	}

	changed := strings.Replace(string(text), "ttl: 5m", "ttl: 4m", 1)
	if err := os.WriteFile(d.config, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	signal(syscall.SIGHUP)
	waitMetric(t, "http://"+d.admin+"/metrics", `cmekproxy_revocation_window_seconds{key="main"} 240`)
	waitMetric(t, "http://"+d.admin+"/metrics", `cmekproxy_dek_cache_entries{key="main"} 1`)

	if err := os.Rename(d.key, d.key+".away"); err != nil {
		t.Fatal(err)
	}
	signal(syscall.SIGUSR1)
	mustBeCut(t, body) // the lease cannot be renewed without the key
	s.end(t)
}

// program starts the proxy as a process.
func program(t *testing.T, args ...string) (cmd *exec.Cmd, ended chan error) {
	t.Helper()
	cmd = exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMainCommand$")
	cmd.Env = append(os.Environ(), commandEnv+"="+strings.Join(args, "\n"))
	out := &output{}
	cmd.Stdout, cmd.Stderr = out, out

	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended = make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	t.Cleanup(func() {
		if t.Failed() {
			t.Log(out.String())
		}
	})
	return cmd, ended
}

func send(t *testing.T, cmd *exec.Cmd, sig os.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func mustEnd(t *testing.T, ended chan error) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the process does not end")
	}
}

// ignoreInterrupt makes programs that are started from now on ignore SIGINT, as
// the background jobs of a shell do.
func ignoreInterrupt(t *testing.T) {
	signal.Ignore(os.Interrupt)
	t.Cleanup(func() { signal.Reset(os.Interrupt) })
}

func TestSecondSignalEndsTheDrain(t *testing.T) {
	ignoreInterrupt(t)
	for _, second := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(fmt.Sprint(second), func(t *testing.T) {
			d := newDrained(t, "limits: {shutdown_grace: 10m, shutdown_delay: 5m}")
			cmd, ended := program(t, "serve", "--config", d.config)
			body := slowly(t, d.put(t))

			send(t, cmd, syscall.SIGTERM)
			waitStatus(t, "http://"+d.admin+"/readyz", http.StatusServiceUnavailable)
			send(t, cmd, second)
			mustEnd(t, ended)
			mustBeCut(t, body)
		})
	}
}

// TestSignalsInARow: a second signal that comes before anyone waits for it is
// not lost.
func TestSignalsInARow(t *testing.T) {
	ctx, stop := untilSignal()
	defer stop()
	second, release := secondSignal(ctx)
	defer release()

	for range 2 { // this process is the one with the context
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
	}
	<-second
}

// TestEndOfTheGraceIsAReset: the kernel must not deliver its buffers after
// the process has ended.
func TestEndOfTheGraceIsAReset(t *testing.T) {
	d := newDrained(t, "limits: {shutdown_grace: 1s}")
	cmd, ended := program(t, "serve", "--config", d.config)
	body := slowly(t, d.put(t))

	send(t, cmd, syscall.SIGTERM)
	mustEnd(t, ended)
	n, err := io.Copy(io.Discard, body)
	if err == nil || n > 512<<10 { // size of the client's own buffers
		t.Errorf("%d bytes after the process has ended, %v", n, err)
	}
}

func TestShutdownDelay(t *testing.T) {
	for _, c := range []struct {
		sig     os.Signal
		answers bool
	}{{syscall.SIGTERM, true}, {os.Interrupt, false}} {
		t.Run(fmt.Sprint(c.sig), func(t *testing.T) {
			d := newDrained(t, "limits: {shutdown_grace: 1m, shutdown_delay: 3s}")
			cmd, ended := program(t, "serve", "--config", d.config)
			url := d.put(t)
			send(t, cmd, c.sig)

			if !c.answers {
				mustEnd(t, ended)
				return
			}

			waitStatus(t, "http://"+d.admin+"/readyz", http.StatusServiceUnavailable)
			resp, err := (&http.Client{Transport: &http.Transport{}}).Get(url) // on a new connection
			if err != nil {
				t.Fatal("refused within the delay:", err)
			}

			n, err := io.Copy(io.Discard, resp.Body)
			if resp.Body.Close(); n != drainSize || err != nil || !resp.Close {
				t.Errorf("%d bytes, %v; Connection: close is %v", n, err, resp.Close)
			}
			mustEnd(t, ended)
		})
	}
}

func TestOnlySIGTERMDelays(t *testing.T) {
	a := &server{backend: &backend{cfg: devConfig("", "", "")}}
	a.cfg.Limits.ShutdownDelay = time.Second
	for cause, want := range map[error]time.Duration{
		signalError{syscall.SIGTERM}: time.Second,
		signalError{os.Interrupt}:    0,
		context.Canceled:             0,
		nil:                          0,
	} {
		if got := a.delay(cause); got != want {
			t.Errorf("%v: %v, want %v", cause, got, want)
		}
	}
}

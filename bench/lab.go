package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	storeAccess, storeSecret   = "benchstore", "benchstoresecret"
	clientAccess, clientSecret = "benchclient", "benchclientsecret"
)

// target receives requests. The bare store has no pids, because its CPU time
// is not compared.
type target struct {
	name           string
	url            string
	access, secret string
	pids           func() []int
	client         *http.Client
	prepared       map[int64]bool // sizes for which objects to read exist
}

// lab holds the processes of a run.
type lab struct {
	o            options
	dir          string
	storeDir     string
	store        string // URL
	plainVersion string
	targets      []*target // the store, the plain reverse proxy, cmekproxy
	processes    []*exec.Cmd
	servers      []*httptest.Server
}

func newLab(ctx context.Context, o options) (*lab, error) {
	l := &lab{o: o}
	var err error
	if l.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return nil, err
	}
	if err := l.start(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *lab) start(ctx context.Context) error {
	if err := l.startStore(ctx); err != nil {
		return err
	}

	direct := newTarget("store", l.store, storeAccess, storeSecret, nil)
	if _, err := direct.do(ctx, http.MethodPut, "/"+bucket, nil, 0); err != nil {
		return fmt.Errorf("creating the bucket: %w", err)
	}

	plain, err := l.startPlain(ctx)
	if err != nil {
		return err
	}

	ours, err := l.startProxy(ctx, "cmekproxy", l.store)
	if err != nil {
		return err
	}

	l.targets = []*target{direct, plain, ours}
	return nil
}

func newTarget(name, url, access, secret string, pids func() []int) *target {
	return &target{
		name: name, url: url, access: access, secret: secret, pids: pids, prepared: make(map[int64]bool),
		client: &http.Client{Transport: &http.Transport{
			MaxIdleConnsPerHost:   128,
			DisableCompression:    true,
			WriteBufferSize:       64 << 10,
			ResponseHeaderTimeout: 2 * time.Minute,
		}},
	}
}

// startStore starts the store. It keeps objects in memory, so that disk
// speed does not matter, if memory is large enough and its file system has
// extended attributes.
func (l *lab) startStore(ctx context.Context) error {
	var failures []error
	for _, parent := range []string{"/dev/shm", l.dir} {
		err := l.startStoreIn(ctx, parent)
		if err == nil {
			return nil
		}
		failures = append(failures, fmt.Errorf("in %s: %w", parent, err))
	}
	return fmt.Errorf("starting the store: %w", errors.Join(failures...))
}

func (l *lab) startStoreIn(ctx context.Context, parent string) error {
	free, err := room(parent)
	if err != nil {
		return err
	}
	if need := l.o.space(); free < need {
		return fmt.Errorf(
			"%d MiB are free, %d MiB are needed; smaller -sizes or fewer -clients need less",
			free>>20,
			need>>20,
		)
	}

	dir, err := os.MkdirTemp(parent, "bench-store-")
	if err != nil {
		return err
	}

	addr := freeAddress()
	// By default, the store closes each connection after one response. The
	// benchmark would then measure TCP handshakes.
	cmd := exec.CommandContext(
		ctx,
		filepath.Join(l.o.bin, "versitygw"),
		"--port",
		addr,
		"--region",
		region,
		"--quiet",
		"--keep-alive",
		"posix",
		dir,
	)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+storeAccess, "ROOT_SECRET_KEY="+storeSecret)
	if err := l.launch(cmd, "store", addr); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}

	l.store, l.storeDir = "http://"+addr, dir
	return nil
}

// space returns how many bytes the store may hold at once: the object of the
// memory measurement, the multipart objects, and the objects to read of each
// of three targets. The uploads of one target's clients count twice, because
// the old object stays until the new one is complete.
func (o options) space() int64 {
	total := int64(0)
	if o.memory > 0 || o.full {
		total += transferred
	}
	total += 5 * o.large // one per target, and two while the store assembles one
	if len(o.clients) == 0 || len(o.sizes) == 0 {
		return total
	}
	for _, size := range o.sizes {
		total += 3 * objects * size
	}
	return total + 2*slices.Max(o.clients)*slices.Max(o.sizes)
}

func (l *lab) startPlain(ctx context.Context) (*target, error) {
	nginx, err := exec.LookPath("nginx")
	switch {
	case l.o.plain == "nginx" && err != nil:
		return nil, err
	case l.o.plain == "nginx", l.o.plain == "auto" && err == nil:
		return l.startNginx(ctx, nginx)
	case l.o.plain == "go", l.o.plain == "auto":
		return l.startReverseProxy(ctx)
	default:
		return nil, fmt.Errorf("-plain %s is none of auto, nginx, go", l.o.plain)
	}
}

// startNginx starts nginx. It forwards the Host header unchanged, because
// the signature covers it. Unlike cmekproxy, it writes no access log.
func (l *lab) startNginx(ctx context.Context, nginx string) (*target, error) {
	version, err := exec.CommandContext(ctx, nginx, "-v").CombinedOutput()
	if err != nil {
		return nil, err
	}

	l.plainVersion = strings.TrimSpace(string(version))
	addr := freeAddress()
	conf := filepath.Join(l.dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off; worker_processes auto; error_log %[1]s/nginx.log warn; pid %[1]s/nginx.pid;
events { worker_connections 1024; }
http {
  access_log off; client_max_body_size 0; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s; keepalive_requests 1000000;
  upstream store { server %[2]s; keepalive 128; keepalive_requests 1000000; }
  server {
    listen %[3]s;
    location / {
      proxy_pass http://store; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
      proxy_request_buffering off; proxy_max_temp_file_size 0; proxy_buffers 8 64k; proxy_buffer_size 64k;
    }
  }
}`, l.dir, strings.TrimPrefix(l.store, "http://"), addr)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}

	cmd := exec.CommandContext(ctx, nginx, "-c", conf, "-p", l.dir)
	if err := l.launch(cmd, "nginx", addr); err != nil {
		return nil, err
	}

	return newTarget(
		"nginx",
		"http://"+addr,
		storeAccess,
		storeSecret,
		func() []int { return children(cmd.Process.Pid) },
	), nil
}

// startReverseProxy starts Go's own reverse proxy in a separate process, so
// that its CPU time and memory are measured separately.
func (l *lab) startReverseProxy(ctx context.Context) (*target, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	l.plainVersion = "httputil.ReverseProxy of Go"
	addr := freeAddress()
	cmd := exec.CommandContext(ctx, self, reverseProxyCommand, addr, l.store)
	if err := l.launch(cmd, "httputil", addr); err != nil {
		return nil, err
	}
	return newTarget(
		"httputil",
		"http://"+addr,
		storeAccess,
		storeSecret,
		func() []int { return []int{cmd.Process.Pid} },
	), nil
}

// plainRule is the encryption rule of the measured proxies.
const plainRule = `{buckets: ["*"], key: bench}`

func (l *lab) startProxy(ctx context.Context, name, store string) (*target, error) {
	t, _, err := l.startProxyWith(ctx, name, store, plainRule)
	return t, err
}

// startProxyWith starts a proxy with an encryption rule. It also returns the
// address of the admin port.
func (l *lab) startProxyWith(ctx context.Context, name, store, rule string) (t *target, admin string, err error) {
	key := make([]byte, 32)
	rand.Read(key)
	addr := freeAddress()
	admin = freeAddress()
	keyFile, conf := filepath.Join(l.dir, name+".key"), filepath.Join(l.dir, name+".yaml")
	if err := os.WriteFile(
		keyFile,
		[]byte("cmekproxy-local-key-v1:"+base64.StdEncoding.EncodeToString(key)+"\n"),
		0o600,
	); err != nil {
		return nil, "", err
	}

	text := fmt.Sprintf(`listen: %s
admin_listen: %s
origin: {endpoint: "%s", region: %s, access_key: %s, secret_key: %s}
clients: [{name: bench, access_key: %s, secret_key: %s, allow: [{buckets: ["*"], actions: [read, write]}]}]
keys: [{name: bench, provider: local, key_file: %s}]
encryption: {rules: [%s]}
`, addr, admin, store, region, storeAccess, storeSecret, clientAccess, clientSecret, keyFile, rule)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, "", err
	}

	cmd := exec.CommandContext(ctx, filepath.Join(l.o.bin, "cmekproxy"), "serve", "--config", conf)
	if err := l.launch(cmd, name, addr); err != nil {
		return nil, "", err
	}

	return newTarget(
		name,
		"http://"+addr,
		clientAccess,
		clientSecret,
		func() []int { return []int{cmd.Process.Pid} },
	), admin, nil
}

// launch starts a process and waits until it listens.
func (l *lab) launch(cmd *exec.Cmd, name, addr string) error {
	log, err := os.Create(filepath.Join(l.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()

	cmd.Stdout, cmd.Stderr = log, log // cmekproxy writes its access log, as in production
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}

	l.processes = append(l.processes, cmd)
	for range 200 {
		if conn, err := net.Dial("tcp", addr); err == nil { //nolint:noctx // loopback
			return conn.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}

	text, err := os.ReadFile(log.Name())
	return errors.Join(fmt.Errorf("%s does not listen: %.500s", name, text), err)
}

func (l *lab) close() {
	for _, cmd := range l.processes {
		_ = cmd.Process.Signal(os.Interrupt)
		timer := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
	}
	for _, server := range l.servers {
		server.Close()
	}
	for _, dir := range []string{l.storeDir, l.dir} {
		if dir != "" {
			_ = os.RemoveAll(dir)
		}
	}
}

func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// newSink starts a store that accepts any body and discards it: 64
// concurrent uploads of 1 GiB would need 64 GiB of disk.
func (l *lab) newSink() string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, 256<<10)); err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("ETag", `"00000000000000000000000000000000"`)
	}))
	l.servers = append(l.servers, server)
	return server.URL
}

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
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	storeAccess, storeSecret   = "benchstore", "benchstoresecret"
	clientAccess, clientSecret = "benchclient", "benchclientsecret"
)

// target is something that requests are sent to. The bare store has no pids: its own CPU is not what is compared.
type target struct {
	name           string
	url            string
	access, secret string
	pids           func() []int
	client         *http.Client
	prepared       map[string]bool
}

// lab holds the processes of a run.
type lab struct {
	dir       string
	storeDir  string
	bin       string
	store     string // URL
	targets   []*target
	processes []*exec.Cmd
	servers   []*httptest.Server
}

func newLab(ctx context.Context, bin string) (*lab, error) {
	l := &lab{bin: bin}
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
		name: name, url: url, access: access, secret: secret, pids: pids, prepared: make(map[string]bool),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128, DisableCompression: true, WriteBufferSize: 64 << 10}},
	}
}

// startStore keeps objects in memory where that has extended attributes, so that no disk is measured.
func (l *lab) startStore(ctx context.Context) error {
	var err error
	for _, parent := range []string{"/dev/shm", l.dir} {
		if l.storeDir, err = os.MkdirTemp(parent, "bench-store-"); err != nil {
			continue
		}
		addr := freeAddress()
		cmd := exec.CommandContext(ctx, filepath.Join(l.bin, "versitygw"), "--port", addr, "--region", region, "--quiet", "posix", l.storeDir)
		cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+storeAccess, "ROOT_SECRET_KEY="+storeSecret)
		if err = l.launch(cmd, addr); err == nil {
			l.store = "http://" + addr
			return nil
		}
		_ = os.RemoveAll(l.storeDir)
	}
	return fmt.Errorf("the store: %w", err)
}

// startPlain is nginx, or Go's own reverse proxy where there is none. Host passes unchanged: it is signed.
func (l *lab) startPlain(ctx context.Context) (*target, error) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		u, err := url.Parse(l.store)
		if err != nil {
			return nil, err
		}
		server := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.Out.Host = r.In.Host
		}})
		l.servers = append(l.servers, server)
		return newTarget("httputil", server.URL, storeAccess, storeSecret, func() []int { return []int{os.Getpid()} }), nil
	}
	addr := freeAddress()
	conf := filepath.Join(l.dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off; worker_processes auto; error_log %[1]s/nginx.log warn; pid %[1]s/nginx.pid;
events { worker_connections 1024; }
http {
  access_log off; client_max_body_size 0; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  upstream store { server %[2]s; keepalive 128; }
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
	if err := l.launch(cmd, addr); err != nil {
		return nil, fmt.Errorf("nginx: %w", err)
	}
	return newTarget("nginx", "http://"+addr, storeAccess, storeSecret, func() []int { return children(cmd.Process.Pid) }), nil
}

func (l *lab) startProxy(ctx context.Context, name, store string) (*target, error) {
	key := make([]byte, 32)
	rand.Read(key)
	addr, admin := freeAddress(), freeAddress()
	keyFile, conf := filepath.Join(l.dir, name+".key"), filepath.Join(l.dir, name+".yaml")
	if err := os.WriteFile(keyFile, []byte("cmekproxy-local-key-v1:"+base64.StdEncoding.EncodeToString(key)+"\n"), 0o600); err != nil {
		return nil, err
	}
	text := fmt.Sprintf(`listen: %s
admin_listen: %s
origin: {endpoint: "%s", region: %s, access_key: %s, secret_key: %s}
clients: [{name: bench, access_key: %s, secret_key: %s, allow: [{buckets: ["*"], actions: [read, write]}]}]
keys: [{name: bench, provider: local, key_file: %s}]
encryption: {rules: [{buckets: ["*"], key: bench}]}
`, addr, admin, store, region, storeAccess, storeSecret, clientAccess, clientSecret, keyFile)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(l.bin, "proxy"), "serve", "--config", conf)
	if err := l.launch(cmd, addr); err != nil {
		return nil, fmt.Errorf("cmekproxy: %w", err)
	}
	return newTarget(name, "http://"+addr, clientAccess, clientSecret, func() []int { return []int{cmd.Process.Pid} }), nil
}

// launch starts a process and waits until it listens.
func (l *lab) launch(cmd *exec.Cmd, addr string) error {
	log, err := os.Create(filepath.Join(l.dir, filepath.Base(cmd.Path)+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log // access logs are written, as in real life
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Start(); err != nil {
		return err
	}
	l.processes = append(l.processes, cmd)
	for range 200 {
		if conn, err := net.Dial("tcp", addr); err == nil { //nolint:noctx // loopback
			return conn.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	text, err := os.ReadFile(log.Name())
	return errors.Join(fmt.Errorf("%s does not listen: %.500s", cmd.Path, text), err)
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
	_ = os.RemoveAll(l.storeDir)
	_ = os.RemoveAll(l.dir)
}

func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// newSink is a store that takes any body and keeps none: 64 uploads of 1 GiB at a time would need 64 GiB of disk.
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

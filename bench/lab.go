package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
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

// The columns of the table.
const (
	nginxName = "nginx"
	plainName = "pass-through"
	oursName  = "cmekproxy"
)

// target is a proxy that is measured.
type target struct {
	name           string
	bucket         string
	access, secret string
	plain, secure  endpoint // secure has TLS on both sides; it may be missing
	metrics        string   // URL of /metrics, for allocations; may be missing
	prepared       map[string]bool
}

// endpoint is an address at which processes serve a target.
type endpoint struct {
	addr  string
	roots *x509.CertPool // nil without TLS
	pids  func() []int
}

func (e endpoint) url() string {
	if e.roots != nil {
		return "https://" + e.addr
	}
	return "http://" + e.addr
}

// lab is a set of processes: an origin and the proxies in front of it.
type lab struct {
	o         options
	dir       string
	self      string // this program
	roots     *x509.CertPool
	origin    string // HOST:PORT
	originTLS string
	targets   []*target
	processes []*exec.Cmd
	ports     int // ports in use
}

// newLab starts the origin and the proxies in front of it: nginx, the
// pass-through, cmekproxy, and the peer if there is one.
func newLab(ctx context.Context, o options) (*lab, error) {
	l, err := newOrigin(ctx, o)
	if err != nil {
		return nil, err
	}
	for _, start := range []func(context.Context) (*target, error){
		l.startNginx, l.startPassThrough, l.startOurs, l.startPeer,
	} {
		t, err := start(ctx)
		if err != nil {
			l.close()
			return nil, err
		}
		if t != nil {
			t.prepared = make(map[string]bool)
			l.targets = append(l.targets, t)
		}
	}
	return l, nil
}

// newOrigin starts an origin only.
func newOrigin(ctx context.Context, o options) (l *lab, err error) {
	l = &lab{o: o}
	if l.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if l.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return nil, err
	}

	l.origin, l.originTLS = l.address(), l.address()
	if err = l.writeFiles(); err == nil {
		_, err = l.launch(ctx, "origin", l.origin, l.self, originCommand, l.origin, l.originTLS, l.dir)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// writeFiles writes the files that several processes need.
func (l *lab) writeFiles() error {
	if err := writeCertificate(l.dir); err != nil {
		return err
	}
	pem, err := os.ReadFile(certFile(l.dir))
	if err != nil {
		return err
	}
	l.roots = x509.NewCertPool()
	l.roots.AppendCertsFromPEM(pem)

	key := make([]byte, 32)
	rand.Read(key)
	text := "cmekproxy-local-key-v1:" + base64.StdEncoding.EncodeToString(key) + "\n"
	return os.WriteFile(filepath.Join(l.dir, "local.key"), []byte(text), 0o600)
}

// address returns an address with the next port, or with any free one if no
// port is set.
func (l *lab) address() string {
	if l.o.port == 0 {
		listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback
		if err != nil {
			panic(err) // no port is free
		}
		defer listener.Close()
		return listener.Addr().String()
	}

	l.ports++
	return fmt.Sprintf("127.0.0.1:%d", l.o.port+l.ports-1)
}

// startNginx returns nil if there is no nginx.
func (l *lab) startNginx(ctx context.Context) (*target, error) {
	nginx, err := exec.LookPath("nginx")
	if errors.Is(err, exec.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}

	addr, secure := l.address(), l.address()
	conf := filepath.Join(l.dir, "nginx.conf")
	text := strings.NewReplacer(
		"DIR", l.dir, "CERT_NAME", certName,
		"TLS_ORIGIN", l.originTLS, "ORIGIN", l.origin, "TLS_LISTEN", secure, "LISTEN", addr,
	).Replace(nginxConf)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}

	pids, err := l.launch(ctx, "nginx", addr, nginx, "-c", conf, "-p", l.dir)
	return &target{
		name: nginxName, bucket: "nginx", access: storeAccess, secret: storeSecret,
		plain: endpoint{addr: addr, pids: pids}, secure: endpoint{addr: secure, roots: l.roots, pids: pids},
	}, err
}

// nginxConf configures nginx as a plain proxy: it forwards bodies as they
// come, keeps connections open, and writes no access log. Of several sizes
// of buffers, these took the least CPU time.
const nginxConf = `daemon off; worker_processes auto; error_log DIR/nginx.log warn; pid DIR/nginx.pid;
worker_rlimit_nofile 20000;
events { worker_connections 8192; }
http {
  access_log off; client_max_body_size 0; client_body_temp_path DIR/body; proxy_temp_path DIR/proxy;
  fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
  keepalive_requests 1000000; keepalive_timeout 10m;
  upstream origin { server ORIGIN; keepalive 128; keepalive_requests 1000000; }
  upstream tls_origin { server TLS_ORIGIN; keepalive 128; keepalive_requests 1000000; }
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
  proxy_request_buffering off; client_body_buffer_size 32k;
  proxy_max_temp_file_size 0; proxy_buffers 16 64k; proxy_buffer_size 16k; proxy_busy_buffers_size 256k;
  server { listen LISTEN reuseport; location / { proxy_pass http://origin; } }
  server {
    listen TLS_LISTEN ssl reuseport; ssl_certificate DIR/cert.pem; ssl_certificate_key DIR/key.pem;
    ssl_protocols TLSv1.2 TLSv1.3; proxy_ssl_protocols TLSv1.2 TLSv1.3;
    location / {
      proxy_pass https://tls_origin;
      proxy_ssl_verify on; proxy_ssl_trusted_certificate DIR/cert.pem; proxy_ssl_name CERT_NAME;
    }
  }
}
`

func (l *lab) startPassThrough(ctx context.Context) (*target, error) {
	addr, secure := l.address(), l.address()
	pids, err := l.launch(ctx, plainName, addr,
		l.self, passThroughCommand, addr, secure, l.dir, l.origin, l.originTLS)
	return &target{
		name: plainName, bucket: "plain", access: storeAccess, secret: storeSecret,
		plain: endpoint{addr: addr, pids: pids}, secure: endpoint{addr: secure, roots: l.roots, pids: pids},
	}, err
}

// startOurs starts two proxies with the same key: one without TLS, and one
// with TLS on both sides.
func (l *lab) startOurs(ctx context.Context) (*target, error) {
	rules := `[{buckets: ["*-reuse"], key: bench, dek_reuse: {max_age: 1h}}, {buckets: ["*"], key: bench}]`
	keys := fmt.Sprintf("[{name: bench, provider: local, key_file: %s/local.key}]", l.dir)
	origin := fmt.Sprintf(`endpoint: "http://%s"`, l.origin)
	plain, admin, err := l.startProxy(ctx, oursName, origin, keys, rules, "")
	if err != nil {
		return nil, err
	}

	origin = fmt.Sprintf(`endpoint: "https://%s", ca_file: %s`, l.originTLS, certFile(l.dir))
	tls := fmt.Sprintf("tls: {cert_file: %s, key_file: %s}\n", certFile(l.dir), keyFile(l.dir))
	secure, _, err := l.startProxy(ctx, oursName+"-tls", origin, keys, rules, tls)
	secure.roots = l.roots

	return &target{
		name: oursName, bucket: "ours", access: clientAccess, secret: clientSecret,
		plain: plain, secure: secure, metrics: "http://" + admin + "/metrics",
	}, err
}

// startProxy starts a cmekproxy. It knows what the origin can do, so that it
// sends no test requests. It writes its log to a file, as in production.
func (l *lab) startProxy(
	ctx context.Context, name, origin, keys, rules, more string,
) (e endpoint, admin string, err error) {
	addr := l.address()
	admin = l.address()
	conf := filepath.Join(l.dir, name+".yaml")
	text := fmt.Sprintf(`listen: %s
admin_listen: %s
origin: {%s, region: %s, access_key: %s, secret_key: %s,
  checksum_trailer: true, etag_part_count: true, keys: literal}
clients:
  - {name: bench, access_key: %s, secret_key: %s, allow: [{buckets: ["*"], actions: [read, write, list]}]}
keys: %s
encryption: {rules: %s}
kms: {max_per_second: 100000}
limits: {shutdown_delay: 0s, shutdown_grace: 1s}
%s`, addr, admin, origin, region, storeAccess, storeSecret, clientAccess, clientSecret, keys, rules, more)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return e, "", err
	}

	pids, err := l.launch(ctx, name, addr, l.o.proxy, "serve", "--config", conf)
	return endpoint{addr: addr, pids: pids}, admin, err
}

// startPeer starts the rival that the flags name; see peers.md.
func (l *lab) startPeer(ctx context.Context) (*target, error) {
	p := l.o.peer
	if p.name == "" {
		return nil, nil
	}
	pids, err := l.launch(ctx, p.name, p.addr, "sh", "-c", "exec "+p.command)
	return &target{
		name: p.name, bucket: "peer", access: p.access, secret: p.secret,
		plain: endpoint{addr: p.addr, pids: pids},
	}, err
}

// launch starts a process and waits until it listens. The CPU time and the
// memory of a process are also those of its children.
func (l *lab) launch(ctx context.Context, name, addr, program string, args ...string) (func() []int, error) {
	log, err := os.Create(filepath.Join(l.dir, name+".out"))
	if err != nil {
		return nil, err
	}
	defer log.Close()

	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+storeAccess, "AWS_SECRET_ACCESS_KEY="+storeSecret)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}

	l.processes = append(l.processes, cmd)
	pids := func() []int { return family(cmd.Process.Pid) }
	for range 200 {
		if conn, err := net.Dial("tcp", addr); err == nil { //nolint:noctx // loopback
			return pids, conn.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}

	text, err := os.ReadFile(log.Name())
	return nil, errors.Join(fmt.Errorf("%s does not listen on %s: %.1000s", name, addr, text), err)
}

func (l *lab) close() {
	for _, cmd := range l.processes {
		_ = cmd.Process.Signal(os.Interrupt)
	}
	for _, cmd := range l.processes {
		timer := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
	}
	_ = os.RemoveAll(l.dir)
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	proxyproto "github.com/pires/go-proxyproto"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/pemfile/pemtest"
)

// balanced is a proxy behind a load balancer that sends PROXY protocol
// headers.
type balanced struct {
	*started
	listen, admin, audit string
}

// startBalanced starts a proxy. changes are those of writeConfig.
func startBalanced(t *testing.T, changes ...string) *balanced {
	t.Helper()
	b := &balanced{listen: freePort(t), admin: freePort(t), audit: filepath.Join(t.TempDir(), "audit.log")}
	path := writeConfig(t, sink(t).URL, b.listen, b.admin, append(changes, "keys: [",
		"trusted_proxies: [127.0.0.1/32]\nproxy_protocol: required\naudit: {file: "+b.audit+"}\nkeys: [")...)
	b.started = start(t, "serve", "--config", path)
	waitStatus(t, "http://"+b.admin+"/readyz", http.StatusOK)
	return b
}

// from returns a client that connects with a PROXY protocol header.
func (b *balanced) from(header *proxyproto.Header, scheme string) *s3.Client {
	return s3.New(client(b.listen, "appkey", "appsecretappsecret").Options(), func(o *s3.Options) {
		url := scheme + "://" + b.listen
		o.BaseEndpoint = &url
		o.RetryMaxAttempts = 1
		o.HTTPClient = &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
				if err == nil && header != nil {
					_, err = header.WriteTo(conn)
				}
				return conn, err
			},
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		}}
	})
}

func put(ctx context.Context, c *s3.Client, key string) error {
	bucket := "bucket"
	_, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("text")})
	return err
}

func proxyHeader(version byte) *proxyproto.Header {
	return proxyproto.HeaderProxyFromAddrs(
		version,
		&net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 5000},
		&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 443},
	)
}

// TestProxyProtocol: the client's address is in the audit log. A client without
// the header is not served.
func TestProxyProtocol(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			var changes []string
			if scheme == "https" {
				_, cert, key := tlsConfig(t, pemtest.New(t, "x"), "127.0.0.1:0", "127.0.0.1:0")
				changes = []string{
					"tls: {ends_on_this_machine: true}",
					fmt.Sprintf("tls: {cert_file: %s, key_file: %s}", cert, key),
				}
			}
			b := startBalanced(t, changes...)

			for version := range byte(2) {
				key := fmt.Sprintf("version-%d", version+1)
				if err := put(t.Context(), b.from(proxyHeader(version+1), scheme), key); err != nil {
					t.Fatal(key, err)
				}
			}
			for range 3 {
				if err := put(t.Context(), b.from(nil, scheme), "none"); err == nil {
					t.Error("served without a header")
				}
			}
			probe := dialTo(t, b.listen) // the balancer's health check
			local := &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
			if _, err := local.WriteTo(probe); err != nil {
				t.Fatal(err)
			}
			probe.Close()
			dialTo(t, b.listen).Close() // a simpler one

			if code := b.end(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
			served := make(map[string]string)
			for _, r := range auditRecords(t, b.audit) {
				if r.Key != "" {
					served[r.Key] = r.Remote
				}
			}
			want := map[string]string{"version-1": "203.0.113.7:5000", "version-2": "203.0.113.7:5000"}
			if !maps.Equal(served, want) {
				t.Errorf("the audit log has %v, want %v", served, want)
			}
		})
	}
}

// TestProxyProtocolOfLocalTerminator: TLS that ends on this machine is known
// by the TCP peer, although the client is elsewhere.
func TestProxyProtocolOfLocalTerminator(t *testing.T) {
	t.Parallel()
	b := startBalanced(t)
	bucket, key, algorithm := "bucket", "key", "AES256"
	customerKey := bytes.Repeat([]byte("k"), 32)
	digest := md5.Sum(customerKey)
	text, sum := base64.StdEncoding.EncodeToString(customerKey), base64.StdEncoding.EncodeToString(digest[:])
	_, err := b.from(proxyHeader(2), "http").PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &bucket, Key: &key, Body: strings.NewReader("text"),
		SSECustomerAlgorithm: &algorithm, SSECustomerKey: &text, SSECustomerKeyMD5: &sum,
	})
	if err != nil {
		t.Error(err)
	}
	b.end(t)
}

// TestSilentConnectionsMakePlace: a connection without a header counts as one
// of limits.max_connections, and is closed after limits.header_timeout.
func TestSilentConnectionsMakePlace(t *testing.T) {
	t.Parallel()
	b := startBalanced(t, "limits: {", "limits: {max_connections: 1, header_timeout: 1s, ")
	silent := dialTo(t, b.listen)
	if err := put(t.Context(), b.from(proxyHeader(2), "http"), "key"); err != nil {
		t.Error(err)
	}
	if n, err := silent.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the silent connection: %d, %v", n, err)
	}
	b.end(t)
}

// TestRefusedConnectionsAreLogged: each reason once, and nothing for a peer that
// sends nothing, such as the health check of a load balancer.
func TestRefusedConnectionsAreLogged(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	for _, network := range []string{"127.0.0.1/32", "192.0.2.0/24"} {
		tcp, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg := &config.Config{TrustedProxies: []string{network}, ProxyProtocol: config.Required}
		cfg.Limits.HeaderTimeout = time.Second
		s := &server{backend: &backend{cfg: cfg, log: zap.New(core)}, open: newConnections(0)}
		web := &http.Server{ReadHeaderTimeout: time.Minute, ConnState: s.open.track, Handler: http.NotFoundHandler()}
		go func() { _ = web.Serve(s.s3Listener(tcp)) }()
		t.Cleanup(func() { _ = web.Close() })

		silent := dialTo(t, tcp.Addr().String())
		dialTo(t, tcp.Addr().String()).Close()
		for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "PROXY TCP4 injected\r\n"} {
			conn := dialTo(t, tcp.Addr().String())
			_, _ = io.WriteString(conn, text) // fails if it was closed before
			if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("%q was answered", text)
			}
		}
		if n, err := silent.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
			t.Errorf("the silent connection: %d, %v, want %v", n, err, io.EOF)
		}
		eventually(t, "all are closed", func() bool { return s.open.count() == 0 })
	}

	for text, want := range map[string]int{
		"does not begin with a PROXY protocol header": 1, "has a malformed PROXY protocol header": 1,
		"does not come from a trusted proxy": 1, "injected": 0,
	} {
		n := 0
		for _, entry := range logs.All() {
			if strings.Contains(fmt.Sprint(entry), text) {
				n++
			}
		}
		if n != want {
			t.Errorf("%q is logged %d times, want %d", text, n, want)
		}
	}
}

// TestAdminPortIgnoresProxies: on the admin port, only the TCP connection
// counts.
func TestAdminPortIgnoresProxies(t *testing.T) {
	t.Parallel()
	b := startBalanced(t)
	forged := http.Header{"X-Forwarded-For": {"203.0.113.7"}, "X-Real-Ip": {"203.0.113.7"}}
	if status, body := adminDo(t, "POST", "http://"+b.admin+"/admin/purge", forged); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	records := auditRecords(t, b.audit)
	last := records[len(records)-1]
	if last.Event != "purge" || !strings.HasPrefix(last.Remote, "127.0.0.1:") {
		t.Errorf("the audit log has %+v", last)
	}

	conn := dialTo(t, b.admin)
	if _, err := proxyHeader(1).WriteTo(conn); err != nil {
		t.Fatal(err)
	}
	ask(t, conn, "/admin/keys")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a PROXY protocol header on the admin port: %s", resp.Status)
	}
	b.end(t)

	// A request from the network cannot pretend to be from this machine.
	handler := (&server{}).operatorsOnly(http.NotFoundHandler())
	for _, row := range []struct {
		arrived string
		want    int
	}{{"127.0.0.1", http.StatusNotFound}, {"192.0.2.1", http.StatusForbidden}} {
		local := &net.TCPAddr{IP: net.ParseIP(row.arrived), Port: 9001}
		r := httptest.NewRequestWithContext(
			context.WithValue(t.Context(), http.LocalAddrContextKey, local), "GET", "http://localhost/admin/keys", nil)
		for _, name := range []string{"X-Forwarded-For", "X-Real-Ip", "Forwarded", "X-Forwarded-Host"} {
			r.Header.Set(name, "127.0.0.1")
		}
		w := httptest.NewRecorder()
		if handler.ServeHTTP(w, r); w.Code != row.want {
			t.Errorf("on %s: %d, want %d", row.arrived, w.Code, row.want)
		}
	}
}

// TestDrainBehindABalancer: connections without a request, and those without
// a header, do not hold up the end.
func TestDrainBehindABalancer(t *testing.T) {
	t.Parallel()
	b := startBalanced(t, "limits: {", "limits: {header_timeout: 500ms, ")
	silent, idle := dialTo(t, b.listen), dialTo(t, b.listen)
	if _, err := proxyHeader(2).WriteTo(idle); err != nil {
		t.Fatal(err)
	}
	ask(t, idle, "/bucket/key")
	responses := bufio.NewReader(idle)
	resp, err := http.ReadResponse(responses, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Error(resp.Status)
	}

	if code := b.end(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for name, conn := range map[string]io.Reader{"silent": silent, "idle": responses} {
		if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("the %s connection is open", name)
		}
	}
}

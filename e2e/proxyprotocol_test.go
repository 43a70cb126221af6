package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Load balancers connect from 127.0.0.1, and the proxies trust it.
const (
	clientAddress   = "127.0.0.2"
	strangerAddress = "127.0.0.3"   // of a client that connects to a proxy itself
	forgedAddress   = "203.0.113.9" // what clients write into headers
	addressesBucket = "addresses"
)

// behind is a proxy behind load balancers.
type behind struct {
	address, admin string
	audit          string // path
	process        *process
}

// startBehind starts a proxy that trusts 127.0.0.1.
func startBehind(t *testing.T, s *stack, name string, env []string, keyConfig, setting string) *behind {
	t.Helper()
	b := &behind{address: freeAddress(t), admin: freeAddress(t), audit: filepath.Join(t.TempDir(), "audit.log")}
	path := s.writeConfig(t, name, b.address, b.admin, keyConfig, "", "")
	text := read(t, path) + fmt.Sprintf("trusted_proxies: [127.0.0.1/32]\naudit: {file: %q}\n%s\n", b.audit, setting)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	b.process = s.serve(t, name, env, path, b.admin)
	return b
}

// startHAProxy starts HAProxy with the backends of docs/running.md. It returns
// the addresses of its frontends.
func startHAProxy(t *testing.T, tcp, http *behind) (v1, v2, forwarded string) {
	t.Helper()
	v1, v2, forwarded = freeAddress(t), freeAddress(t), freeAddress(t)
	backends := docBlock(t, "../docs/running.md", "backend cmekproxy\n")
	one, two, ok := strings.Cut(backends, "backend cmekproxy-http\n")
	if !ok || strings.Count(backends, " 10.2.0.11:9000") != 2 || !strings.Contains(one, " check port 9002") {
		t.Fatalf("docs/running.md has other backends:\n%s", backends)
	}
	one = strings.NewReplacer("10.2.0.11:9000", tcp.address, "check port 9002", "check port "+port(tcp.admin)).Replace(one)
	two = strings.ReplaceAll(two, "10.2.0.11:9000", http.address)

	config := filepath.Join(t.TempDir(), "haproxy.cfg")
	text := fmt.Sprintf(`defaults
  timeout connect 2s
  timeout client 15s
  timeout server 15s
listen v1
  mode tcp
  bind %s
  server one %s send-proxy
frontend v2
  mode tcp
  bind %s
  default_backend cmekproxy
frontend forwarded
  mode http
  bind %s
  default_backend cmekproxy-http
%sbackend cmekproxy-http
%s`, v1, tcp.address, v2, forwarded, one, two)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, "haproxy", environment(), "haproxy", "-db", "-f", config).waitForPort(t, forwarded)
	return v1, v2, forwarded
}

// startNginx starts nginx with the settings of docs/running.md.
func startNginx(t *testing.T, tcp, http *behind) (v1, forwarded string) {
	t.Helper()
	v1, forwarded = freeAddress(t), freeAddress(t)
	location, stream, ok := strings.Cut(docBlock(t, "../docs/running.md", "proxy_pass http://10.2.0.11:9000;"), "\n\n")
	if !ok || !strings.Contains(stream, "proxy_pass 10.2.0.11:9000;") {
		t.Fatalf("docs/running.md has other settings:\n%s\n\n%s", location, stream)
	}
	location = strings.ReplaceAll(location, "10.2.0.11:9000", http.address)
	stream = strings.ReplaceAll(stream, "10.2.0.11:9000", tcp.address)

	dir := t.TempDir()
	text := fmt.Sprintf(`load_module /usr/lib/nginx/modules/ngx_stream_module.so;
master_process off;
daemon off;
pid %[1]s/pid;
events {}
http {
access_log off;
client_body_temp_path %[1]s/body;
proxy_temp_path %[1]s/proxy;
fastcgi_temp_path %[1]s/fastcgi;
uwsgi_temp_path %[1]s/uwsgi;
scgi_temp_path %[1]s/scgi;
server {
listen %[2]s;
merge_slashes off;
location / {
%[3]s
}
}
}
stream {
server {
listen %[4]s;
%[5]s
}
}
`, dir, forwarded, location, v1, stream)
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, "nginx", environment(), "nginx", "-e", "stderr", "-c", config).waitForPort(t, forwarded)
	return v1, forwarded
}

// dialFrom returns a dialer whose connections have a local address.
func dialFrom(local string) *net.Dialer {
	return &net.Dialer{Timeout: startTimeout, LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
}

// forwarding adds X-Forwarded-For, as a client that forges its address does.
type forwarding struct {
	http.RoundTripper
	address string
}

func (f forwarding) RoundTrip(r *http.Request) (*http.Response, error) {
	if f.address != "" {
		r = r.Clone(r.Context())
		r.Header.Set("X-Forwarded-For", f.address)
	}
	return f.RoundTripper.RoundTrip(r)
}

// putFrom stores an object, from an address and with a header.
func putFrom(address string, as credentials, key, local, forged string) error {
	options := newGoSDK(endpoint{url: "http://" + address, credentials: as}).s3.Options()
	options.Retryer = aws.NopRetryer{}
	transport := &http.Transport{DialContext: dialFrom(local).DialContext, DisableKeepAlives: true}
	options.HTTPClient = &http.Client{Timeout: startTimeout, Transport: forwarding{transport, forged}}
	_, err := s3.New(options).PutObject(context.Background(), &s3.PutObjectInput{
		Bucket: aws.String(addressesBucket), Key: &key, Body: bytes.NewReader([]byte("text")),
	})
	return sdkError(err)
}

// remoteOf waits until a log has a key, and returns the address beside it,
// without its port.
func remoteOf(t *testing.T, path, key string) (address string) {
	t.Helper()
	within(t, "a line about "+key+" in "+filepath.Base(path), func() error {
		for line := range strings.Lines(read(t, path)) {
			var record struct{ Key, Remote string }
			if json.Unmarshal([]byte(line), &record) == nil && record.Key == key && record.Remote != "" {
				address, _, _ = strings.Cut(record.Remote, ":")
				return nil
			}
		}
		return errors.New("none")
	})
	return address
}

// TestClientAddresses stores objects through load balancers, as docs/running.md
// configures them. The log and the audit log must have the client's address.
func TestClientAddresses(t *testing.T) {
	if !selected("client-addresses") || os.Getenv("E2E_TARGET") == "store" {
		t.Skip("not selected, or without the proxy")
	}
	t.Parallel()
	s := &stack{name: "addresses-", dir: storeDir(t), proxied: true}
	s.store = s.startStore(t, "http", newCredentials(), "", "")
	env, keyConfig, _ := startKMS(t)
	client := newCredentials()
	env = append(env, "ORIGIN_ACCESS_KEY="+s.store.accessKey, "ORIGIN_SECRET_KEY="+s.store.secret,
		"APP_ACCESS_KEY="+client.accessKey, "APP_SECRET_KEY="+client.secret)
	tcp := startBehind(t, s, "tcp", env, keyConfig, "proxy_protocol: required")
	http := startBehind(t, s, "http", env, keyConfig, "")
	if err := newGoSDK(s.store).createBucket(addressesBucket); err != nil {
		t.Fatal(err)
	}
	haproxyV1, haproxyV2, haproxyHTTP := startHAProxy(t, tcp, http)
	nginxV1, nginxHTTP := startNginx(t, tcp, http)
	defer progress(t)

	for _, row := range []struct {
		name, via, from string
		proxy           *behind
	}{
		{"HAProxy, PROXY version 1", haproxyV1, clientAddress, tcp},
		{"HAProxy, PROXY version 2", haproxyV2, clientAddress, tcp},
		{"HAProxy, HTTP", haproxyHTTP, clientAddress, http},
		{"nginx, PROXY version 1", nginxV1, clientAddress, tcp},
		{"nginx, HTTP", nginxHTTP, clientAddress, http},
		{"no load balancer", http.address, strangerAddress, http},
	} {
		for name, forged := range map[string]string{
			"": "", ", forged header": forgedAddress, ", forged header with a proxy": forgedAddress + ", 127.0.0.1",
		} {
			t.Run(row.name+name, func(t *testing.T) {
				key := row.name + name
				if err := putFrom(row.via, client, key, row.from, forged); err != nil {
					t.Fatal(err)
				}
				for log, path := range map[string]string{"log": row.proxy.process.log, "audit log": row.proxy.audit} {
					if got := remoteOf(t, path, key); got != row.from {
						t.Errorf("the %s has %s, want %s", log, got, row.from)
					}
				}
			})
		}
	}
	checkRefusals(t, tcp, haproxyV2)
	checkLogs(t, s)
}

// checkRefusals connects to a port that requires the PROXY protocol.
func checkRefusals(t *testing.T, tcp *behind, balancer string) {
	const request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	header := "PROXY TCP4 " + forgedAddress + " 127.0.0.1 5000 9000\r\n"
	for _, row := range []struct {
		name, address, from, text string
		answer                    string // its beginning; empty if the connection is closed
		log                       string
	}{
		{"a load balancer without the header", tcp.address, "127.0.0.1", request, "", "does not begin with a PROXY protocol header"},
		{"a client with a header of its own", tcp.address, strangerAddress, header + request, "", "does not come from a trusted proxy"},
		{"a client with a header for HAProxy", balancer, clientAddress, header + request, "HTTP/1.1 400 ", ""},
		{"a client without one, through HAProxy", balancer, clientAddress, request, "HTTP/1.1 403 ", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			conn, err := dialFrom(row.from).DialContext(t.Context(), "tcp", row.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(startTimeout))
			_, _ = io.WriteString(conn, row.text) // the proxy may have closed it already
			answer, _ := io.ReadAll(conn)
			if row.answer == "" && len(answer) > 0 || !strings.HasPrefix(string(answer), row.answer) {
				t.Errorf("answer %q, want %q", answer, row.answer)
			}
			within(t, "the reason in the log", func() error {
				if !strings.Contains(read(t, tcp.process.log), row.log) {
					return fmt.Errorf("the log has no %q", row.log)
				}
				return nil
			})
		})
	}
	for _, path := range []string{tcp.process.log, tcp.audit} {
		if strings.Contains(read(t, path), forgedAddress) {
			t.Errorf("%s has the address that a client made up", filepath.Base(path))
		}
	}
}

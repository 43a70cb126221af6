package http1_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/origin/http1"
	"github.com/cmekproxy/cmekproxy/internal/pemfile/pemtest"
)

// Ways to a server: TLS, proxies, Unix sockets.

const answerOK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// secure starts a TLS server that answers with handler.
func secure(t *testing.T, pair pemtest.Pair, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair.TLS(t)}, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// trusting returns a configuration that trusts a certificate.
func trusting(t *testing.T, pair pemtest.Pair) *tls.Config {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pair.Cert) {
		t.Fatal("no certificate")
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
}

// A connection is made with the name of the server, and made again when the
// trust has changed. The certificate is verified each time.
func TestTLS(t *testing.T) {
	t.Parallel()
	pair, other := pemtest.New(t, "store"), pemtest.New(t, "other")
	state := make(chan tls.ConnectionState, 1)
	server := secure(t, pair, func(w http.ResponseWriter, r *http.Request) {
		state <- *r.TLS
		io.WriteString(w, "ok")
	})
	var trust atomic.Pointer[tls.Config]
	trust.Store(trusting(t, pair))
	s := newLean(func(c *http1.Config) { c.TLS = trust.Load })
	t.Cleanup(s.CloseIdleConnections)

	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	at := "https://localhost:" + port + "/b/k"
	want := func(text string) {
		t.Helper()
		if got := outcome(s, request(t, "GET", at, nil, 0)); got != text {
			t.Fatalf("%s, want %s", got, text)
		}
		if text == "error" {
			return
		}
		if seen := <-state; seen.ServerName != "localhost" || seen.DidResume {
			t.Errorf("for %q, resumed: %v", seen.ServerName, seen.DidResume)
		}
	}

	want(`200 "ok"`)
	want(`200 "ok"`) // the same connection
	s.CloseIdleConnections()
	want(`200 "ok"`)

	trust.Store(trusting(t, other))
	want("error")
	trust.Store(trusting(t, pair))
	want(`200 "ok"`)

	at = "https://127.0.0.1:" + port + "/b/k"
	if got := outcome(s, request(t, "GET", strings.Replace(at, "127.0.0.1", "127.0.0.2", 1), nil, 0)); got != "error" {
		t.Errorf("another name than that of the certificate: %s", got)
	}
}

// With TLS too, what follows an answer is no answer, and an idle connection
// that was closed is not used.
func TestIdleConnectionsWithTLS(t *testing.T) {
	t.Parallel()
	pair := pemtest.New(t, "store")
	for name, row := range map[string]struct {
		after       string // the answer
		ends        bool
		connections int32
	}{
		"used again": {"", false, 1},
		"surplus":    {"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", false, 3},
		"closed":     {"", true, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair.TLS(t)}})
			if err != nil {
				t.Fatal(err)
			}
			served := serveOn(t, listener, func(conn net.Conn, r *http.Request) bool {
				io.Copy(io.Discard, r.Body)
				io.WriteString(conn, answerOK)
				if row.after != "" {
					io.WriteString(conn, row.after) // in a record of its own
				}
				return !row.ends
			})
			trust := trusting(t, pair)
			s := newLean(func(c *http1.Config) { c.TLS = func() *tls.Config { return trust } })
			t.Cleanup(s.CloseIdleConnections)

			for range 3 {
				r := request(t, "PUT", "https://"+served.address+"/b/k", nil, 0)
				setBody(r, "text")
				if got := outcome(s, r); got != `200 "ok"` {
					t.Error(got)
				}
				time.Sleep(20 * time.Millisecond)
			}
			if n := served.connections.Load(); n != row.connections {
				t.Errorf("%d connections, want %d", n, row.connections)
			}
		})
	}
}

// relay copies between two connections until one ends.
func relay(a, b net.Conn) {
	defer a.Close()
	defer b.Close()
	go func() { io.Copy(a, b); a.Close() }()
	io.Copy(b, a)
}

// httpProxy is an HTTP proxy with a login. It notes what it was asked for.
func httpProxy(asked chan<- string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != "Basic dTpw" { // u:p
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		asked <- r.Method + " " + r.RequestURI
		if r.Method != http.MethodConnect {
			io.WriteString(w, "from the proxy")
			return
		}

		to, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		from, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		io.WriteString(from, "HTTP/1.1 200 Connection established\r\n\r\n")
		relay(from, to)
	}
}

// socksProxy serves SOCKS5 without a login.
func socksProxy(t *testing.T, asked chan<- string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			head := make([]byte, 3+10) // greeting, and a request with an IPv4 address
			io.ReadFull(from, head[:3])
			from.Write([]byte{5, 0})
			io.ReadFull(from, head[3:])
			to := fmt.Sprintf("%v:%d", net.IP(head[7:11]), int(head[11])<<8|int(head[12]))
			asked <- to
			conn, err := net.Dial("tcp", to)
			if err != nil {
				from.Close()
				continue
			}
			from.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
			go relay(from, conn)
		}
	}()
	return listener.Addr().String()
}

func TestProxies(t *testing.T) {
	t.Parallel()
	pair := pemtest.New(t, "store")
	handler := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }
	plain, tlsServer := httptest.NewServer(http.HandlerFunc(handler)), secure(t, pair, handler)
	t.Cleanup(plain.Close)
	plainAt, tlsAt := plain.Listener.Addr().String(), tlsServer.Listener.Addr().String()

	asked := make(chan string, 10)
	proxy := httptest.NewServer(httpProxy(asked))
	t.Cleanup(proxy.Close)
	tlsProxy := secure(t, pair, httpProxy(asked))
	withLogin := func(address string) string { return strings.Replace(address, "://", "://u:p@", 1) }

	for _, row := range []struct {
		name, proxy, url string
		want, asked      string
	}{
		{"HTTP", withLogin(proxy.URL), plain.URL + "/k?a", `200 "from the proxy"`, "GET " + plain.URL + "/k?a"},
		{"HTTP, through TLS", withLogin(tlsProxy.URL), plain.URL + "/k", `200 "from the proxy"`, "GET " + plain.URL + "/k"},
		{"TLS", withLogin(proxy.URL), tlsServer.URL + "/k", `200 "ok"`, "CONNECT " + tlsAt},
		{"TLS, through TLS", withLogin(tlsProxy.URL), tlsServer.URL + "/k", `200 "ok"`, "CONNECT " + tlsAt},
		{"TLS, wrong login", proxy.URL, tlsServer.URL + "/k", "error", ""},
		{"HTTP, wrong login", proxy.URL, plain.URL + "/k", `407 ""`, ""},
		{"SOCKS5, HTTP", "socks5://" + socksProxy(t, asked), plain.URL + "/k", `200 "ok"`, plainAt},
		{"SOCKS5, TLS", "socks5h://" + socksProxy(t, asked), tlsServer.URL + "/k", `200 "ok"`, tlsAt},
		{"unknown", "gopher://127.0.0.1:1", plain.URL + "/k", "error", ""},
		{"nothing listens", "http://127.0.0.1:1", plain.URL + "/k", "error", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			via, err := url.Parse(row.proxy)
			if err != nil {
				t.Fatal(err)
			}
			trust := trusting(t, pair)
			for name, s := range map[string]sender{
				"net/http": &http.Transport{Proxy: http.ProxyURL(via), TLSClientConfig: trust.Clone()},
				"http1": newLean(func(c *http1.Config) {
					c.Proxy, c.TLS = http.ProxyURL(via), func() *tls.Config { return trust }
				}),
			} {
				t.Run(name, func(t *testing.T) {
					t.Cleanup(s.CloseIdleConnections)
					if got := outcome(s, request(t, "GET", row.url, nil, 0)); got != row.want {
						t.Errorf("%s, want %s", got, row.want)
					}
					if row.asked == "" {
						return
					}
					if got := <-asked; got != row.asked {
						t.Errorf("the proxy was asked for %s, want %s", got, row.asked)
					}
					if got := outcome(s, request(t, "GET", row.url, nil, 0)); got != row.want { // the same connection
						t.Errorf("the second time: %s", got)
					}
					for len(asked) > 0 {
						<-asked
					}
				})
			}
		})
	}
}

func TestUnixSockets(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := serveOn(t, listener, func(conn net.Conn, _ *http.Request) bool {
		io.WriteString(conn, answerOK)
		return true
	})
	s := newLean(func(c *http1.Config) {
		dial := c.Dial
		c.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, "unix", path) }
	})
	t.Cleanup(s.CloseIdleConnections)
	for range 3 {
		if got := outcome(s, request(t, "GET", "http://store/k", nil, 0)); got != `200 "ok"` {
			t.Error(got)
		}
	}
	if n := served.connections.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

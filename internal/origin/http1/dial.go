package http1

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/proxy"
)

// route is the way to the server of a request.
type route struct {
	key
	host     string      // the header Host
	via      *url.URL    // the proxy, or nil
	absolute bool        // the proxy is sent requests, not connections
	login    string      // Proxy-Authorization of such a request
	trust    *tls.Config // for TLS with the server; nil without
}

func (c *Client) route(r *http.Request) (route, error) {
	if r.URL.Scheme != "http" && r.URL.Scheme != "https" {
		return route{}, fmt.Errorf("origin: the scheme %q is not supported", r.URL.Scheme)
	}
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	host, err := httpguts.PunycodeHostPort(host)
	if err != nil || host == "" || !httpguts.ValidHostHeader(host) {
		return route{}, fmt.Errorf("origin: the host %q cannot be sent", host)
	}
	address, err := addressOf(r.URL)
	if err != nil {
		return route{}, err
	}

	to := route{key: key{scheme: r.URL.Scheme, address: address}, host: withoutZone(host)}
	if r.URL.Scheme == "https" {
		to.trust = c.cfg.TLS()
	}
	if c.cfg.Proxy == nil {
		return to, nil
	}
	if to.via, err = c.cfg.Proxy(r); err != nil || to.via == nil {
		return to, err
	}

	to.proxy = to.via.String()
	if to.trust == nil && (to.via.Scheme == "http" || to.via.Scheme == "https") {
		to.absolute, to.login = true, loginOf(to.via)
	}
	return to, nil
}

// withoutZone removes the zone of an IPv6 address, which means something only
// on this machine; see RFC 6874.
func withoutZone(host string) string {
	if end := strings.LastIndexByte(host, ']'); end > 0 && host[0] == '[' {
		if zone := strings.IndexByte(host[:end], '%'); zone > 0 {
			return host[:zone] + host[end:]
		}
	}
	return host
}

// addressOf returns host and port of a URL.
func addressOf(u *url.URL) (string, error) {
	host, err := httpguts.PunycodeHostPort(u.Host)
	if err != nil || host == "" {
		return "", fmt.Errorf("origin: the host %q cannot be reached", u.Host)
	}
	parsed := url.URL{Host: host}

	port := parsed.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	if port == "" {
		return "", fmt.Errorf("origin: the scheme %q is not supported", u.Scheme)
	}
	return net.JoinHostPort(parsed.Hostname(), port), nil
}

// loginOf returns the header with the login at a proxy.
func loginOf(via *url.URL) string {
	if via.User == nil {
		return ""
	}
	password, _ := via.User.Password()
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(via.User.Username()+":"+password))
}

// dial makes a connection within limit.
func (c *Client) dial(ctx context.Context, to route, limit time.Duration) (*conn, error) {
	limited := ctx
	if limit > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeoutCause(ctx, limit, ErrConnect)
		defer cancel()
	}

	out, err := c.dialLayers(limited, to)
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case limited.Err() != nil:
		return nil, ErrConnect
	default:
		return nil, err
	}
}

// dialLayers makes a connection: a socket, the way through a proxy, TLS.
func (c *Client) dialLayers(ctx context.Context, to route) (*conn, error) {
	address := to.address
	if to.via != nil {
		var err error
		if address, err = addressOf(to.via); err != nil {
			return nil, err
		}
	}
	plain, err := c.cfg.Dial(ctx, "tcp", address)
	if err != nil && to.via != nil {
		return nil, &net.OpError{Op: "proxyconnect", Net: "tcp", Err: err}
	}
	if err != nil {
		return nil, err
	}

	low, err := newSocket(plain)
	if err != nil {
		_ = plain.Close()
		return nil, err
	}
	out := &conn{stream: low, socket: low, key: to.key, trust: to.trust}
	if err := c.raise(ctx, out, to); err != nil {
		_ = plain.Close()
		return nil, err
	}
	return out, nil
}

// raise builds the layers above the socket.
func (c *Client) raise(ctx context.Context, out *conn, to route) error {
	if to.via != nil {
		if err := c.throughProxy(ctx, out, to); err != nil {
			return &net.OpError{Op: "proxyconnect", Net: "tcp", Err: err}
		}
	}
	if to.trust == nil {
		return nil
	}
	return startTLS(ctx, out, to.trust, to.address)
}

func startTLS(ctx context.Context, out *conn, trust *tls.Config, address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	cfg := trust.Clone()
	cfg.ServerName = host
	secure := tls.Client(out.stream, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		return err
	}
	out.stream = secure
	return nil
}

// throughProxy asks a proxy for a connection to the server.
func (c *Client) throughProxy(ctx context.Context, out *conn, to route) error {
	stop := context.AfterFunc(ctx, func() { _ = out.socket.Close() })
	defer stop()

	switch to.via.Scheme {
	case "http":
	case "https":
		address, err := addressOf(to.via)
		if err != nil {
			return err
		}
		if err := startTLS(ctx, out, c.cfg.TLS(), address); err != nil {
			return err
		}
	case "socks5", "socks5h":
		return socks(ctx, out, to)
	default:
		return fmt.Errorf("the scheme %q of the proxy is not supported", to.via.Scheme)
	}

	if to.absolute {
		return nil
	}
	return tunnel(out, to)
}

// tunnel asks an HTTP proxy for a connection.
func tunnel(out *conn, to route) error {
	text := "CONNECT " + to.address + " HTTP/1.1\r\nHost: " + to.address + "\r\n"
	if login := loginOf(to.via); login != "" {
		text += "Proxy-Authorization: " + login + "\r\n"
	}
	if _, err := out.stream.Write([]byte(text + "\r\n")); err != nil {
		return err
	}

	out.inHead, out.headLeft = true, maxHead
	br := bufio.NewReader(out)
	//nolint:bodyclose // it has none, or the connection is closed
	resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("the proxy answered %s", resp.Status)
	case br.Buffered() > 0:
		return errors.New("the proxy sent more than its answer")
	}
	return nil
}

// socks asks a SOCKS5 proxy for a connection.
func socks(ctx context.Context, out *conn, to route) error {
	var login *proxy.Auth
	if user := to.via.User; user != nil {
		login = &proxy.Auth{User: user.Username()}
		login.Password, _ = user.Password()
	}

	dialer, err := proxy.SOCKS5("tcp", to.via.Host, login, made{out.stream})
	if err != nil {
		return err
	}
	able, ok := dialer.(proxy.ContextDialer)
	if !ok {
		return errors.New("SOCKS5 is not supported")
	}
	_, err = able.DialContext(ctx, "tcp", to.address) // it speaks over out
	return err
}

// made is a dialer that returns a connection that exists.
type made struct{ net.Conn }

func (m made) Dial(string, string) (net.Conn, error) { return m.Conn, nil }

// DialContext implements proxy.ContextDialer.
func (m made) DialContext(context.Context, string, string) (net.Conn, error) { return m.Conn, nil }

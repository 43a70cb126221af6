package clientaddr_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	proxyproto "github.com/pires/go-proxyproto"

	"github.com/cmekproxy/cmekproxy/internal/clientaddr"
)

// refusal is a call of Listener.Refused.
type refusal struct{ reason, details error }

// listen returns a listener that echoes, after the client's address.
func listen(t *testing.T, timeout time.Duration, proxies clientaddr.Proxies) (string, <-chan refusal) {
	t.Helper()
	tcp, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	refused := make(chan refusal, 10)
	l := &clientaddr.Listener{
		Listener: tcp, Trusted: proxies, Timeout: timeout,
		Refused: func(_ net.Addr, reason, details error) { refused <- refusal{reason, details} },
	}

	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, conn.RemoteAddr().String()+"\n")
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return tcp.Addr().String(), refused
}

// exchange sends bytes, and returns the client's address that the listener
// found and what it read.
func exchange(t *testing.T, address string, chunks ...string) (peer, client, echo string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	for i, chunk := range chunks {
		if i > 0 {
			time.Sleep(20 * time.Millisecond) // so that they arrive one by one
		}
		if _, err := io.WriteString(conn, chunk); err != nil {
			break // it was refused
		}
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}

	all, err := io.ReadAll(conn)
	if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
		t.Fatal("it was neither answered nor closed")
	}
	client, echo, _ = strings.Cut(string(all), "\n")
	return conn.LocalAddr().String(), client, echo
}

// header is a header as the library writes it.
func header(t *testing.T, version byte, command proxyproto.ProtocolVersionAndCommand, source, destination net.Addr) string {
	t.Helper()
	h := proxyproto.HeaderProxyFromAddrs(version, source, destination)
	h.Command = command
	if version == 2 {
		if err := h.SetTLVs([]proxyproto.TLV{{Type: proxyproto.PP2_TYPE_AUTHORITY, Value: bytes.Repeat([]byte("a"), 900)}}); err != nil {
			t.Fatal(err)
		}
	}
	text, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const signature = "\r\n\r\n\x00\r\nQUIT\n"

// v2 returns a header of version 2, from its parts in the specification.
func v2(versionAndCommand, family byte, length int, rest string) string {
	return signature + string([]byte{versionAndCommand, family}) +
		string(binary.BigEndian.AppendUint16(nil, uint16(length))) + rest
}

var (
	source4, target4 = &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 5000}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 443}
	source6, target6 = &net.TCPAddr{IP: net.ParseIP("2001:db8::7"), Port: 5000}, &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 443}
)

func TestListener(t *testing.T) {
	addresses := "\xcb\x00\x71\x07\x0a\x00\x00\x01\x13\x88\x01\xbb" // 203.0.113.7:5000 to 10.0.0.1:443
	unix := "/run/\"x\"" + strings.Repeat("\x00", 100)
	for _, row := range []struct {
		name   string
		chunks []string
		client string // "" for the peer
	}{
		{"version 1", []string{header(t, 1, proxyproto.PROXY, source4, target4)}, "203.0.113.7:5000"},
		{"version 1, IPv6", []string{header(t, 1, proxyproto.PROXY, source6, target6)}, "[2001:db8::7]:5000"},
		{"version 1 by hand", []string{"PROXY TCP4 203.0.113.7 10.0.0.1 5000 443\r\n"}, "203.0.113.7:5000"},
		{"version 1, unknown", []string{"PROXY UNKNOWN\r\n"}, ""},
		{"version 1, unknown with addresses", []string{"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n"}, ""},
		{"version 2", []string{header(t, 2, proxyproto.PROXY, source4, target4)}, "203.0.113.7:5000"},
		{"version 2, IPv6", []string{header(t, 2, proxyproto.PROXY, source6, target6)}, "[2001:db8::7]:5000"},
		{"version 2 by hand", []string{v2(0x21, 0x11, 12, addresses)}, "203.0.113.7:5000"},
		{"version 2 in pieces", []string{signature[:5], v2(0x21, 0x11, 12, addresses)[5:20], addresses[4:]}, "203.0.113.7:5000"},
		{"a health check", []string{header(t, 2, proxyproto.LOCAL, source4, target4)}, ""},
		{"a health check without addresses", []string{v2(0x20, 0x00, 0, "")}, ""},
		{"from a Unix socket", []string{v2(0x21, 0x31, 216, unix+unix)}, ""},
		{"by UDP", []string{v2(0x21, 0x12, 12, addresses)}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			address, refused := listen(t, 30*time.Second, trusted("127.0.0.0/8"))
			text := strings.Repeat("what follows", 100)
			last := len(row.chunks) - 1
			for name, chunks := range map[string][]string{
				"at once":    append(row.chunks[:last:last], row.chunks[last]+text),
				"afterwards": append(row.chunks[:last+1:last+1], text),
			} {
				peer, client, echo := exchange(t, address, chunks...)
				if row.client != "" {
					peer = row.client
				}
				if client != peer || echo != text {
					t.Errorf("%s: the client is %q, want %q; %d bytes follow", name, client, peer, len(echo))
				}
			}
			if len(refused) > 0 {
				t.Errorf("refused: %v", <-refused)
			}
		})
	}
}

func TestListenerRefuses(t *testing.T) {
	const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, row := range []struct {
		name   string
		chunks []string
		want   error // nil for a connection that is closed without a word
	}{
		{"no header", []string{request}, clientaddr.ErrNoHeader},
		{"TLS", []string{"\x16\x03\x01\x02\x00\x01"}, clientaddr.ErrNoHeader},
		{"nothing", nil, nil},
		{"half a signature", []string{"PRO"}, clientaddr.ErrNoHeader},
		{"another protocol that begins alike", []string{"PROPFIND / HTTP/1.1\r\n\r\n"}, clientaddr.ErrNoHeader},
		{"version 1, cut off", []string{"PROXY TCP4 203.0.113.7 10.0.0.1"}, clientaddr.ErrBadHeader},
		{"version 1, too long", []string{"PROXY UNKNOWN " + strings.Repeat("x", 200) + "\r\n"}, clientaddr.ErrBadHeader},
		{"version 1, without CR", []string{"PROXY TCP4 203.0.113.7 10.0.0.1 5000 443\n"}, clientaddr.ErrBadHeader},
		{"version 1, a name", []string{"PROXY TCP4 localhost 10.0.0.1 5000 443\r\n"}, clientaddr.ErrBadHeader},
		{"version 1, a zone", []string{"PROXY TCP6 fe80::1%x fe80::2 5000 443\r\n"}, clientaddr.ErrBadHeader},
		{"version 1, a port too high", []string{"PROXY TCP4 203.0.113.7 10.0.0.1 65536 443\r\n"}, clientaddr.ErrBadHeader},
		{"version 1, another family", []string{"PROXY TCP4 2001:db8::7 2001:db8::1 5000 443\r\n"}, clientaddr.ErrBadHeader},
		{"version 1, UDP", []string{"PROXY UDP4 203.0.113.7 10.0.0.1 5000 443\r\n"}, clientaddr.ErrBadHeader},
		{"version 2, cut off", []string{v2(0x21, 0x11, 12, "\xcb\x00")}, clientaddr.ErrBadHeader},
		{"version 2, only a signature", []string{signature}, clientaddr.ErrBadHeader},
		{"version 3", []string{v2(0x31, 0x11, 12, strings.Repeat("x", 12))}, clientaddr.ErrBadHeader},
		{"version 2, another command", []string{v2(0x22, 0x11, 12, strings.Repeat("x", 12))}, clientaddr.ErrBadHeader},
		{"version 2, another family", []string{v2(0x21, 0x41, 12, strings.Repeat("x", 12))}, clientaddr.ErrBadHeader},
		{"version 2, too short for its family", []string{v2(0x21, 0x21, 12, strings.Repeat("x", 12))}, clientaddr.ErrBadHeader},
		{"version 2, 64 KiB", []string{v2(0x21, 0x11, 65535, strings.Repeat("x", 65535))}, clientaddr.ErrBadHeader},
		{"version 2, a health check of 64 KiB", []string{v2(0x20, 0x00, 65535, strings.Repeat("x", 65535))}, clientaddr.ErrBadHeader},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			address, refused := listen(t, time.Minute, trusted("127.0.0.0/8"))
			mustRefuse(t, address, refused, row.want, row.chunks...)
		})
	}

	t.Run("slow", func(t *testing.T) {
		t.Parallel()
		address, refused := listen(t, 200*time.Millisecond, trusted("127.0.0.0/8"))
		text := header(t, 2, proxyproto.PROXY, source4, target4)
		drip := append([]string{text[:16]}, strings.Split(text[16:], "")...)
		mustRefuse(t, address, refused, clientaddr.ErrBadHeader, drip...)
	})
	t.Run("from another peer", func(t *testing.T) {
		t.Parallel()
		address, refused := listen(t, time.Minute, trusted("10.0.0.0/8"))
		mustRefuse(t, address, refused, clientaddr.ErrNotTrusted, header(t, 2, proxyproto.PROXY, source4, target4))
		mustRefuse(t, address, refused, clientaddr.ErrNotTrusted, request)
	})
	t.Run("without trusted proxies", func(t *testing.T) {
		t.Parallel()
		address, refused := listen(t, time.Minute, nil)
		mustRefuse(t, address, refused, clientaddr.ErrNotTrusted, header(t, 2, proxyproto.PROXY, source4, target4))
	})
}

// mustRefuse fails the test unless a connection is closed without an answer.
// The details must not have what the peer sent.
func mustRefuse(t *testing.T, address string, refused <-chan refusal, want error, chunks ...string) {
	t.Helper()
	if _, client, echo := exchange(t, address, chunks...); client != "" || echo != "" {
		t.Fatalf("served, as %q", client)
	}
	if want == nil {
		if len(refused) > 0 {
			t.Errorf("%v", <-refused)
		}
		return
	}

	got := <-refused
	if !errors.Is(got.reason, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got.details != nil && (strings.Contains(got.details.Error(), "203.0.113") || strings.Contains(got.details.Error(), "xxx")) {
		t.Errorf("the error has what the peer sent: %v", got.details)
	}
}

// TestResetByPeer: some health checks end in a TCP reset.
func TestResetByPeer(t *testing.T) {
	address, refused := listen(t, time.Minute, trusted("127.0.0.0/8"))
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if tcp, ok := conn.(*net.TCPConn); !ok || tcp.SetLinger(0) != nil {
		t.Fatal("no linger")
	}
	conn.Close()

	mustRefuse(t, address, refused, clientaddr.ErrNoHeader, "GET / HTTP/1.1\r\n\r\n") // the only refusal
	if len(refused) > 0 {
		t.Error(<-refused)
	}
}

// TestSilentPeer: a peer that sends nothing is closed after the timeout, and
// not logged.
func TestSilentPeer(t *testing.T) {
	address, refused := listen(t, 100*time.Millisecond, trusted("127.0.0.0/8"))
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if n, err := conn.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		t.Errorf("%d, %v", n, err)
	}
	if len(refused) > 0 {
		t.Error(<-refused)
	}
}

package origin_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/origin"
)

// store is a TCP server that serves each connection with serve, and then
// closes it. It returns its address.
func store(t *testing.T, serve func(net.Conn, *http.Request)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, listener, serve)
}

func serveOn(t *testing.T, listener net.Listener, serve func(net.Conn, *http.Request)) string {
	t.Helper()
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					serve(conn, r)
				}
			}()
		}
	}()
	return listener.Addr().String()
}

const (
	refusal  = "HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\n\r\nrefused"
	closing  = "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 7\r\n\r\nrefused"
	accepted = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	goOn     = "HTTP/1.1 100 Continue\r\n\r\n"
)

// streamed hides GetBody: an upload can be read only once.
func streamed(n int) io.Reader { return struct{ io.Reader }{bytes.NewReader(make([]byte, n))} }

// A store that refuses an upload does not read its body, and closes the
// connection. The client must learn why.
func TestTheStoresAnswerWinsOverAFailedWrite(t *testing.T) {
	t.Parallel()
	answer := func(text string) func(net.Conn, *http.Request) {
		return func(conn net.Conn, _ *http.Request) { io.WriteString(conn, text) }
	}

	for _, row := range []struct {
		name  string
		serve func(net.Conn, *http.Request)
		size  int
	}{
		{"at once", answer(closing), 512 << 10},
		{"at once, without Connection: close", answer(refusal), 512 << 10},
		{"at once, to a body that waits", answer(closing), 8 << 20},
		{"at once, to a body that waits, without Connection: close", answer(refusal), 8 << 20},
		{"after it has asked for the body", answer(goOn + closing), 8 << 20},
		{"with a part of the body read", func(conn net.Conn, r *http.Request) {
			io.CopyN(io.Discard, r.Body, 300<<10)
			io.WriteString(conn, closing)
		}, 512 << 10},
		{"in two pieces", func(conn net.Conn, _ *http.Request) {
			io.WriteString(conn, closing[:20])
			time.Sleep(time.Millisecond)
			io.WriteString(conn, closing[20:])
		}, 512 << 10},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			transport := origin.NewTransport(origin.TransportConfig{ResponseTimeout: long, IdleTimeout: long})
			t.Cleanup(transport.CloseIdleConnections)
			url := "http://" + store(t, row.serve) + "/b/k"
			for range 100 {
				wantRefusal(t, transport, requestTo(t, "PUT", url, streamed(row.size), int64(row.size)))
				transport.CloseIdleConnections() // the store has closed it
			}
		})
	}
}

func wantRefusal(t *testing.T, transport http.RoundTripper, r *http.Request) {
	t.Helper()
	resp, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusForbidden || string(text) != "refused" {
		t.Fatal(resp.Status, string(text), err)
	}
}

// The same with TLS, where the connection to the store is one layer down.
func TestTheStoresAnswerWinsOverAFailedWriteWithTLS(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(server.Close)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server.TLS)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, listener, func(conn net.Conn, _ *http.Request) { io.WriteString(conn, closing) })

	transport := origin.NewTransport(origin.TransportConfig{
		ResponseTimeout: long, IdleTimeout: long, Authorities: trusting(t, server.Certificate()),
	})
	t.Cleanup(transport.CloseIdleConnections)
	for _, size := range []int{512 << 10, 8 << 20} {
		for range 50 {
			r := requestTo(t, "PUT", "https://"+listener.Addr().String()+"/b/k", streamed(size), int64(size))
			wantRefusal(t, transport, r)
			transport.CloseIdleConnections()
		}
	}
}

// A connection that ends without an answer stays an error, at once.
func TestAFailedWriteWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	for name, serve := range map[string]func(net.Conn, *http.Request){
		"nothing":           func(net.Conn, *http.Request) {},
		"half of an answer": func(conn net.Conn, _ *http.Request) { io.WriteString(conn, refusal[:20]) },
		"no more than 100":  func(conn net.Conn, _ *http.Request) { io.WriteString(conn, goOn) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, size := range []int{512 << 10, 8 << 20} {
				resp, err := sendTo(t, origin.TransportConfig{ResponseTimeout: long, IdleTimeout: long},
					requestTo(t, "PUT", "http://"+store(t, serve)+"/b/k", streamed(size), int64(size)))
				if err == nil {
					resp.Body.Close()
					t.Errorf("%d bytes: %s", size, resp.Status)
				}
			}
		})
	}
}

// A store that refuses a long upload before it has asked for the body does
// not get it: it could take it for the next request.
func TestARefusedBodyIsNotSent(t *testing.T) {
	t.Parallel()
	const size, tries = 2 << 20, 20
	more := make(chan int64, tries)
	address := store(t, func(conn net.Conn, _ *http.Request) {
		io.WriteString(conn, refusal[:len(refusal)-len("refused")])
		time.Sleep(10 * time.Millisecond)
		io.WriteString(conn, "refused") // in a packet of its own
		n, _ := io.Copy(io.Discard, conn)
		more <- n
	})

	transport := origin.NewTransport(origin.TransportConfig{ResponseTimeout: long, IdleTimeout: long})
	t.Cleanup(transport.CloseIdleConnections)
	for range tries {
		wantRefusal(t, transport, requestTo(t, "PUT", "http://"+address+"/b/k", streamed(size), size))
		if n := <-more; n > 0 {
			t.Fatalf("%d bytes after the answer", n)
		}
	}
}

// A store that accepts a long upload without its body has not stored it.
func TestASuccessWithoutTheBodyIsAnError(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	closed := strings.Replace(accepted, "\r\n", "\r\nConnection: close\r\n", 1)
	for name, text := range map[string]string{"": accepted, "with Connection: close": closed} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := store(t, func(conn net.Conn, r *http.Request) {
				io.WriteString(conn, text)
				io.Copy(io.Discard, r.Body)
			})
			resp, err := sendTo(t, origin.TransportConfig{ResponseTimeout: long, IdleTimeout: long},
				requestTo(t, "PUT", "http://"+address+"/b/k", streamed(size), size))
			if err == nil {
				resp.Body.Close()
			}
			if !errors.Is(err, origin.ErrExpectation) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestLongBodiesWaitForTheStore counts the requests with Expect:
// 100-continue. A store that ignores it, or does not know it, is asked once.
func TestLongBodiesWaitForTheStore(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	late := func(conn net.Conn, r *http.Request) {
		if r.Header.Get("Expect") != "" {
			time.Sleep(pause)
			io.WriteString(conn, goOn)
		}
		takeBody(conn, r)
	}

	for _, row := range []struct {
		name  string
		serve func(net.Conn, *http.Request)
		size  int
		want  string // for each request: E for one with Expect, - for one without
	}{
		{"it asks", func(conn net.Conn, r *http.Request) { io.WriteString(conn, goOn); takeBody(conn, r) }, size, "EEE"},
		{"a short body", takeBody, size - 1, "---"},
		{"it never asks", takeBody, size, "E--"},
		{"it asks late", late, size, "EEE"},
		{"it does not know Expect", func(conn net.Conn, r *http.Request) {
			if r.Header.Get("Expect") != "" {
				io.WriteString(conn, "HTTP/1.1 417 Expectation Failed\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
				return
			}
			takeBody(conn, r)
		}, size, "E--"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			seen := make(chan string, len(row.want))
			address := store(t, func(conn net.Conn, r *http.Request) {
				seen <- map[bool]string{true: "E", false: "-"}[r.Header.Get("Expect") != ""]
				row.serve(conn, r)
			})
			transport := origin.NewTransport(origin.TransportConfig{ResponseTimeout: long, IdleTimeout: long})
			t.Cleanup(transport.CloseIdleConnections)

			got := ""
			for i := range row.want {
				r := requestTo(t, "PUT", "http://"+address+"/b/k", streamed(row.size), int64(row.size))
				resp, err := transport.RoundTrip(r)
				if err == nil {
					resp.Body.Close()
				} else if i > 0 || !strings.Contains(err.Error(), "417") {
					t.Error(err)
				}
				if r.Header.Get("Expect") != "" {
					t.Error("the caller's request was changed")
				}
				got += <-seen
			}
			if got != row.want {
				t.Errorf("%s, want %s", got, row.want)
			}
		})
	}
}

// takeBody reads the body and accepts it.
func takeBody(conn net.Conn, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err == nil {
		io.WriteString(conn, strings.Replace(accepted, "\r\n", "\r\nConnection: close\r\n", 1))
	}
}

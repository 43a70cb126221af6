package http1_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cmekproxy/cmekproxy/internal/origin/http1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The contract: what a Client does, http.Transport does too. Each row runs
// with both.

const long = time.Minute

// sender is what the contract is about.
type sender interface {
	RoundTrip(r *http.Request) (*http.Response, error)
	CloseIdleConnections()
}

type lean struct{ *http1.Client }

func (l lean) RoundTrip(r *http.Request) (*http.Response, error) {
	return l.Do(r, http1.Limits{Connect: long, Response: long, Idle: long})
}

func newLean(change func(*http1.Config)) lean {
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	cfg := http1.Config{
		Dial: (&net.Dialer{}).DialContext, TLS: func() *tls.Config { return trust }, MaxIdle: 4, IdleTimeout: long,
	}
	if change != nil {
		change(&cfg)
	}
	return lean{http1.New(cfg)}
}

// withBoth runs a test with http.Transport and with a Client.
func withBoth(t *testing.T, test func(*testing.T, sender)) {
	t.Helper()
	for name, s := range map[string]sender{
		"net/http": &http.Transport{
			MaxIdleConnsPerHost: 4, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
			ExpectContinueTimeout: time.Second,
		},
		"http1": newLean(nil),
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(s.CloseIdleConnections)
			test(t, s)
		})
	}
}

// server is a TCP server. It reads the requests of each connection, and serve
// answers them. It ends the connection if serve returns false.
type server struct {
	address     string
	connections atomic.Int32
	requests    atomic.Int32
}

func serve(t *testing.T, answer func(net.Conn, *http.Request) bool) *server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, listener, answer)
}

func serveOn(t *testing.T, listener net.Listener, answer func(net.Conn, *http.Request) bool) *server {
	t.Helper()
	t.Cleanup(func() { listener.Close() })
	s := &server{address: listener.Addr().String()}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.connections.Add(1)
			go s.serve(conn, answer)
		}
	}()
	return s
}

func (s *server) serve(conn net.Conn, answer func(net.Conn, *http.Request) bool) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		s.requests.Add(1)
		if !answer(conn, r) {
			return
		}
		io.Copy(io.Discard, r.Body)
	}
}

func (s *server) url() string { return "http://" + s.address + "/b/k" }

func request(t *testing.T, method, url string, body io.Reader, length int64) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	r.ContentLength, r.GetBody = length, nil
	return r
}

// outcome says what became of a request, in a form that can be compared.
func outcome(s sender, r *http.Request) string {
	resp, err := s.RoundTrip(r)
	if err != nil {
		return "error"
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	out := fmt.Sprintf("%d %q", resp.StatusCode, text)
	if err != nil {
		out += " error"
	}
	for name, values := range resp.Trailer {
		out += fmt.Sprintf(" %s=%s", name, values)
	}
	return out
}

// Each answer is given twice. The number of connections says whether the
// first is used again.
func TestAnswers(t *testing.T) {
	t.Parallel()
	const head, ok = "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	wide := strings.Repeat("X-A: b\r\n", 3000)
	for _, row := range []struct {
		name, method, answer string
		want                 string
		connections          int32
	}{
		{"a length", "GET", ok, `200 "ok"`, 1},
		{"nothing", "GET", head + "Content-Length: 0\r\n\r\n", `200 ""`, 1},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", `204 ""`, 1},
		{"304 with a length", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", `304 ""`, 1},
		{"HEAD", "HEAD", head + "Content-Length: 5\r\n\r\n", `200 ""`, 1},
		{"chunks", "GET", head + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", `200 "ok"`, 1},
		{
			"chunks and a trailer", "GET", head + "Trailer: T\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nT: x\r\n\r\n",
			`200 "ok" T=[x]`, 1,
		},
		{"until the end", "GET", head + "\r\nok", `200 "ok"`, 2},
		{"Connection: close", "GET", head + "Connection: close\r\nContent-Length: 2\r\n\r\nok", `200 "ok"`, 2},
		{"HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", `200 "ok"`, 2},
		{"HTTP/1.0, kept", "GET", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", `200 "ok"`, 1},
		{"no reason", "GET", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", `200 "ok"`, 1},

		{"100, 102 and 103 before it", "GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" +
			"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok, `200 "ok"`, 1},
		{"too many of them", "GET", strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 3000) + ok, "error", 2},

		{"a cut body", "GET", head + "Content-Length: 5\r\n\r\nok", `200 "ok" error`, 2},
		{"cut chunks", "GET", head + "Transfer-Encoding: chunked\r\n\r\n5\r\nok", `200 "ok" error`, 2},
		{"no last chunk", "GET", head + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", `200 "ok" error`, 2},
		{"a bad chunk", "GET", head + "Transfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n", `200 "" error`, 2},
		{"a cut head", "GET", head + "Content-Le", "error", 2},
		{"no answer", "GET", "", "error", 2},

		{"no HTTP", "GET", "SSH-2.0-x\r\n\r\n", "error", 2},
		{"a short status", "GET", "HTTP/1.1 20\r\n\r\n", "error", 2},
		{"a status of letters", "GET", "HTTP/1.1 abc OK\r\n\r\n", "error", 2},
		{"a negative status", "GET", "HTTP/1.1 -20 OK\r\n\r\n", "error", 2},
		{"no version", "GET", "HTTP/x 200 OK\r\n\r\n", "error", 2},
		{"a negative length", "GET", head + "Content-Length: -2\r\n\r\nok", "error", 2},
		{"a length of letters", "GET", head + "Content-Length: two\r\n\r\nok", "error", 2},
		{"a signed length", "GET", head + "Content-Length: +2\r\n\r\nok", "error", 2},
		{"two lengths", "GET", head + "Content-Length: 2\r\nContent-Length: 1\r\n\r\nok", "error", 2},
		{"two lengths in one", "GET", head + "Content-Length: 2, 1\r\n\r\nok", "error", 2},
		{"the same length twice", "GET", head + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", `200 "ok"`, 1},
		{
			"a length and chunks", "GET",
			head + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", `200 "ok"`, 1,
		},
		{"another encoding", "GET", head + "Transfer-Encoding: gzip\r\n\r\nok", "error", 2},
		{"two encodings", "GET", head + "Transfer-Encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "error", 2},

		{"a folded field", "GET", head + "X: a\r\n b\r\nContent-Length: 2\r\n\r\nok", `200 "ok"`, 1},
		{"NUL in a value", "GET", head + "X: a\x00b\r\nContent-Length: 2\r\n\r\nok", "error", 2},
		{"CR in a value", "GET", head + "X: a\rb\r\nContent-Length: 2\r\n\r\nok", "error", 2},
		{"a space in a name", "GET", head + "X Y: a\r\nContent-Length: 2\r\n\r\nok", `200 "ok"`, 1},
		{"no colon", "GET", head + "XY\r\nContent-Length: 2\r\n\r\nok", "error", 2},
		{"no name", "GET", head + ": a\r\nContent-Length: 2\r\n\r\nok", "error", 2},
		{"many fields", "GET", head + wide + "Content-Length: 2\r\n\r\nok", `200 "ok"`, 1},
		{"more than 64 KiB", "GET", head + wide + wide + wide + "Content-Length: 2\r\n\r\nok", "error", 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withBoth(t, func(t *testing.T, s sender) {
				served := serve(t, func(conn net.Conn, _ *http.Request) bool {
					io.WriteString(conn, row.answer)
					return row.connections == 1
				})
				askTwice(t, s, row.method, served, row.want, row.connections)
			})
		})
	}
}

// What comes after an answer must not become the answer to the next request.
// http.Transport notices it too, but sometimes only after it has sent the next
// request, which then fails.
func TestAnswersWithMoreBehindThem(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ name, method, answer, want string }{
		{"more than the length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nok", `200 "o"`},
		{"two answers", "GET", strings.Repeat("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 2), `200 "evil"`},
		{"a body after HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", `200 ""`},
		{"a body after 204", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok", `204 ""`},
		{"a body after 304", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok", `304 ""`},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newLean(nil)
			t.Cleanup(s.CloseIdleConnections)
			served := serve(t, func(conn net.Conn, _ *http.Request) bool {
				io.WriteString(conn, row.answer)
				return true
			})
			askTwice(t, s, row.method, served, row.want, 2)
		})
	}
}

// askTwice sends two requests, one after the other, and wants the same answer
// to both.
func askTwice(t *testing.T, s sender, method string, served *server, want string, connections int32) {
	t.Helper()
	for range 2 {
		if got := outcome(s, request(t, method, served.url(), nil, 0)); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if n := served.connections.Load(); n != connections {
		t.Errorf("%d connections, want %d", n, connections)
	}
}

// A server that goes on sending after an answer, and keeps the connection,
// cannot place an answer in front of the next one.
func TestSurplusIsNotAnAnswer(t *testing.T) {
	t.Parallel()
	withBoth(t, func(t *testing.T, s sender) {
		read, sent := make(chan struct{}), make(chan struct{})
		served := serve(t, func(conn net.Conn, _ *http.Request) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			<-read
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
			sent <- struct{}{}
			return true
		})
		for range 5 {
			if got := outcome(s, request(t, "GET", served.url(), nil, 0)); got != `200 "ok"` {
				t.Error(got)
			}
			read <- struct{}{}
			<-sent
			time.Sleep(10 * time.Millisecond) // http.Transport reads it in another goroutine
		}
		if n := served.connections.Load(); n != 5 {
			t.Errorf("%d connections", n)
		}
	})
}

// seen is what a server has seen of a request.
func seen(r *http.Request, err error) string {
	if err != nil {
		return err.Error()
	}
	body, err := io.ReadAll(r.Body)
	var header bytes.Buffer
	r.Header.Write(&header) // sorted
	return fmt.Sprintf("%s %s %s %q %d %v\n%s%q %v", r.Method, r.RequestURI, r.Proto, r.Host, r.ContentLength, r.Close,
		header.String(), body, err)
}

// A server sees the same request from both.
func TestRequestsAreTheSame(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*http.Request){
		"plain":          func(*http.Request) {},
		"HEAD":           func(r *http.Request) { r.Method = "HEAD" },
		"no method":      func(r *http.Request) { r.Method = "" },
		"DELETE":         func(r *http.Request) { r.Method = "DELETE" },
		"PUT of nothing": func(r *http.Request) { r.Method, r.Body = "PUT", http.NoBody },
		"POST":           func(r *http.Request) { r.Method = "POST"; setBody(r, "text") },
		"PUT":            func(r *http.Request) { r.Method = "PUT"; setBody(r, strings.Repeat("0123456789", 1000)) },
		"a long PUT":     func(r *http.Request) { r.Method = "PUT"; setBody(r, strings.Repeat("0123456789", 50_000)) },
		"another Host":   func(r *http.Request) { r.Host = "bucket.example.com:9000" },
		"a path":         func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/b/a b/ü", "/b/a%20b/%C3%BC" },
		"a query":        func(r *http.Request) { r.URL.RawQuery = "list-type=2&prefix=a%2Fb&x" },
		"an empty one":   func(r *http.Request) { r.URL.ForceQuery = true },
		"a root":         func(r *http.Request) { r.URL.Path = "" },
		"close":          func(r *http.Request) { r.Close = true },
		"own agent":      func(r *http.Request) { r.Header.Set("User-Agent", "a/1") },
		"no agent":       func(r *http.Request) { r.Header.Set("User-Agent", "") },
		"spaces around":  func(r *http.Request) { r.Header.Set("X-A", "  a \t b ") },
		"two values":     func(r *http.Request) { r.Header["X-A"] = []string{"a", "b", ""} },
		"framing fields": func(r *http.Request) {
			r.Header["Content-Length"], r.Header["Transfer-Encoding"] = []string{"7"}, []string{"chunked"}
			r.Header["Host"], r.Header["Trailer"] = []string{"evil"}, []string{"X"}
		},
		"long values": func(r *http.Request) { r.Header.Set("X-A", strings.Repeat("a", 20_000)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			texts := make(chan string, 2)
			served := serve(t, func(conn net.Conn, r *http.Request) bool {
				texts <- seen(r, nil)
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				return true
			})
			var got []string
			withBoth(t, func(t *testing.T, s sender) {
				r := request(t, "GET", served.url(), nil, 0)
				change(r)
				if got := outcome(s, r); got != `200 ""` {
					t.Fatal(got)
				}
				got = append(got, <-texts)
			})
			if len(got) == 2 && got[0] != got[1] {
				t.Errorf("%s\n--- and\n%s", got[0], got[1])
			}
		})
	}
}

func setBody(r *http.Request, text string) {
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
}

// Nothing that could be read as another request is sent.
func TestRequestsThatAreRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*http.Request){
		"a method with a space":     func(r *http.Request) { r.Method = "GET /x HTTP/1.1\r\nX:" },
		"a control character":       func(r *http.Request) { r.URL.RawQuery = "a\r\nX: y" },
		"a name with a space":       func(r *http.Request) { r.Header["X A"] = []string{"a"} },
		"a name with a line":        func(r *http.Request) { r.Header["X\r\nB"] = []string{"a"} },
		"a name with a colon":       func(r *http.Request) { r.Header["X:"] = []string{"a"} },
		"no name":                   func(r *http.Request) { r.Header[""] = []string{"a"} },
		"a value with a line":       func(r *http.Request) { r.Header["X"] = []string{"a\r\nB: c"} },
		"a value with LF":           func(r *http.Request) { r.Header["X"] = []string{"a\nB: c"} },
		"a value with NUL":          func(r *http.Request) { r.Header["X"] = []string{"a\x00"} },
		"a scheme":                  func(r *http.Request) { r.URL.Scheme = "ftp" },
		"a length without a body":   func(r *http.Request) { r.ContentLength = 5 },
		"a body that is too short":  func(r *http.Request) { setBody(r, "text"); r.ContentLength = 5 },
		"a body that is too long":   func(r *http.Request) { setBody(r, "text"); r.ContentLength = 3 },
		"a long one, too short":     func(r *http.Request) { setBody(r, strings.Repeat("a", 100_000)); r.ContentLength++ },
		"a long one, too long":      func(r *http.Request) { setBody(r, strings.Repeat("a", 100_000)); r.ContentLength-- },
		"a body that fails":         func(r *http.Request) { setFailing(r, 10) },
		"a long one that fails":     func(r *http.Request) { setFailing(r, 100_000) },
		"one that fails at its end": func(r *http.Request) { setFailing(r, 4) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			withBoth(t, func(t *testing.T, s sender) {
				served, whole := countWhole(t)
				r := request(t, "PUT", served.url(), nil, 0)
				change(r)
				_, isLean := s.(lean)
				if got := outcome(s, r); got != "error" {
					t.Error(got)
				}
				if isLean && whole.Load() > 0 { // net/http sends bodies before it knows that they are too long
					t.Error("the server has the whole request")
				}

				// A connection that is in doubt is not used again.
				if got := outcome(s, request(t, "GET", served.url(), nil, 0)); got != `200 ""` {
					t.Error(got)
				}
			})
		})
	}
}

// countWhole starts a server that counts the requests whose body is complete.
func countWhole(t *testing.T) (*server, *atomic.Int32) {
	t.Helper()
	whole := new(atomic.Int32)
	return serve(t, func(conn net.Conn, r *http.Request) bool {
		n, err := io.Copy(io.Discard, r.Body)
		if err == nil && n == r.ContentLength {
			whole.Add(1)
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		return true
	}), whole
}

// The last bytes of a long body wait for its end. Only the end tells that the
// checksums of an upload are right. http.Transport does not wait.
func TestLongBodiesEndAsTheyShould(t *testing.T) {
	t.Parallel()
	const size = 100_000
	for name, after := range map[string]io.Reader{
		"more, in a read of its own": strings.NewReader("a"),
		"a failure at the end":       failing{},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newLean(nil)
			t.Cleanup(s.CloseIdleConnections)
			served, whole := countWhole(t)
			body := io.MultiReader(strings.NewReader(strings.Repeat("a", size)), after)
			if got := outcome(s, request(t, "PUT", served.url(), body, size)); got != "error" {
				t.Error(got)
			}
			if got := outcome(s, request(t, "GET", served.url(), nil, 0)); got != `200 ""` {
				t.Error(got)
			}
			if n := whole.Load(); n != 1 {
				t.Errorf("the server has %d whole requests, want only the GET", n)
			}
		})
	}
}

var errBody = errors.New("the client's connection broke")

// setFailing sets a body of four bytes that fails.
func setFailing(r *http.Request, length int64) {
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader("text"), failing{}))
	r.ContentLength = length
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errBody }

// What a Client refuses, and http.Transport does not.
func TestRequestsThatOnlyAClientRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*http.Request){
		"an unknown length": func(r *http.Request) { setBody(r, "text"); r.ContentLength = -1 },
		"a body without a length": func(r *http.Request) {
			setBody(r, "text")
			r.ContentLength = 0
		},
		"chunks":              func(r *http.Request) { setBody(r, "text"); r.TransferEncoding = []string{"chunked"} },
		"a trailer":           func(r *http.Request) { setBody(r, "text"); r.Trailer = http.Header{"A": nil} },
		"CONNECT":             func(r *http.Request) { r.Method = "CONNECT" },
		"a space":             func(r *http.Request) { r.URL.RawQuery = "a b" },
		"a Host with a space": func(r *http.Request) { r.Host = "a b" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newLean(nil)
			t.Cleanup(s.CloseIdleConnections)
			served := serve(t, func(net.Conn, *http.Request) bool { return false })
			r := request(t, "PUT", served.url(), nil, 0)
			change(r)
			closed := &closing{Reader: strings.NewReader("text")}
			if r.Body != nil {
				r.Body = closed
			}
			if got := outcome(s, r); got != "error" || served.requests.Load() > 0 {
				t.Error(got)
			}
			if r.Body != nil && !closed.done.Load() {
				t.Error("the body was not closed")
			}
		})
	}
}

type closing struct {
	io.Reader
	done atomic.Bool
}

func (c *closing) Close() error { c.done.Store(true); return nil }

// Framing fields are left out, however they are written.
func TestFramingFieldsInOtherCase(t *testing.T) {
	t.Parallel()
	s := newLean(nil)
	t.Cleanup(s.CloseIdleConnections)
	texts := make(chan string, 1)
	served := serve(t, func(conn net.Conn, r *http.Request) bool {
		texts <- seen(r, nil)
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		return true
	})
	r := request(t, "PUT", served.url(), strings.NewReader("text"), 4)
	for _, name := range []string{"content-length", "TRANSFER-ENCODING", "host", "expect", "traileR"} {
		r.Header[name] = []string{"chunked"}
	}
	if got := outcome(s, r); got != `200 ""` {
		t.Fatal(got)
	}
	if text := <-texts; strings.Contains(text, "chunked") || !strings.Contains(text, `"text"`) {
		t.Error(text)
	}
}

// A request whose connection ends before the answer is repeated only if that
// is safe.
func TestRepeatedRequests(t *testing.T) {
	t.Parallel()
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	for _, row := range []struct {
		name, method, body string
		want               string
		requests           int32
	}{
		{"GET", "GET", "", `200 ""`, 3},
		{"HEAD", "HEAD", "", `200 ""`, 3},
		{"DELETE", "DELETE", "", "error", 2},
		{"PUT", "PUT", "text", "error", 2},
		{"a long PUT", "PUT", strings.Repeat("a", 200_000), "error", 2},
		{"POST of nothing", "POST", "", "error", 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withBoth(t, func(t *testing.T, s sender) {
				var count atomic.Int32
				served := serve(t, func(conn net.Conn, r *http.Request) bool {
					if count.Add(1) == 2 {
						io.Copy(io.Discard, r.Body)
						return false // it takes the second request, and ends the connection
					}
					io.WriteString(conn, ok)
					return true
				})

				if got := outcome(s, request(t, "GET", served.url(), nil, 0)); got != `200 ""` {
					t.Fatal(got)
				}
				r := request(t, row.method, served.url(), nil, 0)
				if row.body != "" {
					setBody(r, row.body)
				}
				if got := outcome(s, r); got != row.want || served.requests.Load() != row.requests {
					t.Errorf("%s after %d requests", got, served.requests.Load())
				}
			})
		})
	}
}

// A new connection that ends is an error, also for GET: the server means it.
func TestANewConnectionThatEndsIsAnError(t *testing.T) {
	t.Parallel()
	withBoth(t, func(t *testing.T, s sender) {
		served := serve(t, func(net.Conn, *http.Request) bool { return false })
		if got := outcome(s, request(t, "GET", served.url(), nil, 0)); got != "error" || served.requests.Load() != 1 {
			t.Errorf("%s after %d requests", got, served.requests.Load())
		}
	})
}

// A server that closes idle connections fails no upload.
func TestServersThatCloseIdleConnections(t *testing.T) {
	t.Parallel()
	withBoth(t, func(t *testing.T, s sender) {
		served := serve(t, func(conn net.Conn, r *http.Request) bool {
			io.Copy(io.Discard, r.Body)
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			return false
		})
		for i := range 5 {
			r := request(t, "PUT", served.url(), nil, 0)
			setBody(r, "text")
			if got := outcome(s, r); got != `200 ""` {
				t.Error(i, got)
			}
			time.Sleep(20 * time.Millisecond) // the end must have arrived
		}
	})
}

// The connection of an answer that is not read to its end is closed.
func TestAnswersThatAreNotReadToTheEnd(t *testing.T) {
	t.Parallel()
	withBoth(t, func(t *testing.T, s sender) {
		served := serve(t, func(conn net.Conn, _ *http.Request) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"+strings.Repeat("a", 100_000))
			return true
		})
		for range 3 {
			resp, err := s.RoundTrip(request(t, "GET", served.url(), nil, 0))
			if err != nil {
				t.Fatal(err)
			}
			io.CopyN(io.Discard, resp.Body, 10)
			resp.Body.Close()
			resp.Body.Close() // a second time does no harm
			if n, err := resp.Body.Read(make([]byte, 10)); n > 0 || err == nil || errors.Is(err, io.EOF) {
				t.Error(n, err)
			}
		}
		if n := served.connections.Load(); n != 3 {
			t.Errorf("%d connections", n)
		}
	})
}

// A Read that waits ends when the body is closed.
func TestCloseDuringARead(t *testing.T) {
	t.Parallel()
	withBoth(t, func(t *testing.T, s sender) {
		served := serve(t, func(conn net.Conn, _ *http.Request) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok")
			return true
		})
		resp, err := s.RoundTrip(request(t, "GET", served.url(), nil, 0))
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(20*time.Millisecond, func() { resp.Body.Close() })
		if text, err := io.ReadAll(resp.Body); string(text) != "ok" || err == nil {
			t.Errorf("%q %v", text, err)
		}
	})
}

// A request can be canceled whatever it waits for.
func TestCancellation(t *testing.T) {
	t.Parallel()
	mute := func(t *testing.T) string {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var held []net.Conn
		done := make(chan struct{})
		go func() {
			defer close(done)
			for conn, err := listener.Accept(); err == nil; conn, err = listener.Accept() {
				held = append(held, conn)
			}
		}()
		t.Cleanup(func() {
			listener.Close()
			<-done
			for _, conn := range held {
				conn.Close()
			}
		})
		return listener.Addr().String()
	}
	cause := errors.New("the client has gone")

	for _, row := range []struct {
		name string
		make func(t *testing.T) *http.Request
	}{
		{"before", func(t *testing.T) *http.Request { return request(t, "GET", "http://"+mute(t)+"/", nil, 0) }},
		{"during the TLS handshake", func(t *testing.T) *http.Request { return request(t, "GET", "https://"+mute(t)+"/", nil, 0) }},
		{"waiting for an answer", func(t *testing.T) *http.Request { return request(t, "GET", "http://"+mute(t)+"/", nil, 0) }},
		{"waiting after a short body", func(t *testing.T) *http.Request {
			return request(t, "PUT", "http://"+mute(t)+"/", strings.NewReader("text"), 4)
		}},
		{"sending a body", func(t *testing.T) *http.Request {
			return request(t, "PUT", "http://"+mute(t)+"/", bytes.NewReader(make([]byte, 32<<20)), 32<<20)
		}},
		{"waiting for 100", func(t *testing.T) *http.Request {
			r := request(t, "PUT", "http://"+mute(t)+"/", bytes.NewReader(make([]byte, 2<<20)), 2<<20)
			r.Header.Set("Expect", "100-continue")
			return r
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withBoth(t, func(t *testing.T, s sender) {
				ctx, cancel := context.WithCancelCause(t.Context())
				if row.name == "before" {
					cancel(cause)
				}
				time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
				resp, err := s.RoundTrip(row.make(t).WithContext(ctx))
				if err == nil {
					resp.Body.Close()
				}
				if !errors.Is(err, cause) {
					t.Error(err)
				}
			})
		})
	}

	t.Run("dialing", func(t *testing.T) {
		t.Parallel()
		s := newLean(func(c *http1.Config) {
			c.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
		resp, err := s.RoundTrip(request(t, "GET", "http://store/", nil, 0).WithContext(ctx))
		if err == nil {
			resp.Body.Close()
		}
		if !errors.Is(err, cause) {
			t.Error(err)
		}
	})

	t.Run("reading the answer", func(t *testing.T) {
		t.Parallel()
		withBoth(t, func(t *testing.T, s sender) {
			served := serve(t, func(conn net.Conn, _ *http.Request) bool {
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok")
				return true
			})
			ctx, cancel := context.WithCancelCause(t.Context())
			resp, err := s.RoundTrip(request(t, "GET", served.url(), nil, 0).WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
			if text, err := io.ReadAll(resp.Body); string(text) != "ok" || !errors.Is(err, cause) {
				t.Errorf("%q %v", text, err)
			}
		})
	})
}

// A canceled request does not spoil the connection of another.
func TestCancellationAfterTheEnd(t *testing.T) {
	t.Parallel()
	withBoth(t, func(t *testing.T, s sender) {
		served := serve(t, func(conn net.Conn, _ *http.Request) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			return true
		})
		for range 200 {
			ctx, cancel := context.WithCancel(t.Context())
			if got := outcome(s, request(t, "GET", served.url(), nil, 0).WithContext(ctx)); got != `200 "ok"` {
				t.Fatal(got)
			}
			go cancel()
		}
	})
}

// An answer that comes before the whole body was read is returned, and the
// body still sent.
func TestAnswersBeforeTheWholeBody(t *testing.T) {
	t.Parallel()
	withBoth(t, func(t *testing.T, s sender) {
		served := serve(t, func(conn net.Conn, r *http.Request) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprint(conn, n)
			return true
		})
		for range 3 {
			reader, writer := io.Pipe()
			resp, err := s.RoundTrip(request(t, "PUT", served.url(), reader, 100_000))
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				writer.Write(make([]byte, 100_000))
				writer.Close()
			}()
			if text, err := io.ReadAll(resp.Body); string(text) != "100000" || err != nil {
				t.Errorf("%q %v", text, err)
			}
			resp.Body.Close()
		}
		if n := served.connections.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
	})
}

// Many requests at once, on few connections, each with its own answer.
func TestManyRequestsAtOnce(t *testing.T) {
	t.Parallel()
	withBoth(t, func(t *testing.T, s sender) {
		served := serve(t, func(conn net.Conn, r *http.Request) bool {
			n, _ := io.Copy(io.Discard, r.Body)
			text := fmt.Sprintf("%s %d", r.URL.Path, n)
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
			return true
		})
		done := make(chan struct{})
		for i := range 8 {
			go func() {
				defer func() { done <- struct{}{} }()
				for j := range 30 {
					size := []int{0, 10, 70_000, 200_000}[j%4]
					r := request(t, "PUT", fmt.Sprintf("http://%s/%d/%d", served.address, i, j), nil, 0)
					if size > 0 {
						setBody(r, strings.Repeat("x", size))
					}
					if got, want := outcome(s, r), fmt.Sprintf("200 %q", fmt.Sprintf("/%d/%d %d", i, j, size)); got != want {
						t.Errorf("%s, want %s", got, want)
					}
				}
			}()
		}
		for range 8 {
			<-done
		}
	})
}

package s3api_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// network is an HTTP intermediary between a proxy and the store that damages
// traffic.
type network struct {
	t      testing.TB
	server *httptest.Server
	counts *metrics.Metrics // of the proxy

	late time.Duration // how long a late store waits
	end  chan struct{}

	mu    sync.Mutex
	fault func(http.ResponseWriter, *http.Request) bool // true if it has answered
	seen  []string
}

// behindNetwork starts a proxy whose store is behind a network. late is the
// timeout for the store and for the client.
func behindNetwork(t testing.TB, late time.Duration) (*proxy, *network) {
	t.Helper()
	w := &network{t: t, late: late, end: make(chan struct{})}
	w.server = httptest.NewServer(w)
	t.Cleanup(func() { close(w.end); w.server.Close() })

	endpoint, err := url.Parse(w.server.URL)
	if err != nil {
		t.Fatal(err)
	}

	direct := func(p *proxy, cfg *s3api.Config, _ *keyring.Config) {
		cfg.Settings.IdleTimeout = late
		w.counts = cfg.Metrics
		store := proxytest.OriginConfig(newNetworkTransport(w.late))
		store.Endpoint = endpoint
		p.origin.next = origin.New(store)
	}

	p := newProxy(t, direct)
	w.take()
	return p, w
}

func (w *network) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.seen = append(w.seen, r.Method+" "+r.URL.RequestURI())
	fault := w.fault
	w.mu.Unlock()
	if fault != nil && fault(rw, r) {
		return
	}

	resp, err := w.ask(r)
	if err != nil {
		w.t.Logf("the store: %v", err)
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	answerLike(rw, resp)

	if _, err := io.Copy(rw, resp.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// ask forwards a request to the store, with the host that its signature
// covers.
func (w *network) ask(r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.RequestURI = "http", r.Host, ""
	return store.transport.RoundTrip(out)
}

// answerLike writes the headers of an answer, including its length.
func answerLike(rw http.ResponseWriter, resp *http.Response) {
	maps.Copy(rw.Header(), resp.Header)
	if resp.ContentLength >= 0 {
		rw.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	rw.WriteHeader(resp.StatusCode)
	http.NewResponseController(rw).Flush()
}

// set installs a fault for every request from now on.
func (w *network) set(fault func(http.ResponseWriter, *http.Request) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = fault
}

// take returns the requests since the last call.
func (w *network) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.seen
	w.seen = nil
	return out
}

// cutBodies ends the connection within the body of every answer to a GET,
// after the given number of bytes.
func (w *network) cutBodies(after int64) {
	w.set(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		resp, err := w.ask(r)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()

		if resp.ContentLength <= after {
			answerLike(rw, resp)
			io.Copy(rw, resp.Body)
			return true
		}
		answerLike(rw, resp)
		io.CopyN(rw, resp.Body, after)

		panic(http.ErrAbortHandler) // closes the connection
	})
}

// shortenBodies shortens every answer to a GET, with a Content-Length that
// fits.
func (w *network) shortenBodies(to int64) {
	w.set(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		resp, err := w.ask(r)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()

		resp.ContentLength = min(to, resp.ContentLength)
		answerLike(rw, resp)
		io.CopyN(rw, resp.Body, resp.ContentLength)
		return true
	})
}

// reads returns all kinds of request for which the proxy reads the body of a
// stored object. Each returns the status and the code, or the error of a
// broken response.
func reads(p *proxy) map[string]func() (status int, code string, err error) {
	do := func(r request) func() (int, string, error) {
		return func() (int, string, error) {
			resp, err := p.server.Client().Do(p.sign(r))
			if err != nil {
				return 0, "", err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			code, _, _ := strings.Cut(string(body), "</Code>")

			_, code, _ = strings.Cut(code, "<Code>")
			if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "" {
				p.t.Errorf("%s %s: no Retry-After", r.method, r.path)
			}
			return resp.StatusCode, code, err
		}
	}

	b := "/" + p.bucket
	get := func(key, bytes string) func() (int, string, error) {
		header := http.Header{}
		if bytes != "" {
			header.Set("Range", "bytes="+bytes)
		}
		return do(request{method: "GET", path: b + "/" + key, header: header})
	}

	copied := func(path, key, bytes string) func() (int, string, error) {
		header := http.Header{"X-Amz-Copy-Source": {b + "/" + key}}
		if bytes != "" {
			header.Set("X-Amz-Copy-Source-Range", "bytes="+bytes)
		}
		return do(request{method: "PUT", path: b + "/" + path, header: header})
	}

	target := url.QueryEscape(p.create("target").id)
	return map[string]func() (int, string, error){
		"GET of a single-PUT object":       get("single", ""),
		"GET of one that is small":         get("small", ""),
		"GET of a multipart object":        get("parts", ""),
		"range of a single-PUT object":     get("single", "100000-199999"),
		"range of a multipart object":      get("parts", "5242000-5999999"),
		"range at the end of parts":        get("parts", "-100000"),
		"GET of a part":                    get("parts?partNumber=2", ""),
		"GET of plaintext":                 do(request{method: "GET", path: b + "/clear"}),
		"copy of a multipart object":       copied("copy", "parts", ""),
		"part copy of a single-PUT object": copied("target?partNumber=1&uploadId="+target, "single", ""),
		"part copy of a range of parts":    copied("target?partNumber=2&uploadId="+target, "parts", "0-5299999"),
		"copy that computes a checksum": do(
			request{
				method: "PUT",
				path:   b + "/copy",
				header: http.Header{"X-Amz-Copy-Source": {b + "/single"}, "X-Amz-Checksum-Algorithm": {"SHA256"}},
			},
		),
		"copy of plaintext":              copied("copy", "clear", ""),
		"part copy of plaintext, ranged": copied("target?partNumber=3&uploadId="+target, "clear", "0-99999"),
	}
}

// fill stores the objects of reads, in a bucket whose plaintext may be read.
func (p *proxy) fill() {
	p.t.Helper()
	p.bucket = p.newBucket("plain-")
	p.put("single", randomText(300_000))
	p.put("small", randomText(1000))
	p.store("clear", randomText(200_000), nil)
	p.upload("parts", []int{5 << 20, 1 << 20})
}

// If the connection to the store ends within a body, the object is not at
// fault. The client gets a 503, or a closed connection if the response has
// begun, and never an integrity error.
func TestACutIsACut(t *testing.T) {
	p, w := behindNetwork(t, time.Minute)
	p.fill()
	for name, read := range reads(p) {
		w.set(nil)
		if status, code, err := read(); status >= 300 || err != nil {
			t.Fatalf("%s, on a sound network: %d %s %v", name, status, code, err)
		}

		cut := 0
		for _, after := range []int64{0, 1, 500, 984, 1000, 1040, 65_551, 65_552, 90_000, 262_300, 5_300_000} {
			w.cutBodies(after)
			switch status, code, err := read(); {
			case err != nil: // the response had begun
				cut++
			case status == http.StatusServiceUnavailable && code == "ServiceUnavailable":
				cut++
			case status >= 300:
				t.Errorf("%s, cut after %d bytes: %d %s", name, after, status, code)
			}
		}

		if cut < 2 {
			t.Errorf("%s: %d cuts were noticed", name, cut)
		}
	}

	if log := p.log.String(); strings.Contains(log, integrity) {
		t.Error("the log speaks of tampering")
	}
}

// A complete answer that is too short for the object is an integrity error.
func TestAWholeAnswerThatIsTooShortIsTampering(t *testing.T) {
	p, w := behindNetwork(t, time.Minute)
	p.fill()
	for name, read := range reads(p) {
		if strings.Contains(name, "plaintext") { // plaintext cannot be verified
			continue
		}

		for _, to := range []int64{0, 1000, 90_000} {
			w.shortenBodies(to)
			switch status, code, err := read(); {
			case err != nil, status == http.StatusUnprocessableEntity && code == integrity:
			case name == "GET of one that is small" && to > 1100:
			default:
				t.Errorf("%s, %d bytes: %d %s", name, to, status, code)
			}
		}
	}
}

func newNetworkTransport(late time.Duration) http.RoundTripper {
	return origin.NewTransport(
		origin.TransportConfig{ConnectTimeout: late, ResponseTimeout: late, IdleTimeout: late, MaxConns: 16},
	)
}

// late is the timeout for both the store and the client, which must not be
// confused even if their timeouts are equal.
const late = time.Second

// hang blocks a request until its connection ends, before anything is read
// or written.
func (w *network) hang(_ http.ResponseWriter, r *http.Request) bool {
	select {
	case <-r.Context().Done():
	case <-w.end: // net/http does not notice the end of a connection with an unread body
	}
	return true
}

// hangWithin makes an answer to a GET stop within its body.
func (w *network) hangWithin(after int64) func(http.ResponseWriter, *http.Request) bool {
	return func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		resp, err := w.ask(r)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()

		answerLike(rw, resp)
		io.CopyN(rw, resp.Body, after)
		http.NewResponseController(rw).Flush()
		<-r.Context().Done()
		return true
	}
}

// A store that hangs is not the client's fault: the client gets a 503 with
// Retry-After, and its connection remains usable. The client's timeout
// equals the store's, so that the two could be confused.
func TestAStoreThatHangs(t *testing.T) {
	t.Parallel()
	p, w := behindNetwork(t, late)
	p.put("k", randomText(300_000))
	body := randomText(32 << 20) // more than the kernel buffers

	b := "/" + p.bucket
	for name, row := range map[string]struct {
		fault func(http.ResponseWriter, *http.Request) bool
		r     request
	}{
		"GET":         {w.hang, request{method: "GET", path: b + "/k"}},
		"GET, within": {w.hangWithin(50_000), request{method: "GET", path: b + "/k"}},
		"HEAD":        {w.hang, request{method: "HEAD", path: b + "/k"}},
		"range":       {w.hang, request{method: "GET", path: b + "/k", header: http.Header{"Range": {"bytes=5-9"}}}},
		"PUT":         {w.hang, request{method: "PUT", path: b + "/new", body: []byte("x")}},
		"PUT, large":  {w.hang, request{method: "PUT", path: b + "/new", body: body, hash: "UNSIGNED-PAYLOAD"}},
		"copy, within": {w.hangWithin(50_000), request{
			method: "PUT", path: b + "/copy",
			header: http.Header{"X-Amz-Copy-Source": {b + "/k"}, "X-Amz-Checksum-Algorithm": {"SHA256"}},
		}},
		"listing":         {w.hang, request{method: "GET", path: b + "?list-type=2"}},
		"listing, within": {w.hangWithin(50), request{method: "GET", path: b + "?list-type=2"}},
		"DELETE":          {w.hang, request{method: "DELETE", path: b + "/k"}},
		"configuration":   {w.hang, request{method: "GET", path: b + "?versioning"}},
	} {
		t.Run(name, func(t *testing.T) {
			w.set(row.fault)
			resp, err := p.server.Client().Do(p.sign(row.r))
			if err != nil {
				t.Errorf("%v", err)
				return
			}

			text, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
				t.Errorf("%d %s", resp.StatusCode, text)
			}
		})
	}
}

// A client that does not send its body gets RequestTimeout, however slow the
// store is.
func TestAClientThatHangs(t *testing.T) {
	t.Parallel()
	p, _ := behindNetwork(t, late)
	var all sync.WaitGroup
	for _, sent := range []int{0, 1, 60_000, 99_999} {
		for range 4 {
			all.Go(func() {
				conn := p.dialPut(100_000)
				defer conn.Close()
				conn.Write(randomText(sent))

				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()

				text, _ := io.ReadAll(resp.Body)
				if resp.StatusCode != http.StatusBadRequest || !bytes.Contains(text, []byte("<Code>RequestTimeout<")) ||
					!resp.Close {
					t.Errorf("after %d bytes: %d %s; closed: %v", sent, resp.StatusCode, text, resp.Close)
				}
			})
		}
	}

	all.Wait()
}

// After any timeout, a client's connection is either usable or closed.
func TestKeepAliveAfterATimeout(t *testing.T) {
	t.Parallel()
	p, w := behindNetwork(t, late)
	p.put("k", randomText(300_000))
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	reader := bufio.NewReader(conn)
	ask := func() *http.Response {
		t.Helper()
		r := p.sign(request{method: "GET", path: "/" + p.bucket + "/k"})
		r.URL.Scheme, r.URL.Opaque, r.URL.Path = "", "", "/"+p.bucket+"/k"
		if err := r.Write(conn); err != nil {
			t.Fatal(err)
		}

		resp, err := http.ReadResponse(reader, r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()

		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		return resp
	}

	for _, fault := range []func(http.ResponseWriter, *http.Request) bool{w.hang, w.hangWithin(50_000)} {
		w.set(fault)
		if resp := ask(); resp.StatusCode != http.StatusServiceUnavailable || resp.Close {
			t.Fatalf("%d %v", resp.StatusCode, resp.Header)
		}
		w.set(nil)

		for range 3 {
			if resp := ask(); resp.StatusCode != http.StatusOK {
				t.Fatalf("the store is back: %d", resp.StatusCode)
			}
		}
	}
}

// refuseUploads refuses the store's next uploads with an answer, after
// reading what has arrived of them.
func (w *network) refuseUploads(times int, status int, answer string) *atomic.Int64 {
	var left atomic.Int64
	left.Store(int64(times))
	w.set(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet || r.Method == http.MethodHead || left.Add(-1) < 0 {
			return false
		}
		io.Copy(io.Discard, r.Body)
		rw.Header().Set("Connection", "close")
		rw.WriteHeader(status)
		io.WriteString(rw, answer)
		return true
	})
	return &left
}

func fault(code string) string {
	return "<Error><Code>" + code + "</Code><Message>in the store's words</Message></Error>"
}

// If the connection to the store breaks, the client is not at fault. A
// request that can be repeated is repeated once.
func TestTheWayToTheStore(t *testing.T) {
	p, w := behindNetwork(t, time.Minute)
	p.fill()
	m := p.create("target")
	m.send(1, randomText(100))
	b := "/" + p.bucket

	from := func(key string) http.Header { return http.Header{"X-Amz-Copy-Source": {b + "/" + key}} }
	for _, row := range []struct {
		name   string
		r      request
		repeat bool // the proxy repeats it
	}{
		{
			"part copy",
			request{method: "PUT", path: b + "/target?partNumber=2&uploadId=" + url.QueryEscape(m.id), header: from("parts")},
			true,
		},
		{"copy of parts", request{method: "PUT", path: b + "/copy", header: from("parts")}, true},
		{"copy of plaintext", request{method: "PUT", path: b + "/copy", header: from("clear")}, true},
		{"copy in the store", request{method: "PUT", path: b + "/copy", header: from("single")}, true},
		{"tags", request{
			method: "PUT", path: b + "/single?tagging",
			body: []byte("<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"),
		}, true},
		{"deletion", request{method: "DELETE", path: b + "/copy"}, true},
		{"upload", request{method: "PUT", path: b + "/new", body: randomText(200_000)}, false},
		{"small upload", request{method: "PUT", path: b + "/new", body: []byte("x")}, false},
		{
			"part",
			request{method: "PUT", path: b + "/target?partNumber=1&uploadId=" + url.QueryEscape(m.id), body: randomText(100)},
			false,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, refusal := range []struct {
				status int
				answer string
			}{
				{400, fault("IncompleteBody")},
				{400, fault("RequestTimeout")},
				{400, fault("BadDigest")},
				{408, ""},
				{400, "400 Bad Request"},
				{403, "<html><head><title>403 Forbidden</title></head></html>"},
			} {
				name := fmt.Sprintf("%s, %d %.40s", row.name, refusal.status, refusal.answer)
				w.refuseUploads(1, refusal.status, refusal.answer)
				a := p.send(row.r)

				switch {
				case row.repeat && a.StatusCode >= 300:
					t.Errorf("%s: it is not made again: %d %s", name, a.StatusCode, a.body)
				case !row.repeat && (a.StatusCode != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == ""):
					t.Errorf("%s: %d %s", name, a.StatusCode, a.body)
				}

				left := w.refuseUploads(1000, refusal.status, refusal.answer)
				if a = p.send(row.r); a.StatusCode != http.StatusServiceUnavailable ||
					a.Header.Get("Retry-After") == "" {
					t.Errorf("%s, always: %d %s", name, a.StatusCode, a.body)
				}

				if made := 1000 - left.Load(); made > 2 {
					t.Errorf("%s: it is made %d times", name, made)
				}
			}

			w.refuseUploads(1, 400, fault("MalformedThing"))
			if a := p.send(row.r); a.StatusCode != http.StatusBadRequest || a.Code != "MalformedThing" {
				t.Errorf("what the store refuses for good: %d %s", a.StatusCode, a.Code)
			}
		})
	}

	w.refuseUploads(1, 400, fault("IncompleteBody"))
	if _, err := m.complete(); err != nil {
		t.Errorf("a completion is not made again: %v", err)
	}
}

// If the store times out because the client stops sending, the client is at
// fault.
func TestAStoreThatLosesPatienceWithAClient(t *testing.T) {
	t.Parallel()
	p, w := behindNetwork(t, time.Minute)
	w.set(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		time.Sleep(4 * time.Second)
		rw.WriteHeader(http.StatusBadRequest)
		io.WriteString(rw, fault("RequestTimeout"))
		return true
	})

	conn := p.dialPut(3 << 20) // a small body would be buffered first
	defer conn.Close()
	conn.Write(randomText(200_000))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()

	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusBadRequest ||
		!bytes.Contains(text, []byte("<Code>RequestTimeout<")) {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
}

package s3api_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// soon is the timeout for something that takes a moment on an idle machine.
const soon = time.Minute

// few limits the proxy to four concurrent requests: three per client, and
// one without a signature.
func few(_ *proxy, cfg *s3api.Config, _ *keyring.Config) {
	cfg.Settings.MaxConcurrent, cfg.Settings.HeaderTimeout = 4, 500*time.Millisecond
}

// dial sends raw bytes, and leaves the connection open.
func (p *proxy) dial(text string) net.Conn {
	p.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		p.t.Fatal(err)
	}
	return conn
}

// Half-sent forms block no signed client, and end in time.
func TestHalfSentForms(t *testing.T) {
	p := newProxy(t, few)
	p.put("k", []byte("text"))
	form := fmt.Sprintf(
		"POST /%s HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n--b\r\n",
		p.bucket,
	)

	var conns []net.Conn
	for range 20 {
		conns = append(conns, p.dial(form))
	}

	for range 20 {
		if a := p.send(request{method: "GET", path: "/" + p.bucket + "/k"}); a.StatusCode != http.StatusOK {
			t.Fatalf("a client that signs: %d %s", a.StatusCode, a.Code)
		}
	}
	codes := make(map[string]int)

	for _, conn := range conns {
		_ = conn.SetReadDeadline(time.Now().Add(soon))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("a form is not answered: %v", err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()

		for _, code := range []string{"SlowDown", "RequestTimeout"} {
			if strings.Contains(string(body), code) {
				codes[code]++
			}
		}
	}

	if codes["RequestTimeout"] == 0 || codes["SlowDown"] == 0 ||
		codes["RequestTimeout"]+codes["SlowDown"] != len(conns) {
		t.Errorf("%v", codes)
	}
}

// hold blocks requests for keys that begin with "held" in the store until
// release is called. held is the number of blocked requests.
func (p *proxy) hold() (held *atomic.Int32, release func()) {
	held, end := &atomic.Int32{}, make(chan struct{})
	p.origin.set(func(r *http.Request) (*http.Response, error) {
		if strings.Contains(r.URL.Path, "/held") {
			held.Add(1)
			<-end
		}
		return nil, nil
	}, nil)
	return held, sync.OnceFunc(func() { close(end) })
}

// One client cannot take all slots.
func TestShareOfAClient(t *testing.T) {
	p := newProxy(t, few)
	p.bucket = p.newBucket("shared-")
	p.put("k", []byte("text"))
	p.put("held", []byte("text"))
	defer p.holdThree()()
	if a := p.send(request{method: "GET", path: "/" + p.bucket + "/k"}); a.Code != "SlowDown" {
		t.Errorf("a fourth one of the client: %d %s", a.StatusCode, a.Code)
	}
	if a := p.send(request{
		method: "GET", path: "/" + p.bucket + "/k", accessKey: readerAccess, secret: readerSecret,
	}); a.StatusCode != http.StatusOK {
		t.Errorf("another client: %d %s", a.StatusCode, a.Code)
	}
}

// holdThree keeps three reads of the object "held" running until end is
// called.
func (p *proxy) holdThree() (end func()) {
	held, release := p.hold()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { p.mustGet("held") })
	}
	for deadline := time.Now().Add(soon); held.Load() < 3 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	return func() {
		release()
		wg.Wait()
	}
}

// TestAClientAlone: a single client may have all slots.
func TestAClientAlone(t *testing.T) {
	p := newProxy(t, few, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) {
		alone, err := access.New([]access.Client{{
			Name: "app", AccessKey: clientAccess, Secret: clientSecret,
			Allow: []access.Grant{
				{
					Buckets: []string{"*"},
					Actions: []access.Action{access.Read, access.Write, access.Delete, access.List, access.Admin},
				},
			},
		}})
		if err != nil {
			t.Fatal(err)
		}

		cfg.Clients = alone
	})

	p.put("k", []byte("text"))
	p.put("held", []byte("text"))
	defer p.holdThree()()
	if a := p.send(request{method: "GET", path: "/" + p.bucket + "/k"}); a.StatusCode != http.StatusOK {
		t.Errorf("a fourth one: %d %s", a.StatusCode, a.Code)
	}
}

// Slow readers make room for other requests, including those of the same
// client.
func TestSlowReadersMakeRoom(t *testing.T) {
	p := newProxy(t, few)
	p.bucket = p.newBucket("shared-")
	p.put("large", randomText(32<<20))
	p.put("k", []byte("text"))

	for i := range 4 { // all slots
		r := request{method: "GET", path: "/" + p.bucket + "/large"}
		if i == 3 {
			r.accessKey, r.secret = readerAccess, readerSecret
		}
		signed := p.sign(r)
		var text strings.Builder
		fmt.Fprintf(&text, "GET /%s/large HTTP/1.1\r\nHost: %s\r\n", p.bucket, signed.Host)

		for name, values := range signed.Header {
			fmt.Fprintf(&text, "%s: %s\r\n", name, values[0])
		}
		conn := p.dial(text.String() + "\r\n")
		if _, err := conn.Read(make([]byte, 10)); err != nil { // the response has begun
			t.Fatal(err)
		}
	}

	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) { // idle_timeout is 20 s
		a := p.send(request{method: "GET", path: "/" + p.bucket + "/k"})
		if a.StatusCode == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("while other clients read nothing: %d %s", a.StatusCode, a.Code)
		}
	}
}

// An upload that is too slow ends; time spent waiting for the store does not
// count.
func TestLeastRate(t *testing.T) {
	p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) {
		cfg.Settings.IdleTimeout, cfg.Settings.MinRate = 2*time.Second, 1024
	})
	conn := p.dialPut(1000)
	ended := make(chan struct{})
	defer func() { <-ended }()

	stop := make(chan struct{})
	defer close(stop)
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}

			if _, err := conn.Write([]byte("x")); err != nil {
				return
			}
		}
	}()

	_ = conn.SetReadDeadline(time.Now().Add(soon))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("the upload continues: %v", err)
	}
	defer resp.Body.Close()

	body, _ := io.ReadAll(resp.Body)
	if !strings.Contains(string(body), "RequestTimeout") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}

	p.put("held", []byte("text"))
	_, release := p.hold()
	time.AfterFunc(5*time.Second, release)
	if got := p.mustGet("held"); string(got) != "text" {
		t.Errorf("%q", got)
	}
}

// Preflights and the look-ups for errors are limited. A refused one causes
// no request to the store.
func TestPreflightsAreLimited(t *testing.T) {
	p := newProxy(t, few)
	p.put("k", []byte("text"))
	held, release := p.hold()
	defer release()
	p.origin.take()
	const n = 20
	var refused atomic.Int32

	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var resp *http.Response
			if i%2 == 0 {
				resp, _ = p.unsigned("OPTIONS", "/"+p.bucket+"/held", preflight(page, "GET", ""))
			} else { // the error of an unsigned request, which needs a look-up for the page
				resp, _ = p.unsigned("GET", "/"+p.bucket+"/held", http.Header{"Origin": {page}})
			}

			if resp.StatusCode == http.StatusServiceUnavailable || i%2 == 1 {
				refused.Add(1)
			}
		})
	}

	for deadline := time.Now().Add(soon); refused.Load() < n-1 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
		if refused.Load() == n-2 { // the request that the store has may be unsigned, and ends by itself
			break
		}
	}

	if got := held.Load(); got > 2 {
		t.Errorf("the store has %d requests of strangers at a time", got)
	}
	if a := p.send(request{method: "GET", path: "/" + p.bucket + "/k"}); a.StatusCode != http.StatusOK {
		t.Errorf("a client that signs: %d %s", a.StatusCode, a.Code)
	}
	release()

	wg.Wait()
}

package s3api_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// revoke revokes the key and makes every lease ask for it.
func (p *proxy) revoke() {
	p.t.Helper()
	if err := os.Rename(p.keyFile, p.keyFile+".gone"); err != nil {
		p.t.Fatal(err)
	}
	p.keys.PurgeAll()
}

// dialSlow connects with a receive buffer of a few KiB, so that unread data
// stays with the sender.
func (p *proxy) dialSlow(address string) net.Conn {
	p.t.Helper()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var failure error
		err := raw.Control(func(fd uintptr) {
			failure = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 16<<10)
		})
		return errors.Join(err, failure)
	}}

	conn, err := dialer.DialContext(p.t.Context(), "tcp", address)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })

	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
	return conn
}

// If a client stops reading a download, the proxy blocks in a write, and the
// kernel buffers plaintext. When the key is revoked, the client gets
// neither, whatever it does then.
func TestStuckDownloadIsCut(t *testing.T) {
	const size, taken, slack = 16 << 20, 1 << 20, 256 << 10
	for _, row := range []struct{ name, scheme, header string }{
		{"http", "http", ""},
		{"https", "https", ""},
		{"http after a PROXY protocol header", "http", proxyHeader},
		{"https after a PROXY protocol header", "https", proxyHeader},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newProxy(t)
			p.put("big", randomText(size))
			p.server = httptest.NewUnstartedServer(p.server.Config.Handler)
			p.server.Config.ConnContext = s3api.ConnContext
			if row.header != "" {
				p.server.Listener = withProxyProtocol(p.server.Listener)
			}
			if row.scheme == "https" {
				p.server.StartTLS()
			} else {
				p.server.Start()
			}
			t.Cleanup(p.server.Close)
			p.url = p.server.URL

			r := p.sign(request{method: "GET", path: "/" + p.bucket + "/big"})
			conn := p.dialSlow(r.Host)
			if _, err := io.WriteString(conn, row.header); err != nil {
				t.Fatal(err)
			}
			if row.scheme == "https" {
				conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
			}
			r.URL.Scheme, r.URL.Opaque, r.URL.Path = "", "", "/"+p.bucket+"/big"

			if err := r.Write(conn); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 4096), r)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatal(resp, err)
			}
			defer resp.Body.Close()

			if _, err := io.CopyN(io.Discard, resp.Body, taken); err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond) // until the kernel's buffers are full
			p.revoke()

			p.waitForLog(
				`"aborted":true`,
				func() bool { return strings.Contains(p.log.String(), `"code":"KMS.NotFoundException"`) },
			)

			rest, err := io.Copy(io.Discard, resp.Body)
			if err == nil {
				t.Errorf("a clean end after %d bytes", taken+rest)
			}
			if rest > slack {
				t.Errorf("%d bytes arrived after the cut", rest)
			}

			if row.scheme == "http" && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%v, want a reset", err)
			}
		})
	}
}

// The same if the proxy itself notices, between two pieces, that it must
// stop.
func TestAnAbortedDownloadIsReset(t *testing.T) {
	const size, slack = 3 << 20, 256 << 10
	p := newProxy(t)
	p.put("big", randomText(size))
	body, header := p.stored("big")
	body[len(body)-1] ^= 1
	p.store("big", body, header)
	r := p.sign(request{method: "GET", path: "/" + p.bucket + "/big"})

	conn := p.dialSlow(r.Host)
	r.URL.Scheme, r.URL.Opaque, r.URL.Path = "", "", "/"+p.bucket+"/big"
	if err := r.Write(conn); err != nil {
		t.Fatal(err)
	}
	p.waitForLog(`"aborted":true`, func() bool { return true }) // everything except the last piece is in the kernel now

	got, err := io.Copy(io.Discard, conn)
	if !errors.Is(err, syscall.ECONNRESET) || got > slack {
		t.Errorf("%d bytes, %v; want a reset", got, err)
	}
}

// waitForLog waits until the log contains a text and a condition is true.
func (p *proxy) waitForLog(text string, also func() bool) {
	p.t.Helper()
	p.wait("for the log to contain "+text, func() bool { return strings.Contains(p.log.String(), text) && also() })
}

// wait waits until a condition is true.
func (p *proxy) wait(what string, condition func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if condition() {
			return
		}
	}
	p.t.Fatal("waited in vain " + what)
}

// An upload whose client stops sending gets an error as soon as the key is
// revoked.
func TestStalledUploadIsCut(t *testing.T) {
	for _, size := range []int{100, 3 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			p := newProxy(t)
			conn := p.dialPut(size)
			if _, err := conn.Write(bytes.Repeat([]byte("x"), size-1)); err != nil {
				t.Fatal(err)
			}

			for p.keys.Status()[0].Leases == 0 {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(50 * time.Millisecond)
			p.revoke()

			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()

			if resp.StatusCode != http.StatusBadRequest ||
				!bytes.Contains(body, []byte("<Code>KMS.NotFoundException<")) {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
			if p.isStored("slow") {
				t.Error("stored all the same")
			}
		})
	}
}

// If the last byte of an upload comes after the TTL of the data key, it
// needs the KMS.
func TestUploadThatEndsAfterTheTTL(t *testing.T) {
	p := newProxy(t)
	conn := p.dialPut(100)
	fmt.Fprint(conn, strings.Repeat("x", 99))
	for p.keys.Status()[0].Leases == 0 {
		time.Sleep(time.Millisecond)
	}

	time.Sleep(
		50 * time.Millisecond,
	) // the lease's watcher sleeps until its end, and does not notice the jump of the clock
	if err := os.Rename(p.keyFile, p.keyFile+".gone"); err != nil {
		t.Fatal(err)
	}
	p.clock.Add(int64(2 * time.Minute))

	fmt.Fprint(conn, "x")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()

	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusBadRequest ||
		!bytes.Contains(body, []byte("KMS.NotFoundException")) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if p.isStored("slow") {
		t.Error("stored all the same")
	}
}

// A manual purge makes leases ask the KMS again. It has no other effect if
// the key is valid.
func TestPurgeInMidTransfer(t *testing.T) {
	p := newProxy(t, func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) { cfg.OutageWait = time.Second })
	text := randomText(8 << 20)
	p.put("big", text)
	r := p.sign(request{method: "GET", path: "/" + p.bucket + "/big"})

	resp, err := p.server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()

	var got bytes.Buffer
	for range 8 {
		if _, err := io.CopyN(&got, resp.Body, 1<<20); err != nil {
			t.Fatal(err)
		}
		p.keys.PurgeAll()
	}

	if !bytes.Equal(got.Bytes(), text) {
		t.Error("another text")
	}
}

// Bytes are counted while they flow, so that a long transfer is not a peak at
// its end.
func TestBytesOfARunningTransferAreCounted(t *testing.T) {
	counted := metrics.New()
	p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.Metrics = counted })
	const size = 16 << 20
	p.put("k", make([]byte, size))
	p.waitForLog(`"PutObject"`, func() bool { return true })
	before := counted.Totals()

	out, err := p.client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &p.bucket, Key: aws.String("k")})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	p.wait("for bytes of a download", func() bool { return counted.Totals().Out > before.Out })

	conn := p.dialPut(size)
	if _, err := conn.Write(make([]byte, size/2)); err != nil {
		t.Fatal(err)
	}
	p.wait("for bytes of an upload", func() bool { return counted.Totals().In-before.In == size/2 })
	if now := counted.Totals(); now.Served != before.Served || now.Out-before.Out >= size {
		t.Errorf("the transfers have ended: %+v, before %+v", now, before)
	}

	if _, err := io.Copy(io.Discard, out.Body); err != nil {
		t.Fatal(err)
	}
	p.wait("for all bytes of the download", func() bool { return counted.Totals().Out-before.Out == size })
}

package s3api_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// little is memory for one bulk request, and not for two.
func little(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.Settings.Memory = 600 << 10 }

// mustHaveEnded waits until no request holds memory or a slot.
func (p *proxy) mustHaveEnded() {
	p.t.Helper()
	for deadline := time.Now().Add(soon); ; time.Sleep(time.Millisecond) {
		l := p.api.Load()
		if l.Memory == 0 && l.Running == 0 && l.Young == 0 {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("after all requests have ended: %+v", l)
		}
	}
}

// A request beyond the budget is refused, causes no request to the store, and
// stores nothing. Afterwards there is room again.
func TestMemoryBudget(t *testing.T) {
	p := newProxy(t, little)
	p.bucket = p.newBucket("shared-")
	p.put("held", []byte("text"))
	held, release := p.hold()
	defer release()
	ended := make(chan struct{})
	go func() { defer close(ended); p.mustGet("held") }()
	for deadline := time.Now().Add(soon); held.Load() < 1 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}

	p.origin.take()
	for _, r := range []request{
		{method: "PUT", path: "/" + p.bucket + "/new", body: randomText(1 << 20)},
		{method: "GET", path: "/" + p.bucket + "/held"},
		{method: "GET", path: "/" + p.bucket + "?list-type=2", accessKey: readerAccess, secret: readerSecret},
	} {
		a := p.send(r)
		if a.StatusCode != http.StatusServiceUnavailable || a.Code != "SlowDown" || a.Header.Get("Retry-After") == "" {
			t.Errorf("%s %s: %d %s", r.method, r.path, a.StatusCode, a.Code)
		}
	}
	if sent := p.origin.take(); len(sent) > 0 {
		t.Errorf("%d requests to the store", len(sent))
	}

	// A small request of another client still has room.
	if a := p.send(request{
		method: "HEAD", path: "/" + p.bucket + "/other", accessKey: readerAccess, secret: readerSecret,
	}); a.StatusCode != http.StatusNotFound {
		t.Errorf("HEAD: %d", a.StatusCode)
	}

	release()
	<-ended
	p.mustHaveEnded()
	if p.isStored("new") {
		t.Error("the refused upload was stored")
	}
	p.put("new", randomText(1<<20))
}

// Whatever requests do and however they end, their memory and their slots are
// free again.
func TestMemoryIsFree(t *testing.T) {
	p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.Settings.Memory = 64 << 20 })
	p.put("k", randomText(300_000))
	m := p.upload("parts", []int{5 << 20, 100})

	for _, r := range []request{
		{method: "GET", path: "/" + p.bucket + "/k"},
		{method: "GET", path: "/" + p.bucket + "/" + m.key},
		{method: "GET", path: "/" + p.bucket + "/none"},
		{method: "HEAD", path: "/" + p.bucket + "/k"},
		{method: "GET", path: "/" + p.bucket + "?list-type=2"},
		{method: "PUT", path: "/" + p.bucket + "/new", body: randomText(100_000)},
		{method: "PUT", path: "/" + p.bucket + "/copy", header: http.Header{
			"X-Amz-Copy-Source": {"/" + p.bucket + "/k"},
		}},
		{method: "DELETE", path: "/" + p.bucket + "/copy"},
		{method: "POST", path: "/" + p.bucket + "?delete", body: []byte("<Delete>")},
		{method: "POST", path: "/" + p.bucket + "/x?uploadId=unknown", body: []byte("<x/>")},
		{method: "GET", path: "/" + p.bucket + "?torrent"},
		{method: "GET", path: "/" + p.bucket + "/k", accessKey: "unknown"},
	} {
		p.send(r)
		p.mustHaveEnded()

		// The client leaves at different moments.
		for after := range 4 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(after)*500*time.Microsecond)
			signed := p.sign(r).WithContext(ctx)
			if resp, err := http.DefaultClient.Do(signed); err == nil {
				_, _ = io.CopyN(io.Discard, resp.Body, int64(after)*1000)
				resp.Body.Close()
			}
			cancel()
		}
		p.mustHaveEnded()
	}

	form := fmt.Sprintf("POST /%s HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"+
		"Content-Length: 100000\r\n\r\n--b\r\n", p.bucket)
	p.dial(form).Close()
	p.dial(strings.Replace(form, "POST", "OPTIONS", 1)).Close()
	p.mustHaveEnded()
}

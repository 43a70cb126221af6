package s3api_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// gated is a body that stops after some bytes until it is released.
type gated struct {
	io.ReadCloser
	left    int
	waiting chan struct{} // closed when it stops
	release chan struct{}
	once    sync.Once
}

func (g *gated) Read(b []byte) (int, error) {
	if g.left <= 0 {
		g.once.Do(func() { close(g.waiting) })
		<-g.release
	}
	n, err := g.ReadCloser.Read(b[:min(len(b), 16<<10)])
	g.left -= n
	return n, err
}

// Close leaves the body open: the read that is under way gets its bytes, as
// from a connection on which they have already arrived.
func (g *gated) Close() error { return nil }

// If the store answers before it has the whole body of a copy, the transport
// is still reading that body. The source must not be closed under it: its
// buffers could belong to another request by then.
func TestASourceIsNotClosedWhileItIsRead(t *testing.T) {
	p := newProxy(t)
	const size = 4 << 20
	p.put("source", bytes.Repeat([]byte("source"), size/6))
	m := p.create("upload")
	b := "/" + p.bucket
	copied := http.Header{"X-Amz-Copy-Source": {b + "/source"}}
	itself := http.Header{
		"X-Amz-Copy-Source": {b + "/source"}, "X-Amz-Metadata-Directive": {"REPLACE"}, "X-Amz-Meta-A": {"b"},
	}

	for name, r := range map[string]request{
		"a copy onto itself": {method: "PUT", path: b + "/source", header: itself},
		"a part":             {method: "PUT", path: b + "/upload?partNumber=1&uploadId=" + m.id, header: copied},
	} {
		t.Run(name, func(t *testing.T) {
			source := &gated{left: 1 << 20, waiting: make(chan struct{}), release: make(chan struct{})}
			ended := make(chan error, 1)
			p.origin.set(func(r *http.Request) (*http.Response, error) {
				if r.Method != http.MethodPut || r.Body == nil {
					return nil, nil
				}
				body := r.Body
				r.Body = nil // http.Transport closes it later too
				go func() {
					_, err := io.Copy(io.Discard, body)
					ended <- err
				}()
				<-source.waiting
				// The answer is there, and the source's next bytes come later.
				time.AfterFunc(300*time.Millisecond, func() { close(source.release) })

				text := "<Error><Code>AccessDenied</Code></Error>"
				return &http.Response{
					StatusCode: http.StatusForbidden, Header: http.Header{}, Request: r,
					Body: io.NopCloser(strings.NewReader(text)), ContentLength: int64(len(text)),
				}, nil
			}, func(resp *http.Response) {
				if resp.Request.Method == http.MethodGet && resp.ContentLength > 1<<20 {
					source.ReadCloser, resp.Body = resp.Body, source
				}
			})

			got := p.send(r)
			p.origin.set(nil, nil)
			if got.StatusCode != http.StatusForbidden && !bytes.Contains(got.body, []byte("AccessDenied")) {
				t.Errorf("%d %s", got.StatusCode, got.body)
			}
			if err := <-ended; !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the body was read further: %v", err)
			}
		})
	}
}

package s3api

import (
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

// response is the response to the client. It remembers its status and size.
type response struct {
	http.ResponseWriter
	idle  *idle
	count *metrics.Metrics
	bytes int64
	last  func() // called before the headers are sent; nil for nothing to do
	close bool   // close the connection after this response
	begin func() // called when the headers are sent; nil for nothing to do

	mu     sync.Mutex
	status int
	ended  error // why the response was cut off; nil if it was not
}

// WriteHeader does nothing if the response was cut off.
func (w *response) WriteHeader(status int) {
	if status >= http.StatusOK {
		w.finish()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended != nil {
		return
	}
	if status >= http.StatusOK {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// finish completes the headers, once, before they are sent.
func (w *response) finish() {
	if last := w.last; last != nil {
		w.last = nil
		last()
	}
	if begin := w.begin; begin != nil {
		w.begin = nil
		begin()
	}
	if w.close && w.bytes == 0 {
		w.Header().Set("Connection", "close")
	}
}

func (w *response) Write(p []byte) (int, error) {
	w.finish()
	if err := w.permit(); err != nil {
		return 0, err
	}
	w.idle.beforeWrite()
	w.idle.writing.begin()
	n, err := w.ResponseWriter.Write(p)
	w.idle.writing.end(n)
	w.bytes += int64(n)
	w.count.Sent(int64(n))
	if err != nil {
		return n, errors.Join(errClient, err)
	}
	return n, nil
}

func (w *response) permit() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended == nil && w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ended
}

// meter counts the bytes that the client sends.
type meter struct {
	src io.Reader
	c   *call
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.src.Read(p)
	m.c.received(int64(n))
	return n, err
}

// received counts body bytes of the client. The metrics have them at once: in a
// transfer that takes long, they would otherwise all be those of its last
// moment.
func (c *call) received(n int64) {
	c.in.Add(n)
	c.server.Metrics.Received(n)
}

var errClient = errors.New("the client disconnected")

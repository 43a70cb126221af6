package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	region     = "us-east-1"
	bucket     = "bench"
	objects    = 4 // of each size
	warmUpSize = 1 << 20
)

// cell is one line of the table.
type cell struct {
	method  string
	size    int64
	clients int
}

func (c cell) label() (string, int) { return c.method + " " + formatSize(c.size), c.clients }

// result holds the measurements of a cell at a target, over all rounds.
type result struct {
	took      time.Duration
	cpu       time.Duration // of the target's processes
	peakRSS   int64         // of the target's processes, in bytes
	bytes     int64
	latencies []time.Duration
	err       error // the first error; if set, the rest is invalid
}

func (r *result) add(other result) {
	r.took += other.took
	r.cpu += other.cpu
	r.peakRSS = max(r.peakRSS, other.peakRSS)
	r.bytes += other.bytes
	r.latencies = append(r.latencies, other.latencies...)
	if r.err == nil {
		r.err = other.err
	}
}

func (r *result) throughput() float64 { return float64(r.bytes) / (1 << 20) / r.took.Seconds() }

func (r *result) requests() float64 { return float64(len(r.latencies)) / r.took.Seconds() }

func (r *result) cpuPerGiB() float64 { return r.cpu.Seconds() / (float64(r.bytes) / (1 << 30)) }

func (r *result) cpuPerRequest() float64 {
	return float64(r.cpu.Microseconds()) / float64(len(r.latencies))
}

func (r *result) percentiles() (p50, p99 time.Duration) {
	slices.Sort(r.latencies)
	n := len(r.latencies)
	return r.latencies[n/2], r.latencies[n*99/100]
}

// measure loads the target for a time, after a warm-up in which the same
// number of clients open their connections. It deletes the uploaded objects
// directly at the store.
func (c cell) measure(ctx context.Context, t, store *target, length time.Duration) result {
	warm := c
	warm.size = min(c.size, warmUpSize)
	if err := errors.Join(c.prepare(ctx, t), warm.prepare(ctx, t)); err != nil {
		return result{err: err}
	}

	r := warm.load(ctx, t, length/4)
	if r.err == nil {
		t.resetPeakRSS()
		before := t.cpu()
		r = c.load(ctx, t, length)
		r.cpu, r.peakRSS = t.cpu()-before, t.peakRSS()
	}

	if c.method == http.MethodPut {
		r.err = errors.Join(r.err, c.remove(ctx, t, store), warm.remove(ctx, t, store))
	}
	return r
}

// load keeps the cell's clients busy for a time. Each client then finishes
// its current request, and all requests up to then count. A client stops at
// its first error.
func (c cell) load(ctx context.Context, t *target, length time.Duration) result {
	var total result
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := time.Now()
	for n := range c.clients {
		wg.Go(func() {
			var own result
			for own.err == nil && (len(own.latencies) == 0 || time.Since(start) < length) {
				begin := time.Now()
				if own.err = c.request(ctx, t, n, c.method); own.err == nil {
					own.latencies = append(own.latencies, time.Since(begin))
					own.bytes += c.size
				}
			}
			mu.Lock()
			defer mu.Unlock()
			total.add(own)
		})
	}

	wg.Wait()
	total.took = time.Since(start)
	return total
}

// prepare stores the objects to read, through the target itself.
func (c cell) prepare(ctx context.Context, t *target) error {
	if c.method != http.MethodGet || t.prepared[c.size] {
		return nil
	}
	for n := range objects {
		if err := c.request(ctx, t, n, http.MethodPut); err != nil {
			return err
		}
	}
	t.prepared[c.size] = true
	return nil
}

// remove deletes the objects that the cell's clients uploaded, because the
// store keeps them in memory.
func (c cell) remove(ctx context.Context, t, store *target) error {
	for n := range c.clients {
		if _, err := store.do(ctx, http.MethodDelete, c.path(t, n), nil, 0); err != nil {
			return err
		}
	}
	return nil
}

// path returns the path that client n of the cell uploads to or downloads
// from.
func (c cell) path(t *target, n int) string {
	if c.method == http.MethodPut {
		return fmt.Sprintf("/%s/%s-put-%d-%d", bucket, t.name, c.size, n)
	}
	return fmt.Sprintf("/%s/%s-%d-%d", bucket, t.name, c.size, n%objects)
}

func (c cell) request(ctx context.Context, t *target, n int, method string) error {
	var body io.Reader
	if method == http.MethodPut {
		body = &endless{left: c.size}
	}
	got, err := t.do(ctx, method, c.path(t, n), body, c.size)
	if err == nil && method == http.MethodGet && got != c.size {
		return fmt.Errorf("%d bytes came, not %d", got, c.size)
	}
	return err
}

// do sends a signed request and reads the whole response. It returns the
// length of the response body.
func (t *target) do(ctx context.Context, method, path string, body io.Reader, length int64) (int64, error) {
	resp, err := t.send(ctx, method, path, nil, body, length)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return discard(resp.Body)
}

// send sends a signed request. It returns an error unless the response
// reports success.
func (t *target) send(
	ctx context.Context,
	method, path string,
	header http.Header,
	body io.Reader,
	length int64,
) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, t.url+path, body)
	if err != nil {
		return nil, err
	}

	maps.Copy(r.Header, header)
	if body != nil {
		r.ContentLength = length
	}

	r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
	creds := aws.Credentials{AccessKeyID: t.access, SecretAccessKey: t.secret}
	if err := signer.SignHTTP(ctx, creds, r, "UNSIGNED-PAYLOAD", "s3", region, time.Now()); err != nil {
		return nil, err
	}

	resp, err := t.client.Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		text := make([]byte, 300)
		n, _ := io.ReadFull(resp.Body, text)
		return nil, fmt.Errorf("answered %s: %s", resp.Status, text[:n])
	}

	return resp, nil
}

// discard reads to the end, in large blocks.
func discard(r io.Reader) (int64, error) {
	buf := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf[:])
}

var buffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

var signer = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })

// noise is the content of all bodies, repeated as needed.
var noise = func() []byte {
	b := make([]byte, 1<<20)
	rand.Read(b)
	return b
}()

// endless is a body of left bytes that is not held in memory.
type endless struct{ left int64 }

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), e.left)], noise)
	e.left -= int64(n)
	return n, nil
}

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	region  = "us-east-1"
	bucket  = "bench"
	objects = 4 // of each size
)

// cell is one line of the table.
type cell struct {
	method  string
	size    int64
	clients int
}

// result is what was measured of a cell, over all rounds.
type result struct {
	took      time.Duration
	cpu       time.Duration // of the target's processes
	bytes     int64
	latencies []time.Duration
}

func (r *result) add(other result) {
	r.took += other.took
	r.cpu += other.cpu
	r.bytes += other.bytes
	r.latencies = append(r.latencies, other.latencies...)
}

func (r *result) throughput() float64 { return float64(r.bytes) / (1 << 20) / r.took.Seconds() }

func (r *result) cpuPerGiB() float64 { return r.cpu.Seconds() / (float64(r.bytes) / (1 << 30)) }

func (r *result) cpuPerRequest() float64 {
	return float64(r.cpu.Microseconds()) / float64(len(r.latencies))
}

func (r *result) percentiles() (p50, p99 time.Duration) {
	slices.Sort(r.latencies)
	n := len(r.latencies)
	return r.latencies[n/2], r.latencies[n*99/100]
}

// measure keeps the cell's clients busy for a time. Each finishes the request it is at, and what all have done counts
// until then.
func (c cell) measure(ctx context.Context, t *target, length time.Duration) (result, error) {
	if err := c.prepare(ctx, t); err != nil {
		return result{}, err
	}
	var total result
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failure error
	before, start := t.cpu(), time.Now()
	for n := range c.clients {
		wg.Go(func() {
			var own result
			var err error
			for err == nil && time.Since(start) < length {
				begin := time.Now()
				if err = c.request(ctx, t, n, c.method); err == nil {
					own.latencies = append(own.latencies, time.Since(begin))
					own.bytes += c.size
				}
			}
			mu.Lock()
			defer mu.Unlock()
			total.add(own)
			failure = errors.Join(failure, err)
		})
	}
	wg.Wait()
	total.took, total.cpu = time.Since(start), t.cpu()-before
	return total, failure
}

// prepare stores what is read, through the target itself, and warms up its connections.
func (c cell) prepare(ctx context.Context, t *target) error {
	key := fmt.Sprint(c.method, c.size)
	if !t.prepared[key] {
		for n := range objects {
			if err := c.request(ctx, t, n, http.MethodPut); err != nil {
				return err
			}
		}
		t.prepared[key] = true
	}
	return c.request(ctx, t, 0, c.method)
}

func (c cell) request(ctx context.Context, t *target, n int, method string) error {
	key := fmt.Sprintf("%s-%d-%d", t.name, c.size, n%objects)
	if c.method == http.MethodPut {
		key = fmt.Sprintf("%s-put-%d-%d", t.name, c.size, n)
	}
	var body io.Reader
	if method == http.MethodPut {
		body = &endless{left: c.size}
	}
	got, err := t.do(ctx, method, "/"+bucket+"/"+key, body, c.size)
	if err == nil && method == http.MethodGet && got != c.size {
		return fmt.Errorf("%d bytes came, not %d", got, c.size)
	}
	return err
}

// do sends a signed request and reads the answer to its end. It returns the length of the answer's body.
func (t *target) do(ctx context.Context, method, path string, body io.Reader, length int64) (int64, error) {
	r, err := http.NewRequestWithContext(ctx, method, t.url+path, body)
	if err != nil {
		return 0, err
	}
	if body != nil {
		r.ContentLength = length
	}
	r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
	creds := aws.Credentials{AccessKeyID: t.access, SecretAccessKey: t.secret}
	if err := signer.SignHTTP(ctx, creds, r, "UNSIGNED-PAYLOAD", "s3", region, time.Now()); err != nil {
		return 0, err
	}
	resp, err := t.client.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		text := make([]byte, 300)
		n, _ := io.ReadFull(resp.Body, text)
		return 0, fmt.Errorf("answered %s: %s", resp.Status, text[:n])
	}
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 256<<10))
}

var signer = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })

// noise is what bodies are made of, over and over.
var noise = func() []byte {
	b := make([]byte, 1<<20)
	rand.Read(b)
	return b
}()

// endless is a body of left bytes that takes no memory.
type endless struct{ left int64 }

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), e.left)], noise)
	e.left -= int64(n)
	return n, nil
}

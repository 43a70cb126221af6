package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
)

// sample is what one round measured at one target.
type sample struct {
	took      time.Duration
	cpu       time.Duration // of the target's processes
	bytes     int64
	mallocs   int64 // allocations of the target, -1 if it does not count them
	latencies []time.Duration
}

// perRequest returns the CPU time of a request in microseconds.
func (s sample) perRequest() float64 { return s.cpu.Seconds() * 1e6 / float64(len(s.latencies)) }

// perGiB returns the CPU time of a GiB in seconds.
func (s sample) perGiB() float64 { return s.cpu.Seconds() / float64(s.bytes) * (1 << 30) }

// cost returns the CPU time in the unit of the cell.
func (s sample) cost(c cell) float64 {
	if c.bulk() {
		return s.perGiB()
	}
	return s.perRequest()
}

// endpoint returns the endpoint of the target that the cell needs. ok is
// false if it has none.
func (c cell) endpoint(t *target) (e endpoint, ok bool) {
	e = t.plain
	if c.tls {
		e = t.secure
	}
	return e, e.addr != ""
}

// measure loads a target with a number of clients for some time, after a
// warm-up of a quarter of it. Each client ends the request that it has
// begun, so that the sample has whole requests only.
func (c cell) measure(ctx context.Context, t *target, clients int, length time.Duration) (sample, error) {
	e, _ := c.endpoint(t)
	if err := c.prepare(ctx, t); err != nil {
		return sample{}, err
	}

	workers := make([]*worker, clients)
	for n := range workers {
		w, err := c.newWorker(ctx, t, e, n)
		if err != nil {
			return sample{}, err
		}
		defer w.conn.close()
		workers[n] = w
	}
	if _, err := run(workers, length/4); err != nil {
		return sample{}, err
	}

	mallocs, err := t.startCounting(ctx)
	if err != nil {
		return sample{}, err
	}
	pids := e.pids()
	before, start := cpuOf(pids), time.Now()
	latencies, err := run(workers, length)
	s := sample{took: time.Since(start), cpu: cpuOf(pids) - before, latencies: latencies, mallocs: -1}
	if err != nil {
		return s, err
	}

	s.bytes = c.moved() * int64(len(latencies))
	if mallocs >= 0 && !c.tls {
		after, err := t.countMallocs(ctx)
		if err != nil {
			return s, err
		}
		s.mallocs = after - mallocs
	}
	return s, nil
}

// run keeps the workers busy for a time. Each does one request at least, and
// stops at its first error.
func run(workers []*worker, length time.Duration) (latencies []time.Duration, err error) {
	var all sync.WaitGroup
	var mu sync.Mutex
	start := time.Now()
	for _, w := range workers {
		all.Go(func() {
			own := make([]time.Duration, 0, 1<<14)
			for begin := start; len(own) == 0 || begin.Sub(start) < length; {
				if failure := w.once(); failure != nil {
					mu.Lock()
					err = failure
					mu.Unlock()
					return
				}
				now := time.Now()
				own = append(own, now.Sub(begin))
				begin = now
			}

			mu.Lock()
			latencies = append(latencies, own...)
			mu.Unlock()
		})
	}

	all.Wait()
	return latencies, err
}

// worker is a client with one connection.
type worker struct {
	conn *connection
	once func() error // does what is measured, once
}

// objects is the number of objects that are read in turn.
const objects = 4

func (c cell) newWorker(ctx context.Context, t *target, e endpoint, n int) (*worker, error) {
	conn, err := e.dial(ctx)
	if err != nil {
		return nil, err
	}
	w := &worker{conn: conn}
	if c.parts && c.method == http.MethodPut {
		path := fmt.Sprintf("/%s/put-parts-%d", t.bucket, n)
		w.once = func() error { return conn.putParts(ctx, t, e, path, c.size) }
		return w, nil
	}

	var requests []*request
	for i := range objects {
		r, err := t.sign(ctx, e, c.message(t, n, i))
		if err != nil {
			conn.close()
			return nil, err
		}
		requests = append(requests, r)
	}

	turn := n
	w.once = func() error {
		turn++
		resp, err := conn.do(requests[turn%objects], nil)
		if want := c.moved(); err == nil && c.method == http.MethodGet && want > 0 && resp.length != want {
			return fmt.Errorf("%d bytes came, not %d", resp.length, want)
		}
		return err
	}
	return w, nil
}

// message returns the request of client n for object i.
func (c cell) message(t *target, n, i int) message {
	switch {
	case c.listed > 0:
		return message{method: http.MethodGet, path: "/" + t.bucket + "-list?list-type=2&encoding-type=url"}
	case c.method == http.MethodPut:
		bucket := t.bucket
		if c.reuse {
			bucket += "-reuse"
		}
		return uploadMessage(fmt.Sprintf("/%s/put-%d-%d", bucket, c.size, n), c.size, checksum.Named(c.checksum))
	}

	m := message{method: c.method, path: c.path(t, i)}
	if c.ranged > 0 {
		from := c.size / 2 // in the middle, in the third part of four
		m.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", from, from+c.ranged-1)}}
	}
	return m
}

// path returns the path of object i to read.
func (c cell) path(t *target, i int) string {
	kind := "single"
	if c.parts {
		kind = "parts"
	}
	return fmt.Sprintf("/%s/%s-%d-%d", t.bucket, kind, c.size, i)
}

// prepare stores the objects to read or to list, through the target itself,
// and only once.
func (c cell) prepare(ctx context.Context, t *target) error {
	paths := []string{}
	for i := range objects {
		paths = append(paths, c.path(t, i))
	}

	size := c.size
	switch {
	case c.listed > 0:
		size, paths = 4<<10, nil
		for i := range c.listed {
			paths = append(paths, fmt.Sprintf("/%s-list/photos/2026/11/IMG_%06d.jpg", t.bucket, i))
		}
	case c.method == http.MethodPut:
		return nil
	}

	if t.prepared[paths[0]] {
		return nil
	}
	t.prepared[paths[0]] = true
	if c.parts {
		return t.forAll(ctx, paths, func(conn *connection, path string) error {
			return conn.putParts(ctx, t, t.plain, path, size)
		})
	}
	return t.store(ctx, paths, size)
}

// store stores an object at each path.
func (t *target) store(ctx context.Context, paths []string, size int64) error {
	return t.forAll(ctx, paths, func(conn *connection, path string) error {
		_, err := conn.exchange(ctx, t, t.plain, uploadMessage(path, size, nil), nil)
		return err
	})
}

// forAll calls do for each path, with one connection.
func (t *target) forAll(ctx context.Context, paths []string, do func(*connection, string) error) error {
	conn, err := t.plain.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.close()

	for _, path := range paths {
		if err := do(conn, path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// exchange signs a message and does the request.
func (c *connection) exchange(
	ctx context.Context, t *target, e endpoint, m message, body *bytes.Buffer,
) (response, error) {
	r, err := t.sign(ctx, e, m)
	if err != nil {
		return response{}, err
	}
	if body == nil {
		return c.do(r, nil)
	}
	return c.do(r, body)
}

// putParts uploads a multipart object: one request to create it, one for
// each part, and one to complete it.
func (c *connection) putParts(ctx context.Context, t *target, e endpoint, path string, size int64) error {
	var answer bytes.Buffer
	create := message{method: http.MethodPost, path: path + "?uploads="}
	if _, err := c.exchange(ctx, t, e, create, &answer); err != nil {
		return err
	}
	var created struct{ UploadId string }
	if err := xml.Unmarshal(answer.Bytes(), &created); err != nil {
		return err
	}

	var list strings.Builder
	list.WriteString("<CompleteMultipartUpload>")
	for number := 1; size > 0; number++ {
		length := min(size, partSize)
		size -= length
		part := fmt.Sprintf("%s?partNumber=%d&uploadId=%s", path, number, created.UploadId)
		resp, err := c.exchange(ctx, t, e, uploadMessage(part, length, nil), nil)
		if err != nil {
			return err
		}
		fmt.Fprintf(&list, "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>", number, resp.etag)
	}
	list.WriteString("</CompleteMultipartUpload>")

	answer.Reset()
	complete := message{
		method: http.MethodPost, path: path + "?uploadId=" + created.UploadId, body: []byte(list.String()), times: 1,
	}
	_, err := c.exchange(ctx, t, e, complete, &answer)
	if err == nil && !strings.Contains(answer.String(), "<ETag>") { // an error can come with status 200
		err = fmt.Errorf("completing %s: %.300s", path, answer.String())
	}
	return err
}

// percentiles returns the median and the 99th percentile of latencies.
func percentiles(latencies []time.Duration) (p50, p99 time.Duration) {
	sorted := slices.Sorted(slices.Values(latencies))
	n := len(sorted)
	return sorted[n/2], sorted[n*99/100]
}

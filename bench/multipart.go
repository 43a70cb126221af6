package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// Settings of multipart uploads and ranged downloads, close to those of
// SDKs.
const (
	partSize    = int64(8 << 20)
	partClients = 8
)

// partsUpload uploads one multipart object. The rows after it read this
// object.
type partsUpload struct{ size int64 }

func (u partsUpload) label() (string, int) {
	return "multipart upload of " + formatSize(u.size), partClients
}

func (u partsUpload) path(t *target) string { return "/" + bucket + "/" + t.name + "-parts" }

func (u partsUpload) measure(ctx context.Context, t, store *target, _ time.Duration) result {
	if _, err := store.do(
		ctx,
		http.MethodDelete,
		u.path(t),
		nil,
		0,
	); err != nil { // the store keeps the object in memory
		return result{err: err}
	}
	t.resetPeakRSS()
	before, start := t.cpu(), time.Now()
	r, err := u.upload(ctx, t)
	r.took, r.cpu, r.peakRSS = time.Since(start), t.cpu()-before, t.peakRSS()
	r.err = err
	return r
}

func (u partsUpload) upload(ctx context.Context, t *target) (result, error) {
	var created struct{ UploadId string }
	if err := t.exchange(ctx, u.path(t)+"?uploads=", nil, &created); err != nil {
		return result{}, err
	}

	etags := make([]string, (u.size+partSize-1)/partSize)
	r := inParallel(len(etags), func(i int) (int64, error) {
		length := min(partSize, u.size-int64(i)*partSize)
		path := fmt.Sprintf("%s?partNumber=%d&uploadId=%s", u.path(t), i+1, created.UploadId)
		resp, err := t.send(ctx, http.MethodPut, path, nil, &endless{left: length}, length)
		if err != nil {
			return 0, err
		}
		etags[i] = resp.Header.Get("Etag")
		return length, resp.Body.Close()
	})
	if r.err != nil {
		return r, r.err
	}

	list := bytes.NewBufferString("<CompleteMultipartUpload>")
	for i, etag := range etags {
		fmt.Fprintf(list, "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>", i+1, etag)
	}

	list.WriteString("</CompleteMultipartUpload>")
	var done struct{ ETag string }
	err := t.exchange(ctx, u.path(t)+"?uploadId="+created.UploadId, list.Bytes(), &done)
	if err == nil && done.ETag == "" {
		err = errors.New("CompleteMultipartUpload gave no ETag")
	}

	return r, err
}

// exchange posts a document and parses the one in the response.
func (t *target) exchange(ctx context.Context, path string, body []byte, answer any) error {
	resp, err := t.send(ctx, http.MethodPost, path, nil, bytes.NewReader(body), int64(len(body)))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return xml.NewDecoder(resp.Body).Decode(answer)
}

// inParallel calls one with each number below n, partClients calls at a
// time. Each call returns the bytes that it moved.
func inParallel(n int, one func(i int) (int64, error)) result {
	var total result
	var mu sync.Mutex
	var all sync.WaitGroup
	turns := make(chan struct{}, partClients)
	for i := range n {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			begin := time.Now()
			moved, err := one(i)
			mu.Lock()
			defer mu.Unlock()
			total.add(result{bytes: moved, latencies: []time.Duration{time.Since(begin)}, err: err})
		})
	}

	all.Wait()
	return total
}

// partsDownload reads the object of partsUpload in ranges.
type partsDownload struct{ size int64 }

func (d partsDownload) label() (string, int) {
	return "download of " + formatSize(d.size) + " in ranges", partClients
}

func (d partsDownload) measure(ctx context.Context, t, _ *target, _ time.Duration) result {
	t.resetPeakRSS()
	before, start := t.cpu(), time.Now()
	r := inParallel(int((d.size+partSize-1)/partSize), func(i int) (int64, error) {
		from := int64(i) * partSize
		return t.read(ctx, partsUpload(d).path(t), from, min(partSize, d.size-from))
	})
	r.took, r.cpu, r.peakRSS = time.Since(start), t.cpu()-before, t.peakRSS()
	return r
}

// read reads a range.
func (t *target) read(ctx context.Context, path string, from, length int64) (int64, error) {
	header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", from, from+length-1)}}
	resp, err := t.send(ctx, http.MethodGet, path, header, nil, 0)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := discard(resp.Body)
	if err == nil && (n != length || resp.StatusCode != http.StatusPartialContent) {
		err = fmt.Errorf("%d bytes came with status %d, not %d", n, resp.StatusCode, length)
	}
	return n, err
}

// randomReads reads short ranges at random offsets of the object of
// partsUpload.
type randomReads struct{ size, length int64 }

func (c randomReads) label() (string, int) {
	return formatSize(c.length) + " at random in " + formatSize(c.size), partClients
}

func (c randomReads) measure(ctx context.Context, t, _ *target, length time.Duration) result {
	t.resetPeakRSS()
	before, start := t.cpu(), time.Now()
	var r result
	var mu sync.Mutex
	var all sync.WaitGroup
	for range partClients {
		all.Go(func() {
			var own result
			for own.err == nil && time.Since(start) < length {
				var moved int64
				from := randomBelow(c.size - c.length)
				begin := time.Now()
				moved, own.err = t.read(ctx, partsUpload{c.size}.path(t), from, c.length)
				own.bytes += moved
				own.latencies = append(own.latencies, time.Since(begin))
			}

			mu.Lock()
			defer mu.Unlock()
			r.add(own)
		})
	}

	all.Wait()
	r.took, r.cpu, r.peakRSS = time.Since(start), t.cpu()-before, t.peakRSS()
	return r
}

func randomBelow(n int64) int64 {
	var b [8]byte
	rand.Read(b[:])
	return int64(binary.LittleEndian.Uint64(b[:]) % uint64(n))
}

// Settings of the memory measurement with multipart uploads.
const (
	memoryParts    = 32
	memoryPartSize = int64(64 << 20)
	largestPart    = int64(5<<30) - 9216
)

// partsMemory sends 32 parts of 64 MiB at a time through a new proxy, and
// then one part of the largest allowed size. The parts go to a sink.
func partsMemory(ctx context.Context, l *lab, o options) error {
	up, err := l.startProxy(ctx, "memory-parts", l.newSink())
	if err != nil {
		return err
	}

	var all sync.WaitGroup
	errs := make([]error, memoryParts)
	start := time.Now()
	for n := range memoryParts {
		all.Go(func() {
			p := &pace{src: &endless{left: memoryPartSize}, start: start, rate: o.rate << 20}
			errs[n] = up.part(ctx, n+1, p, memoryPartSize)
		})
	}

	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}

	peak := up.peakRSS()
	fmt.Printf(
		"%d UploadParts of %s at a time: peak RSS of cmekproxy %.1f MiB (limit %d)\n",
		memoryParts,
		formatSize(memoryPartSize),
		float64(peak)/(1<<20),
		memoryLimit>>20,
	)
	if peak > memoryLimit {
		return fmt.Errorf("UploadPart: more than %d MiB", memoryLimit>>20)
	}
	if !o.full {
		return nil
	}

	up.resetPeakRSS()
	start = time.Now()
	if err := up.part(ctx, 1, &endless{left: largestPart}, largestPart); err != nil {
		return err
	}

	fmt.Printf(
		"one UploadPart of 5 GiB less 9,216 bytes: %.0f s, peak RSS %.1f MiB\n",
		time.Since(start).Seconds(),
		float64(up.peakRSS())/(1<<20),
	)
	return nil
}

func (t *target) part(ctx context.Context, number int, body io.Reader, length int64) error {
	_, err := t.do(ctx, http.MethodPut, fmt.Sprintf("/%s/parts?partNumber=%d&uploadId=u", bucket, number), body, length)
	return err
}

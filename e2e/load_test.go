package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
)

const (
	readers      = 50
	downloads    = 4
	uploads      = 4
	downloadRate = 2 * mib // bytes a second
	uploadRate   = mib / 2
)

// load is the traffic while a key is revoked.
type load struct {
	stage  *stage
	bucket string
	cancel context.CancelFunc
	ctx    context.Context //nolint:containedctx // of all traffic
	all    sync.WaitGroup

	lastByte atomic.Pointer[arrival]
	reads    atomic.Int64
	codes    sync.Map // set of the S3 error codes that readers received

	mu       sync.Mutex
	finished []string // transfers that succeeded; none should
	failed   int      // transfers that failed
	uploaded atomic.Int64
	round    string
}

var rounds atomic.Int64

func (s *stage) startLoad(t *testing.T, bucket string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{stage: s, bucket: bucket, ctx: ctx, cancel: cancel, round: fmt.Sprint("round-", rounds.Add(1), "-")}
	t.Cleanup(cancel)
	shared := s.api(&http.Transport{MaxIdleConnsPerHost: readers})
	for i := range readers {
		l.all.Go(func() { l.read(shared, i) })
	}

	slow := s.api(&http.Transport{DialContext: narrow.DialContext, DisableKeepAlives: true, ReadBufferSize: 4096})
	for range downloads {
		l.all.Go(func() { l.download(slow) })
	}

	for i := range uploads {
		l.all.Go(func() { l.upload(fmt.Sprint(l.round, i)) })
	}
	return l
}

// narrow dials with a small receive buffer, so that unread data stays with
// the sender.
var narrow = &net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
	var failure error
	err := raw.Control(func(fd uintptr) {
		failure = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 32<<10)
	})
	return errors.Join(err, failure)
}}

// read reads small objects in a loop.
func (l *load) read(api *s3.Client, i int) {
	for n := i; l.ctx.Err() == nil; n++ {
		out, err := api.GetObject(l.ctx, &s3.GetObjectInput{Bucket: &l.bucket, Key: aws.String(fmt.Sprint("small-", n%smallObjects))})
		if err == nil {
			_, err = io.Copy(io.Discard, &seen{out.Body, l, "a small object"})
			_ = out.Body.Close()
			l.reads.Add(1)
		}
		if answer, ok := errors.AsType[smithy.APIError](err); ok {
			l.codes.Store(answer.ErrorCode(), true)
		}
		pause(l.ctx, 100*time.Millisecond)
	}
}

// download reads the big object slowly until the transfer breaks.
func (l *load) download(api *s3.Client) {
	out, err := api.GetObject(l.ctx, &s3.GetObjectInput{Bucket: &l.bucket, Key: aws.String("big")})
	if err == nil {
		_, err = io.Copy(io.Discard, &paced{r: &seen{out.Body, l, "a download"}, rate: downloadRate, ctx: l.ctx})
		_ = out.Body.Close()
	}
	l.end("a download", err)
}

// upload sends an object slowly until the transfer breaks.
func (l *load) upload(key string) {
	size := l.stage.big
	signed, err := s3.NewPresignClient(l.stage.api(nil)).PresignPutObject(l.ctx, &s3.PutObjectInput{Bucket: &l.bucket, Key: &key, ContentLength: &size})
	if err != nil {
		l.end("an upload", nil)
		return
	}

	body := &paced{r: &counting{&pattern{size: size}, &l.uploaded}, rate: uploadRate, ctx: l.ctx}
	r, err := http.NewRequestWithContext(l.ctx, http.MethodPut, signed.URL, io.NopCloser(body))
	if err != nil {
		l.end("an upload", nil)
		return
	}

	r.ContentLength, r.Header = size, signed.SignedHeader
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
	if err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
	}
	l.end("an upload", err)
}

func (l *load) end(what string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.finished = append(l.finished, what)
		return
	}
	l.failed++
}

// mustRun fails the test unless all traffic is running.
func (l *load) mustRun(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reads.Load() < readers || l.uploaded.Load() == 0 || l.failed > 0 || len(l.finished) > 0 {
		t.Fatalf("%d reads, %d bytes uploaded, %d transfers broken, %v finished", l.reads.Load(), l.uploaded.Load(), l.failed, l.finished)
	}
}

// arrival is the time when a client last read plaintext, and the source of
// that plaintext.
type arrival struct {
	at time.Time
	of string
}

func (l *load) last() arrival { return *l.lastByte.Load() }

// stop ends the remaining traffic and checks the results: no transfer
// succeeded, each one broke before stop was called, no upload was stored,
// and readers received the right error code.
func (l *load) stop(t *testing.T, a act) {
	t.Helper()
	l.mu.Lock()
	want := downloads + uploads
	if a.part != nil && a.part.old {
		want = downloads // uploads use the newest version
	}

	if l.failed != want || len(l.finished) > 0 {
		t.Errorf("%d transfers broken off, want %d; finished: %v", l.failed, want, l.finished)
	}
	l.mu.Unlock()
	l.cancel()
	l.all.Wait()
	var codes []string
	l.codes.Range(func(code, _ any) bool { codes = append(codes, code.(string)); return true })
	if _, ok := l.codes.Load(a.code); !a.drains && (!ok || len(codes) != 1 && !a.away) { // a closed port has none
		t.Errorf("readers were answered %v, want %s", codes, a.code)
	}

	past := newGoSDK(l.stage.store.store)
	kept, err := past.list(l.bucket, l.round)
	if err != nil || len(kept) > 0 {
		t.Errorf("uploads that were broken off are stored: %v, %v", kept, err)
	}
}

// seen records when plaintext arrives.
type seen struct {
	io.Reader
	l  *load
	of string
}

func (s *seen) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if n > 0 {
		s.l.lastByte.Store(&arrival{time.Now(), s.of}) // readers race here; the difference is tiny
	}
	return n, err
}

// counting counts the bytes read.
type counting struct {
	io.Reader
	n *atomic.Int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// paced limits reads to rate bytes per second.
type paced struct {
	r     io.Reader
	rate  int
	ctx   context.Context //nolint:containedctx // ends a pause
	start time.Time
	read  int64
}

func (p *paced) Read(b []byte) (int, error) {
	if p.start.IsZero() {
		p.start = time.Now()
	}
	pause(p.ctx, time.Until(p.start.Add(time.Duration(p.read)*time.Second/time.Duration(p.rate))))
	if p.ctx.Err() != nil {
		return 0, p.ctx.Err()
	}
	n, err := p.r.Read(b[:min(len(b), 16<<10)])
	p.read += int64(n)
	return n, err
}

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// TestStampede has 1,000 clients request one object at the same time, while
// its data key is not cached.
func TestStampede(t *testing.T) {
	if !selected("go-sdk") {
		t.Skip("not selected")
	}
	s := newStage(t)
	s.configure(setting{time.Minute, 0})
	calls := func() int { return s.customer.calls("Decrypt") }
	s.awaitService(t)
	awaitIdle(t, s)
	purge(t, s)
	before := calls()
	unwraps := func(what string) float64 {
		return s.metric(t, "cmekproxy_kms_duration_seconds_"+what, `operation="unwrap"`)
	}

	asked, waited := unwraps("count"), unwraps("sum")
	api := s.api(&http.Transport{MaxIdleConnsPerHost: 1000})
	var all sync.WaitGroup
	begin := make(chan struct{})
	for range 1000 {
		all.Go(func() {
			<-begin
			out, err := api.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String("small-3")})
			if err != nil {
				t.Error(err)
				return
			}
			defer out.Body.Close()
			if n, err := io.Copy(io.Discard, out.Body); n != 64<<10 || err != nil {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
	}

	close(begin)
	all.Wait()
	n, took := calls()-before, unwraps("sum")-waited
	if unwraps("count")-asked != 1 || n != 1 && took < 2 { // an attempt without a response within 2 s is retried
		t.Errorf("%v unwraps by %d KMS calls in %.1f s for 1,000 clients of one object, want 1", unwraps("count")-asked, n, took)
	}
	t.Logf("1,000 parallel GETs of one object: %d KMS call in %.3f s", n, took)
	hotObjects(t, s)
}

// awaitIdle waits until no request is being served. A request whose client has
// its answer may still hold a lease, and a purge would renew that by a KMS
// call of its own.
func awaitIdle(t *testing.T, s *stage) {
	t.Helper()
	deadline := time.Now().Add(startTimeout)
	for s.metric(t, "cmekproxy_requests_in_flight") != 0 {
		if time.Now().After(deadline) {
			t.Fatal("requests are still being served")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func purge(t *testing.T, s *stage) {
	t.Helper()
	resp, err := http.Post(s.admin+"/admin/purge", "", strings.NewReader(""))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	_ = resp.Body.Close()
}

// hotObjects reads a set of objects repeatedly within the TTL.
func hotObjects(t *testing.T, s *stage) {
	objects, gets := 100, 10_000
	if s.full {
		objects, gets = 1000, 100_000
	}

	set := setting{time.Minute, 10 * time.Second}
	s.configure(set)
	api := s.api(nil)
	signed := make([]string, objects) // presigned URLs, because an SDK uses more CPU than the proxy
	for i := range objects {
		key := fmt.Sprint("hot-", i)
		s.put(api, s.bucket, key, 1<<10)
		url, err := s3.NewPresignClient(api).PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.bucket, Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		signed[i] = url.URL
	}

	purge(t, s)
	before := s.customer.calls("Decrypt")
	start := time.Now()
	var next atomic.Int64
	var all sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	for range 16 {
		all.Go(func() {
			for n := next.Add(1); n <= int64(gets); n = next.Add(1) {
				resp, err := client.Get(signed[n%int64(objects)])
				if err != nil {
					t.Error(err)
					return
				}
				size, err := io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK || size != 1<<10 || err != nil {
					t.Errorf("%s, %d bytes, %v", resp.Status, size, err)
					return
				}
			}
		})
	}

	all.Wait()
	took := time.Since(start)
	calls := s.customer.calls("Decrypt") - before
	// A DEK stays in the cache for at least 85 % of the TTL, and the key is
	// probed every 10 s.
	lives, probes := int(took/(set.ttl*85/100))+1, int(took/set.probe)+1
	if calls > objects*lives+probes {
		t.Errorf("%d KMS calls for %d GETs of %d objects in %v, want at most %d", calls, gets, objects, took, objects*lives+probes)
	}
	t.Logf("%d GETs of %d objects in %.1f s at ttl %v: %d KMS calls (%d probes at most)", gets, objects, took.Seconds(), set.ttl, calls, probes)
}

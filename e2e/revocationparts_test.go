package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// The buckets of acts that revoke a part of a key.
const (
	keptBucket     = "kept"     // uses the same key as stage.bucket
	versionsBucket = "versions" // uses a key file with two versions
)

// part is what an act revokes, and the bucket where reads must continue.
type part struct {
	bucket, beside, key string
	old                 bool // an older version of the key; uploads use the newest
}

// keys runs `cmekproxy keys` with the key file.
func (s *stage) keys(args ...string) {
	s.t.Helper()
	if _, err := runTool(environment(), nil, tool(s.t, "cmekproxy"), append(append([]string{"keys"}, args...), s.keyFile)...); err != nil {
		s.t.Fatal(err)
	}
}

// addRule inserts a rule before the others.
func (s *stage) addRule(rule string) {
	s.t.Helper()
	text, err := os.ReadFile(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	changed := strings.Replace(string(text), "  rules:\n", "  rules:\n    - "+rule+"\n", 1)
	if err := os.WriteFile(s.config, []byte(changed), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// prepareParts stores the objects that clients read while a part of a key is
// revoked: objects that use two versions of one key, and a second bucket
// with the same key as stage.bucket.
func (s *stage) prepareParts() {
	s.t.Helper()
	s.fill(versionsBucket)
	s.keys("rotate")
	if err := newGoSDK(s.endpoint).createBucket(keptBucket); err != nil {
		s.t.Fatal(err)
	}
	api := newGoSDK(s.endpoint).s3
	for _, bucket := range []string{versionsBucket, keptBucket} {
		s.put(api, bucket, "beside-small", 64<<10)
		s.put(api, bucket, "beside-big", s.big)
	}
}

// beside is the traffic that must continue while a part of a key is revoked.
// It keeps reading new data keys, so that the newest wrapped data key of the
// KMS key is one of them.
type beside struct {
	cancel context.CancelFunc
	all    sync.WaitGroup
	reads  atomic.Int64
	bytes  atomic.Int64

	mu     sync.Mutex
	failed []error
}

func (s *stage) startBeside(t *testing.T, bucket string) *beside {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b := &beside{cancel: cancel}
	t.Cleanup(cancel)
	api := s.api(&http.Transport{})
	fail := func(err error) {
		if err != nil && ctx.Err() == nil {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.failed = append(b.failed, err)
		}
	}

	b.all.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			key := "beside-small"
			if n%10 == 0 { // a new object has a new data key
				key = fmt.Sprint("beside-new-", n)
				s.put(api, bucket, key, 1<<10)
			}
			out, err := api.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
			if err == nil {
				_, err = io.Copy(io.Discard, out.Body)
				_ = out.Body.Close()
				b.reads.Add(1)
			}
			fail(err)
			pause(ctx, 50*time.Millisecond)
		}
	})

	b.all.Go(func() {
		for ctx.Err() == nil { // slowly, in a loop
			out, err := api.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("beside-big")})
			if err == nil {
				_, err = io.Copy(io.Discard, &paced{r: &counting{out.Body, &b.bytes}, rate: downloadRate, ctx: ctx})
				_ = out.Body.Close()
			}
			fail(err)
		}
	})
	return b
}

// mustRunOn checks that all of the traffic has continued, and ends it.
func (b *beside) mustRunOn(t *testing.T) {
	t.Helper()
	reads, bytes := b.reads.Load(), b.bytes.Load()
	time.Sleep(time.Second)
	if b.reads.Load() == reads || b.bytes.Load() == bytes {
		t.Errorf("beside the part that was taken away: %d reads and %d bytes in the last second", b.reads.Load()-reads, b.bytes.Load()-bytes)
	}
	b.cancel()
	b.all.Wait()
	if len(b.failed) > 0 {
		t.Errorf("beside the part that was taken away, %d requests have failed: %v", len(b.failed), b.failed[0])
	}
}

// playDrain is like play, for a key that is revoked while the proxy drains.
// The proxy ends when the last transfer is cut, and is then restarted.
func (s *stage) playDrain(t *testing.T, set setting, a act, load *load, window time.Duration) {
	t.Helper()
	if err := s.proxy.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}

	time.Sleep(time.Second)
	a.take()
	taken := time.Now()
	select {
	case <-s.proxy.done:
	case <-time.After(window + startTimeout):
		t.Error("the proxy does not end, though its key is taken away")
	}

	time.Sleep(time.Until(taken.Add(window + time.Second)))
	arrived := load.last()
	last := arrived.at.Sub(taken)
	load.stop(t, a)
	if last > window+readLag {
		t.Errorf("the last byte, of %s, came after %v, at %v; the window is %v", arrived.of, last, arrived.at.UTC(), window)
	}

	a.give()
	s.startProxy()
	s.awaitService(t)
	s.rows = append(s.rows, fmt.Sprintf("| %v | %s | %s | %v | %.2f s | restarted |", set.ttl, orOff(set.probe), a.name, window, last.Seconds()))
}

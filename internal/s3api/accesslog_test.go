package s3api_test

import (
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

// Of the requests that succeed, the access log has as many as it should, and of
// those that fail all.
func TestAccessLog(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("x"))
	for _, row := range []struct {
		name          string
		every         int64
		succeed, fail int // of 10
	}{{"on", 0, 10, 10}, {"on, as a number", 1, 10, 10}, {"one in five", 5, 2, 10}, {"off", -1, 0, 10}} {
		t.Run(row.name, func(t *testing.T) {
			settings := p.api.CurrentSettings()
			settings.LogEvery = row.every
			p.api.Change(settings, nil) // while it serves
			lines := func(key string, status int) (n int) {
				before := len(p.log.String())
				for range 10 {
					if got := p.send(request{method: http.MethodGet, path: "/" + p.bucket + "/" + key}); got.StatusCode != status {
						t.Fatalf("status %d", got.StatusCode)
					}
				}
				p.wait("no request runs", func() bool { return p.api.Load().Running == 0 })
				return strings.Count(p.log.String()[before:], `"msg":"request"`)
			}
			if got := lines("k", http.StatusOK); got != row.succeed {
				t.Errorf("%d lines of requests that succeeded, want %d", got, row.succeed)
			}
			if got := lines("missing", http.StatusNotFound); got != row.fail {
				t.Errorf("%d lines of requests that failed, want %d", got, row.fail)
			}
		})
	}
}

// A change of settings is for requests that begin after it, and no request
// begins while clients, keys and rules change.
func TestChangeIsSeenAsAWhole(t *testing.T) {
	p := newProxy(t)
	settings := p.api.CurrentSettings()
	var running sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					p.send(request{method: http.MethodGet, path: "/" + p.bucket + "/missing"})
				}
			}
		})
	}

	for i := range 100 {
		next := settings
		next.MaxConcurrent = settings.MaxConcurrent + i%2
		next.Memory = int64(i%2) << 30
		rules := []keyring.Rule{{Key: "main", SealMetadata: i%2 == 0}}
		p.api.Change(next, func() {
			if err := p.keys.SetRules(rules); err != nil {
				t.Error(err)
			}
		})
		if load := p.api.Load(); load.YoungLimit != next.MaxConcurrent || load.MemoryLimit != next.Memory {
			t.Fatalf("%+v", load)
		}
	}
	close(stop)
	running.Wait()
}

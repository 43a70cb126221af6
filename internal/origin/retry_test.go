package origin_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

const slowDown = "<Error><Code>SlowDown</Code><Message>m</Message></Error>"

// flaky is a store that fails at first.
type flaky struct {
	asked  atomic.Int64
	bodies chan string
	fails  int64
	fail   http.HandlerFunc
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	_, _ = body.ReadFrom(r.Body)
	f.bodies <- body.String()
	if f.asked.Add(1) <= f.fails {
		f.fail(w, r)
	}
}

// answering fails with an answer.
func answering(status int, retryAfter, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// breaking ends the connection instead of an answer.
func breaking(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// retrying returns a Retrier in front of a store, whose pauses are as long as
// the store demands.
func retrying(t *testing.T, cfg origin.RetryConfig) *origin.Retrier {
	t.Helper()
	transport := origin.NewTransport(origin.TransportConfig{
		ConnectTimeout: long, ResponseTimeout: short, IdleTimeout: long, MaxConns: 4,
	})
	t.Cleanup(transport.CloseIdleConnections)
	cfg.Pause = func(time.Duration) time.Duration { return 0 }
	return origin.NewRetrier(transport, cfg)
}

func TestRetries(t *testing.T) {
	t.Parallel()
	silent := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	throttled := answering(503, "", slowDown)
	const streamed, resendable = "streamed", "resendable"

	for _, row := range []struct {
		name   string
		method string
		body   string
		fails  int64
		fail   http.HandlerFunc
		asked  int64 // how often
		status int   // 0 for an error
	}{
		{"GET, throttled once", "GET", "", 1, throttled, 2, 200},
		{"GET, throttled twice", "GET", "", 2, throttled, 3, 200},
		{"GET, always throttled", "GET", "", 100, throttled, 3, 503},
		{"HEAD, throttled", "HEAD", "", 1, throttled, 2, 200},
		{"GET, 429", "GET", "", 1, answering(429, "", ""), 2, 200},
		{"GET, 500", "GET", "", 1, answering(500, "", ""), 2, 200},
		{"GET, a gateway's page", "GET", "", 1, answering(502, "", "<html>"), 2, 200},
		{"GET, a broken connection", "GET", "", 1, breaking, 2, 200},
		{"GET, a timeout", "GET", "", 1, silent, 1, 0},
		{"GET, 501", "GET", "", 1, answering(501, "", "<Error><Code>NotImplemented</Code></Error>"), 1, 501},
		{"GET, refused", "GET", "", 1, answering(403, "", "<Error><Code>AccessDenied</Code></Error>"), 1, 403},
		{"GET, wrong credentials", "GET", "", 1, answering(403, "", "<Error><Code>InvalidAccessKeyId</Code></Error>"), 1, 403},
		{"GET, asked to wait for a second", "GET", "", 1, answering(503, "1", slowDown), 2, 200},
		{"GET, asked to wait for a minute", "GET", "", 1, answering(503, "60", slowDown), 1, 503},

		{"DELETE, throttled", "DELETE", "", 1, throttled, 2, 200},
		{"DELETE, 500", "DELETE", "", 1, answering(500, "", ""), 1, 500},
		{"DELETE, 503 of a gateway", "DELETE", "", 1, answering(503, "", "<html>"), 1, 503},
		{"DELETE, a broken connection", "DELETE", "", 1, breaking, 1, 0},
		{"POST, throttled", "POST", "", 1, throttled, 2, 200},
		{"POST, a broken connection", "POST", "", 1, breaking, 1, 0},
		{"PUT, throttled, a body with GetBody", "PUT", resendable, 1, throttled, 2, 200},
		{"PUT, broken, a body with GetBody", "PUT", resendable, 1, breaking, 1, 0},
		{"PUT, throttled, streamed", "PUT", streamed, 1, throttled, 1, 503},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			store := &flaky{fails: row.fails, fail: row.fail, bodies: make(chan string, 100)}
			server := serverOf(t, store.ServeHTTP)

			r := requestTo(t, row.method, server.URL+"/b/k", nil, 0)
			if row.body != "" {
				r = requestTo(t, row.method, server.URL+"/b/k", strings.NewReader(row.body), int64(len(row.body)))
			}
			if row.body == streamed {
				r.GetBody = nil
			}

			var seen atomic.Int64
			observe := func(context.Context, storefault.Kind) { seen.Add(1) }
			resp, err := retrying(t, origin.RetryConfig{Observe: observe}).RoundTrip(r)
			status := 0
			if err == nil {
				status = resp.StatusCode
				if body, err := io.ReadAll(resp.Body); err != nil || status == 503 && len(body) == 0 && row.method != "HEAD" {
					t.Errorf("the answer's body: %q, %v", body, err)
				}
				resp.Body.Close()
			}

			if status != row.status || store.asked.Load() != row.asked || seen.Load() != row.asked-1 {
				t.Errorf("%d, asked %d times, %d observed, %v; want %d after %d", status, store.asked.Load(), seen.Load(), err,
					row.status, row.asked)
			}
			for range row.asked {
				if got := <-store.bodies; got != row.body {
					t.Errorf("the store was sent %q", got)
				}
			}
		})
	}
}

// A store that is down does not get three times as many requests.
func TestRetryBudget(t *testing.T) {
	t.Parallel()
	store := &flaky{fails: 1 << 40, fail: answering(503, "", slowDown), bodies: make(chan string, 10000)}
	server := serverOf(t, store.ServeHTTP)
	retrier := retrying(t, origin.RetryConfig{Budget: 3})

	for range 200 {
		resp, err := retrier.RoundTrip(requestTo(t, "GET", server.URL+"/b/k", nil, 0))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}

	// 3, and one for each second that this takes.
	if asked := store.asked.Load(); asked < 203 || asked > 240 {
		t.Errorf("200 requests became %d", asked)
	}
}

// Nothing is repeated for a client that has gone.
func TestNoRetryWithoutAClient(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	store := &flaky{fails: 100, bodies: make(chan string, 100)}
	store.fail = func(w http.ResponseWriter, r *http.Request) {
		answering(503, "1", slowDown)(w, r)
		w.(http.Flusher).Flush()
		cancel()
	}
	server := serverOf(t, store.ServeHTTP)

	resp, err := retrying(t, origin.RetryConfig{}).RoundTrip(requestTo(t, "GET", server.URL+"/b/k", nil, 0).WithContext(ctx))
	if err == nil {
		resp.Body.Close()
	}
	if asked := store.asked.Load(); asked != 1 {
		t.Errorf("the store was asked %d times", asked)
	}
}

// Without a connection nothing was sent, so that writes are repeated too,
// but not those whose body was streamed.
func TestRetryWithoutAConnection(t *testing.T) {
	t.Parallel()
	gone := serverOf(t, func(http.ResponseWriter, *http.Request) {})
	gone.Close()

	for method, want := range map[string][]storefault.Kind{
		"GET":    {storefault.Unreachable, storefault.Unreachable},
		"DELETE": {storefault.Unreachable, storefault.Unreachable},
		"PUT":    nil,
	} {
		t.Run(method, func(t *testing.T) {
			r := requestTo(t, method, gone.URL+"/b/k", nil, 0)
			if method == "PUT" {
				r = requestTo(t, method, gone.URL+"/b/k", io.NopCloser(strings.NewReader("x")), 1)
			}

			var seen []storefault.Kind
			observe := func(_ context.Context, kind storefault.Kind) { seen = append(seen, kind) }
			resp, err := retrying(t, origin.RetryConfig{Observe: observe}).RoundTrip(r)
			if err == nil {
				resp.Body.Close()
			}
			if storefault.Of(err) == nil || !slices.Equal(seen, want) {
				t.Errorf("%v, repeated after %v, want %v", err, seen, want)
			}
		})
	}
}

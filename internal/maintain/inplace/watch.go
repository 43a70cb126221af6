package inplace

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

// SilentError means that a run was ended because a service did not answer.
// It wraps walk.ErrStop.
type SilentError struct {
	What string        // the service
	For  time.Duration // how long it did not answer
	Last error         // the last failure; nil if requests just hang
}

func (e *SilentError) Error() string {
	last := "requests hang"
	if e.Last != nil {
		last = e.Last.Error()
	}
	if fault := storefault.Of(e.Last); fault == nil || fault.Hint == "" {
		last += "; check whether it runs, and can be reached from here"
	}
	return fmt.Sprintf("%s has not answered for %s: %s", e.What, e.For.Round(time.Second), last)
}

func (*SilentError) Unwrap() error { return walk.ErrStop }

// Watch notices that a service, which is the store or a KMS, does not answer
// any request of a run. It tells that from single requests that fail while
// others are answered.
type Watch struct {
	What  string        // the service; see SilentError
	Limit time.Duration // how long the service may be silent; 0 for ever
	// Probe, if not nil, asks the service once more before the run ends.
	Probe func(context.Context) error

	mu      sync.Mutex
	waiting int       // requests that wait for the service
	heard   time.Time // the last sign of life
	since   time.Time // of the silence: the same, or the first request after it
	failing bool      // the last request that ended has failed
	last    error     // its failure
	end     func(error)
}

// probeTimeout limits a probe.
const probeTimeout = 5 * time.Second

// Start watches until the returned context ends. It is canceled with a
// *SilentError as its cause if the service is silent for too long.
func (w *Watch) Start(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	if w.Limit == 0 {
		return ctx, func() { cancel(nil) }
	}
	w.mu.Lock()
	w.end = cancel
	w.mu.Unlock()

	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				w.check(ctx)
			}
		}
	})
	return ctx, func() { cancel(nil); running.Wait() }
}

// check ends the run if the service is silent for too long.
func (w *Watch) check(ctx context.Context) {
	w.mu.Lock()
	silent := w.isSilent() && time.Since(w.since) >= w.Limit
	out := &SilentError{What: w.What, For: time.Since(w.since), Last: w.last}
	w.mu.Unlock()

	if silent && !w.probed(ctx) {
		w.end(out)
	}
}

// isSilent reports whether requests have failed or hang since the last
// sign of life.
func (w *Watch) isSilent() bool { return w.failing || w.waiting > 0 }

// probed reports whether the service answers a probe.
func (w *Watch) probed(ctx context.Context) bool {
	if w.Probe == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, min(probeTimeout, w.Limit))
	defer cancel()
	if w.Probe(ctx) != nil {
		return false
	}
	w.Answered()
	return true
}

// Answered records a sign of life.
func (w *Watch) Answered() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = time.Now()
	w.since, w.failing, w.last = w.heard, false, nil
}

// Failed records that the service did not answer a request.
func (w *Watch) Failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.isSilent() {
		w.since = time.Now()
	}
	w.failing, w.last = true, err
}

// begin records that somebody waits for the service. The caller must call the
// function that it returns.
func (w *Watch) begin() (done func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.isSilent() {
		w.since = time.Now()
	}
	w.waiting++
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.waiting--
	}
}

// Transport returns a transport that records what the store answers. A gateway
// that answers for the store is no sign of life.
func (w *Watch) Transport(next http.RoundTripper) http.RoundTripper {
	if w.Limit == 0 {
		return next
	}
	return &watched{w, next}
}

type watched struct {
	watch *Watch
	next  http.RoundTripper
}

func (t *watched) RoundTrip(r *http.Request) (*http.Response, error) {
	done := func() {}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		done = t.watch.begin() // writes may take the store long
	}
	defer done()

	resp, err := t.next.RoundTrip(r)
	switch {
	case r.Context().Err() != nil:
		return resp, err
	case err != nil:
		t.watch.Failed(err)
		return resp, err
	case isGateway(resp.StatusCode):
		t.watch.Failed(fmt.Errorf("it answered %d", resp.StatusCode))
		return resp, nil
	}

	t.watch.Answered()
	resp.Body = &watchedBody{resp.Body, t.watch}
	return resp, nil
}

// isGateway reports whether a status says that a store is not available.
func isGateway(status int) bool {
	return status == http.StatusBadGateway || status == http.StatusServiceUnavailable ||
		status == http.StatusGatewayTimeout
}

// watchedBody is the body of an answer.
type watchedBody struct {
	io.ReadCloser
	watch *Watch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	defer b.watch.begin()()
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.watch.Answered()
	}
	if err != nil && err != io.EOF {
		b.watch.Failed(err)
	}
	return n, err
}

// Patient returns a sender that does not let an object fail while the whole
// store is silent: a request that only reads waits until the store answers
// again, or the run ends. A store that has never answered is not waited for.
func (w *Watch) Patient(send Sender) Sender {
	if w.Limit == 0 {
		return send
	}
	return func(r *http.Request) (*http.Response, error) {
		began := time.Now()
		resp, err := send(r)
		if err == nil || r.Method != http.MethodGet && r.Method != http.MethodHead {
			return resp, err
		}

		for w.silentSince(began) && r.Context().Err() == nil && !w.probed(r.Context()) {
			select {
			case <-r.Context().Done():
			case <-time.After(time.Second):
			}
		}
		return resp, err
	}
}

// silentSince reports whether a service that has answered before a time is
// silent since then.
func (w *Watch) silentSince(t time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.end != nil && w.failing && !w.heard.IsZero() && w.heard.Before(t)
}

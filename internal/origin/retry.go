package origin

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/backoff"
	"github.com/cmekproxy/cmekproxy/internal/storefault"
	"github.com/cmekproxy/cmekproxy/internal/tracing"
)

// How often a request is sent, the longest first pause, and the longest time
// that a Retry-After may ask for. If the store asks for more, the client
// gets the answer and waits itself.
const (
	maxAttempts   = 3
	firstPause    = 100 * time.Millisecond
	maxRetryAfter = 2 * time.Second
)

// defaultRetryBudget is how many retries are available at the start; see
// backoff.Budget.
const defaultRetryBudget = 20

// maxPeek limits, in bytes, what is read of an error answer to recognize a
// fault. S3's documents are shorter.
const maxPeek = 64 << 10

// RetryConfig configures a Retrier. The zero value is valid.
type RetryConfig struct {
	// Budget is the number of retries available at the start. 0 means 20.
	Budget uint
	// Observe, if not nil, is called before each retry, with the context of
	// the request and the kind of the fault.
	Observe func(ctx context.Context, fault storefault.Kind)
	// Pause, if not nil, replaces the random choice of a pause.
	Pause func(limit time.Duration) time.Duration
}

// Retrier repeats requests if the store fails for a moment. It never changes
// what a request means:
//
//   - GET and HEAD are repeated after all faults that may pass, except
//     timeouts: the store had its time, and the client's would end.
//   - Other requests are repeated only if the store has certainly not done
//     them: there was no connection, or the store refused them because it
//     limits the rate. After any other fault a repeated write could replace
//     what somebody else has written since, its condition could fail because
//     of its own first attempt, a second DELETE could add a second delete
//     marker, and a second POST ?uploads could create a second upload.
//   - A body that was streamed is never sent again; one with GetBody is.
//   - Nothing is repeated for a client that has gone, nor with an empty
//     budget.
//
// It is an http.RoundTripper for signed requests, between an Origin and its
// Transport. A repeated request has the same signature, which is valid for
// 15 minutes.
type Retrier struct {
	next   http.RoundTripper
	cfg    RetryConfig
	budget *backoff.Budget
}

// NewRetrier returns a Retrier that sends requests with next.
func NewRetrier(next http.RoundTripper, cfg RetryConfig) *Retrier {
	if cfg.Budget == 0 {
		cfg.Budget = defaultRetryBudget
	}
	if cfg.Pause == nil {
		cfg.Pause = backoff.Jitter
	}
	return &Retrier{next: next, cfg: cfg, budget: backoff.NewBudget(cfg.Budget)}
}

// RoundTrip sends r, and repeats it if that is safe and useful.
func (t *Retrier) RoundTrip(r *http.Request) (*http.Response, error) {
	limit := firstPause
	for attempt := 1; ; attempt++ {
		resp, err := t.next.RoundTrip(r)
		fault := faultOf(r, resp, err)
		if fault == nil {
			t.budget.Succeeded(attempt)
			return resp, err
		}

		again := repeatable(r, fault)
		pause := max(fault.RetryAfter, t.cfg.Pause(limit))
		if again == nil || attempt == maxAttempts || fault.RetryAfter > maxRetryAfter || !t.budget.Take() ||
			!backoff.Wait(r.Context(), pause) {
			return resp, err
		}

		if resp != nil {
			_ = resp.Body.Close()
		}
		if t.cfg.Observe != nil {
			t.cfg.Observe(r.Context(), fault.Kind)
		}
		r, limit = tracing.WithResend(again, attempt), 2*limit
	}
}

// faultOf returns the fault in an answer or an error, or nil. It does not
// change what can be read of the answer.
func faultOf(r *http.Request, resp *http.Response, err error) *storefault.Error {
	switch {
	case err != nil:
		if fault := storefault.Of(err); fault != nil {
			return fault
		}
		return &storefault.Error{} // not the store's: neither a success, nor repeated
	case resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode < http.StatusInternalServerError:
		return nil
	}

	var seen bytes.Buffer
	_, _ = seen.ReadFrom(io.LimitReader(resp.Body, maxPeek)) // a later read meets the same error
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(seen.Bytes()), resp.Body), resp.Body}

	fault := storefault.OfAnswer(storefault.Answer{
		Method: r.Method, Status: resp.StatusCode, Header: resp.Header, Body: seen.Bytes(),
	})
	if fault == nil {
		return &storefault.Error{}
	}
	return fault
}

// repeatable returns r to be sent again after a fault, or nil if it must
// not be.
func repeatable(r *http.Request, fault *storefault.Error) *http.Request {
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if !fault.Temporary || fault.Kind == storefault.Timeout || !reads && !fault.NotDone {
		return nil
	}
	if r.Body == nil || r.Body == http.NoBody {
		return r
	}
	if r.GetBody == nil {
		return nil
	}

	body, err := r.GetBody()
	if err != nil {
		return nil
	}
	again := r.Clone(r.Context())
	again.Body = body
	return again
}

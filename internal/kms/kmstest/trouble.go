package kmstest

import (
	"context"
	"maps"
	"sync"
	"time"
)

// Trouble describes how the servers for Vault, Google and Azure misbehave
// in operations with a key. The zero value means no trouble. Only the first
// field that applies has an effect.
type Trouble struct {
	// Latency is a delay before each response. Vault and Azure only.
	Latency time.Duration
	// LoginLatency is a delay of each login or token. Vault and Azure only.
	LoginLatency time.Duration
	// Hang means that the server never responds.
	Hang bool
	// Drop closes the connection without a response.
	Drop bool
	// ThrottleNext is the number of requests to throttle. -1 means all.
	ThrottleNext int
	// Deny refuses the caller, as after a change of the policy.
	Deny bool
	// Fail responds with this HTTP status, or gRPC code for Google, and
	// with FailText. FailCode is the vendor's error name; for Google, the
	// type of a violated precondition. 0 means no failure.
	Fail     int
	FailCode string
	FailText string
	// FailReason is the reason in Google's ErrorInfo, in addition to Fail.
	// Empty means no ErrorInfo.
	FailReason string
	// Answer replaces the body of the response, with status 200. Not for
	// Google. Empty means the real response.
	Answer string
}

// troubles contains the Trouble of a server and counts its calls.
type troubles struct {
	mu         sync.Mutex
	now        Trouble
	callCounts map[string]int
	closing    chan struct{}
	closeOnce  sync.Once
}

func newTroubles() *troubles {
	return &troubles{callCounts: make(map[string]int), closing: make(chan struct{})}
}

// SetTrouble replaces the trouble.
func (t *troubles) SetTrouble(now Trouble) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now = now
}

func (t *troubles) trouble() Trouble {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.now
}

// Calls returns the number of requests for each operation, including failed
// ones.
func (t *troubles) Calls() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.callCounts)
}

func (t *troubles) count(operation string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.callCounts[operation]++
}

// next returns the trouble for one request. If the trouble is a hang, it
// returns after the hang.
func (t *troubles) next(ctx context.Context) Trouble {
	t.mu.Lock()
	now := t.now
	t.mu.Unlock()
	if now.Hang {
		select {
		case <-ctx.Done():
		case <-t.closing:
		}
	}
	return now
}

// pause waits for d. It returns false if ctx or the server ended first.
func (t *troubles) pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}

	timer := time.NewTimer(d)
	defer timer.Stop()

	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-t.closing:
	}

	return false
}

// throttle reports whether to throttle this request.
func (t *troubles) throttle() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := t.now.ThrottleNext
	if left > 0 {
		t.now.ThrottleNext--
	}
	return left != 0
}

// release ends all hangs.
func (t *troubles) release() { t.closeOnce.Do(func() { close(t.closing) }) }

package kmstest

import (
	"context"
	"maps"
	"sync"
	"time"
)

// Trouble is how the servers of Vault, Google and Azure misbehave at
// operations with a key. The zero value behaves. The first field that applies
// wins.
type Trouble struct {
	// Latency is the time before each answer to an operation with a key. Vault
	// and Azure only.
	Latency time.Duration
	// LoginLatency is the time that each login or token takes. Vault and Azure
	// only.
	LoginLatency time.Duration
	// Hang never answers.
	Hang bool
	// Drop closes the connection without an answer.
	Drop bool
	// ThrottleNext answers so many requests as the vendor does to too many.
	// -1: all.
	ThrottleNext int
	// Deny refuses the caller, as after a change of policy.
	Deny bool
	// Fail answers with this HTTP status, or gRPC code for Google, and
	// FailText. FailCode is the vendor's name of the error, for Google the
	// type of a violated precondition. 0: it does not.
	Fail     int
	FailCode string
	FailText string
	// FailReason is the reason in an ErrorInfo of Google's, beside Fail. Empty:
	// no ErrorInfo.
	FailReason string
	// Answer is sent in place of the answer, with status 200. Not for Google.
	// Empty: the real one.
	Answer string
}

// troubles is the Trouble of a server and its count of calls.
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

// Calls returns how many requests each operation had, those that failed
// included.
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

// next returns what is to happen to one request. It returns after a hang has
// ended.
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

// pause waits for d. It reports false if ctx or the server ended before.
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

// throttle reports whether to throttle one request.
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

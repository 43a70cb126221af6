// Package backoff has what retries of requests to the KMS and to the store
// have in common: a budget, so that a server that is away does not get
// several times as many requests, and pauses with jitter.
//
// There is no example: origin.Retrier and the clients of package kms show its
// use.
package backoff

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
)

// cost is how many requests that succeed pay for one retry.
const cost = 5

// Budget limits retries. A retry costs one of the budget, and returns it if
// it succeeds. Five requests that succeed at once, or one second, add one.
// It is safe for concurrent use.
type Budget struct {
	tokens *ratelimit.TokenRateLimit

	mu     sync.Mutex
	filled time.Time // until when time has been credited
}

// NewBudget returns a budget that is full, with this many retries.
func NewBudget(retries uint) *Budget {
	return &Budget{tokens: ratelimit.NewTokenRateLimit(retries * cost), filled: time.Now()}
}

// Succeeded adds the credit for a success at the given attempt, where 1 is
// the first.
func (b *Budget) Succeeded(attempt int) {
	credit := uint(1)
	if attempt > 1 {
		credit = cost
	}
	_ = b.tokens.AddTokens(credit) // never fails
}

// Take takes one retry, and reports whether there was one.
func (b *Budget) Take() bool {
	b.creditTime()
	_, err := b.tokens.GetToken(context.Background(), cost)
	return err == nil
}

// creditTime adds one retry for each second that has passed.
func (b *Budget) creditTime() {
	b.mu.Lock()
	defer b.mu.Unlock()
	const each = time.Second / cost // for one token
	tokens := uint(max(0, time.Since(b.filled)) / each)
	b.filled = b.filled.Add(time.Duration(tokens) * each) //nolint:gosec // bounded by the time that has passed
	_ = b.tokens.AddTokens(tokens)
}

// Wait waits for d, and reports whether ctx is still valid. If the deadline
// is earlier, it returns false at once.
func Wait(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return false
	}

	timer := time.NewTimer(d)
	defer timer.Stop()

	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// Jitter returns a uniformly random pause from 0 to limit; see
// https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
func Jitter(limit time.Duration) time.Duration {
	var b [8]byte
	rand.Read(b[:])
	fraction := float64(binary.BigEndian.Uint64(b[:])>>11) / (1 << 53)
	return time.Duration(fraction * float64(limit))
}

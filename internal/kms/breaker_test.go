package kms_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// answers are results of a working KMS.
var answers = []error{
	nil, failure(kms.Throttled), failure(kms.InvalidCiphertext), failure(kms.Disabled), failure(kms.Denied),
	failure(kms.PendingDeletion), failure(kms.NotFound), failure(kms.Invalid), failure(kms.Internal),
	&kms.Error{Kind: kms.InvalidCiphertext, Op: "unwrap", KeyID: "fake"},
}

// silence are errors that say nothing about the KMS.
var silence = []error{
	failure(kms.Canceled), errors.New("not asked"),
	&kms.Error{Kind: kms.Invalid, Op: "unwrap", KeyID: "fake"},
	&kms.Error{Kind: kms.Internal, Op: "unwrap", KeyID: "fake"},
	&kms.Error{Kind: kms.Throttled, Op: "unwrap", KeyID: "fake", Reason: "local limit", Err: kms.ErrLimit},
}

// circuit is a breaker that opens for a minute after three failures, around
// a KMS with results set by the test.
type circuit struct {
	kms.Wrapper
	inner   *fakeKMS
	changes []bool
}

func newCircuit() *circuit {
	c := &circuit{inner: &fakeKMS{}}
	c.Wrapper = kms.Breaker(c.inner, kms.BreakerConfig{
		Failures: 3, OpenFor: time.Minute, OnChange: func(open bool) { c.changes = append(c.changes, open) },
	})
	return c
}

// answer makes one call for each result, and checks that the KMS is asked
// and its result returned.
func (c *circuit) answer(t *testing.T, answers ...error) {
	t.Helper()
	for _, want := range answers {
		before := c.inner.calls.Load()
		c.inner.answer = func(context.Context, int64) error { return want }
		err := unwrapOnce(t.Context(), c)
		if err != want || c.inner.calls.Load() != before+1 { //nolint:errorlint // the same one
			t.Errorf("%v, want %v from the KMS", err, want)
		}
	}
}

// open checks that the KMS is not asked.
func (c *circuit) open(t *testing.T) {
	t.Helper()
	before := c.inner.calls.Load()
	wantError(t, unwrapOnce(t.Context(), c), kms.Unreachable, "circuit open", kms.ErrOpen)
	if c.inner.calls.Load() != before {
		t.Error("the KMS was asked")
	}
}

var down = failure(kms.Unreachable)

func TestBreaker(t *testing.T) {
	for _, answer := range answers {
		kmstest.Bubble(t, func(t *testing.T) {
			c := newCircuit()
			c.answer(t, down, down, answer, down, down, answer, down, down, down)
			c.open(t)
			time.Sleep(time.Minute - time.Nanosecond)
			c.open(t)
			time.Sleep(2 * time.Nanosecond)
			c.answer(t, down) // the trial call
			c.open(t)
			time.Sleep(time.Minute - time.Nanosecond)
			c.open(t)
			time.Sleep(2 * time.Nanosecond)
			c.answer(t, answer, down, down, answer) // closed, and counting from 0 again

			if want := []bool{true, false}; !slices.Equal(c.changes, want) {
				t.Errorf("%v: changes %v, want %v", answer, c.changes, want)
			}
		})
	}
}

func TestBreakerIgnoresWhatSaysNothing(t *testing.T) {
	for _, quiet := range silence {
		kmstest.Bubble(t, func(t *testing.T) {
			c := newCircuit()
			c.answer(t, quiet, quiet, quiet, quiet) // does not open
			c.answer(t, down, down, quiet, down)    // does not interrupt a sequence of failures
			c.open(t)
			time.Sleep(time.Minute + time.Nanosecond)
			c.answer(t, quiet, down) // does not close it, but does not count as a trial
			c.open(t)

			if want := []bool{true}; !slices.Equal(c.changes, want) {
				t.Errorf("%v: changes %v, want %v", quiet, c.changes, want)
			}
		})
	}
}

func TestBreakerLetsOneTrialThrough(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		c := newCircuit()
		c.answer(t, down, down, down)
		time.Sleep(time.Minute + time.Nanosecond)

		c.inner.answer = func(context.Context, int64) error {
			time.Sleep(time.Hour)
			return nil
		}

		trial := make(chan error)
		go func() { trial <- unwrapOnce(t.Context(), c) }()
		synctest.Wait()

		for range 5 {
			c.open(t)
			time.Sleep(2 * time.Minute)
		}

		if err := <-trial; err != nil {
			t.Error(err)
		}
		c.answer(t, nil, nil)
	})
}

func TestBreakerDoesNotCountContextsThatAreOver(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		c := newCircuit()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		time.Sleep(2 * time.Second)
		for range 5 {
			wantError(t, unwrapOnce(ctx, c), kms.Unreachable, "", context.DeadlineExceeded)
		}
		c.answer(t, nil)
	})
}

func TestBreakerOverTheWire(t *testing.T) {
	for name, faults := range map[string]kmstest.Faults{
		"hang": {Hang: true, Operations: []string{"Decrypt"}},
		"drop": {Drop: true, Operations: []string{"Decrypt"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := kmstest.StartTest(t)
			key := server.NewKey(t, func(c *kms.AWSConfig) { c.Timeout = 500 * time.Millisecond })
			patient := server.OpenKey(t, key.KeyID(), nil)
			_, blob, err := kms.Generate(t.Context(), patient, nil)
			must(t, err)
			changes := make(chan bool, 4)
			w := kms.Breaker(key, kms.BreakerConfig{
				Failures: 2, OpenFor: time.Second, OnChange: func(open bool) { changes <- open },
			})

			server.SetFaults(faults)
			for range 10 {
				_, err := w.Unwrap(t.Context(), blob, nil)
				if !kms.IsUnreachable(err) {
					t.Errorf("%v, want unreachable", err)
				}
				if errors.Is(err, kms.ErrOpen) {
					break
				}
			}

			if n := server.Calls()["Decrypt"]; n != 2 || !<-changes {
				t.Errorf("the KMS was asked %d times, want 2", n)
			}

			server.SetFaults(kmstest.Faults{})
			for range 100 { // until the trial
				if _, err = w.Unwrap(t.Context(), blob, nil); err == nil {
					break
				}
				time.Sleep(50 * time.Millisecond)
			}

			if err != nil || <-changes {
				t.Errorf("it did not close: %v", err)
			}
		})
	}

	server := kmstest.StartTest(t)
	key := server.NewKey(t, nil)
	w := kms.Breaker(key, kms.BreakerConfig{Failures: 1})
	server.SetFaults(kmstest.Faults{ThrottleNext: 3})

	for range 3 {
		if _, _, err := kms.Generate(t.Context(), w, nil); !kms.IsThrottled(err) {
			t.Errorf("%v, want throttled", err)
		}
	}

	if _, _, err := kms.Generate(t.Context(), w, nil); err != nil {
		t.Errorf("a KMS that throttles opened the breaker: %v", err)
	}
}

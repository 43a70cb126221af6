package backoff_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/backoff"
)

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backoff.NewBudget(2)
		taken := func() (n int) {
			for b.Take() {
				n++
			}
			return n
		}

		if n := taken(); n != 2 {
			t.Errorf("a budget of 2 has %d", n)
		}
		for range 4 {
			b.Succeeded(1)
		}
		if n := taken(); n != 0 {
			t.Errorf("4 successes give %d retries", n)
		}
		b.Succeeded(1)
		if n := taken(); n != 1 {
			t.Errorf("5 successes give %d retries", n)
		}
		b.Succeeded(2)
		if n := taken(); n != 1 {
			t.Errorf("a retry that succeeds gives back %d", n)
		}

		time.Sleep(time.Second)
		if n := taken(); n != 1 {
			t.Errorf("a second gives %d retries", n)
		}
		time.Sleep(time.Hour)
		if n := taken(); n != 2 {
			t.Errorf("an hour fills it to %d", n)
		}
	})
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if !backoff.Wait(t.Context(), time.Second) {
			t.Error("it does not wait")
		}

		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if backoff.Wait(soon, time.Minute) || time.Since(start) > 0 {
			t.Error("it waits beyond the deadline")
		}

		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if backoff.Wait(gone, time.Minute) {
			t.Error("it waits for a context that has ended")
		}
	})
}

package kmstest

import (
	"crypto/fips140"
	"testing"
	"testing/synctest"
)

// Bubble runs a test on a clock of its own, as synctest.Test does. Not in FIPS
// mode: there Go seeds its random numbers with the jitter of the clock, which
// stands still in a bubble, and panics. What bubbles test is time; the
// algorithms of FIPS mode are for the other tests.
func Bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if fips140.Enabled() {
		t.Skip("the random numbers of FIPS mode need a clock that runs")
	}
	synctest.Test(t, test)
}

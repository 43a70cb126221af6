package kmstest

import (
	"crypto/fips140"
	"testing"
	"testing/synctest"
)

// Bubble runs a test with a fake clock, like synctest.Test. In FIPS mode it
// skips the test: Go then seeds its random numbers from clock jitter, and
// panics because the clock of a bubble stands still. These tests are about
// time; other tests cover the algorithms of FIPS mode.
func Bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if fips140.Enabled() {
		t.Skip("the random numbers of FIPS mode need a clock that runs")
	}
	synctest.Test(t, test)
}

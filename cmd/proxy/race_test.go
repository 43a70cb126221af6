//go:build race

package main

// raceDetector reports whether the tests run under the race detector, which
// is several times slower.
const raceDetector = true

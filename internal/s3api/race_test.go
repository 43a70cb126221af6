//go:build race

package s3api_test

// raceDetector reports whether the tests run under the race detector, which
// is several times slower.
const raceDetector = true

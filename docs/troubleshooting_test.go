package docs_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// errorCode matches an S3 error code with its status in errors.go.
var errorCode = regexp.MustCompile(`(?m)^\t"([A-Za-z.0-9]+)": +(?:http\.Status|499)`)

// TestTroubleshootingHasAllErrorCodes checks that the page explains each error
// code that the proxy itself returns.
func TestTroubleshootingHasAllErrorCodes(t *testing.T) {
	source, err := os.ReadFile("../internal/s3api/errors.go")
	if err != nil {
		t.Fatal(err)
	}
	page := documents(t)["troubleshooting.md"]

	codes := errorCode.FindAllSubmatch(source, -1)
	if len(codes) < 40 {
		t.Errorf("errors.go has only %d error codes", len(codes))
	}
	for _, m := range codes {
		if !strings.Contains(page, "`"+string(m[1])+"`") {
			t.Errorf("troubleshooting.md does not explain the error code %s", m[1])
		}
	}
}

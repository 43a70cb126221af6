package docs_test

import (
	"os"
	"path/filepath"
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

// TestTroubleshootingQuotesLogMessages checks that each log message on the page
// is in the code. A message may be shortened with an ellipsis.
func TestTroubleshootingQuotesLogMessages(t *testing.T) {
	page := documents(t)["troubleshooting.md"]
	_, section, found := strings.Cut(page, "\n## Log messages\n")
	section, _, _ = strings.Cut(section, "\n## ")
	if !found {
		t.Fatal("troubleshooting.md has no section of log messages")
	}

	var code strings.Builder
	paths, err := filepath.Glob("../cmd/proxy/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(text)
	}

	messages := 0
	for line := range strings.Lines(section) {
		message, ok := strings.CutPrefix(line, "| `")
		if !ok {
			continue
		}
		messages++
		message, _, _ = strings.Cut(message, "`")
		for part := range strings.SplitSeq(message, "…") {
			if !strings.Contains(code.String(), strings.TrimSpace(part)) {
				t.Errorf("no message of cmd/proxy contains %q", part)
			}
		}
	}
	if messages < 15 {
		t.Errorf("troubleshooting.md has only %d log messages", messages)
	}
}

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// fipsHelper has the test binary run check in place of the tests.
const fipsHelper = "CMEKPROXY_TEST_FIPS_CONFIG"

// The strict mode of Go's FIPS module is refused at the start, with the reason.
// The mode is set for a whole process, so the test runs itself again.
func TestFIPSOnlyIsRefused(t *testing.T) {
	if config := os.Getenv(fipsHelper); config != "" {
		os.Exit(run(t.Context(), []string{"serve", "--config", config}, os.Stdout, os.Stderr))
	}

	config := writeConfig(t, "http://127.0.0.1:1", "127.0.0.1:0", "127.0.0.1:0")
	command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFIPSOnlyIsRefused$")
	command.Env = append(os.Environ(), "GODEBUG=fips140=only", fipsHelper+"="+config)
	out, err := command.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "fips140=only is not supported") || !strings.Contains(string(out), "use GODEBUG=fips140=on") {
		t.Errorf("%v:\n%s", err, out)
	}
}

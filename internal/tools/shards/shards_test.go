package shards

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// binary stands in for a test binary: it lists five tests and prints the
// arguments of each run. $LIST and $RUN are commands to fail with: RUN where TestB
// is run.
const binary = `#!/bin/sh
case "$*" in
'-test.list .') printf '%s\n' 'noise of TestMain' TestA TestB FuzzC ExampleD TestAB; $LIST ;;
*) echo "args $*"; case "$*" in *'TestB|'* | *'TestB)'*) eval "$RUN" ;; esac ;;
esac
`

// run returns what is printed for a package.
func run(t *testing.T, name, env string) (out string, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(binary), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "./shards.sh", path, "-test.v=true", "-test.timeout=1m")
	cmd.Env = append(os.Environ(), "LIST=true", "RUN=true", env)
	text, err := cmd.CombinedOutput()
	return string(text), err
}

// Every test runs once, in one of the processes, with the flags of go test.
func TestEveryTestRunsOnce(t *testing.T) {
	for _, name := range []string{"proxy.test", "s3api.test"} {
		t.Run(name, func(t *testing.T) {
			out, err := run(t, name, "RUN=true")
			if err != nil {
				t.Fatal(err, out)
			}

			var ran []string
			runs := regexp.MustCompile(`(?m)^args -test\.v=true -test\.timeout=1m -test\.run \^\((.*)\)\$$`)
			for _, names := range runs.FindAllStringSubmatch(out, -1) {
				ran = append(ran, strings.Split(names[1], "|")...)
			}
			slices.Sort(ran)
			if want := []string{"ExampleD", "FuzzC", "TestA", "TestAB", "TestB"}; !slices.Equal(ran, want) {
				t.Errorf("ran %q, want %q:\n%s", ran, want, out)
			}
		})
	}
}

// The package fails if one of its processes fails, and what failed is printed
// last.
func TestFailureOfOneProcess(t *testing.T) {
	for _, name := range []string{"proxy.test", "s3api.test"} {
		t.Run(name, func(t *testing.T) {
			out, err := run(t, name, "RUN=printf '\\055-- FAIL: TestB (1s)\\n    b_test.go:7: no\\n{a log}\\n'; exit 3")
			if err == nil || !strings.HasSuffix(out, "above:\n--- FAIL: TestB (1s)\n    b_test.go:7: no\n") {
				t.Errorf("%v, printed\n%s", err, out)
			}
		})
	}
}

// Other packages run in one process.
func TestOtherPackages(t *testing.T) {
	if out, err := run(t, "kms.test", "RUN=true"); err != nil || out != "args -test.v=true -test.timeout=1m\n" {
		t.Errorf("%v, printed\n%s", err, out)
	}
}

// A list that cannot be made is a failure, and no package without tests.
func TestNoList(t *testing.T) {
	if out, err := run(t, "proxy.test", "LIST=exit 1"); err == nil {
		t.Errorf("it passed, and printed\n%s", out)
	}
}

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hardenedEnv makes TestHardened the process that is examined.
const hardenedEnv = "CMEKPROXY_TEST_HARDENED"

// The process writes no core file, and other processes of the same user
// cannot read its memory.
func TestHardened(t *testing.T) {
	if os.Getenv(hardenedEnv) != "" {
		_, stop := begin()
		defer stop()
		dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		var core unix.Rlimit
		limitErr := unix.Getrlimit(unix.RLIMIT_CORE, &core)
		fmt.Println("dumpable", dumpable, err, "core", core.Cur, core.Max, limitErr)
		return
	}

	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHardened$", "-test.v")
	cmd.Env = append(os.Environ(), hardenedEnv+"=1")
	out, err := cmd.CombinedOutput()
	if want := "dumpable 0 <nil> core 0 0 <nil>\n"; err != nil || !strings.Contains(string(out), want) {
		t.Errorf("%v: %s, want %q", err, out, want)
	}
}

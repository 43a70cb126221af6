package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// harden keeps what this process has in memory, data keys among it, out of core
// files and from other processes of the same user, such as debuggers.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keeping other processes out of this one's memory: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switching off core files: %w", err)
	}
	return nil
}

//go:build !nodev

package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openPTY opens a terminal of some columns. What is written to the terminal
// is collected.
func openPTY(t *testing.T, columns uint16) (terminal *os.File, screen *output) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	size := &unix.Winsize{Row: 24, Col: columns}
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, size); err != nil {
		t.Fatal(err)
	}

	screen = &output{}
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := master.Read(buffer)
			if err != nil {
				return
			}
			_, _ = screen.Write(buffer[:n])
		}
	}()
	return terminal, screen
}

// At a terminal, one line is redrawn, which is never wider than the terminal.
// Results on stdout have nothing of it.
func TestProgressAtATerminal(t *testing.T) {
	m := newMove(t)
	for i := range 40 {
		m.put(fmt.Sprintf("k%02d", i), text(uint64(i), 100))
	}
	m.putRaw("k99", map[string]string{"cmek-v": "1"}, []byte("12345"))
	args := []string{"verify", "--config", m.both, "--rate", "60", "s3://bucket"}

	const columns = 50
	t.Setenv("TERM", "xterm")
	terminal, screen := openPTY(t, columns)
	var stdout output
	if code := run(t.Context(), args, &stdout, terminal); code != 1 {
		t.Fatalf("exit code %d: %q", code, screen.String())
	}
	waitText(t, screen, "1 objects failed verification")

	redrawn, rest, _ := strings.Cut(screen.String(), "cmekproxy verify: ")
	if !strings.HasSuffix(redrawn, "\r\x1b[K") || strings.Contains(rest, "\x1b") {
		t.Errorf("the line is not removed at the end: %q", screen.String())
	}
	lines := strings.Split(strings.ReplaceAll(redrawn, "\x1b[K", ""), "\r")
	counted := regexp.MustCompile(`^verify: \d+ of 41 objects \(\d+\.\d %\), \d+s left`)
	matches := 0
	for _, line := range lines {
		if len(line) >= columns || strings.Contains(line, "\n") {
			t.Errorf("%d columns: %q", len(line), line)
		}
		if counted.MatchString(line) {
			matches++
		}
	}
	if matches == 0 {
		t.Errorf("the total is never shown: %q", lines)
	}
	if out := stdout.String(); !strings.HasPrefix(out, "FAILED") || strings.ContainsAny(out, "\r\x1b") {
		t.Errorf("stdout: %q", out)
	}

	// A terminal that cannot redraw a line gets none within a minute.
	t.Setenv("TERM", "dumb")
	terminal, screen = openPTY(t, columns)
	if code := run(t.Context(), args, &stdout, terminal); code != 1 {
		t.Fatalf("exit code %d", code)
	}
	waitText(t, screen, "1 objects failed verification")
	if out := screen.String(); strings.ContainsAny(out, "\x1b%") {
		t.Errorf("%q", out)
	}
}

// Ctrl-C at a question of init ends it with the usual exit code.
func TestInitStoppedAtATerminal(t *testing.T) {
	terminal, _ := openPTY(t, 80)
	cmd, stdout, stderr := process(t, terminal, "init", "--config", t.TempDir()+"/config.yaml")
	waitText(t, stdout, "URL of the store")
	send(t, cmd, os.Interrupt)
	_ = cmd.Wait() // the exit code is checked
	if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(stderr.String(), "nothing was written") {
		t.Errorf("%v: %s", cmd.ProcessState, stderr)
	}
}

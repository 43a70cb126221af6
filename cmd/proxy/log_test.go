package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// streamOf returns the value of JOURNAL_STREAM for a file.
func streamOf(t *testing.T, f *os.File) string {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	device, inode, ok := fileID(info)
	if !ok {
		t.Fatal("the file has no inode")
	}
	return fmt.Sprintf("%d:%d", device, inode)
}

// Lines for the journal have their priority in front, and are JSON behind it.
func TestLogForTheJournal(t *testing.T) {
	other, _, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, row := range []struct {
		name     string
		stream   func(out *os.File) string
		priority bool
	}{
		{"the journal", func(out *os.File) string { return streamOf(t, out) }, true},
		{"redirected", func(*os.File) string { return streamOf(t, other) }, false},
		{"no journal", func(*os.File) string { return "" }, false},
		{"nonsense", func(*os.File) string { return "x" }, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			in, out := journalSocket(t)
			log := zap.New(newLogCore(out, row.stream(out), zap.DebugLevel)).With(zap.String("with", "a field"))
			log.Debug("0")
			log.Info("1")
			log.Warn("2")
			log.Error("3")
			out.Close()
			text, err := io.ReadAll(in)
			if err != nil {
				t.Fatal(err)
			}

			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			for i, want := range []string{"<7>", "<6>", "<4>", "<3>"} {
				line, ok := strings.CutPrefix(lines[i], want)
				var fields map[string]any
				err := json.Unmarshal([]byte(line), &fields)
				if ok != row.priority || err != nil || fields["msg"] != fmt.Sprint(i) || fields["with"] != "a field" {
					t.Errorf("%s: %v", lines[i], err)
				}
			}
		})
	}
}

// A program that cannot start has no log yet. What it prints has priorities in
// the journal, and nowhere else.
func TestErrorsForTheJournal(t *testing.T) {
	in, out := journalSocket(t)
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("misspelt: 1\nwrong: 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, stream := range []string{streamOf(t, out), ""} {
		t.Setenv("JOURNAL_STREAM", stream)
		if code := run(t.Context(), []string{"serve", "--config", file}, io.Discard, out); code != 1 {
			t.Errorf("exit code %d", code)
		}
	}
	out.Close()
	text, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}

	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for i, line := range lines {
		want := i < len(lines)/2
		if plain, ok := strings.CutPrefix(line, "<3>"); ok != want || !want && line != lines[i-len(lines)/2][3:] || plain == "" {
			t.Errorf("line %d of %d: %s", i, len(lines), line)
		}
	}
	if len(lines) < 4 {
		t.Errorf("%q", lines)
	}
}

// journalSocket returns both ends of a stream socket: the journal gives services
// one for their standard error.
func journalSocket(t *testing.T) (in io.Reader, out *os.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stdout")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if out, err = conn.(*net.UnixConn).File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return accepted, out
}

func TestLogPriority(t *testing.T) {
	for level, want := range map[zapcore.Level]int64{
		zapcore.DebugLevel: 7, zapcore.InfoLevel: 6, zapcore.WarnLevel: 4, zapcore.ErrorLevel: 3,
		zapcore.DPanicLevel: 2, zapcore.FatalLevel: 2,
	} {
		if got := priorityOf(level); got != want {
			t.Errorf("%s is %d, want %d", level, got, want)
		}
	}
}

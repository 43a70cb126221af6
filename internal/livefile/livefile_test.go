package livefile_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/livefile"
)

// fixture is a File of one text, with a clock set by the test.
type fixture struct {
	*livefile.File[string]
	path    string
	now     time.Time
	reports []string
}

func open(t *testing.T, path string) *fixture {
	t.Helper()
	f := &fixture{path: path, now: time.Now()}

	var err error
	f.File, err = livefile.Open(livefile.Config[string]{
		Paths: []string{path},
		Load: func() (string, error) {
			text, err := os.ReadFile(path)
			if err == nil && strings.HasPrefix(string(text), "bad") {
				return "", errors.New("it is bad")
			}
			return string(text), err
		},
		Now: func() time.Time { return f.now },
		Report: func(err error) {
			text := "read"
			if err != nil {
				text = err.Error()
			}
			f.reports = append(f.reports, text)
		},
	})
	if err != nil {
		t.Fatal(err)
	}

	return f
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// later returns the content after the next check.
func (f *fixture) later() string {
	f.now = f.now.Add(2 * time.Second)
	return f.Get()
}

func TestFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "one")
	f := open(t, path)

	write(t, path, "second")
	if got := f.Get(); got != "one" {
		t.Errorf("within a second: %q", got)
	}
	if got := f.later(); got != "second" {
		t.Errorf("after a second: %q", got)
	}

	write(t, path, "third text")
	if err := f.Check(); err != nil || f.Get() != "third text" {
		t.Errorf("Check: %v, %q", err, f.Get())
	}
}

// TestSameSizeByRename: certificate renewals often keep the size, and
// happen within the same second.
func TestSameSizeByRename(t *testing.T) {
	dir := t.TempDir()
	path, next := filepath.Join(dir, "file"), filepath.Join(dir, "next")
	stamp := time.Now().Add(-time.Hour)

	for _, f := range []struct{ path, text string }{{path, "one"}, {next, "two"}} {
		write(t, f.path, f.text)
		if err := os.Chtimes(f.path, stamp, stamp); err != nil {
			t.Fatal(err)
		}
	}

	f := open(t, path)

	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	if got := f.later(); got != "two" {
		t.Errorf("after a rename: %q", got)
	}
}

// TestKubernetesVolume replaces the ..data link, like the kubelet.
func TestKubernetesVolume(t *testing.T) {
	dir := t.TempDir()
	for _, version := range []string{"v1", "v2"} {
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version, "file"), version)
	}

	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}

	link("v1", "..data")
	link(filepath.Join("..data", "file"), "file")
	f := open(t, filepath.Join(dir, "file"))

	link("v2", "..data_tmp")
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	if got := f.later(); got != "v2" {
		t.Errorf("after the swap: %q", got)
	}
}

func TestBadFilesChangeNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "good")
	f := open(t, path)

	write(t, path, "bad 1")
	for range 3 {
		if got := f.later(); got != "good" {
			t.Errorf("a bad file: %q", got)
		}
	}

	write(t, path, "bad again")
	if err := f.Check(); err == nil {
		t.Error("Check returned no error for a bad file")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}

	if got := f.later(); got != "good" {
		t.Errorf("a missing file: %q", got)
	}

	write(t, path, "better")
	if got := f.later(); got != "better" {
		t.Errorf("a file that came back: %q", got)
	}

	if len(f.reports) != 3 || f.reports[0] != "it is bad" || f.reports[2] != "read" {
		t.Errorf("reports: %q", f.reports)
	}
}

func TestOpenReturnsTheError(t *testing.T) {
	want := errors.New("no")
	_, err := livefile.Open(livefile.Config[int]{Load: func() (int, error) { return 0, want }})
	if !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

// TestClockSetBack: checks must continue if the clock is set back.
func TestClockSetBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "one")
	f := open(t, path)

	write(t, path, "other")
	f.now = f.now.Add(-time.Hour)
	if got := f.Get(); got != "other" {
		t.Errorf("after the clock was set back: %q", got)
	}
}

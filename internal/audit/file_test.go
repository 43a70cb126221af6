package audit_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/audit"
)

// list returns the names in a directory.
func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRotation(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	path := filepath.Join(dir, "audit.log")

	for _, name := range []string{ // not renamed logs
		"audit-notes.log", "audit-20200101T000000.000000000Z.txt", "other-20200101T000000.000000000Z.log",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	cfg := audit.Config{
		File: path, Now: c.Now, MaxSize: 150, MaxFiles: 2, MaxAge: time.Hour, Trouble: func(err error) { t.Error(err) },
	}

	l := open(t, cfg)
	for _, key := range []string{"1", "2", "3", "4", "5", "6", "7"} { // a line has 72 bytes
		write(t, l, key)
		c.now = c.now.Add(time.Minute)
	}

	want := []string{
		"audit-20200101T000000.000000000Z.txt", "audit-20261123T100400.000000000Z.log",
		"audit-20261123T100600.000000000Z.log",
		"audit-notes.log", "audit.log", "other-20200101T000000.000000000Z.log",
	}
	if got := list(t, dir); !slices.Equal(got, want) {
		t.Fatalf("%q\nwant\n%q", got, want)
	}

	wantKeys(t, filepath.Join(dir, want[1]), 0, "3", "4")
	wantKeys(t, filepath.Join(dir, want[2]), 0, "5", "6")
	wantKeys(t, path, 0, "7")

	c.now = c.now.Add(59 * time.Minute) // one file is now more than an hour old when the log is opened
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	open(t, cfg)
	if got := list(t, dir); !slices.Equal(got, slices.Delete(slices.Clone(want), 1, 2)) {
		t.Errorf("after an hour: %q", got)
	}
}

func TestNothingIsRemovedUnasked(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	l := open(t, audit.Config{File: filepath.Join(dir, "audit"), Now: c.Now, MaxSize: 1})
	for range 20 {
		write(t, l, "k")
		c.now = c.now.Add(1000 * time.Hour)
	}
	if got := list(t, dir); len(got) != 20 || got[0] != "audit" || got[1] != "audit-20270104T020000.000000000Z" {
		t.Errorf("%d files: %q", len(got), got)
	}
}

// If the file cannot be renamed, the log continues in it, and Trouble is
// called once a second.
func TestRotationThatFails(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	path := filepath.Join(dir, "audit.log")
	var troubles []error
	l := open(t, audit.Config{
		File: path, Now: c.Now, MaxSize: 100, Trouble: func(err error) { troubles = append(troubles, err) },
	})

	taken := filepath.Join(dir, "audit-20261123T100000.000000000Z.log")
	if err := os.WriteFile(taken, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}

	write(t, l, "1")
	write(t, l, "2")

	if len(troubles) != 1 || !errors.Is(troubles[0], os.ErrExist) {
		t.Errorf("troubles: %v", troubles)
	}

	wantKeys(t, path, 0, "1", "2")
	if text, err := os.ReadFile(taken); err != nil || string(text) != "precious" {
		t.Errorf("the file with the name of the next: %q, %v", text, err)
	}

	c.now = c.now.Add(time.Second)
	write(t, l, "3")
	wantKeys(t, path, 0, "3")
	wantKeys(t, filepath.Join(dir, "audit-20261123T100001.000000000Z.log"), 0, "1", "2")
}

// If the file is moved away, with or without a signal, the next lines are
// written to a new file at the path.
func TestFileThatIsTakenAway(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	path := filepath.Join(dir, "audit.log")
	l := open(t, audit.Config{File: path, Now: c.Now})
	write(t, l, "1")

	move := func(to string) {
		t.Helper()
		if err := os.Rename(path, filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}

	move("moved")
	write(t, l, "2") // not noticed yet
	wantKeys(t, filepath.Join(dir, "moved"), 0, "1", "2")

	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}

	write(t, l, "3")
	wantKeys(t, path, 0, "3")

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}

	c.now = c.now.Add(time.Second)
	write(t, l, "4")
	wantKeys(t, path, 0, "4")

	move("moved again")
	if err := os.Mkdir(path, 0o700); err != nil { // the file cannot be created
		t.Fatal(err)
	}

	c.now = c.now.Add(time.Second)
	for range 2 {
		if err := l.Write(audit.Record{Key: "lost"}); !errors.Is(err, syscall.EISDIR) {
			t.Errorf("%v, want that it is a directory", err)
		}
	}

	if err := l.Reopen(); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("reopened: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}

	write(t, l, "5") // without a delay
	wantKeys(t, path, 0, "5")
}

// If two processes share a file, one renames it and the other follows.
func TestTwoThatRotate(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	path := filepath.Join(dir, "audit.log")
	cfg := audit.Config{File: path, Now: c.Now, MaxSize: 300, Trouble: func(err error) { t.Error(err) }}
	a, b := open(t, cfg), open(t, cfg)

	for range 50 {
		write(t, a, "k")
		write(t, b, "k")
		c.now = c.now.Add(time.Second)
	}

	records := 0
	for _, name := range list(t, dir) {
		got, others := keys(t, filepath.Join(dir, name))
		records += len(got)
		if others > 0 || len(got) < 2 || len(got) > 5 {
			t.Errorf("%s: %d records, %d other lines", name, len(got), others)
		}
	}

	if records != 100 {
		t.Errorf("%d records, want 100", records)
	}
}

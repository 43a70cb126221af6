package atomicfile_test

import (
	"errors"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/atomicfile"
)

const old, fresh = "what was there\n", "the new content\n"

func TestReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, text := range []string{old, fresh, ""} {
		if err := atomicfile.Replace(path, []byte(text), nil); err != nil {
			t.Fatal(err)
		}
		expect(t, path, text, 0o600)
	}
}

func TestReplaceKeepsModeAndOwner(t *testing.T) {
	path := existing(t)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}

	owner := os.Getuid()
	if owner == 0 {
		owner = 4711
		if err := os.Chown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
	}

	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Replace(path, []byte(fresh), info); err != nil {
		t.Fatal(err)
	}

	expect(t, path, fresh, 0o640)
	if info, err := os.Stat(path); err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != owner {
		t.Errorf("%+v, %v, not of user %d", info.Sys(), err, owner)
	}
	if err := atomicfile.Replace(path, []byte(fresh), nil); err != nil {
		t.Fatal(err)
	}

	expect(t, path, fresh, 0o600)
}

// A reader sees either the old or the new file.
func TestReplaceWhileItIsRead(t *testing.T) {
	path := existing(t)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	if err := atomicfile.Replace(path, []byte(fresh), nil); err != nil {
		t.Fatal(err)
	}

	text := make([]byte, 100)
	if n, err := f.Read(text); err != nil || string(text[:n]) != old {
		t.Errorf("%q, %v", text[:n], err)
	}
}

func TestReplaceThatCannotBeWrittenWhole(t *testing.T) {
	path := existing(t)
	const room = 1000
	limitFiles(t, room)
	if err := atomicfile.Replace(path, []byte(strings.Repeat("x", 2*room)), nil); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("the error is %v", err)
	}
	expect(t, path, old, 0o600)
}

func TestReplaceThatCannotBeRenamed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Replace(path, []byte(fresh), nil); err == nil {
		t.Error("a directory is replaced")
	}

	if info, err := os.Stat(path); err != nil || !info.IsDir() || !slices.Equal(names(t, dir), []string{"file"}) {
		t.Errorf("%v, %v, left: %v", info, err, names(t, dir))
	}
}

func TestReplaceWithoutDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := atomicfile.Replace(filepath.Join(dir, "missing", "file"), nil, nil); !errors.Is(err,
		fs.ErrNotExist) || len(names(t, dir)) > 0 {
		t.Errorf("%v, left: %v", err, names(t, dir))
	}
}

func TestCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := atomicfile.Create(path, []byte(old)); err != nil {
		t.Fatal(err)
	}
	expect(t, path, old, 0o600)
	if err := atomicfile.Create(path, []byte(fresh)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over what is there: %v", err)
	}
	expect(t, path, old, 0o600)
}

func TestCreateThatCannotBeWrittenWhole(t *testing.T) {
	dir := t.TempDir()
	const room = 1000
	limitFiles(t, room)
	err := atomicfile.Create(filepath.Join(dir, "file"), []byte(strings.Repeat("x", 2*room)))
	if !errors.Is(err, syscall.EFBIG) || len(names(t, dir)) > 0 {
		t.Errorf("%v, left: %v", err, names(t, dir))
	}
}

func existing(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// expect checks the file, and that the directory contains no other file.
func expect(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	have, err := os.ReadFile(path)
	if err != nil || string(have) != text {
		t.Errorf("%q, %v, not %q", have, err, text)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != mode {
		t.Errorf("mode %v, %v, not %v", info.Mode(), err, mode)
	}

	if left := names(t, filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func names(t *testing.T, dir string) (names []string) {
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

// limitFiles makes writes fail beyond a file size in bytes, until the test
// ends.
func limitFiles(t *testing.T, bytes uint64) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}

	signal.Ignore(syscall.SIGXFSZ)
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
			t.Error(err)
		}
		signal.Reset(syscall.SIGXFSZ)
	})

	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: bytes, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
}

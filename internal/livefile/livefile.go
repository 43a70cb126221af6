// Package livefile keeps the parsed content of files, and reloads it when
// the files change.
//
// Files are checked when their content is requested, at most once a second,
// so there is no goroutine to start or stop. A file has changed if its
// modification time, size or inode is different, following symbolic links.
// This detects files that were written in place, replaced by a rename, or
// switched through the "..data" link of a Kubernetes volume. If the files
// are missing or malformed, the last good content remains in use, and the
// error is reported once.
package livefile

import (
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// checkInterval is the minimum time between two checks of the files.
const checkInterval = time.Second

// Config configures a File.
type Config[T any] struct {
	// Paths are the files. Load is called when any of them changes.
	Paths []string
	// Load reads and parses the files. Required.
	Load func() (T, error)
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
	// Report is called after each reload, with its error or nil. The same
	// error is not reported twice in a row. It must not call the File. It
	// may be nil.
	Report func(error)
}

// File is the content of one or more files. It is safe for concurrent use.
type File[T any] struct {
	cfg Config[T]

	mu       sync.Mutex
	checked  time.Time
	read     []Fingerprint // of the files, taken before the last successful load
	reported string        // last reported error
	current  T
}

// Fingerprint identifies a version of a file. It is the zero value if there is
// no file.
type Fingerprint struct {
	modified time.Time
	size     int64
	inode    uint64
	device   uint64
}

// Open loads the files and returns Load's error.
func Open[T any](cfg Config[T]) (*File[T], error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}

	f := &File[T]{cfg: cfg, checked: cfg.Now(), read: fingerprints(cfg.Paths)}

	var err error
	if f.current, err = cfg.Load(); err != nil {
		return nil, err
	}

	return f, nil
}

// Get returns the current content, which must not be modified.
func (f *File[T]) Get() T {
	f.mu.Lock()
	defer f.mu.Unlock()

	now := f.cfg.Now()
	if since := now.Sub(f.checked); since >= 0 && since < checkInterval {
		return f.current
	}

	f.checked = now
	_ = f.reloadIfChanged() // the error was reported
	return f.current
}

// Check checks the files now and reloads them if they have changed. If the
// reload fails, it returns the error, and the old content remains in use.
func (f *File[T]) Check() error {
	f.mu.Lock()
	defer f.mu.Unlock()

	f.checked = f.cfg.Now()
	return f.reloadIfChanged()
}

// reloadIfChanged reloads the files if they have changed. A failed reload
// is repeated at the next call, because files that belong together may be
// replaced one after the other.
func (f *File[T]) reloadIfChanged() error {
	now := fingerprints(f.cfg.Paths)
	if equal(now, f.read) {
		return nil
	}

	content, err := f.cfg.Load()
	if err != nil {
		f.report(err)
		return err
	}

	f.current, f.read = content, now
	f.report(nil)
	return nil
}

func (f *File[T]) report(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if f.cfg.Report != nil && (err == nil || text != f.reported) {
		f.cfg.Report(err)
	}

	f.reported = text
}

// fingerprints must be called before a load, so that changes during the
// load are detected at the next check.
func fingerprints(paths []string) []Fingerprint {
	out := make([]Fingerprint, len(paths))
	for i, path := range paths {
		out[i] = Take(path)
	}
	return out
}

// Take returns the fingerprint of the file, following symbolic links.
func Take(path string) (f Fingerprint) {
	info, err := os.Stat(path)
	if err != nil {
		return f
	}

	f = Fingerprint{modified: info.ModTime(), size: info.Size()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		f.inode, f.device = stat.Ino, uint64(stat.Dev) //nolint:gosec,unconvert,nolintlint // an int32 on macOS
	}
	return f
}

// Equal reports whether both are the same version of the same file.
func (f Fingerprint) Equal(g Fingerprint) bool {
	return f.SameFile(g) && f.modified.Equal(g.modified) && f.size == g.size
}

// SameFile reports whether both are the same file, or the same directory.
func (f Fingerprint) SameFile(g Fingerprint) bool { return f.inode == g.inode && f.device == g.device }

func equal(a, b []Fingerprint) bool { return slices.EqualFunc(a, b, Fingerprint.Equal) }

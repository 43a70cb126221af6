// Package livefile keeps the parsed content of files, and parses them again
// when they change.
//
// Files are checked when their content is asked for, at most once a second, so
// that there is nothing to start and nothing to stop. A change is a change of
// the modification time, the size, or the inode, seen through symbolic links: a
// file that is written in place, replaced by a rename, or swapped by way of the
// "..data" link of a Kubernetes volume is read again. Files that are missing or
// cannot be parsed change nothing: the last good content stays in force, and
// the failure is reported once.
package livefile

import (
	"os"
	"sync"
	"syscall"
	"time"
)

// checkInterval is the least time between two checks of the files.
const checkInterval = time.Second

// Config configures a File.
type Config[T any] struct {
	// Paths are the files. A change of any of them has Load called.
	Paths []string
	// Load reads and parses the files. Required.
	Load func() (T, error)
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// Report, if not nil, is told of each later reading: nil, or the error,
	// which is told once until it changes. It must not call the File.
	Report func(error)
}

// File is the content of some files. It is safe for concurrent use.
type File[T any] struct {
	cfg Config[T]

	mu       sync.Mutex
	checked  time.Time
	read     []fingerprint // of the files, before they were last read
	reported string        // the error that was last reported
	current  T
}

// fingerprint tells a file from what it was before.
type fingerprint struct {
	modified time.Time
	size     int64
	inode    uint64
	device   uint64
}

// Open reads the files for the first time. The error is that of Load.
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

// Get returns the content in force. It must not be altered.
func (f *File[T]) Get() T {
	f.mu.Lock()
	defer f.mu.Unlock()

	now := f.cfg.Now()
	if since := now.Sub(f.checked); since >= 0 && since < checkInterval {
		return f.current
	}
	f.checked = now
	_ = f.reloadIfChanged() // it was reported
	return f.current
}

// Check looks at the files now, whenever they were last looked at. It returns
// the error of a reading that failed; the content in force is then the old one.
func (f *File[T]) Check() error {
	f.mu.Lock()
	defer f.mu.Unlock()

	f.checked = f.cfg.Now()
	return f.reloadIfChanged()
}

// reloadIfChanged reads the files if they have changed. A reading that fails
// is made again at the next reloadIfChanged: files that belong together may be
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

// fingerprints are taken before a reading, so that a change in between is seen
// at the next check. A missing file has the zero fingerprint.
func fingerprints(paths []string) []fingerprint {
	out := make([]fingerprint, len(paths))
	for i, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			continue
		}

		out[i] = fingerprint{modified: info.ModTime(), size: info.Size()}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			out[i].inode, out[i].device = stat.Ino, stat.Dev
		}
	}

	return out
}

func equal(a, b []fingerprint) bool {
	for i := range a {
		same := a[i].modified.Equal(b[i].modified) && a[i].size == b[i].size
		if !same || a[i].inode != b[i].inode || a[i].device != b[i].device {
			return false
		}
	}
	return true
}

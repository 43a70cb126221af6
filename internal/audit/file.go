package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// checkInterval is how often the path is compared with the open file.
// Without this check, writes to a removed file would succeed but be lost.
const checkInterval = time.Second

// prepare makes sure that the file at the path is open and has room for a
// line of n bytes.
func (l *Log) prepare(now time.Time, n int) error {
	if l.cfg.File == "" {
		return nil
	}

	full := l.cfg.MaxSize > 0 && l.size > 0 && l.size+int64(n) > l.cfg.MaxSize
	if l.out == nil || full || now.Sub(l.checked) >= checkInterval {
		if err := l.reopenIfMoved(now); err != nil {
			return err
		}
		if full && l.size > 0 && l.size+int64(n) > l.cfg.MaxSize { // if no other process has renamed it
			return l.rotate(now)
		}
	}

	return nil
}

// reopenIfMoved opens the file at the path, unless it is already open.
func (l *Log) reopenIfMoved(now time.Time) error {
	there, err := os.Stat(l.cfg.File)
	if err != nil || l.out == nil || !os.SameFile(there, l.info) {
		err = l.open()
	} else if there.Mode().IsRegular() {
		l.size = there.Size() // another process may append to it or truncate it
	}

	l.checked = now
	return err
}

// open opens the file at the path and closes the current one.
func (l *Log) open() error {
	_ = l.closeFile() // write errors were already returned by the writes
	file, err := os.OpenFile(l.cfg.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}

	info, err := file.Stat()
	if err != nil {
		file.Close()
		return err
	}

	l.file, l.out, l.info, l.size, l.partialLine = file, file, info, 0, false
	if info.Mode().IsRegular() {
		l.size = info.Size()
		l.partialLine = l.size > 0 && !endsWithLine(l.cfg.File, l.size)
	}

	l.checked = l.cfg.Now()
	return nil
}

// endsWithLine reports whether a file is known to end with a newline.
func endsWithLine(path string, size int64) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()

	var last [1]byte
	_, err = file.ReadAt(last[:], size-1)
	return err == nil && last[0] == '\n'
}

func (l *Log) closeFile() error {
	file := l.file
	if file == nil {
		return nil
	}
	l.file, l.out = nil, nil
	return file.Close()
}

// timeForm is the form of the times in names of renamed files. They are in
// UTC, and sort alphabetically.
const timeForm = "20060102T150405.000000000Z"

// rotate renames the file and opens a new one. If renaming fails, the log
// continues in the same file, without a limit on its size, and Trouble is
// called once a second.
func (l *Log) rotate(now time.Time) error {
	if !l.info.Mode().IsRegular() {
		return nil
	}

	head, tail := l.names()
	renamed := head + now.UTC().Format(timeForm) + tail
	_, err := os.Lstat(renamed)
	if err == nil {
		err = fs.ErrExist // a rename would overwrite it
	}

	if errors.Is(err, fs.ErrNotExist) {
		err = os.Rename(l.cfg.File, renamed)
	}
	if err != nil {
		l.cfg.Trouble(fmt.Errorf("audit: renaming %s: %w", l.cfg.File, err))
		l.size = 0 // until the next check
		return nil
	}

	if err := l.open(); err != nil {
		return err
	}
	l.prune()
	return nil
}

// names returns the parts before and after the time in the path of a
// renamed file.
func (l *Log) names() (head, tail string) {
	tail = filepath.Ext(l.cfg.File)
	return strings.TrimSuffix(l.cfg.File, tail) + "-", tail
}

// prune removes renamed files that are too old or too many.
func (l *Log) prune() {
	if l.cfg.MaxFiles <= 0 && l.cfg.MaxAge <= 0 {
		return
	}

	entries, err := os.ReadDir(filepath.Dir(l.cfg.File))
	if err != nil {
		l.cfg.Trouble(fmt.Errorf("audit: listing old files: %w", err))
		return
	}

	head, tail := l.names()
	var times []time.Time

	for _, entry := range entries {
		text, isHead := strings.CutPrefix(entry.Name(), filepath.Base(head))
		text, isTail := strings.CutSuffix(text, tail)
		if at, err := time.Parse(timeForm, text); isHead && isTail && err == nil {
			times = append(times, at)
		}
	}

	slices.SortFunc(times, func(a, b time.Time) int { return b.Compare(a) })
	for i, at := range times {
		tooMany := l.cfg.MaxFiles > 0 && i >= l.cfg.MaxFiles
		tooOld := l.cfg.MaxAge > 0 && l.cfg.Now().Sub(at) > l.cfg.MaxAge
		if !tooMany && !tooOld {
			continue
		}
		if err := os.Remove(head + at.Format(timeForm) + tail); err != nil {
			l.cfg.Trouble(fmt.Errorf("audit: removing an old file: %w", err))
		}
	}
}

// Package atomicfile writes files atomically. Readers see either the old or
// the new file, even after a crash.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Replace writes a file, which need not exist. The file gets mode 0600, or
// the mode and owner of like if that is not nil. When Replace returns nil,
// content and name are on disk. When it returns an error, the file is
// unchanged and no other file is left, unless only the last step has
// failed, which flushes the name to disk.
//
// The new file is first written to the same directory with a name that
// starts with a dot. If path is a symbolic link, the link itself is
// replaced.
func Replace(path string, data []byte, like fs.FileInfo) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // with mode 0600
	if err != nil {
		return err
	}
	if err = errors.Join(keep(like, f), fill(f, data)); err == nil {
		err = os.Rename(f.Name(), path)
	}

	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// Create writes a new file with mode 0600. If the file exists, the error
// matches fs.ErrExist. When Create returns nil, content and name are on
// disk. When it returns an error, no file is left. A crash can leave a
// partial file.
func Create(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err = fill(f, data); err == nil {
		err = syncDir(filepath.Dir(path))
	}

	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// keep gives a file the mode and owner of another file. It fails if it
// cannot: a file that root has replaced, and that the proxy's user can no
// longer read, would be lost.
func keep(like fs.FileInfo, f *os.File) error {
	if like == nil {
		return nil
	}

	info, err := f.Stat()
	if err != nil {
		return err
	}

	have, want := info.Sys().(*syscall.Stat_t), like.Sys().(*syscall.Stat_t)
	if have.Uid != want.Uid || have.Gid != want.Gid {
		if err := f.Chown(int(want.Uid), int(want.Gid)); err != nil {
			return fmt.Errorf("keeping the owner of the file: %w", err)
		}
	}

	return f.Chmod(like.Mode().Perm())
}

// fill writes data to a file, flushes it to disk, and closes it.
func fill(f *os.File, data []byte) error {
	_, err := f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// syncDir flushes the name of a new file to disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

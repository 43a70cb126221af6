// Package atomicfile writes files as a whole. Readers, and whoever looks after
// a crash, see the file as it was or as it is to be, and nothing between.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Replace writes a file, which need not exist yet. It has mode 0600, or the
// mode and the owner of another one that is to be taken for a model, if like
// is not nil. File and name are on disk when it returns nil. When it returns
// an error, the file is as it was and nothing else is left, unless only the
// last step failed, which makes sure that the name is on disk.
//
// The new file is written beside the old one, with a name that begins with a
// dot. A symbolic link at path is replaced itself, and not what it points to.
func Replace(path string, data []byte, like fs.FileInfo) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // of mode 0600
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

// Create writes a file of mode 0600 that must not exist yet; one that does is
// an error that is fs.ErrExist. File and name are on disk when it returns nil,
// and nothing is left when it returns an error. A crash can leave a part of
// it.
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

// keep gives a file the mode and the owner of another. It fails where it may
// not: a file that root has replaced, and that the proxy's user can no longer
// read, would be one that is gone.
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

// fill writes all of a file, and closes it.
func fill(f *os.File, data []byte) error {
	_, err := f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// syncDir puts a new file's name on disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

package kms

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/atomicfile"
)

// CreateLocalKeyFile writes a new random key to a new file with mode 0600.
// The file is on disk when it returns, because losing the key would lose
// the data. If the file exists, the error matches fs.ErrExist.
func CreateLocalKeyFile(path string) error {
	key := make([]byte, 32)
	defer clear(key)
	rand.Read(key)
	return ImportLocalKeyFile(path, key)
}

// ImportLocalKeyFile is CreateLocalKeyFile with a given key of 32 bytes,
// which must not all be the same.
func ImportLocalKeyFile(path string, key []byte) error {
	if len(key) != 32 {
		return fmt.Errorf("creating a local key: the key has %d bytes, not 32", len(key))
	}
	if allAlike(key) {
		return errors.New("creating a local key: all bytes of the key are the same")
	}

	file := newLocalKeyFile(key, time.Now())
	defer file.Wipe()

	text := localText(file)
	defer clear(text)

	if err := atomicfile.Create(path, text); err != nil {
		return fmt.Errorf("creating a local key: %w", err)
	}
	return nil
}

func allAlike(key []byte) bool {
	for _, b := range key {
		if b != key[0] {
			return false
		}
	}
	return true
}

// ReadLocalKeyFile reads the key file at path. It refuses the files that
// NewLocal refuses. Errors are of type *Error.
func ReadLocalKeyFile(path string) (*LocalKeyFile, error) {
	file, failure := readLocal(path)
	if failure != nil {
		return nil, opening(failure, path)
	}
	return file, nil
}

// ChangeLocalKeyFile reads the key file at path, calls change, and replaces
// the file, in the newer form. Readers see either the old or the new file.
// The new file has the mode and owner of the old one, and is on disk when
// ChangeLocalKeyFile returns. If change fails, the file is not modified and
// its error is returned unchanged. A lock serializes changes by several
// processes, so that no version is lost.
//
// A destroyed key is no longer in the file, but it may still be in backups,
// in snapshots, and in the disk blocks of the old file.
func ChangeLocalKeyFile(path string, change func(*LocalKeyFile) error) error {
	target, err := filepath.EvalSymlinks(path) // otherwise the rename would replace the symbolic link
	if err != nil {
		return opening(localFileError(err), path)
	}

	f, err := lockLocal(target)
	if err != nil {
		return err
	}
	defer f.Close() // also unlocks

	file, failure := readOpenLocal(f)
	if failure != nil {
		return opening(failure, target)
	}
	defer file.Wipe()

	if err := change(file); err != nil {
		return err
	}

	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("changing a local key: %w", err)
	}

	text := localText(file)
	defer clear(text)

	if err := atomicfile.Replace(target, text, info); err != nil {
		return fmt.Errorf("changing a local key: %w", err)
	}
	return nil
}

func opening(failure *Error, path string) *Error {
	failure.Op, failure.KeyID = "open", localKeyPrefix+path
	return failure
}

// lockLocal opens the file at path and locks it until it is closed. While
// it waited for the lock, the file may have been replaced, so it checks
// that and tries again. The file is opened for writing because NFS requires
// this for locks.
func lockLocal(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, opening(localFileError(err), path)
		}

		err = flock(f)
		var held, there fs.FileInfo

		if err == nil {
			held, err = f.Stat()
		}
		if err == nil {
			there, err = os.Stat(path)
		}

		switch {
		case err != nil:
			f.Close()
			return nil, fmt.Errorf("locking a local key: %w", err)
		case os.SameFile(held, there):
			return f, nil
		}

		f.Close()
	}
}

func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// localText returns the text of a key file. The slice is large enough that
// it does not grow and leave copies behind.
func localText(file *LocalKeyFile) []byte {
	return file.Append(make([]byte, 0, 256+128*len(file.Versions)))
}

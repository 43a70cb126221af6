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

// CreateLocalKeyFile writes a new random key to a new file of mode 0600, and
// makes sure that it is on disk: what was sealed under a lost key is lost. It
// never overwrites: an existing file is an error that is fs.ErrExist.
func CreateLocalKeyFile(path string) error {
	key := make([]byte, 32)
	defer clear(key)
	rand.Read(key)
	return ImportLocalKeyFile(path, key)
}

// ImportLocalKeyFile is CreateLocalKeyFile with a key of the caller's, 32
// bytes that are not all alike.
func ImportLocalKeyFile(path string, key []byte) error {
	if len(key) != 32 {
		return fmt.Errorf("creating a local key: %d bytes, and a key has 32", len(key))
	}
	if allAlike(key) {
		return errors.New("creating a local key: all bytes are alike, which no random key's are")
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

// ReadLocalKeyFile reads the key file at path. It refuses what NewLocal
// refuses; errors are of type *Error.
func ReadLocalKeyFile(path string) (*LocalKeyFile, error) {
	file, failure := readLocal(path)
	if failure != nil {
		return nil, opening(failure, path)
	}
	return file, nil
}

// ChangeLocalKeyFile reads the key file at path, has change act on it, and
// writes it back, in the newer form. Readers see the file as it was or as it
// is to be, and nothing between. The new file is on disk when it returns, with
// the mode and the owner of the old one. An error of change leaves the file as
// it is, and is returned as it is. Of several processes that change one file,
// one goes after the other, so that none loses a version that another has
// added.
//
// A destroyed key is no longer in the file. That says nothing of backups,
// snapshots, and the blocks that the old file had on the disk.
func ChangeLocalKeyFile(path string, change func(*LocalKeyFile) error) error {
	target, err := filepath.EvalSymlinks(path) // else the rename would put a file in the place of the link
	if err != nil {
		return opening(localFileError(err), path)
	}

	f, err := lockLocal(target)
	if err != nil {
		return err
	}
	defer f.Close() // which unlocks

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

// lockLocal opens the file at path and locks it until it is closed. Whoever
// waited for the lock may then hold a file that was replaced in the meantime,
// and has to look again. It is opened for writing because NFS locks nothing
// else.
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

// localText is the text of a key file, in a slice so large that it need not
// grow, and leave copies.
func localText(file *LocalKeyFile) []byte {
	return file.Append(make([]byte, 0, 256+128*len(file.Versions)))
}

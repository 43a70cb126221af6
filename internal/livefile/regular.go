package livefile

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// OpenRegular opens a file, which must be a regular one, and describes it. The
// caller must close it.
func OpenRegular(path string) (*os.File, fs.FileInfo, error) {
	// Without O_NONBLOCK, opening a named pipe would block forever.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}

	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, nil, err
	}
	return f, info, nil
}

//go:build unix

package main

import (
	"io/fs"
	"syscall"
)

// fileID returns the device and the inode of a file.
func fileID(info fs.FileInfo) (device, inode uint64, ok bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return uint64(stat.Dev), stat.Ino, true //nolint:unconvert // an int32 on some systems
}

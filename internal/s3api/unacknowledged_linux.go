package s3api

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unacknowledged returns the number of bytes in the kernel that the peer has
// not acknowledged, or 1 if it is not known. See SIOCOUTQ in
// https://man7.org/linux/man-pages/man7/tcp.7.html.
func unacknowledged(conn net.Conn) int {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return 1
	}

	raw, err := socket.SyscallConn()
	if err != nil {
		return 1
	}

	n := 1
	_ = raw.Control(func(fd uintptr) {
		if held, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil {
			n = held
		}
	})
	return n
}

package main

import (
	"math"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sinceReceived returns the time since the kernel last received data on a
// connection, whether it was read or not.
func sinceReceived(conn any) time.Duration {
	info := tcpInfo(conn)
	if info == nil {
		return math.MaxInt64
	}
	return time.Duration(info.Last_data_recv) * time.Millisecond
}

// queueLength returns how many connections to a listener the kernel holds
// until they are accepted.
func queueLength(listener any) int {
	info := tcpInfo(listener)
	if info == nil {
		return 0
	}
	return int(info.Unacked) // this field has another meaning for listeners
}

// tcpInfo returns nil if the kernel does not know. See TCP_INFO in
// https://man7.org/linux/man-pages/man7/tcp.7.html.
func tcpInfo(of any) (info *unix.TCPInfo) {
	socket, ok := of.(syscall.Conn)
	if !ok {
		return nil
	}

	raw, err := socket.SyscallConn()
	if err != nil {
		return nil
	}

	_ = raw.Control(func(fd uintptr) {
		if known, err := unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO); err == nil {
			info = known
		}
	})
	return info
}

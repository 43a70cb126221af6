package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// notifySocket is the variable with the socket of the service manager. The
// protocol is that of sd_notify(3):
// https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html.
const notifySocket = "NOTIFY_SOCKET"

// notify sends assignments such as READY=1 to the service manager, if there is
// one. A failure is logged: systemd then ends a service that it believes is
// still starting, and the log says why.
func (s *server) notify(assignments ...string) {
	socket := os.Getenv(notifySocket) //nolint:forbidigo // set by the service manager, and not a setting
	if socket == "" {
		return
	}

	// A name that begins with @ is an abstract socket, as in package net.
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "unixgram", socket)
	if err == nil {
		_, err = conn.Write([]byte(strings.Join(assignments, "\n")))
		_ = conn.Close()
	}
	if err != nil {
		s.log.Warn(
			"telling the service manager failed; check that $"+notifySocket+" is a socket that this user may write to",
			zap.Strings("state", assignments), zap.Error(err),
		)
	}
}

// notifyReloading tells that a reload began. The returned function tells that
// it ended, also if the configuration was refused: the proxy serves with the
// old one.
func (s *server) notifyReloading() (ended func()) {
	s.notify("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", monotonicMicroseconds()))
	return func() { s.notify("READY=1") }
}

// monotonicMicroseconds returns the time of CLOCK_MONOTONIC. systemd compares
// it with the time at which it asked for the reload.
func monotonicMicroseconds() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0
	}
	return now.Nano() / int64(time.Microsecond)
}

// afterGrace is the time for ending once limits.shutdown_grace is over.
const afterGrace = 15 * time.Second

// notifyStopping tells that the drain began, and asks for the time that it
// may take. Without that, a TimeoutStopSec shorter than limits.shutdown_grace
// would cut the running requests.
func (s *server) notifyStopping() {
	grace := s.cfg.Limits.ShutdownGrace
	s.notify(
		"STOPPING=1",
		fmt.Sprintf("STATUS=draining, for at most %v", grace),
		fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", (grace+afterGrace).Microseconds()),
	)
}

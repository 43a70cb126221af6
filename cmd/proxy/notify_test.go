package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// serviceManager is the socket on which systemd listens.
func serviceManager(t *testing.T, address string) *net.UnixConn {
	t.Helper()
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	t.Setenv(notifySocket, address)
	return socket
}

// told returns the next message, which must match a pattern.
func told(t *testing.T, socket *net.UnixConn, pattern string) []string {
	t.Helper()
	if err := socket.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := socket.Read(buf)
	match := regexp.MustCompile(`^(?:` + pattern + `)$`).FindStringSubmatch(string(buf[:n]))
	if err != nil || match == nil {
		t.Fatalf("told %q, %v; want %s", buf[:n], err, pattern)
	}
	return match
}

func TestServiceManagerIsTold(t *testing.T) {
	for name, address := range map[string]string{
		"a socket in the file system": filepath.Join(t.TempDir(), "notify"),
		"an abstract socket":          fmt.Sprintf("@cmekproxy-test-%d", os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			socket := serviceManager(t, address)
			listen, admin := freePort(t), freePort(t)
			config := writeConfig(t, refusing(t), listen, admin)
			s := start(t, "serve", "--config", config)

			told(t, socket, "READY=1\nSTATUS=serving S3 on "+listen)
			for _, address := range []string{listen, admin} { // both are open by now
				conn, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
			}

			reloads(t, socket)
			if err := os.WriteFile(config, []byte("nonsense"), 0o600); err != nil {
				t.Fatal(err)
			}
			reloads(t, socket) // the old configuration serves on

			s.stop()
			// 20 s of shutdown_grace, and 15 s.
			told(t, socket, "STOPPING=1\nSTATUS=draining, for at most 20s\nEXTEND_TIMEOUT_USEC=35000000")
			if code := s.end(t); code != 0 {
				t.Errorf("exit code %d:\n%s", code, s.out.String())
			}
		})
	}
}

// reloads sends SIGHUP. systemd ignores a reload that began, by CLOCK_MONOTONIC,
// before it asked for one.
func reloads(t *testing.T, socket *net.UnixConn) {
	t.Helper()
	before := monotonicMicroseconds()
	signalSelf(t, syscall.SIGHUP)
	var began int64
	_, _ = fmt.Sscan(told(t, socket, `RELOADING=1\nMONOTONIC_USEC=(\d+)`)[1], &began)
	if after := monotonicMicroseconds(); began < before || began > after || before == 0 {
		t.Errorf("the reload began at %d, between %d and %d", began, before, after)
	}
	told(t, socket, "READY=1")
}

// A socket that does not work is reported. The caller serves on.
func TestServiceManagerIsAway(t *testing.T) {
	for _, row := range []struct{ name, socket, want string }{
		{"no service manager", "", ""},
		{"no socket", filepath.Join(t.TempDir(), "nothing"), "telling the service manager failed; check that $NOTIFY_SOCKET"},
		{"a file", os.Args[0], "telling the service manager failed"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Setenv(notifySocket, row.socket)
			core, logged := observer.New(zap.DebugLevel)
			s := &server{backend: &backend{log: zap.New(core)}}
			s.notify("READY=1")

			entries := logged.All()
			if got := len(entries); got > 1 || (got == 1) != (row.want != "") {
				t.Fatalf("%d lines in the log: %v", got, entries)
			}
			if len(entries) == 1 && !strings.HasPrefix(entries[0].Message, row.want) {
				t.Errorf("logged %q, want %q", entries[0].Message, row.want)
			}
		})
	}
}

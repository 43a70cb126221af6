package http1

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// socket is the lowest layer of a connection. It can be read without waiting.
type socket struct {
	net.Conn
	raw     syscall.RawConn
	probing bool
	one     [1]byte

	attempt func(fd uintptr) bool // reads once into buf
	buf     []byte
	n       int
	err     error
}

func newSocket(conn net.Conn) (*socket, error) {
	s := &socket{Conn: conn}
	able, ok := conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("origin: a %T cannot be asked whether it is closed", conn)
	}
	var err error
	if s.raw, err = able.SyscallConn(); err != nil {
		return nil, err
	}

	s.attempt = func(fd uintptr) bool {
		s.n, s.err = readNow(fd, s.buf)
		return true // never wait
	}
	return s, nil
}

func (s *socket) Read(p []byte) (int, error) {
	if !s.probing {
		return s.Conn.Read(p)
	}

	s.buf = p
	err := s.raw.Read(s.attempt)
	s.buf = nil
	switch {
	case err != nil:
		return 0, err
	case s.err != nil:
		return 0, s.err
	case s.n == 0:
		return 0, net.ErrClosed
	default:
		return s.n, nil
	}
}

// nothing is the error if nothing can be read now. It is temporary, or
// tls.Conn would keep it.
type nothing struct{}

var errNothing error = nothing{}

func (nothing) Error() string   { return "nothing to read" }
func (nothing) Timeout() bool   { return true }
func (nothing) Temporary() bool { return true }

// readNow reads from a descriptor that does not block. It returns errNothing
// if there is nothing to read.
func readNow(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return 0, errNothing
		default:
			return max(n, 0), err
		}
	}
}

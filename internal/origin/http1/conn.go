package http1

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// maxHead limits the heads of a response, including those of informational
// ones, in bytes.
const maxHead = 64 << 10

var errHead = fmt.Errorf("origin: the head of the store's response has more than %d bytes", maxHead)

// conn is a connection to a server, used by one request at a time.
type conn struct {
	stream net.Conn // with TLS, if the server has it
	socket *socket  // below it
	key    key
	trust  *tls.Config // that it was made with
	reused bool        // an earlier request has used it

	// Used by the goroutine that reads.
	br       *bufio.Reader // nil while the connection is idle
	headLeft int           // how much may be read of the head; only if inHead
	inHead   bool
	idle     time.Duration // limit of a read of the body

	idleSince time.Time // guarded by the pool

	mu       sync.Mutex
	canceled bool      // the deadlines have passed, and stay so
	answered bool      // the head has been read
	readBy   time.Time // deadlines; zero for none
	writeBy  time.Time
}

// Read is for br.
func (c *conn) Read(p []byte) (int, error) {
	switch {
	case !c.inHead:
		if err := c.limitRead(c.idle); err != nil {
			return 0, err
		}
		return c.stream.Read(p)
	case c.headLeft == 0:
		return 0, errHead
	}

	n, err := c.stream.Read(p[:min(len(p), c.headLeft)])
	c.headLeft -= n
	return n, err
}

// maxTLSWrite is how much is written with one deadline with TLS, where a
// write that timed out cannot be continued.
const maxTLSWrite = 32 << 10

// send writes all of p. It fails with ErrIdle if the server takes no byte
// within idle. n is how much was written.
func (c *conn) send(p []byte, idle time.Duration) (n int, err error) {
	for n < len(p) {
		piece := p[n:]
		if c.isTLS() {
			piece = piece[:min(len(piece), maxTLSWrite)]
		}
		if err := c.limitWrite(idle); err != nil {
			return n, err
		}

		m, err := c.stream.Write(piece)
		n += m
		late := errors.Is(err, os.ErrDeadlineExceeded)
		if late && m > 0 && !c.isTLS() {
			continue
		}
		if late {
			return n, ErrIdle
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (c *conn) isTLS() bool { return c.stream != net.Conn(c.socket) }

// limitRead lets reads fail after limit. 0 means no limit.
func (c *conn) limitRead(limit time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.setDeadline(&c.readBy, limit, c.stream.SetReadDeadline)
}

func (c *conn) limitWrite(limit time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.setDeadline(&c.writeBy, limit, c.stream.SetWriteDeadline)
}

// setDeadline sets a deadline, unless the one that is set is a bit later. c.mu
// is held. A request that was canceled stays canceled.
func (c *conn) setDeadline(current *time.Time, limit time.Duration, set func(time.Time) error) error {
	switch {
	case c.canceled:
		return os.ErrDeadlineExceeded
	case limit <= 0 && current.IsZero():
		return nil
	case limit <= 0:
		*current = time.Time{}
		return set(*current)
	}

	slack := min(limit/8, time.Second)
	by := time.Now().Add(limit)
	if late := current.Sub(by); 0 <= late && late <= slack {
		return nil
	}
	*current = by.Add(slack)
	return set(*current)
}

// cancel makes all reads and writes fail, now and later.
func (c *conn) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.canceled = true
	_ = c.socket.SetDeadline(time.Unix(1, 0))
}

// bodySent starts the time limit for the response, after the goroutine that
// sends the body has ended. If the response has begun, it has other limits.
func (c *conn) bodySent(limit time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.answered {
		_ = c.setDeadline(&c.readBy, limit, c.stream.SetReadDeadline)
	}
}

// cancelUnlessAnswered is cancel, unless the response has begun.
func (c *conn) cancelUnlessAnswered() {
	c.mu.Lock()
	answered := c.answered
	c.mu.Unlock()
	if !answered {
		c.cancel()
	}
}

// beginHead prepares for the next response.
func (c *conn) beginHead() {
	c.br = takeReader(c)
	c.inHead, c.headLeft = true, maxHead
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered = false
}

// endHead prepares for the body of the response.
func (c *conn) endHead(idle time.Duration) {
	c.inHead, c.idle = false, idle
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered = true
}

// abort closes a connection that failed, or that has unread bytes. Nothing is
// sent any more, not even the end of TLS, which could block. Only the
// goroutine that reads may call it.
func (c *conn) abort() {
	_ = c.socket.Close()
	c.releaseReader()
}

// close closes an idle connection.
func (c *conn) close() { _ = c.stream.Close() }

func (c *conn) releaseReader() {
	if c.br != nil {
		returnReader(c.br)
		c.br = nil
	}
}

// alive reports whether an idle connection can be used. The server must not
// have closed it, nor sent anything: that would be taken for the answer to
// the next request.
func (c *conn) alive() bool {
	if !c.readBy.IsZero() && time.Now().After(c.readBy) { // a deadline of an earlier request
		_ = c.limitRead(0)
	}
	c.socket.probing = true
	n, err := c.stream.Read(c.socket.one[:])
	c.socket.probing = false
	return n == 0 && errors.Is(err, errNothing)
}

package clientaddr

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
)

// Reasons for which a Listener refuses a connection.
var (
	ErrNotTrusted = errors.New("a connection does not come from a trusted proxy")
	ErrNoHeader   = errors.New("a connection does not begin with a PROXY protocol header")
	ErrBadHeader  = errors.New("a connection has a malformed PROXY protocol header")
)

// Listener accepts connections from the trusted proxies only. Each must begin
// with a PROXY protocol header, of version 1 or 2. Nothing is guessed: the
// specification forbids it, because a client could otherwise send the header
// itself.
// https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt
type Listener struct {
	net.Listener
	Trusted Proxies
	Timeout time.Duration // limits the time until the header has arrived
	// Refused is called for each connection that is refused, with the peer
	// of the TCP connection, one of the reasons above, and further details
	// or nil. It is not called for a peer that sent nothing, such as the
	// health check of a load balancer.
	Refused func(peer net.Addr, reason, details error)
}

// Accept implements net.Listener. It does not wait for the header.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if peer, ok := conn.RemoteAddr().(*net.TCPAddr); ok && l.Trusted.Trust(peer.AddrPort().Addr()) {
			return &Conn{Conn: conn, listener: l, reader: bufio.NewReaderSize(conn, bufferSize)}, nil
		}
		_ = conn.Close()
		l.Refused(conn.RemoteAddr(), ErrNotTrusted, nil)
	}
}

// bufferSize is enough for most headers. The longest of version 1, which must
// arrive at once, has 107 bytes.
const bufferSize = 256

// Conn is a connection that begins with a PROXY protocol header. The header
// is read by the first call of RemoteAddr, Read or Write. net/http calls
// RemoteAddr first, in the goroutine of the connection and before it sets
// deadlines.
type Conn struct {
	net.Conn // the TCP connection
	listener *Listener

	once   sync.Once
	reader *bufio.Reader // has what arrived with the header; nil when that was read
	client net.Addr      // nil if the header has none
	err    error         // io.EOF if the connection was refused
}

// RemoteAddr returns the address of the client. For a connection of the proxy
// itself, such as a health check, it is that of the proxy.
func (c *Conn) RemoteAddr() net.Addr {
	if err := c.readHeader(); err == nil && c.client != nil {
		return c.client
	}
	return c.Conn.RemoteAddr()
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if err := c.readHeader(); err != nil {
		return 0, err
	}
	if c.reader == nil {
		return c.Conn.Read(p)
	}
	if c.reader.Buffered() > 0 {
		return c.reader.Read(p)
	}
	c.reader = nil
	return c.Conn.Read(p)
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	if err := c.readHeader(); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// readHeader reads the header, once. If there is no valid one, it closes the
// connection.
func (c *Conn) readHeader() error {
	c.once.Do(func() {
		header, err := proxyproto.ReadHeaderTimeout(c.Conn, c.reader, c.listener.Timeout)
		if err != nil {
			c.refuse(err)
			return
		}
		// Addresses of other kinds, such as Unix sockets, are those of a
		// client on the proxy's machine.
		if client, ok := header.SourceAddr.(*net.TCPAddr); ok && !header.Command.IsLocal() {
			c.client = client
		}
	})
	return c.err
}

func (c *Conn) refuse(err error) {
	c.err = io.EOF
	_ = c.Close()
	_, broken := err.(net.Error) //nolint:errorlint // an error while a header is parsed is wrapped
	switch noHeader := broken || errors.Is(err, proxyproto.ErrNoProxyProtocol); {
	case !noHeader:
		c.listener.Refused(c.Conn.RemoteAddr(), ErrBadHeader, err)
	case c.reader.Buffered() > 0:
		c.listener.Refused(c.Conn.RemoteAddr(), ErrNoHeader, nil)
	}
}

// TCP returns the connection below TLS and the PROXY protocol. Its peer is the
// machine that opened it, whatever was sent.
func TCP(conn net.Conn) net.Conn {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	if c, ok := conn.(*Conn); ok {
		return c.Conn
	}
	return conn
}

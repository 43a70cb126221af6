package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// connection is a keep-alive connection of the load generator. It sends
// signed requests as they are and reads responses without an HTTP library,
// so that the generator takes little of the machine from the proxy.
type connection struct {
	conn net.Conn
	in   *bufio.Reader
}

// ioTimeout ends a request that hangs.
const ioTimeout = 2 * time.Minute

func (e endpoint) dial(ctx context.Context) (*connection, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", e.addr)
	if err != nil {
		return nil, err
	}
	if e.roots != nil {
		conn = tls.Client(conn, &tls.Config{RootCAs: e.roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12})
	}
	return &connection{conn: conn, in: bufio.NewReaderSize(conn, 64<<10)}, nil
}

func (c *connection) close() { _ = c.conn.Close() }

// response is what the bench needs of a response.
type response struct {
	status  int
	etag    string
	length  int64 // of the body; 0 if it is chunked, until it was read
	chunked bool
	closing bool // no more requests can be sent on the connection
}

// do sends a request and reads the whole response. It copies the body to w
// if w is not nil. It returns an error unless the response reports success.
func (c *connection) do(r *request, w io.Writer) (response, error) {
	if err := c.conn.SetDeadline(time.Now().Add(ioTimeout)); err != nil {
		return response{}, err
	}

	sendErr := c.send(r)
	resp, err := c.readHead()
	if err != nil { // if sending failed, a server may have said why
		return resp, errors.Join(sendErr, err)
	}

	if resp.status >= http.StatusMultipleChoices {
		var text bytes.Buffer
		_, err := c.readBody(r.method, resp, &text)
		if resp.status == http.StatusServiceUnavailable {
			err = errors.Join(errSlowDown, err)
		}
		return resp, errors.Join(fmt.Errorf("answered %d: %.300s", resp.status, text.Bytes()), sendErr, err)
	}
	resp.length, err = c.readBody(r.method, resp, w)
	return resp, errors.Join(sendErr, err)
}

// errSlowDown is the error if there was no room for a request.
var errSlowDown = errors.New("slow down")

func (c *connection) send(r *request) error {
	buffers := make(net.Buffers, 1, 1+r.times)
	buffers[0] = r.head
	for range r.times {
		buffers = append(buffers, r.body)
	}
	_, err := buffers.WriteTo(c.conn) // one system call for a small request
	return err
}

// readHead reads the status line and the headers.
func (c *connection) readHead() (resp response, err error) {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return resp, err
	}
	if len(line) < len("HTTP/1.1 200") {
		return resp, fmt.Errorf("%q is not a status line", line)
	}
	if resp.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return resp, err
	}

	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return resp, err
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}

		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if resp.length, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return resp, err
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			resp.chunked = true
		case bytes.EqualFold(name, []byte("Connection")):
			resp.closing = bytes.EqualFold(value, []byte("close"))
		case bytes.EqualFold(name, []byte("Etag")):
			resp.etag = string(value)
		}
	}

	if resp.status == http.StatusContinue {
		return c.readHead()
	}
	return resp, nil
}

// readBody reads the body of a response and returns its length.
func (c *connection) readBody(method string, resp response, w io.Writer) (int64, error) {
	switch {
	case method == http.MethodHead, resp.status == http.StatusNoContent:
		return 0, nil
	case !resp.chunked:
		return resp.length, c.copyBody(w, resp.length)
	}

	var total int64
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return total, err
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 64)
		if err != nil {
			return total, err
		}
		total += n

		if err := c.copyBody(w, n); err != nil {
			return total, err
		}
		if _, err := c.in.Discard(len("\r\n")); err != nil || n == 0 {
			return total, err
		}
	}
}

// copyBody copies n bytes to w, or discards them.
func (c *connection) copyBody(w io.Writer, n int64) error {
	if w != nil {
		_, err := io.CopyN(w, c.in, n)
		return err
	}
	_, err := c.in.Discard(int(n))
	return err
}

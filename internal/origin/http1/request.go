package http1

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// maxInline is the size of bodies up to which they are sent together with
// the head. A socket takes so much without waiting for a server that does not
// read.
const maxInline = 64 << 10

// expectFrom is the size of bodies from which the server is asked whether it
// wants them ("Expect: 100-continue"). The AWS SDKs have similar limits. For
// shorter bodies, the round trip would cost more than it can save.
const expectFrom = 1 << 20

// request is what is sent. It has not been sent to another server in part,
// so it can be sent again as long as its long body was not begun.
type request struct {
	*http.Request
	first  []byte        // the head, and all of a short body
	long   io.ReadCloser // the rest, or nil
	expect bool          // ask before the long body is sent
}

// prepare validates a request, and reads its body if it is short.
func (c *Client) prepare(r *http.Request, to route) (*request, error) {
	out := &request{Request: r}
	length, err := bodyLength(r)
	if err != nil {
		return nil, err
	}
	short := length <= maxInline
	out.expect = !short && (length >= expectFrom && !c.ignoresExpect.Load() ||
		httpguts.HeaderValuesContainsToken(r.Header["Expect"], "100-continue"))

	if err := out.appendHead(to, length); err != nil {
		return nil, err
	}

	switch {
	case length == 0:
		closeBody(r)
	case short:
		if err := out.appendBody(int(length)); err != nil {
			out.free()
			return nil, err
		}
		closeBody(r)
	default:
		out.long = r.Body
	}
	return out, nil
}

// free returns the buffer.
func (r *request) free() { returnBuffer(r.first) }

// closeLong closes a long body that was not begun.
func (r *request) closeLong() {
	if r.long != nil {
		_ = r.long.Close()
	}
}

// bodyLength returns the length of the body, which has to be known.
func bodyLength(r *http.Request) (int64, error) {
	switch {
	case len(r.TransferEncoding) > 0 || len(r.Trailer) > 0 || r.Method == http.MethodConnect || r.ContentLength < 0:
		return 0, errors.New("origin: only requests with a Content-Length are supported")
	case r.ContentLength > 0 && (r.Body == nil || r.Body == http.NoBody):
		return 0, fmt.Errorf("origin: a request with a length of %d has no body", r.ContentLength)
	case r.ContentLength == 0 && r.Body != nil && r.Body != http.NoBody:
		return 0, expectEnd(r.Body)
	default:
		return r.ContentLength, nil
	}
}

var (
	errLong  = errors.New("origin: the body is longer than its declared length")
	errShort = errors.New("origin: the body is shorter than its declared length")
)

// expectEnd returns an error unless r returns a bare io.EOF.
func expectEnd(r io.Reader) error {
	var one [1]byte
	switch n, err := io.ReadFull(r, one[:]); {
	case n > 0:
		return errLong
	case err != io.EOF: // ==: an error that wraps io.EOF is a failure
		return hideEnd(err)
	default:
		return nil
	}
}

// appendBody appends the body, of n bytes, to the head.
func (r *request) appendBody(n int) error {
	head := r.first
	if cap(head)-len(head) < n {
		r.first = append(takeBuffer(len(head)+n), head...)
		returnBuffer(head)
	}

	body := r.first[len(r.first) : len(r.first)+n]
	r.first = r.first[:len(r.first)+n]
	if _, err := io.ReadFull(r.Body, body); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return errShort
		}
		return hideEnd(err)
	}
	return expectEnd(r.Body)
}

// hideEnd returns the error of a request's body so that it cannot be
// mistaken for the end of something.
func hideEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("origin: reading the body of the request: %s", err.Error())
	}
	return err
}

// headSize estimates the size of the head.
func headSize(r *http.Request) int {
	size := 256 + len(r.URL.Path)*3 + len(r.URL.RawQuery)
	for name, values := range r.Header {
		for _, v := range values {
			size += len(name) + len(v) + len(": \r\n")
		}
	}
	return size
}

// appendHead makes the head. A method, URL, name or value that
// could be read as anything else is refused.
func (r *request) appendHead(to route, length int64) error {
	method := r.Method
	if method == "" {
		method = http.MethodGet
	}
	target := r.URL.RequestURI()
	switch {
	case !httpguts.ValidHeaderFieldName(method): // the same characters
		return fmt.Errorf("origin: the method %q cannot be sent", r.Method)
	case strings.ContainsFunc(target, func(c rune) bool { return c <= ' ' || c == 0x7f }):
		return errors.New("origin: a URL with spaces or control characters cannot be sent")
	}

	b := append(append(takeBuffer(headSize(r.Request)), method...), ' ')
	if to.absolute {
		b = append(append(append(b, r.URL.Scheme...), "://"...), to.host...)
	}
	b = append(append(b, target...), " HTTP/1.1\r\nHost: "...)
	b = append(append(b, to.host...), "\r\n"...)

	if _, ok := r.Header["User-Agent"]; !ok {
		b = append(b, "User-Agent: Go-http-client/1.1\r\n"...) // as net/http
	}
	if length > 0 || method == http.MethodPut || method == http.MethodPost || method == http.MethodPatch {
		b = append(strconv.AppendInt(append(b, "Content-Length: "...), length, 10), "\r\n"...)
	}
	if r.Close && !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "close") {
		b = append(b, "Connection: close\r\n"...)
	}
	if r.expect {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	if to.login != "" {
		b = append(append(append(b, "Proxy-Authorization: "...), to.login...), "\r\n"...)
	}

	b, err := appendFields(b, r.Header)
	r.first = append(b, "\r\n"...)
	return err
}

// appendFields appends header fields.
func appendFields(b []byte, h http.Header) ([]byte, error) {
	for name, values := range h {
		if !httpguts.ValidHeaderFieldName(name) {
			return nil, fmt.Errorf("origin: the header %q cannot be sent", name)
		}
		if ownField(name) {
			continue
		}

		for _, value := range values {
			if !httpguts.ValidHeaderFieldValue(value) { // it may be secret
				return nil, fmt.Errorf("origin: the value of the header %q cannot be sent", name)
			}
			value = textproto.TrimString(value)
			if value == "" && strings.EqualFold(name, "User-Agent") {
				continue // as net/http
			}
			b = append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
		}
	}
	return b, nil
}

// ownField reports whether the client writes this field itself, from other
// fields of http.Request.
func ownField(name string) bool {
	for _, own := range []string{"Host", "Content-Length", "Transfer-Encoding", "Trailer", "Expect"} {
		if len(own) == len(name) && strings.EqualFold(own, name) {
			return true
		}
	}
	return false
}

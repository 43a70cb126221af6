package http1_test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// FuzzAnswer compares what a Client and http.Transport make of any answer,
// to two requests on a connection.
func FuzzAnswer(f *testing.F) {
	const head = "HTTP/1.1 200 OK\r\n"
	for _, answer := range []string{
		answerOK, answerOK + answerOK, head + "\r\nok", head + "Content-Length: 5\r\n\r\nok", "HTTP/1.0 200 OK\r\n\r\nok",
		head + "Trailer: T\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nT: x\r\n\r\n",
		head + "Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\n\r\n" + answerOK,
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answerOK,
		"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 304 Not Modified\r\n\r\n",
		head + "X: a\r\n b\r\n\r\n", head + "X: a\x00\r\n\r\n", head + "X Y: a\r\n\r\n", head + ": a\r\n\r\n",
		head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", head + "Connection: close\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", head + strings.Repeat("X: a\r\n", 20_000) + "\r\n",
	} {
		for method := range uint8(3) {
			f.Add(method, []byte(answer))
		}
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { listener.Close() })
	answers := make(chan []byte, 1)
	go answerWith(listener, answers)

	f.Fuzz(func(t *testing.T, method uint8, answer []byte) {
		if bytes.Contains(answer, []byte("101")) {
			return // http.Transport hands the connection over
		}
		var got []string
		for _, s := range []sender{&http.Transport{DisableCompression: true, MaxResponseHeaderBytes: 64 << 10}, newLean(nil)} {
			answers <- answer
			at := "http://" + listener.Addr().String() + "/k"
			r := request(t, []string{"GET", "HEAD", "DELETE"}[method%3], at, nil, 0)
			got = append(got, whole(s, r))
			s.CloseIdleConnections()
		}
		if got[0] != got[1] {
			t.Errorf("%s\n--- and\n%s", got[0], got[1])
		}
	})
}

// answerWith serves one request of each connection with the next answer.
func answerWith(listener net.Listener, answers <-chan []byte) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		var request []byte
		for one := make([]byte, 4096); !bytes.Contains(request, []byte("\r\n\r\n")); {
			n, err := conn.Read(one)
			if err != nil {
				break
			}
			request = append(request, one[:n]...)
		}
		conn.Write(<-answers)
		conn.Close()
	}
}

// whole is outcome, with the header.
func whole(s sender, r *http.Request) string {
	resp, err := s.RoundTrip(r)
	if err != nil {
		return "error"
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	var out bytes.Buffer
	resp.Header.Write(&out)
	resp.Trailer.Write(&out)
	if err != nil {
		out.WriteString("error")
	}
	out.Write(text)
	return resp.Status + " " + resp.Proto + "\n" + out.String()
}

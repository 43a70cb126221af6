package sigv4_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// startServer verifies all requests, and responds with 200, or 403 and the
// error.
func startServer(t *testing.T) string {
	t.Helper()
	verifier := verifierAt(exampleTime)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auth, err := verifier.Verify(r)
		if err == nil {
			_, err = io.Copy(io.Discard, auth.Body(r.Body))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
		}
	}))

	t.Cleanup(server.Close)
	return server.URL
}

func send(t *testing.T, r *http.Request) {
	t.Helper()
	sendBy(t, http.DefaultTransport, r)
}

func sendBy(t *testing.T, transport http.RoundTripper, r *http.Request) {
	t.Helper()
	resp, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		answer, _ := io.ReadAll(resp.Body)
		t.Errorf("%s %s: %s", r.Method, r.URL, answer)
	}
}

func TestRoundTripKeys(t *testing.T) {
	server := startServer(t)
	for _, key := range []string{
		"plain", "a b", "a+b", "a%2Fb", "a%2fb", "100%", "a//b", "//", "a/./b", "a/../b", "..", "ü/日本/🙂", "a&b",
		"a=b", "a?b", "a#b", "a;b", "a*b",
		"~a", "a'b", "a\"b", "a(b)!$,:@[]", "trailing/", "\x7f\x01", "a\\b|c^d`e{f}<g>",
	} {
		t.Run(key, func(t *testing.T) {
			r := newRequest(t, http.MethodGet, server, "/bucket/"+key, "", "")
			sign(t, r, emptyHash, exampleTime)
			send(t, r)
			r = newRequest(t, http.MethodGet, server, "/bucket/"+key, "", "")
			send(t, presign(t, r, unsignedPayload, exampleTime, "60"))
		})
	}
}

func TestRoundTripQueries(t *testing.T) {
	server := startServer(t)
	for _, query := range []string{
		"uploads", "uploads=", "acl&versionId=", "a=2&a=1&a=", "b=1&a=2&B=3", "prefix=a+b", "prefix=a%20b%2Bc",
		"delimiter=%2F&prefix=%C3%BC", "x=%3D%26%3B",
		"a-b=1&a=2&a.b=3", "x-amz-signature=1&x-amz-algorithm=2",
	} {
		t.Run(query, func(t *testing.T) {
			r := newRequest(t, http.MethodGet, server, "/bucket", query, "")
			sign(t, r, emptyHash, exampleTime)
			send(t, r)
			r = newRequest(t, http.MethodGet, server, "/bucket", query, "")
			send(t, presign(t, r, unsignedPayload, exampleTime, "60"))
		})
	}
}

func TestRoundTripPayloads(t *testing.T) {
	server := startServer(t)
	for name, row := range map[string]struct{ body, hash string }{
		"hashed":       {"payload", hexSum("payload")},
		"empty hashed": {"", emptyHash},
		"unsigned":     {"payload", unsignedPayload},
	} {
		for _, length := range []int64{int64(len(row.body)), -1} { // -1: Transfer-Encoding: chunked
			t.Run(name, func(t *testing.T) {
				r := newRequest(t, http.MethodPut, server, "/bucket/key", "", row.body)
				if row.body != "" {
					r.ContentLength = length
				}
				sign(t, r, row.hash, exampleTime)
				send(t, r)
			})
		}
	}
}

func TestRoundTripHeaders(t *testing.T) {
	r := newRequest(t, http.MethodGet, startServer(t), "/bucket/key", "", "")
	r.Header.Add("X-Amz-Meta-Twice", "one")
	r.Header.Add("X-Amz-Meta-Twice", "two")
	r.Header.Set("X-Amz-Meta-Spaces", "a  b   c")
	r.Header.Set("X-Amz-Meta-Comma", "a,b, c")
	r.Header.Set("X-Amz-Meta-Empty", "")
	r.Header.Set("Content-Type", "text/plain; charset=utf-8")
	sign(t, r, emptyHash, exampleTime)
	send(t, r)
}

// Variations of clients other than AWS's own, with the same signature.
func TestRoundTripOddClients(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"encodes more":    func(r *http.Request) { r.URL.RawPath = "/buck%65t/%7ekey%2a" },
		"encodes less":    func(r *http.Request) { r.URL.RawPath = "/bucket/~key*" },
		"unsorted values": func(r *http.Request) { r.URL.RawQuery = "c=2&c=1%2a&b=~1&c=&a" },
		"literal star":    func(r *http.Request) { r.URL.RawQuery = "a=&b=~1&c&c=1*&c=2" },
		"no spaces in Authorization": func(r *http.Request) {
			r.Header.Set("Authorization", strings.ReplaceAll(r.Header.Get("Authorization"), ", ", ","))
		},
		"unsorted query": func(r *http.Request) { r.URL.RawQuery = "b=%7e1&&c=&a=&c=2&c=1%2A" },
		"tabs and spaces around a header": func(r *http.Request) {
			r.Header["X-Amz-Acl"] = []string{" \tprivate  acl\t "}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRequest(t, http.MethodGet, startServer(t), "/bucket/~key*", "a=&b=~1&c=&c=1%2A&c=2", "")
			r.Header.Set("X-Amz-Acl", "private acl")
			sign(t, r, emptyHash, exampleTime)
			change(r)
			send(t, r)
		})
	}
}

// With HTTP/2 the host is a pseudo-header, and the server removes some
// headers.
func TestRoundTripHTTP2(t *testing.T) {
	verifier := verifierAt(exampleTime)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auth, err := verifier.Verify(r)
		if err == nil {
			_, err = io.Copy(io.Discard, auth.Body(r.Body))
		}
		if err != nil || r.ProtoMajor != 2 {
			http.Error(w, fmt.Sprint(r.Proto, err), http.StatusForbidden)
		}
	}))

	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	r := newRequest(t, http.MethodPut, server.URL, "/bucket/a b", "partNumber=1", "payload")
	r.Header.Set("Expect", "100-continue")
	r.Header.Set("X-Amz-Content-Sha256", hexSum("payload"))
	r.Header.Set("X-Amz-Date", exampleDate)
	names := "content-length;expect;host;x-amz-content-sha256;x-amz-date"
	canonical := "PUT\n/bucket/a%20b\npartNumber=1\ncontent-length:7\nexpect:100-continue\nhost:" + r.URL.Host +
		"\nx-amz-content-sha256:" +
		hexSum("payload") + "\nx-amz-date:" + exampleDate + "\n\n" + names + "\n" + hexSum("payload")

	r.Header.Set("Authorization", authorization(canonical, names))
	sendBy(t, server.Client().Transport, r)
	r = newRequest(t, http.MethodGet, server.URL, "/bucket/a+b", "", "")
	sendBy(t, server.Client().Transport, presign(t, r, unsignedPayload, exampleTime, "60"))
}

// TestRoundTripStreaming sends framed uploads with and without their
// length, and closes the connection early in others.
func TestRoundTripStreaming(t *testing.T) {
	outcome := make(chan error, 1)
	verifier := verifierAt(exampleTime)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		auth, err := verifier.Verify(r)
		if err == nil {
			_, err = io.Copy(io.Discard, auth.Body(r.Body))
		}
		outcome <- err
	}))

	t.Cleanup(server.Close)
	for name, u := range small() {
		_, encoded := u.encode(t)
		for _, row := range []struct{ length, body, code string }{
			{fmt.Sprint("Content-Length: ", len(encoded)), encoded, ""},
			{"Transfer-Encoding: chunked", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(encoded), encoded), ""},
			{fmt.Sprint("Content-Length: ", len(encoded)), encoded[:len(encoded)-1], "IncompleteBody"},
			{fmt.Sprint("Content-Length: ", len(encoded)), encoded[:20], "IncompleteBody"},
			{fmt.Sprint("Content-Length: ", len(encoded)), "", "IncompleteBody"},
			{"Transfer-Encoding: chunked", fmt.Sprintf("%x\r\n%s\r\n0", len(encoded), encoded), "IncompleteBody"},
		} {
			t.Run(name+" "+row.code, func(t *testing.T) {
				sendRaw(t, server.Listener.Addr().String(), u.request(t), row.length, row.body)
				if err := <-outcome; row.code != "" {
					wantCode(t, err, row.code)
				} else if err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// sendRaw sends the header of r and body unchanged, and then nothing.
func sendRaw(t *testing.T, address string, r *http.Request, length, body string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	var head bytes.Buffer
	fmt.Fprintf(&head, "PUT /key HTTP/1.1\r\nHost: %s\r\n%s\r\n", r.Host, length)

	if err := r.Header.Write(&head); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, head.String()+"\r\n"+body); err != nil {
		t.Fatal(err)
	}

	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, conn)
}

// A plus sign in a query is a space for clients that encode forms. In a
// path it is a plus sign.
func TestPlus(t *testing.T) {
	r := newRequest(t, http.MethodGet, startServer(t), "/bucket/a+b", "prefix=a%20b%2Bc", "")
	sign(t, r, emptyHash, exampleTime)
	r.URL.RawPath, r.URL.RawQuery = "/bucket/a+b", "prefix=a+b%2Bc"
	send(t, r)
}

// Verify does not rely on the server to trim header values.
func TestSpacesAroundHeaders(t *testing.T) {
	r := exampleSigned(t)
	r.Header.Set("X-Amz-Acl", "\t private ")
	if _, err := verifierAt(exampleTime).Verify(r); err != nil {
		t.Error(err)
	}
}

func TestDateInsteadOfXAmzDate(t *testing.T) {
	for _, date := range []string{"Fri, 24 May 2013 00:00:00 GMT", "Fri, 24 May 2013 02:00:00 +0200", exampleDate} {
		t.Run(date, func(t *testing.T) {
			r := newRequest(t, http.MethodGet, bucketURL, "/key", "", "")
			r.Header.Set("Date", date)
			r.Header.Set("X-Amz-Content-Sha256", emptyHash)

			canonical := "GET\n/key\n\ndate:" + date + "\nhost:examplebucket.s3.amazonaws.com\n" +
				"x-amz-content-sha256:" + emptyHash +
				"\n\ndate;host;x-amz-content-sha256\n" + emptyHash
			r.Header.Set("Authorization", authorization(canonical, "date;host;x-amz-content-sha256"))

			if _, err := verifierAt(exampleTime).Verify(received(t, r)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSignedTransferEncoding(t *testing.T) {
	r := newRequest(t, http.MethodPut, bucketURL, "/key", "", "body")
	r.ContentLength = -1
	r.Header.Set("X-Amz-Content-Sha256", unsignedPayload)
	r.Header.Set("X-Amz-Date", exampleDate)
	names := "content-length;host;transfer-encoding;x-amz-content-sha256;x-amz-date"
	canonical := "PUT\n/key\n\ncontent-length:\nhost:examplebucket.s3.amazonaws.com\n" +
		"transfer-encoding:chunked\nx-amz-content-sha256:UNSIGNED-PAYLOAD\nx-amz-date:" +
		exampleDate + "\n\n" + names + "\nUNSIGNED-PAYLOAD"

	r.Header.Set("Authorization", authorization(canonical, names))
	if _, err := verifierAt(exampleTime).Verify(received(t, r)); err != nil {
		t.Error(err)
	}
}

// A missing signed header counts as empty, as in S3, and Content-Length has
// its value.
func TestSignedHeadersOutsideTheMap(t *testing.T) {
	r := newRequest(t, http.MethodPut, bucketURL, "/key", "", "body")
	r.Header.Set("X-Amz-Content-Sha256", unsignedPayload)
	r.Header.Set("X-Amz-Date", exampleDate)
	names := "content-length;content-md5;host;x-amz-content-sha256;x-amz-date"
	canonical := "PUT\n/key\n\ncontent-length:4\ncontent-md5:\nhost:examplebucket.s3.amazonaws.com\n" +
		"x-amz-content-sha256:UNSIGNED-PAYLOAD\nx-amz-date:" +
		exampleDate + "\n\n" + names + "\nUNSIGNED-PAYLOAD"

	r.Header.Set("Authorization", authorization(canonical, names))
	in := received(t, r)

	for range 2 {
		if _, err := verifierAt(exampleTime).Verify(in); err != nil {
			t.Error(err)
		}
		in.Header.Del("Content-Length") // a server may keep it only in r.ContentLength
	}

	in.ContentLength = 5
	_, err := verifierAt(exampleTime).Verify(in)
	wantCode(t, err, "SignatureDoesNotMatch")
}

func TestRequestTarget(t *testing.T) {
	for _, row := range []struct{ target, path, query string }{
		{"/a%2fb?x=1?y", "/a%2fb", "x=1?y"},
		{"//a/../b", "//a/../b", ""},
		{"http://host/a%2fb?x=1", "/a%2fb", "x=1"},
		{"http://ho st/%zz?x", "http://ho st/%zz", "x"},
	} {
		t.Run(row.target, func(t *testing.T) {
			path, query := sigv4.RequestTarget(&http.Request{RequestURI: row.target})
			if path != row.path || query != row.query {
				t.Errorf("got %q and %q", path, query)
			}
		})
	}

	path, query := sigv4.RequestTarget(newRequest(t, http.MethodGet, bucketURL, "/a b", "x", ""))
	if path != "/a%20b" || query != "x" {
		t.Errorf("without RequestURI: got %q and %q", path, query)
	}
}

package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestOriginReads reads what was stored with aws-chunked framing and in
// parts.
func TestOriginReads(t *testing.T) {
	server := httptest.NewServer(newStore())
	defer server.Close()
	tgt := testTarget("origin", server)
	conn := dial(t, tgt)
	if err := put(t, tgt, conn, "/b/single", 300<<10); err != nil {
		t.Fatal(err)
	}
	if err := conn.putParts(t.Context(), tgt, tgt.plain, "/b/parts", partSize+100); err != nil {
		t.Fatal(err)
	}

	parts := append(bytes.Repeat(noise, int(partSize)/len(noise)), noise[:100]...)
	for _, row := range []struct {
		name, path, span string
		want             []byte
	}{
		{"whole", "/b/single", "", noise[:300<<10]},
		{"range", "/b/single", "bytes=10-19", noise[10:20]},
		{"range to the end", "/b/single", "bytes=100-", noise[100 : 300<<10]},
		{"range beyond the end", "/b/single", "bytes=100-9999999", noise[100 : 300<<10]},
		{"suffix", "/b/single", "bytes=-7", noise[300<<10-7 : 300<<10]},
		{"whole of parts", "/b/parts", "", parts},
		{"over the border of parts", "/b/parts", "bytes=8388600-8388615", parts[partSize-8 : partSize+8]},
		{"part", "/b/parts?partNumber=2", "", noise[:100]},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := message{method: http.MethodGet, path: row.path, header: http.Header{}}
			if row.span != "" {
				m.header.Set("Range", row.span)
			}
			var body bytes.Buffer
			if _, err := conn.exchange(t.Context(), tgt, tgt.plain, m, &body); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(body.Bytes(), row.want) {
				t.Errorf("%d bytes came, not the %d that were stored", body.Len(), len(row.want))
			}
		})
	}

	var list bytes.Buffer
	m := message{method: http.MethodGet, path: "/b?list-type=2"}
	if _, err := conn.exchange(t.Context(), tgt, tgt.plain, m, &list); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(list.String(), "<Key>parts</Key>") || !strings.Contains(list.String(), "<Size>307200</Size>") {
		t.Errorf("the listing is %s", &list)
	}
}

func TestOriginRefuses(t *testing.T) {
	server := httptest.NewServer(newStore())
	defer server.Close()
	tgt := testTarget("origin", server)
	if err := put(t, tgt, dial(t, tgt), "/b/key", 100); err != nil {
		t.Fatal(err)
	}

	cut := uploadMessage("/b/cut", 100, nil)
	cut.header.Set("X-Amz-Content-Sha256", trailerPayload)
	cut.header.Set("X-Amz-Decoded-Content-Length", "200")
	cut.body = []byte("64\r\n" + strings.Repeat("x", 100) + "\r\n0\r\n\r\n")
	for _, row := range []struct {
		name    string
		message message
		status  int // 0 means that the connection is cut
	}{
		{"no such key", message{method: http.MethodGet, path: "/b/other"}, http.StatusNotFound},
		{"a range outside", message{
			method: http.MethodGet, path: "/b/key", header: http.Header{"Range": {"bytes=100-"}},
		}, http.StatusRequestedRangeNotSatisfiable},
		{"another ETag", message{
			method: http.MethodGet, path: "/b/key", header: http.Header{"If-Match": {`"1"`}},
		}, http.StatusPreconditionFailed},
		{"no such upload", uploadMessage("/b/key?uploadId=1&partNumber=1", 1, nil), http.StatusNotFound},
		{"an operation that it does not know", message{
			method: http.MethodGet, path: "/b/key?tagging=",
		}, http.StatusNotImplemented},
		{"a body shorter than announced", cut, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := dial(t, tgt).exchange(t.Context(), tgt, tgt.plain, row.message, nil)
			if err == nil {
				t.Fatal("it was accepted")
			}
			if want := fmt.Sprintf("answered %d", row.status); row.status != 0 && !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
		})
	}
}

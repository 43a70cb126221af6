package sigv4_test

import (
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// FuzzChunkedDecode reads arbitrary bytes as each kind of streaming
// payload. A signed payload must be the one that was signed. An unsigned
// payload must match the result of a simple decoder.
func FuzzChunkedDecode(f *testing.F) {
	modes := []string{"signed", "signed trailer", "unsigned trailer"}
	auths := make([]*sigv4.Auth, len(modes))

	for i, mode := range modes {
		var encoded string
		auths[i], encoded = small()[mode].encode(f)
		f.Add(uint8(i), []byte(encoded))
		f.Add(uint8(i), []byte(encoded+"\r\n"))
		f.Add(uint8(i), []byte(strings.Replace(encoded, "1a", "1A", 1)))
		f.Add(uint8(i), []byte(strings.Replace(encoded, "==\r\n", "==\n\r\n", 1)))
	}

	f.Add(uint8(2), []byte("d\r\nabcdefghijklm\r\nd\r\nnopqrstuvwxyz\r\n0\r\nx-amz-checksum-crc32c:sOO8/Q==\r\n\r\n"))
	wantData, wantTrailer := small()["signed"].chunks[0], crc32c[0][1]
	f.Fuzz(func(t *testing.T, mode uint8, encoded []byte) {
		i := int(mode) % len(modes)
		data, trailer, err := decode(auths[i], string(encoded))
		if err != nil {
			if trailer != nil {
				t.Errorf("a trailer in spite of %v", err)
			}
			return
		}

		got := trailer.Get("X-Amz-Checksum-Crc32c")
		switch {
		case modes[i] == "unsigned trailer":
			if want, ok := wholeUnsigned(string(encoded)); !ok || data != want || len(data) != len(wantData) {
				t.Errorf("%q gave %q, want %q", encoded, data, want)
			}

		case data != wantData, modes[i] == "signed trailer" &&
			!maps.EqualFunc(trailer, http.Header{"X-Amz-Checksum-Crc32c": {wantTrailer}}, slices.Equal):
			t.Errorf("%q gave %q and %q", encoded, data, got)
		}
	})
}

// wholeUnsigned decodes an unsigned payload in memory, up to its trailer.
func wholeUnsigned(encoded string) (data string, ok bool) {
	for {
		head, rest, ok := strings.Cut(encoded, "\r\n")
		size, err := strconv.ParseUint(head, 16, 31)
		if !ok || err != nil || int(size)+2 > len(rest) && size > 0 {
			return "", false
		}
		if size == 0 {
			return data, strings.HasSuffix(rest, "\r\n")
		}

		data += rest[:size]
		if rest[size:size+2] != "\r\n" {
			return "", false
		}

		encoded = rest[size+2:]
	}
}

// FuzzChunkedRoundTrip encodes data in chunks, and reads it back with a buffer
// of any size.
func FuzzChunkedRoundTrip(f *testing.F) {
	f.Add(uint8(0), []byte(""), uint8(0), uint16(1))
	f.Add(uint8(1), []byte("a"), uint8(1), uint16(0))
	f.Add(uint8(2), []byte(strings.Repeat("0123456789abcdef\r\n", 3)), uint8(2), uint16(5))
	f.Add(uint8(1), []byte("0;chunk-signature=\r\n\r\n"), uint8(3), uint16(5000))
	modes := []string{signedChunks, signedTrailer, unsignedTrailer}
	f.Fuzz(func(t *testing.T, mode uint8, data []byte, whole uint8, size uint16) {
		u := upload{mode: modes[int(mode)%len(modes)]}
		if u.mode != signedChunks {
			u.trailers = crc32c
		}

		for i := range int(whole % 4) { // chunks that may be followed by others
			u.chunks = append(u.chunks, strings.Repeat(string(rune('a'+i)), 8192+len(data)))
		}

		if len(data) > 0 {
			u.chunks = append(u.chunks, string(data))
		}

		auth, encoded := u.encode(t)
		var got strings.Builder
		body := auth.Body(strings.NewReader(encoded))
		if _, err := io.CopyBuffer(&got, struct{ io.Reader }{body}, make([]byte, int(size)+1)); err != nil {
			t.Fatal(err)
		}

		if got.String() != strings.Join(u.chunks, "") || len(body.Trailer()) != len(u.trailers) {
			t.Errorf("%d bytes and trailer %v came back of %d", got.Len(), body.Trailer(), len(encoded))
		}
	})
}

// FuzzPath checks that a path survives encoding, and has only one canonical
// encoding.
func FuzzPath(f *testing.F) {
	for _, path := range []string{"", "/", "/a b", "/a+b%2F", "//.././", "/%", "/%4", "/\xff\x00", "/日本"} {
		f.Add(path)
	}

	f.Fuzz(func(t *testing.T, path string) {
		escaped := sigv4.EscapePath(path)
		back, err := sigv4.UnescapePath(escaped)
		if err != nil || back != path && path != "" {
			t.Errorf("%q became %q, then %q, %v", path, escaped, back, err)
		}

		once, err := sigv4.UnescapePath(path)
		want, stdErr := url.PathUnescape(path)
		if (err == nil) != (stdErr == nil) || once != want {
			t.Errorf("UnescapePath(%q) = %q, %v; net/url has %q, %v", path, once, err, want, stdErr)
		}
	})
}

// FuzzCanonicalQuery signs a request with an arbitrary query, and verifies it.
func FuzzCanonicalQuery(f *testing.F) {
	f.Add("a", "b", "a", "")
	f.Add("prefix", "a b+c%", "list-type", "2")
	f.Add("x-amz-date", "&=;", "X-Amz-Dat", "é")
	f.Add("a-", "1", "a", "2")
	verifier := verifierAt(exampleTime)
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		switch {
		case name1 == "", name2 == "", strings.HasPrefix(name1, "X-Amz-"), strings.HasPrefix(name2, "X-Amz-"):
			return
		}

		query := url.Values{name1: {value1}}
		query.Add(name2, value2)
		r := newRequest(t, http.MethodGet, bucketURL, "/key", query.Encode(), "")
		sign(t, r, emptyHash, exampleTime)

		if _, err := verifier.Verify(received(t, r)); err != nil {
			t.Errorf("%s: %v", r.URL.RawQuery, err)
		}
	})
}

package sigv4_test

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

const fuzzTarget = "/bucket/a%20key+%2F~?prefix=a%2Fb+c&list-type=2&acl"

// fuzzRequest is a signed request as a server gets it.
func fuzzRequest(tb testing.TB) *http.Request {
	tb.Helper()
	path, query, _ := strings.Cut(fuzzTarget, "?")
	r := newRequest(tb, http.MethodGet, bucketURL, "", strings.ReplaceAll(query, "+", "%20"), "")
	r.URL.Path, _ = sigv4.UnescapePath(path)
	r.URL.RawPath = sigv4.EscapePath(r.URL.Path) // the plus becomes %2B
	r.Header.Set("X-Amz-Meta-A", "some  value")
	sign(tb, r, emptyHash, exampleTime)
	out := received(tb, r)
	out.RequestURI = fuzzTarget
	return out
}

// mutate sets a byte in one of the four signed places, and says what all of them mean now.
func mutate(r *http.Request, place uint8, position uint16, to byte) {
	set := func(text string) string {
		at := int(position) % len(text)
		return text[:at] + string([]byte{to}) + text[at+1:]
	}
	switch place % 4 {
	case 0:
		r.Method = set(r.Method)
	case 1:
		r.RequestURI = set(r.RequestURI)
	case 2:
		r.Host = set(r.Host)
	case 3:
		r.Header.Set("X-Amz-Meta-A", set(r.Header.Get("X-Amz-Meta-A")))
	}
}

// meaning is what the signed places say, by the standard library's lights; ok is false if they say nothing.
func meaning(r *http.Request) (text string, ok bool) {
	rawPath, rawQuery, _ := strings.Cut(r.RequestURI, "?")
	path, err := url.PathUnescape(rawPath)
	if err != nil {
		return "", false
	}
	var pairs []string
	for pair := range strings.SplitSeq(rawQuery, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, errName := url.QueryUnescape(name)
		value, errValue := url.QueryUnescape(value)
		if errName != nil || errValue != nil {
			return "", false
		}
		if pair != "" {
			pairs = append(pairs, strconv.Quote(name)+strconv.Quote(value))
		}
	}
	slices.Sort(pairs)
	spaces := func(text string) string {
		text = strings.Trim(text, " \t")
		for strings.Contains(text, "  ") {
			text = strings.ReplaceAll(text, "  ", " ")
		}
		return text
	}
	return strings.Join([]string{r.Method, path, strings.Join(pairs, " "), spaces(r.Host), spaces(r.Header.Get("X-Amz-Meta-A"))}, "\n"), true
}

// FuzzVerifyMutation sets one byte of a signed request, which must fail then, unless it still means the same.
func FuzzVerifyMutation(f *testing.F) {
	for place := range uint8(4) {
		f.Add(place, uint16(0), byte('X'))
	}
	f.Add(uint8(1), uint16(13), byte('%'))
	f.Add(uint8(1), uint16(strings.Index(fuzzTarget, "%2Fb")+2), byte('f')) // means the same
	f.Add(uint8(1), uint16(strings.Index(fuzzTarget, "?")), byte('&'))
	f.Add(uint8(3), uint16(4), byte('\t'))
	signed := fuzzRequest(f)
	want, _ := meaning(signed)
	verifier := verifierAt(exampleTime)
	f.Fuzz(func(t *testing.T, place uint8, position uint16, to byte) {
		r := *signed
		r.Header = signed.Header.Clone()
		mutate(&r, place, position, to)
		got, ok := meaning(&r)
		same := ok && got == want
		if _, err := verifier.Verify(&r); same != (err == nil) {
			t.Errorf("%s %s: means the same: %t, but error %v", r.Method, r.RequestURI, same, err)
		}
	})
}

// FuzzChunked reads arbitrary bytes as each kind of streaming payload. A signed one can only be what was signed. An
// unsigned one must be what a decoder without any streaming makes of it.
func FuzzChunked(f *testing.F) {
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
		case data != wantData, modes[i] == "signed trailer" && !maps.EqualFunc(trailer, http.Header{"X-Amz-Checksum-Crc32c": {wantTrailer}}, slices.Equal):
			t.Errorf("%q gave %q and %q", encoded, data, got)
		}
	})
}

// wholeUnsigned decodes an unsigned payload held in memory, up to its trailer.
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

// FuzzPath checks that a path survives its encoding, and that an encoding has one canonical form.
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

// FuzzQuery signs a request with an arbitrary query, and verifies it.
func FuzzQuery(f *testing.F) {
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

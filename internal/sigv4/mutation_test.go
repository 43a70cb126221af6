package sigv4_test

import (
	"bufio"
	"bytes"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// signedWire returns a signed request as sent over the wire, with a header
// and presigned.
func signedWire(tb testing.TB) map[bool][]byte {
	tb.Helper()
	const path, query = "/bucket/a key+/../ü~", "prefix=a%2Fb%20c&list-type=2&acl"
	build := func() *http.Request {
		r := newRequest(tb, http.MethodGet, bucketURL, path, query, "")
		r.Header.Set("User-Agent", "") // do not send it
		r.Header.Set("X-Amz-Acl", "some  value")
		r.Header.Set("Content-Type", "text/plain")
		return r
	}

	header := build()
	sign(tb, header, emptyHash, exampleTime)
	presigned := presign(tb, build(), unsignedPayload, exampleTime, "60")
	presigned.Header.Set("User-Agent", "")
	out := make(map[bool][]byte)

	for isPresigned, r := range map[bool]*http.Request{false: header, true: presigned} {
		var wire bytes.Buffer
		if err := r.Write(&wire); err != nil {
			tb.Fatal(err)
		}
		out[isPresigned] = wire.Bytes()
	}

	return out
}

// meaning returns everything that a signature must protect, as net/http
// sees it. Unsigned headers other than x-amz- ones have no meaning here.
func meaning(r *http.Request) string {
	parts := []string{r.Method, r.URL.Path, r.Host}
	var pairs []string

	for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, errName := url.QueryUnescape(name)
		value, errValue := url.QueryUnescape(value)
		if errName != nil || errValue != nil {
			return "nothing"
		}

		if pair != "" {
			pairs = append(pairs, strconv.Quote(name)+strconv.Quote(value))
		}
	}

	parts = append(parts, strings.Join(slices.Sorted(slices.Values(pairs)), "&"))
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		if strings.HasPrefix(name, "X-Amz-") || name == "Content-Type" {
			var values []string
			for _, value := range r.Header[name] {
				for value = strings.Trim(value, " \t"); strings.Contains(value, "  "); {
					value = strings.ReplaceAll(value, "  ", " ")
				}
				values = append(values, value)
			}

			parts = append(parts, name+":"+strings.Join(values, ","))
		}
	}

	return strings.Join(parts, "\n")
}

// checkAltered verifies an altered request. It must be refused unless it
// has the same meaning.
func checkAltered(t *testing.T, verifier *sigv4.Verifier, original, altered []byte) {
	t.Helper()
	want, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(original)))
	if err != nil {
		t.Fatal(err)
	}

	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(altered)))
	if err != nil {
		return // net/http refuses it
	}

	same := meaning(r) == meaning(want)
	switch _, err := verifier.Verify(r); {
	case err == nil && !same:
		t.Errorf("accepted\n%s\nfor\n%s", altered, original)
	case err != nil && same && slices.Equal(r.Header["Authorization"], want.Header["Authorization"]):
		t.Errorf("refused with %v, though it means the same:\n%s", err, altered)
	}
}

// TestEveryBit flips each bit of signed requests: method, path, query,
// headers and signature.
func TestEveryBit(t *testing.T) {
	verifier := verifierAt(exampleTime)
	for presigned, wire := range signedWire(t) {
		t.Run("presigned "+strconv.FormatBool(presigned), func(t *testing.T) {
			checkAltered(t, verifier, wire, wire)
			for bit := range len(wire) * 8 {
				altered := bytes.Clone(wire)
				altered[bit/8] ^= 1 << (bit % 8)
				checkAltered(t, verifier, wire, altered)
			}
		})
	}
}

// FuzzVerifyMutation replaces some bytes of a signed request.
func FuzzVerifyMutation(f *testing.F) {
	wires := signedWire(f)
	verifier := verifierAt(exampleTime)
	at := func(presigned bool, text string) uint16 { return uint16(bytes.Index(wires[presigned], []byte(text))) }

	for _, presigned := range []bool{false, true} {
		f.Add(presigned, uint16(0), uint8(3), []byte("PUT"))
		f.Add(presigned, at(presigned, "key"), uint8(1), []byte("%6b"))  // same meaning
		f.Add(presigned, at(presigned, "key"), uint8(1), []byte("%256")) // different meaning
		f.Add(presigned, at(presigned, "prefix"), uint8(0), []byte("a=b&"))
		f.Add(presigned, at(presigned, "prefix"), uint8(0), []byte("&&"))
		f.Add(presigned, at(presigned, "Host"), uint8(0), []byte("X-Amz-Tagging: a\r\n"))
		f.Add(presigned, at(presigned, "Host"), uint8(0), []byte("Range: bytes=0-1\r\n")) // not signed
		f.Add(presigned, at(presigned, "some"), uint8(0), []byte("\t"))
		f.Add(presigned, at(presigned, "some"), uint8(4), []byte("Some"))
		f.Add(presigned, at(presigned, "Signature="), uint8(12), []byte("Signature=00"))

		f.Add(presigned, at(presigned, "/bucket"), uint8(0), []byte("http://examplebucket.s3.amazonaws.com"))
	}

	f.Fuzz(func(t *testing.T, presigned bool, position uint16, remove uint8, insert []byte) {
		wire := wires[presigned]
		from := int(position) % len(wire)
		to := min(from+int(remove), len(wire))
		checkAltered(t, verifier, wire, slices.Concat(wire[:from], insert, wire[to:]))
	})
}

package sigv4_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

var crc32c = [][2]string{{"x-amz-checksum-crc32c", "sOO8/Q=="}}

// large returns chunks that are allowed at any position, with different
// contents.
func large() []string {
	return []string{strings.Repeat("a", 8192), strings.Repeat("b", 8192), strings.Repeat("c", 9000), "last"}
}

// small returns a small upload in each streaming mode, so that a test can
// try every byte.
func small() map[string]upload {
	data := []string{"abcdefghijklmnopqrstuvwxyz"} // 1a in hex
	return map[string]upload{
		"signed":           {mode: signedChunks, chunks: data},
		"signed trailer":   {mode: signedTrailer, chunks: data, trailers: crc32c},
		"unsigned trailer": {mode: unsignedTrailer, chunks: data, trailers: crc32c},
	}
}

// plain returns a verified request with a plain payload.
func plain(tb testing.TB, hash, body string) *sigv4.Auth {
	tb.Helper()
	r := newRequest(tb, http.MethodPut, bucketURL, "/key", "", body)
	sign(tb, r, hash, exampleTime)
	auth, err := verifierAt(exampleTime).Verify(received(tb, r))
	if err != nil {
		tb.Fatal(err)
	}
	return auth
}

func TestPlainBody(t *testing.T) {
	for name, row := range map[string]struct{ hash, body, code string }{
		"hashed":           {hexSum("payload"), "payload", ""},
		"hashed, altered":  {hexSum("payload"), "Payload", "XAmzContentSHA256Mismatch"},
		"hashed, shorter":  {hexSum("payload"), "payloa", "IncompleteBody"},
		"hashed, empty":    {hexSum("payload"), "", "IncompleteBody"},
		"hashed, longer":   {hexSum("payload"), "payloads", "IncompleteBody"},
		"unsigned":         {unsignedPayload, "payload", ""},
		"unsigned, other":  {unsignedPayload, "Payload", ""},
		"unsigned shorter": {unsignedPayload, "payloa", "IncompleteBody"},
		"unsigned longer":  {unsignedPayload, "payload, and more", "IncompleteBody"},
	} {
		t.Run(name, func(t *testing.T) {
			auth := plain(t, row.hash, "payload")
			if auth.Framed() {
				t.Error("it is said to be framed")
			}

			data, _, err := decode(auth, row.body)
			if row.code != "" {
				wantCode(t, err, row.code)
			} else if err != nil || data != row.body {
				t.Errorf("got %q and %v", data, err)
			}
		})
	}
}

func TestPlainBodyOfUnknownLength(t *testing.T) {
	r := received(t, func() *http.Request {
		r := newRequest(t, http.MethodPut, bucketURL, "/key", "", "payload")
		r.ContentLength = -1
		sign(t, r, hexSum("payload"), exampleTime)
		return r
	}())

	auth, err := verifierAt(exampleTime).Verify(r)
	if err != nil || auth.DecodedLength() != -1 {
		t.Fatalf("length %d, error %v", auth.DecodedLength(), err)
	}
	if _, _, err := decode(auth, "payload"); err != nil {
		t.Error(err)
	}

	for _, other := range []string{"", "payloa", "payloads"} {
		t.Run(other, func(t *testing.T) {
			_, _, err = decode(auth, other)
			wantCode(t, err, "XAmzContentSHA256Mismatch")
		})
	}
}

func TestStreamingBody(t *testing.T) {
	two := [][2]string{{"x-amz-checksum-crc32c", "sOO8/Q=="}, {"x-amz-meta-a", ""}}
	for name, u := range map[string]upload{
		"signed":                 {mode: signedChunks, chunks: large()},
		"signed, empty":          {mode: signedChunks},
		"signed trailer":         {mode: signedTrailer, chunks: large(), trailers: crc32c},
		"signed trailer, two":    {mode: signedTrailer, trailers: two},
		"signed trailer, eight":  {mode: signedTrailer, trailers: manyTrailers(8)},
		"signed, none announced": {mode: signedTrailer, chunks: []string{"a"}},
		"unsigned":               {mode: unsignedTrailer, chunks: large(), trailers: crc32c},
		"unsigned, empty":        {mode: unsignedTrailer, trailers: two},
		"unsigned, eight":        {mode: unsignedTrailer, trailers: manyTrailers(8)},
		"unsigned, no trailer":   {mode: unsignedTrailer, chunks: large()},
	} {
		t.Run(name, func(t *testing.T) {
			auth, encoded := u.encode(t)
			if !auth.Framed() {
				t.Error("it is not said to be framed")
			}

			for kind, src := range map[string]io.Reader{
				"plain": strings.NewReader(encoded), "one byte": iotest.OneByteReader(strings.NewReader(encoded)),
				"half":           iotest.HalfReader(strings.NewReader(encoded)),
				"data and error": iotest.DataErrReader(strings.NewReader(encoded)),
			} {
				t.Run(kind, func(t *testing.T) {
					body := auth.Body(src)
					if err := iotest.TestReader(body, []byte(strings.Join(u.chunks, ""))); err != nil {
						t.Error(err)
					}
					wantTrailer(t, body.Trailer(), u.trailers)
				})
			}
		})
	}
}

func manyTrailers(n int) [][2]string {
	var out [][2]string
	for i := range n {
		out = append(out, [2]string{fmt.Sprintf("x-amz-meta-%d", i), fmt.Sprint(i)})
	}
	return out
}

func wantTrailer(t *testing.T, got http.Header, want [][2]string) {
	t.Helper()
	if got == nil || len(got) != len(want) {
		t.Errorf("trailer %v, want %v", got, want)
	}
	for _, trailer := range want {
		if got.Get(trailer[0]) != trailer[1] {
			t.Errorf("trailer %v, want %v", got, want)
		}
	}
}

func TestTrailerIsNilBeforeTheEnd(t *testing.T) {
	auth, encoded := small()["signed trailer"].encode(t)
	body := auth.Body(strings.NewReader(encoded))
	if _, err := io.ReadFull(body, make([]byte, 26)); err != nil || body.Trailer() != nil {
		t.Errorf("trailer %v, error %v", body.Trailer(), err)
	}
	if n, err := body.Read(nil); n != 0 || err != nil {
		t.Errorf("an empty read gives %d, %v", n, err)
	}

	if _, trailer, err := decode(auth, strings.Replace(encoded, "sOO8", "SOO8", 1)); err == nil || trailer != nil {
		t.Errorf("trailer %v, error %v", trailer, err)
	}
}

// TestCut truncates the body at every byte.
func TestCut(t *testing.T) {
	for name, u := range small() {
		t.Run(name, func(t *testing.T) {
			auth, encoded := u.encode(t)
			for n := range len(encoded) {
				_, _, err := decode(auth, encoded[:n])
				if wantCode(t, err, "IncompleteBody"); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("%v can be taken for the reader's own end", err)
				}

				body := auth.Body(io.MultiReader(strings.NewReader(encoded[:n]), iotest.ErrReader(io.ErrUnexpectedEOF)))
				_, err = io.ReadAll(body)
				wantCode(t, err, "IncompleteBody")
			}
		})
	}
}

// TestAlteredAndCut alters the data and ends the body before anything
// reveals that. A reader that reads exactly the declared length, and then
// checks for io.EOF with errors.Is, must get an error.
func TestAlteredAndCut(t *testing.T) {
	for _, name := range []string{"signed", "signed trailer"} {
		t.Run(name, func(t *testing.T) {
			auth, encoded := small()[name].encode(t)
			encoded = strings.Replace(encoded, "abc", "xyz", 1)
			body := auth.Body(strings.NewReader(encoded[:strings.Index(encoded, "yz\r\n")+2]))
			if _, err := io.ReadFull(body, make([]byte, auth.DecodedLength())); err != nil {
				t.Fatal(err) // data is returned before its signature is checked
			}

			_, err := body.Read(make([]byte, 1))
			wantCode(t, err, "IncompleteBody")
		})
	}
}

// TestBitFlips flips every bit of the body. Only the case of a chunk size
// and of a trailer name may change without an error. In unsigned payloads,
// data and trailer values may change too, because only the checksum
// protects them.
func TestBitFlips(t *testing.T) {
	for name, u := range small() {
		t.Run(name, func(t *testing.T) {
			auth, encoded := u.encode(t)
			data, trailer, err := decode(auth, encoded)
			if err != nil {
				t.Fatal(err)
			}

			var passed []int
			for bit := range len(encoded) * 8 {
				flipped := []byte(encoded)
				flipped[bit/8] ^= 1 << (bit % 8)
				gotData, gotTrailer, err := decode(auth, string(flipped))
				if err != nil {
					continue
				}

				passed = append(passed, bit)
				if u.mode != unsignedTrailer &&
					(gotData != data || !maps.EqualFunc(gotTrailer, trailer, slices.Equal)) {
					t.Errorf("bit %d of byte %d altered the upload", bit%8, bit/8)
				}
			}

			if want := harmlessFlips(u, encoded); !slices.Equal(passed, want) {
				t.Errorf("passed %v, want %v", passed, want)
			}
		})
	}
}

// harmlessFlips lists the bits of an encoded body of small that may change.
func harmlessFlips(u upload, encoded string) []int {
	out := []int{1*8 + 5} // the a of size 1a
	add := func(text string, bits ...int) {
		start := strings.Index(encoded, text)
		for i := range len(text) {
			for _, bit := range bits {
				if bit != 5 || 'a' <= text[i]|0x20 && text[i]|0x20 <= 'z' {
					out = append(out, (start+i)*8+bit)
				}
			}
		}
	}

	if u.mode == unsignedTrailer {
		add(u.chunks[0], 0, 1, 2, 3, 4, 6, 7)
		add(u.chunks[0], 5)
	}

	for _, trailer := range u.trailers {
		add(trailer[0], 5)
		if u.mode == unsignedTrailer {
			add(trailer[1], 0, 1, 2, 3, 4, 6, 7)
			for i := range len(trailer[1]) {
				out = append(out, (strings.Index(encoded, trailer[1])+i)*8+5)
			}
		}
	}

	if u.mode == signedTrailer {
		add("x-amz-trailer-signature", 5)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Each chunk is genuine, but they are not the chunks that were sent in this
// order.
func TestChunksRearranged(t *testing.T) {
	for name, change := range map[string]func(p []string) []string{
		"swapped":           func(p []string) []string { return []string{p[1], p[0], p[2], p[3], p[4], p[5]} },
		"duplicated":        func(p []string) []string { return []string{p[0], p[1], p[1], p[3], p[4], p[5]} },
		"dropped":           func(p []string) []string { return []string{p[0], p[2], p[3], p[4], p[5]} },
		"first dropped":     func(p []string) []string { return p[1:] },
		"last dropped":      func(p []string) []string { return append(p[:3:3], p[4:]...) },
		"end dropped":       func(p []string) []string { return append(p[:4:4], p[5]) },
		"end in the middle": func(p []string) []string { return append(p[:2:2], p[4], p[5]) },
	} {
		for _, mode := range []string{signedChunks, signedTrailer} {
			t.Run(name+" "+mode, func(t *testing.T) {
				u := upload{mode: mode, chunks: large()}
				auth, seed := u.verify(t)
				if _, _, err := decode(auth, strings.Join(change(u.pieces(seed)), "")); err == nil {
					t.Error("accepted")
				}
			})
		}
	}
}

// TestChunksOfAnotherRequest replays a body after another seed signature.
func TestChunksOfAnotherRequest(t *testing.T) {
	u := small()["signed trailer"]
	_, encoded := u.encode(t)
	u.announce = "X-Amz-Checksum-Crc32c" // this changes the signature
	auth, _ := u.verify(t)
	_, _, err := decode(auth, encoded)
	wantCode(t, err, "SignatureDoesNotMatch")
}

func TestDecodedLength(t *testing.T) {
	for _, mode := range []string{signedChunks, signedTrailer, unsignedTrailer} {
		for declared, code := range map[string]string{
			"3": "IncompleteBody", "4": "", "5": "IncompleteBody", "0": "IncompleteBody",
			"9223372036854775807": "IncompleteBody",
		} {
			t.Run(mode+" "+declared, func(t *testing.T) {
				auth, encoded := upload{mode: mode, chunks: []string{"data"}, declared: declared}.encode(t)
				data, _, err := decode(auth, encoded)
				if code == "" && err == nil && data == "data" {
					return
				}
				wantCode(t, err, code)
			})
		}
	}
}

func TestSmallChunkInTheMiddle(t *testing.T) {
	for _, mode := range []string{signedChunks, signedTrailer, unsignedTrailer} {
		t.Run(mode, func(t *testing.T) {
			auth, encoded := upload{mode: mode, chunks: []string{strings.Repeat("a", 8191), "b"}}.encode(t)
			_, _, err := decode(auth, encoded)
			e := wantCode(t, err, "InvalidChunkSizeError")
			if got := fmt.Sprint(e.Details()); got != "[[Chunk 2] [BadChunkSize 8191]]" {
				t.Errorf("details %s", got)
			}
		})
	}
}

// Malformed framing that a flipped bit does not produce.
func TestMalformedChunks(t *testing.T) {
	signature := ";chunk-signature=" + emptyHash
	for name, row := range map[string]struct{ mode, encoded string }{
		"no body":                   {signedChunks, ""},
		"size too large for 63 bit": {signedChunks, "8000000000000000" + signature + "\r\n"},
		"size too large for 64 bit": {unsignedTrailer, "10000000000000004\r\ndata\r\n0\r\n\r\n"},
		"size above the length":     {unsignedTrailer, "7fffffffffffffff\r\ndata\r\n0\r\n\r\n"},
		"size negative":             {unsignedTrailer, "-4\r\ndata\r\n0\r\n\r\n"},
		"size with a sign":          {unsignedTrailer, "+4\r\ndata\r\n0\r\n\r\n"},
		"size with a prefix":        {unsignedTrailer, "0x4\r\ndata\r\n0\r\n\r\n"},
		"size with a space":         {unsignedTrailer, "4 \r\ndata\r\n0\r\n\r\n"},
		"size empty":                {unsignedTrailer, "\r\ndata\r\n0\r\n\r\n"},
		"bare LF":                   {unsignedTrailer, "4\ndata\r\n0\r\n\r\n"},
		"LF CRLF after a size":      {unsignedTrailer, "4\n\r\ndata\r\n0\r\n\r\n"},
		"extension where none is":   {unsignedTrailer, "4;a=b\r\ndata\r\n0\r\n\r\n"},
		"signature where none is":   {unsignedTrailer, "4" + signature + "\r\ndata\r\n0\r\n\r\n"},
		"no signature":              {signedChunks, "4\r\ndata\r\n0\r\n\r\n"},
		"another extension":         {signedChunks, "4;chunk-extension=" + emptyHash + "\r\ndata\r\n"},
		"signature too short":       {signedChunks, "4;chunk-signature=ab\r\ndata\r\n"},
		"two extensions":            {signedChunks, "4" + signature + ";a=b\r\ndata\r\n"},
		"line too long":             {unsignedTrailer, strings.Repeat("0", 5000) + "4\r\ndata\r\n0\r\n\r\n"},
		"line without an end":       {unsignedTrailer, strings.Repeat("4", 5000)},
		"no CRLF after the data":    {unsignedTrailer, "4\r\ndata0\r\n\r\n"},
		"longer data than its size": {unsignedTrailer, "4\r\ndatadata\r\n0\r\n\r\n"},
		"empty chunk first":         {unsignedTrailer, "0\r\n\r\n4\r\ndata\r\n0\r\n\r\n"},
		"bytes after the end":       {unsignedTrailer, "4\r\ndata\r\n0\r\n\r\n0"},
		"another end after the end": {unsignedTrailer, "4\r\ndata\r\n0\r\n\r\n0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			auth, _ := upload{mode: row.mode, declared: "4"}.verify(t)
			_, _, err := decode(auth, row.encoded)
			wantCode(t, err, "IncompleteBody")
		})
	}
}

// Framing that S3 accepts, although it is not quite as documented.
func TestTolerableChunks(t *testing.T) {
	const chunk, end = "4\r\ndata\r\n", "0\r\n\r\n"
	for name, encoded := range map[string]string{
		"size with many zeros":     strings.Repeat("0", 40) + chunk + end,
		"last size with many":      chunk + strings.Repeat("0", 40) + end,
		"a CRLF behind the end":    chunk + end + "\r\n",
		"size of the usual length": "00000004\r\ndata\r\n" + end,
	} {
		t.Run(name, func(t *testing.T) {
			auth, _ := upload{mode: unsignedTrailer, declared: "4"}.verify(t)
			if got, _, err := decode(auth, encoded); got != "data" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
		})
	}

	for name, u := range small() {
		t.Run("a CRLF behind the end of "+name, func(t *testing.T) {
			auth, encoded := u.encode(t)
			if _, _, err := decode(auth, encoded+"\r\n"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBytesAfterTheEnd(t *testing.T) {
	for name, u := range small() {
		auth, encoded := u.encode(t)
		for _, more := range []string{"\n", "\r", "\n\r", "0", "\r\n0", "\r\n\r\n", "\r\n" + encoded, encoded} {
			t.Run(more, func(t *testing.T) {
				if _, _, err := decode(auth, encoded+more); err == nil {
					t.Errorf("%s: %q accepted", name, more)
				}
			})
		}
	}
}

// Trailers after the payload "data", correctly signed if signed is set and
// the row has no signature.
func TestMalformedTrailers(t *testing.T) {
	// code is the error code if signed, then if unsigned and different.
	for name, row := range map[string]struct{ announce, wire, code string }{
		"as announced":               {"a,b", "a:1\r\nb:2\r\n", ""},
		"in another order":           {"a,b", "b:2\r\na:1\r\n", ""},
		"spaces":                     {"a", " a : 1 \r\n", ""},
		"names in upper case":        {"A", "A:1\r\n", ""},
		"LF CRLF":                    {"a", "a:1\n\r\n", ""},
		"LF only":                    {"a", "a:1\n", "IncompleteBody"},
		"missing":                    {"a", "", "MalformedTrailerError"},
		"one missing":                {"a,b", "a:1\r\n", "MalformedTrailerError"},
		"unannounced":                {"a", "a:1\r\nb:2\r\n", "IncompleteBody MalformedTrailerError"},
		"none announced":             {"", "a:1\r\n", "MalformedTrailerError"},
		"twice":                      {"a", strings.Repeat("a:1\r\n", 2), "IncompleteBody MalformedTrailerError"},
		"twice, the first empty":     {"a", "a:\r\na:1\r\n", "IncompleteBody MalformedTrailerError"},
		"twice in place of another":  {"a,b", "a:1\r\nA:2\r\n", "MalformedTrailerError"},
		"no colon":                   {"a", "a\r\n", "MalformedTrailerError"},
		"no name":                    {"a", ":1\r\n", "MalformedTrailerError"},
		"empty line first":           {"a", "\r\na:1\r\n", "MalformedTrailerError"},
		"line too long":              {"a", "a:" + strings.Repeat("1", 4095) + "\r\n", "IncompleteBody"},
		"too many":                   {"a", strings.Repeat("a:1\r\n", 9), "IncompleteBody MalformedTrailerError"},
		"CR in a value":              {"a", "a:1\rb:2\r\n", "IncompleteBody"},
		"CR twice before LF":         {"a", "a:1\r\r\n", "IncompleteBody"},
		"signature, but no trailers": {"a", "x-amz-trailer-signature:" + emptyHash + "\r\n", "MalformedTrailerError"},
	} {
		for _, mode := range []string{signedTrailer, unsignedTrailer} {
			t.Run(name+" "+mode, func(t *testing.T) {
				u := upload{mode: mode, chunks: []string{"data"}, announce: row.announce}
				auth, encoded := u.withTrailer(t, row.wire)
				_, trailer, err := decode(auth, encoded)

				if codes := strings.Fields(row.code); len(codes) == 2 && mode == unsignedTrailer {
					wantCode(t, err, codes[1])
				} else if len(codes) > 0 {
					wantCode(t, err, codes[0])
				} else if err != nil || trailer.Get("A") != "1" {
					t.Errorf("trailer %v, error %v", trailer, err)
				}
			})
		}
	}
}

// withTrailer encodes u with the given trailer lines.
func (u upload) withTrailer(t *testing.T, wire string) (*sigv4.Auth, string) {
	t.Helper()
	auth, seed := u.verify(t)
	pieces := u.pieces(seed)
	pieces = pieces[:len(pieces)-1]
	encoded := strings.Join(pieces, "") + wire

	if u.mode == signedTrailer {
		last := pieces[len(pieces)-1]
		_, previous, _ := strings.Cut(strings.TrimSpace(last), "chunk-signature=")
		canonical := strings.ToLower(strings.ReplaceAll(strings.ReplaceAll(wire, " ", ""), "\r\n", "\n"))
		canonical = strings.ReplaceAll(canonical, "\n\n", "\n")
		encoded += "x-amz-trailer-signature:" + trailerSignature(previous, canonical) + "\r\n"
	}

	return auth, encoded + "\r\n"
}

func TestTrailerSignature(t *testing.T) {
	u := small()["signed trailer"]
	auth, encoded := u.encode(t)
	head, line, _ := strings.Cut(encoded, "x-amz-trailer-signature:")
	signature := strings.TrimSpace(line)
	for name, row := range map[string]struct{ encoded, code string }{
		"missing":         {head + "\r\n", "IncompleteBody"},
		"empty":           {head + "x-amz-trailer-signature:\r\n\r\n", "IncompleteBody"},
		"too short":       {head + "x-amz-trailer-signature:" + signature[1:] + "\r\n\r\n", "IncompleteBody"},
		"too long":        {head + "x-amz-trailer-signature:" + signature + "0\r\n\r\n", "IncompleteBody"},
		"of another name": {head + "x-amz-trailer-signatura:" + signature + "\r\n\r\n", "IncompleteBody"},
		"another":         {head + "x-amz-trailer-signature:" + emptyHash + "\r\n\r\n", "SignatureDoesNotMatch"},
		"in upper case": {
			head + "x-amz-trailer-signature:" + strings.ToUpper(signature) + "\r\n\r\n", "SignatureDoesNotMatch",
		},
		"twice": {
			head + strings.Repeat("x-amz-trailer-signature:"+signature+"\r\n", 2) + "\r\n", "MalformedTrailerError",
		},
		"after an empty one": {
			head + "x-amz-trailer-signature: \r\nX-Amz-Trailer-Signature:" + signature + "\r\n\r\n",
			"MalformedTrailerError",
		},
		"before the trailer": {
			strings.Replace(encoded, "x-amz-checksum", "x-amz-trailer-signature:"+signature+"\r\nx-amz-checksum",
				1), "MalformedTrailerError",
		},
		"value altered": {strings.Replace(encoded, "sOO8", "sOO9", 1), "SignatureDoesNotMatch"},
		"trailer dropped": {
			strings.Replace(encoded, "x-amz-checksum-crc32c:sOO8/Q==\r\n", "", 1), "MalformedTrailerError",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, trailer, err := decode(auth, row.encoded)
			wantCode(t, err, row.code)
			if trailer != nil {
				t.Errorf("trailer %v in spite of the error", trailer)
			}
		})
	}
}

var errSource = errors.New("the source failed")

// A failure of the source is returned unchanged at any position, and again
// at the next read.
func TestSourceError(t *testing.T) {
	auths := map[*sigv4.Auth]string{
		plain(t, hexSum("payload"), "payload"): "payload", plain(t, unsignedPayload, "payload"): "payload",
	}

	for _, u := range small() {
		auth, encoded := u.encode(t)
		auths[auth] = encoded
	}

	for auth, encoded := range auths {
		for n := range len(encoded) + 1 {
			for _, failure := range []error{errSource, fmt.Errorf("%w after all", errSource)} {
				body := auth.Body(io.MultiReader(strings.NewReader(encoded[:n]), iotest.ErrReader(failure)))
				_, err := io.ReadAll(body)
				if _, again := body.Read(make([]byte, 1)); !errors.Is(err, errSource) || !errors.Is(again, errSource) {
					t.Fatalf("at byte %d: %v, then %v", n, err, again)
				}
			}
		}
	}
}

// An error that wraps io.EOF is a failure, not the end.
func TestWrappedEOF(t *testing.T) {
	r := newRequest(t, http.MethodPut, bucketURL, "/key", "", "payload")
	r.ContentLength = -1
	sign(t, r, unsignedPayload, exampleTime)
	auth, err := verifierAt(exampleTime).Verify(received(t, r))
	if err != nil {
		t.Fatal(err)
	}

	lost := fmt.Errorf("connection lost: %w", io.EOF)
	_, err = io.ReadAll(auth.Body(iotest.ErrReader(lost)))
	wantCode(t, err, "IncompleteBody")
	auth, encoded := small()["signed trailer"].encode(t)
	_, err = io.ReadAll(auth.Body(io.MultiReader(strings.NewReader(encoded), iotest.ErrReader(lost))))

	wantCode(t, err, "IncompleteBody")
}

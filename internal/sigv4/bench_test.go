package sigv4_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

func BenchmarkVerify(b *testing.B) {
	header := newRequest(b, http.MethodGet, bucketURL, "/some/key", "versionId=a", "")
	sign(b, header, emptyHash, exampleTime)
	url := presign(b, newRequest(b, http.MethodGet, bucketURL, "/some/key", "", ""), unsignedPayload, exampleTime, "60")
	for name, r := range map[string]*http.Request{"header": received(b, header), "presigned": received(b, url)} {
		b.Run(name, func(b *testing.B) {
			verifier := verifierAt(exampleTime)
			b.ReportAllocs()

			for b.Loop() {
				if _, err := verifier.Verify(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkBody(b *testing.B) {
	const size = 1 << 20
	data := strings.Repeat("a", size)
	chunks := make([]string, size>>16)
	for i := range chunks {
		chunks[i] = data[:1<<16]
	}

	signed, signedBody := upload{mode: signedChunks, chunks: chunks}.encode(b)
	unsigned, unsignedBody := upload{mode: unsignedTrailer, chunks: chunks, trailers: crc32c}.encode(b)
	for _, row := range []struct {
		name, encoded string
		auth          *sigv4.Auth
	}{
		{"hashed", data, plain(b, hexSum(data), data)},
		{"unsigned", data, plain(b, unsignedPayload, data)},
		{"chunked signed", signedBody, signed},
		{"chunked unsigned", unsignedBody, unsigned},
	} {
		b.Run(row.name, func(b *testing.B) {
			src, buffer := strings.NewReader(row.encoded), make([]byte, 32<<10)
			b.SetBytes(size)
			b.ReportAllocs()

			for b.Loop() {
				src.Reset(row.encoded)
				if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, row.auth.Body(src),
					buffer); n != size || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

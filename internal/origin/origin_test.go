package origin_test

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/cmekproxy/cmekproxy/internal/awscreds"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// got is a request that the store received.
type got struct {
	host, uri string
	header    http.Header
	body      []byte
	bodyErr   error
	trailer   http.Header
	authErr   error
}

// recorder is a store. got may be read when no request is running.
type recorder struct {
	got
	server *httptest.Server
}

// framed is how uploads are sent to Amazon S3.
var framed = origin.Uploads{Trailer: true, PartChecksums: true}

// newStore starts a server that verifies signatures and payloads.
func newStore(t *testing.T, change func(*origin.Config)) (*origin.Origin, *recorder) {
	t.Helper()
	received := &recorder{}
	verifier := &sigv4.Verifier{Now: time.Now, Secret: func(string) (string, bool) { return "secret", true }}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		received.got = got{host: r.Host, uri: r.RequestURI, header: r.Header}
		auth, err := verifier.Verify(r)
		if received.authErr = err; err != nil {
			return
		}

		body := auth.Body(r.Body)
		received.body, received.bodyErr = io.ReadAll(body)
		received.trailer = body.Trailer()
	}))

	received.server = server
	t.Cleanup(server.Close)

	transport := origin.NewTransport(origin.TransportConfig{
		ConnectTimeout: 5 * time.Second, ResponseTimeout: 10 * time.Second, MaxConns: 2,
	})

	cfg := origin.Config{
		Endpoint: &url.URL{Scheme: "http", Host: strings.TrimPrefix(server.URL, "http://")}, Region: "eu-central-1",
		PathStyle: true, Uploads: origin.Always(framed),
		Now: time.Now, Transport: transport,
		Credentials: credentials.NewStaticCredentialsProvider("access", "secret", ""),
	}

	if change != nil {
		change(&cfg)
	}
	return origin.New(cfg), received
}

func newRequest(t *testing.T, method, path string, body io.Reader, length int64) *http.Request {
	t.Helper()
	r := &http.Request{
		Method: method, URL: &url.URL{Path: path, RawPath: sigv4.EscapePath(path), RawQuery: "versionId=a%20b"},
		Header: http.Header{"Content-Encoding": {"gzip"}}, ContentLength: length,
	}
	if body != nil {
		r.Body = io.NopCloser(body)
	}
	return r.WithContext(t.Context())
}

func TestUploadsAreFramedWithAChecksum(t *testing.T) {
	for _, size := range []int{1, 56, 65552, 300_000, 1 << 20, 1<<20 + 1, 3<<20 + 5} {
		o, received := newStore(t, nil)
		text := bytes.Repeat([]byte("c"), size)
		resp, err := o.RoundTrip(newRequest(t, http.MethodPut, "/bucket/a b/ü//+",
			iotest.HalfReader(bytes.NewReader(text)), int64(size)))
		if err != nil {
			t.Fatal(err)
		}

		resp.Body.Close()
		if received.authErr != nil || received.bodyErr != nil || !bytes.Equal(received.body, text) {
			t.Errorf("%d bytes: %d came, %v, %v", size, len(received.body), received.authErr, received.bodyErr)
		}

		want := crc32.ChecksumIEEE(text)
		if sum := received.trailer.Get("X-Amz-Checksum-Crc32"); sum == "" || !strings.HasPrefix(sum, encode(want)) {
			t.Errorf("%d bytes: trailer %q", size, sum)
		}
		if received.uri != "/bucket/a%20b/%C3%BC//%2B?versionId=a%20b" ||
			received.header.Get("Content-Encoding") != "aws-chunked,gzip" {
			t.Errorf("%s with %v", received.uri, received.header)
		}
	}
}

func encode(sum uint32) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	return string([]byte{
		alphabet[sum>>26], alphabet[sum>>20&63], alphabet[sum>>14&63], alphabet[sum>>8&63], alphabet[sum>>2&63],
		alphabet[sum&3<<4],
	})
}

func TestAFailingBodyIsNeverWhole(t *testing.T) {
	errSource := errors.New("bad checksum at the end")
	for _, trailers := range []bool{true, false} {
		for _, fail := range []error{errSource, errors.Join(io.EOF)} { // an error that only wraps io.EOF is a failure
			o, received := newStore(t, func(cfg *origin.Config) { cfg.Uploads = origin.Always(origin.Uploads{Trailer: trailers}) })
			body := io.MultiReader(strings.NewReader(strings.Repeat("c", 1000)), iotest.ErrReader(fail))
			if resp, err := o.RoundTrip(newRequest(t, http.MethodPut, "/bucket/key", body, 1016)); err == nil {
				resp.Body.Close()
				t.Errorf("trailers %v, %v: the store answered %d", trailers, fail, resp.StatusCode)
			}

			received.server.Close() // waits for the handler
			if received.host != "" && received.bodyErr == nil {
				t.Errorf("trailers %v, %v: the store took %d bytes for the whole", trailers, fail, len(received.body))
			}
		}
	}
}

// A body that fails at its end is incomplete even if all its bytes were
// read; so is a body that is too long.
func TestABodyIsWholeOnlyIfItSaysSo(t *testing.T) {
	for _, size := range []int{1000, 1 << 20, 1<<20 + 7} {
		for _, end := range []io.Reader{
			iotest.ErrReader(errors.New("bad checksum")),
			iotest.ErrReader(errors.Join(io.EOF)), strings.NewReader("x"),
		} {
			o, received := newStore(t, nil)
			body := io.MultiReader(strings.NewReader(strings.Repeat("c", size)), end)
			if resp, err := o.RoundTrip(newRequest(t, http.MethodPut, "/bucket/key", body, int64(size))); err == nil {
				resp.Body.Close()
				t.Errorf("%d bytes: the store answered %d", size, resp.StatusCode)
			}

			received.server.Close() // waits for the handler
			if received.host != "" && received.bodyErr == nil {
				t.Errorf("%d bytes: the store took %d for the whole", size, len(received.body))
			}
		}
	}
}

func TestHashedAndEmptyBodiesAreSentAsTheyAre(t *testing.T) {
	o, received := newStore(t, nil)
	resp, err := o.RoundTrip(newRequest(t, http.MethodGet, "/bucket/key", nil, 0))
	if err != nil {
		t.Fatal(err)
	}

	resp.Body.Close()
	if hash := received.header.Get("X-Amz-Content-Sha256"); received.authErr != nil || hash != origin.UnsignedPayload {
		t.Errorf("GET: %v with hash %q", received.authErr, hash)
	}

	r := newRequest(t, http.MethodPost, "/bucket", strings.NewReader("abc"), 3)
	r.Header.Set("X-Amz-Content-Sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")

	if resp, err = o.RoundTrip(r); err != nil {
		t.Fatal(err)
	}

	resp.Body.Close()
	if received.authErr != nil || received.bodyErr != nil || string(received.body) != "abc" ||
		received.header.Get("Content-Encoding") != "gzip" {
		t.Errorf("%+v", received.got)
	}
}

// If an upload was created without a checksum algorithm, Amazon S3 accepts
// parts with checksums but cannot complete the upload.
func TestUploadsAreCreatedWithTheChecksumOfTheirParts(t *testing.T) {
	for _, row := range []struct {
		method, query string
		uploads       origin.Uploads
		want          string
	}{
		{http.MethodPost, "uploads=", framed, "CRC32"},
		{http.MethodPost, "uploads=", origin.Uploads{}, ""},
		{http.MethodPost, "uploads=", origin.Uploads{Trailer: true}, ""},
		{http.MethodPost, "uploadId=x", framed, ""},
		{http.MethodGet, "uploads=", framed, ""},
	} {
		o, received := newStore(t, func(cfg *origin.Config) { cfg.Uploads = origin.Always(row.uploads) })
		r := newRequest(t, row.method, "/bucket/key", nil, 0)
		r.URL.RawQuery = row.query
		resp, err := o.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}

		resp.Body.Close()
		if got := received.header.Get("X-Amz-Checksum-Algorithm"); received.authErr != nil || got != row.want ||
			r.Header.Get("X-Amz-Checksum-Algorithm") != "" {
			t.Errorf("%s ?%s, %+v: %v, %q", row.method, row.query, row.uploads, received.authErr, got)
		}
	}
}

func TestVirtualHostStyle(t *testing.T) {
	for path, want := range map[string]string{
		"/bucket/a/b": "/a/b", "/bucket": "/", "/bucket//x": "//x", "/bucket/bucket/k": "/bucket/k",
		"/bucket/ü": "/%C3%BC",
	} {
		var sent *http.Request
		o, _ := newStore(t, func(cfg *origin.Config) {
			cfg.PathStyle = false
			cfg.Endpoint.Host = "s3.example.com"
			cfg.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
				sent = r
				return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
			})
		})

		resp, err := o.RoundTrip(newRequest(t, http.MethodGet, path, nil, 0))
		if err != nil {
			t.Fatal(err)
		}

		resp.Body.Close()
		if sent.Host != "bucket.s3.example.com" || sent.URL.Host != sent.Host || sent.URL.EscapedPath() != want {
			t.Errorf("%s: %s %s, want %s", path, sent.Host, sent.URL.EscapedPath(), want)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestNoCredentials(t *testing.T) {
	o, _ := newStore(t, func(cfg *origin.Config) { cfg.Credentials = aws.AnonymousCredentials{} })
	closed := false
	r := newRequest(t, http.MethodPut, "/bucket/key", nil, 3)
	r.Body = closer{strings.NewReader("abc"), func() { closed = true }}

	if resp, err := o.RoundTrip(r); !errors.Is(err, origin.ErrCredentials) {
		if err == nil {
			resp.Body.Close()
		}
		t.Error(err)
	}

	if !closed {
		t.Error("the body was not closed")
	}
}

// A source of credentials that does not answer fails the request.
func TestCredentialsThatDoNotCome(t *testing.T) {
	o, _ := newStore(t, func(cfg *origin.Config) {
		cfg.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{}, awscreds.ErrTimeout
		})
	})

	resp, err := o.RoundTrip(newRequest(t, http.MethodGet, "/bucket/key", nil, 0))
	if err == nil {
		resp.Body.Close()
	}
	if !errors.Is(err, origin.ErrCredentials) {
		t.Error(err)
	}
}

type closer struct {
	io.Reader
	close func()
}

func (c closer) Close() error { c.close(); return nil }

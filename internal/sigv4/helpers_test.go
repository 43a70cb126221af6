package sigv4_test

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/smithy-go/encoding/httpbinding"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// Credentials, time and scope of the examples in the AWS documentation.
const (
	accessKey   = "AKIAIOSFODNN7EXAMPLE"
	secretKey   = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	exampleDate = "20130524T000000Z"
	scope       = "20130524/us-east-1/s3/aws4_request"
	bucketURL   = "http://examplebucket.s3.amazonaws.com"

	emptyHash       = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	unsignedPayload = "UNSIGNED-PAYLOAD"
	signedChunks    = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
	signedTrailer   = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
	unsignedTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

var exampleTime = time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)

func verifierAt(now time.Time) *sigv4.Verifier {
	return &sigv4.Verifier{
		Now: func() time.Time { return now },
		Secret: func(key string) (string, bool) {
			if key == accessKey {
				return secretKey, true
			}
			return "", key == "keyWithoutSecret"
		},
	}
}

// newRequest returns a client's request, with its path encoded by AWS's
// SDK.
func newRequest(tb testing.TB, method, base, path, query, body string) *http.Request {
	tb.Helper()
	r, err := http.NewRequestWithContext(tb.Context(), method, base, nil)
	if err != nil {
		tb.Fatal(err)
	}
	r.URL.Path, r.URL.RawPath, r.URL.RawQuery = path, httpbinding.EscapePath(path, false), query
	if body != "" {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	}
	return r
}

func sdkSigner() *v4.Signer {
	return v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
}

// sign signs r with the signer of AWS's SDK.
func sign(tb testing.TB, r *http.Request, hash string, at time.Time) {
	tb.Helper()
	if r.Header.Get("X-Amz-Content-Sha256") == "" {
		r.Header.Set("X-Amz-Content-Sha256", hash)
	}
	signWith(tb, r, accessKey, secretKey, hash, at)
}

func signWith(tb testing.TB, r *http.Request, key, secret, hash string, at time.Time) {
	tb.Helper()
	keys := aws.Credentials{AccessKeyID: key, SecretAccessKey: secret}
	if err := sdkSigner().SignHTTP(tb.Context(), keys, r, hash, "s3", "us-east-1", at); err != nil {
		tb.Fatal(err)
	}
}

// presign returns r as presigned by AWS's SDK, with only the signed
// headers.
func presign(tb testing.TB, r *http.Request, hash string, at time.Time, lifetime string) *http.Request {
	tb.Helper()
	return presignWith(tb, r, accessKey, secretKey, hash, at, lifetime)
}

func presignWith(
	tb testing.TB, r *http.Request, key, secret, hash string, at time.Time, lifetime string,
) *http.Request {
	tb.Helper()
	query := r.URL.Query()

	if lifetime != "" {
		query.Set("X-Amz-Expires", lifetime)
	}

	r.URL.RawQuery = query.Encode()
	keys := aws.Credentials{AccessKeyID: key, SecretAccessKey: secret}
	signed, header, err := sdkSigner().PresignHTTP(tb.Context(), keys, r, hash, "s3", "us-east-1", at)
	if err != nil {
		tb.Fatal(err)
	}

	out := r.Clone(tb.Context())
	if out.URL, err = url.Parse(signed); err != nil {
		tb.Fatal(err)
	}

	out.Header = header
	out.Header.Del("Host")
	out.Header.Del("Content-Length")
	return out
}

// received returns r as a server receives it.
func received(tb testing.TB, r *http.Request) *http.Request {
	tb.Helper()
	var wire bytes.Buffer
	if err := r.Write(&wire); err != nil {
		tb.Fatal(err)
	}
	out, err := http.ReadRequest(bufio.NewReader(&wire))
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// authorization signs a canonical request given by the test.
func authorization(canonical, signedHeaders string) string {
	sum := sha256.Sum256([]byte(canonical))
	toSign := "AWS4-HMAC-SHA256\n" + exampleDate + "\n" + scope + "\n" + hex.EncodeToString(sum[:])
	return "AWS4-HMAC-SHA256 Credential=" + accessKey + "/" + scope + ",SignedHeaders=" + signedHeaders +
		",Signature=" + hexMAC(exampleKey(), toSign)
}

func exampleKey() []byte {
	key := []byte("AWS4" + secretKey)
	for text := range strings.SplitSeq(scope, "/") {
		key = mac(key, text)
	}
	return key
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func hexMAC(key []byte, text string) string { return hex.EncodeToString(mac(key, text)) }

func hexSum(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// wantCode fails the test unless err is an *Error with the code.
func wantCode(tb testing.TB, err error, code string) *sigv4.Error {
	tb.Helper()
	var e *sigv4.Error
	if !errors.As(err, &e) {
		tb.Fatalf("got error %v, want %s", err, code)
	}
	if e.Code != code {
		tb.Fatalf("got error %v, want %s", err, code)
	}

	if errors.Is(err, io.EOF) {
		tb.Fatalf("%v passes for the end of the body", err)
	}
	if strings.Contains(fmt.Sprint(e, e.Details()), secretKey) {
		tb.Fatal("the error holds the secret key")
	}

	return e
}

// upload is a streaming upload: what the header says, and how the body is
// encoded.
type upload struct {
	mode     string
	chunks   []string // data, without the empty last chunk
	trailers [][2]string
	declared string // x-amz-decoded-content-length; "" means the true length
	announce string // x-amz-trailer; "" means the names of trailers
}

// request returns the signed request, without its body.
func (u upload) request(tb testing.TB) *http.Request {
	tb.Helper()
	r := newRequest(tb, http.MethodPut, bucketURL, "/key", "", "")
	length := strconv.Itoa(len(strings.Join(u.chunks, "")))

	if u.declared != "" {
		length = u.declared
	}

	r.Header.Set("X-Amz-Decoded-Content-Length", length)
	names := u.announce

	for i, trailer := range u.trailers {
		if u.announce == "" {
			names += strings.Repeat(",", min(i, 1)) + trailer[0]
		}
	}

	if names != "" {
		r.Header.Set("X-Amz-Trailer", names)
	}
	sign(tb, r, u.mode, exampleTime)
	return r
}

// verify returns the verified request and the seed of its chunk signatures.
func (u upload) verify(tb testing.TB) (auth *sigv4.Auth, seed string) {
	tb.Helper()
	r := u.request(tb)
	auth, err := verifierAt(exampleTime).Verify(received(tb, r))
	if err != nil {
		tb.Fatal(err)
	}
	_, seed, _ = strings.Cut(r.Header.Get("Authorization"), "Signature=")
	return auth, seed
}

// pieces returns the encoded body as one string for each chunk, including
// the empty last one, and one for the trailer.
func (u upload) pieces(seed string) []string {
	var out []string
	previous, signed := seed, u.mode != unsignedTrailer

	for _, data := range append(slices.Clip(u.chunks), "") {
		head := strconv.FormatInt(int64(len(data)), 16)
		if signed {
			previous = hexMAC(exampleKey(), "AWS4-HMAC-SHA256-PAYLOAD\n"+exampleDate+"\n"+scope+"\n"+previous+"\n"+
				emptyHash+"\n"+hexSum(data))
			head += ";chunk-signature=" + previous
		}

		if data != "" {
			data += "\r\n"
		}
		out = append(out, head+"\r\n"+data)
	}

	return append(out, u.trailer(previous))
}

func (u upload) trailer(previous string) string {
	var wire, canonical strings.Builder
	for _, t := range u.trailers {
		wire.WriteString(t[0] + ":" + t[1] + "\r\n")
		canonical.WriteString(t[0] + ":" + t[1] + "\n")
	}
	if u.mode == signedTrailer {
		wire.WriteString("x-amz-trailer-signature:" + trailerSignature(previous, canonical.String()) + "\r\n")
	}
	return wire.String() + "\r\n"
}

func trailerSignature(previous, canonical string) string {
	return hexMAC(exampleKey(), "AWS4-HMAC-SHA256-TRAILER\n"+exampleDate+"\n"+scope+"\n"+previous+"\n"+
		hexSum(canonical))
}

// encode returns the verified request and the whole body.
func (u upload) encode(tb testing.TB) (*sigv4.Auth, string) {
	tb.Helper()
	auth, seed := u.verify(tb)
	return auth, strings.Join(u.pieces(seed), "")
}

// decode reads a body to its end.
func decode(auth *sigv4.Auth, encoded string) (data string, trailer http.Header, err error) {
	body := auth.Body(strings.NewReader(encoded))
	out, err := io.ReadAll(body)
	return string(out), body.Trailer(), err
}

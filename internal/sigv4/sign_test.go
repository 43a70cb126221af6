package sigv4_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// signBoth signs a request with the AWS SDK and with Signer.
func signBoth(t *testing.T, r *http.Request, token, hash string, at time.Time) (sdk, ours *http.Request) {
	t.Helper()
	sdk, ours = r.Clone(t.Context()), r.Clone(t.Context())
	theirs := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	creds := aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: "secret", SessionToken: token}
	if err := theirs.SignHTTP(context.Background(), creds, sdk, hash, "s3", "eu-central-1", at); err != nil {
		t.Fatal(err)
	}
	own := sigv4.Credentials{AccessKey: "AKID", Secret: "secret", Token: token}
	if err := sigv4.NewSigner().Sign(ours, own, hash, "eu-central-1", at); err != nil {
		t.Fatal(err)
	}
	return sdk, ours
}

func checkSame(t *testing.T, sdk, ours *http.Request) {
	t.Helper()
	if a, b := sdk.Header.Get("Authorization"), ours.Header.Get("Authorization"); a != b {
		t.Errorf("SDK  %s\nours %s", a, b)
	}
	if sdk.URL.String() != ours.URL.String() || sdk.Header.Get("X-Amz-Date") != ours.Header.Get("X-Amz-Date") ||
		sdk.Header.Get("X-Amz-Security-Token") != ours.Header.Get("X-Amz-Security-Token") {
		t.Errorf("SDK %s %v, ours %s %v", sdk.URL, sdk.Header, ours.URL, ours.Header)
	}
	hostOf := func(r *http.Request) string {
		if r.Host != "" {
			return r.Host
		}
		return r.URL.Host
	}
	if hostOf(sdk) != hostOf(ours) {
		t.Errorf("SDK host %s, ours %s", hostOf(sdk), hostOf(ours))
	}
}

// The signature is the AWS SDK's, for all that a request to a store can have.
func TestSignAsTheSDK(t *testing.T) {
	at := time.Date(2026, 11, 30, 10, 11, 12, 13, time.FixedZone("x", 3600))
	for _, row := range []struct {
		name, method, url, host, token, hash string
		length                               int64
		header                               http.Header
	}{
		{name: "get", method: "GET", url: "http://store:7070/b/k"},
		{name: "root", method: "GET", url: "https://s3.example.com/"},
		{name: "odd key", method: "GET", url: "http://store/b/" + "a%20b%2Bc//%C3%BC..%21%27%28%29%2A"},
		{name: "query", method: "GET", url: "http://store/b?uploads"},
		{name: "sorted query", method: "GET", url: "http://store/b?prefix=a%2Fb%20c&list-type=2&Marker=~&a=&a=%2B"},
		{name: "default port", method: "GET", url: "http://store:80/b/k", host: "store:80"},
		{name: "default port of TLS", method: "GET", url: "https://store:443/b/k", host: "store:443"},
		{name: "another's default port", method: "GET", url: "https://store:80/b/k", host: "store:80"},
		{name: "IPv6", method: "GET", url: "http://[::1]:7070/b/k", host: "[::1]:7070"},
		{name: "IPv6, default port", method: "GET", url: "http://[::1]:80/b/k", host: "[::1]:80"},
		{name: "token", method: "GET", url: "http://store/b/k", token: "session/token=="},
		{name: "put", method: "PUT", url: "http://store/b/k", length: 17, header: http.Header{
			"Content-Type": {"a/b"}, "X-Amz-Meta-A": {"  b   c  d "}, "X-Amz-Meta-B": {""}, "Expect": {"100-continue"},
			"Content-Length": {"17"}, "User-Agent": {"x"}, "X-Amz-Meta-Ü": {"ü"}, "X-Amz-Meta-Tab": {"\t a\t b "},
		}},
		{name: "several values", method: "PUT", url: "http://store/b/k", header: http.Header{
			"If-Match": {`"a"`, ` "b"  `}, "Range": {"bytes=0-1"},
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			u, err := url.Parse(row.url)
			if err != nil {
				t.Fatal(err)
			}
			r := &http.Request{Method: row.method, URL: u, Host: row.host, Header: row.header, ContentLength: row.length}
			if r.Header == nil {
				r.Header = make(http.Header)
			}
			hash := "UNSIGNED-PAYLOAD"
			r.Header.Set("X-Amz-Content-Sha256", hash)
			sdk, ours := signBoth(t, r, row.token, hash, at)
			checkSame(t, sdk, ours)
		})
	}
}

// A derived key is not used for another secret, day or region.
func TestSignWithAnotherSecret(t *testing.T) {
	s := sigv4.NewSigner()
	seen := make(map[string]string)
	for _, row := range []struct{ secret, region, day string }{
		{"a", "r", "2026-11-30"}, {"b", "r", "2026-11-30"}, {"a", "q", "2026-11-30"}, {"a", "r", "2026-12-01"},
	} {
		at, err := time.Parse(time.DateOnly, row.day)
		if err != nil {
			t.Fatal(err)
		}
		r := &http.Request{Method: "GET", URL: &url.URL{Scheme: "http", Host: "h", Path: "/b"}, Header: make(http.Header)}
		for range 2 {
			if err := s.Sign(r, sigv4.Credentials{AccessKey: "k", Secret: row.secret}, "x", row.region, at); err != nil {
				t.Fatal(err)
			}
			_, signature, _ := cutLast(r.Header.Get("Authorization"))
			if other, ok := seen[signature]; ok && other != row.secret+row.region+row.day {
				t.Errorf("%+v has the signature of %s", row, other)
			}
			seen[signature] = row.secret + row.region + row.day
		}
	}
	if len(seen) != 4 {
		t.Errorf("%d signatures", len(seen))
	}
}

func cutLast(authorization string) (before, after string, ok bool) {
	const mark = "Signature="
	at := len(authorization) - 64
	return authorization[:at-len(mark)], authorization[at:], at > 0
}

func FuzzSign(f *testing.F) {
	f.Add("GET", "/b/k", "a=b", "X-Amz-Meta-A", " b  c ", int64(0))
	f.Add("PUT", "/b//../k ", "uploads", "Content-Type", "\t", int64(5))
	f.Fuzz(func(t *testing.T, method, path, query, name, value string, length int64) {
		u := &url.URL{Scheme: "http", Host: "store:7070", Path: "/" + path, RawPath: sigv4.EscapePath("/" + path)}
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Skip()
		}
		u.RawQuery = values.Encode()
		r := &http.Request{
			Method: method, URL: u, ContentLength: length,
			Header: http.Header{http.CanonicalHeaderKey(name): {value}},
		}
		sdk, ours := signBoth(t, r, "", "UNSIGNED-PAYLOAD", time.Unix(1_800_000_000, 0))
		checkSame(t, sdk, ours)
	})
}

// There is a limit on remembered keys, and forgetting them changes nothing.
func TestManyRegions(t *testing.T) {
	s := sigv4.NewSigner()
	at := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	sign := func(region string) string {
		r := &http.Request{Method: "GET", URL: &url.URL{Scheme: "http", Host: "h", Path: "/b"}, Header: make(http.Header)}
		if err := s.Sign(r, sigv4.Credentials{AccessKey: "k", Secret: "s"}, "x", region, at); err != nil {
			t.Fatal(err)
		}
		return r.Header.Get("Authorization")
	}
	first := sign("first")
	for i := range 3000 {
		sign(fmt.Sprint("region-", i))
	}
	if again := sign("first"); again != first {
		t.Errorf("%s, then %s", first, again)
	}
}

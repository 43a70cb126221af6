//go:build !nodev

package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/pemfile/pemtest"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// The store's certificate is verified with origin.ca_file, or else with the
// file of AWS_CA_BUNDLE, and with the new content of either after a change.
func TestAuthoritiesOfTheStore(t *testing.T) {
	store, err := url.Parse(proxytest.ServeStore(t))
	if err != nil {
		t.Fatal(err)
	}

	var shown atomic.Pointer[tls.Certificate]
	show := func(pair pemtest.Pair) {
		certificate := pair.TLS(t)
		shown.Store(&certificate)
	}
	old, next, other := pemtest.New(t, "old"), pemtest.New(t, "next"), pemtest.New(t, "other")
	show(old)

	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(store)
		r.Out.Host = r.In.Host // the signature covers it
	}})
	front.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{*shown.Load()}}, nil
	}}

	front.StartTLS()
	t.Cleanup(front.Close)

	dir := t.TempDir()
	file, bundle := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "bundle.pem")
	pemtest.Replace(t, file, old.Cert)
	pemtest.Replace(t, bundle, other.Cert)
	listen, admin := freePort(t), freePort(t)

	withFile := writeConfig(
		t,
		front.URL,
		listen,
		admin,
		"region: us-east-1,",
		fmt.Sprintf("region: us-east-1, ca_file: %s,", file),
	)

	without := writeConfig(t, front.URL, freePort(t), freePort(t))
	check := func(config string) int {
		var out bytes.Buffer
		code := run(t.Context(), []string{"check", "--config", config}, &out, &out)
		t.Logf("%s", out.String())
		return code
	}
	if check(without) == 0 {
		t.Error("a certificate of no known authority is trusted")
	}

	t.Setenv("AWS_CA_BUNDLE", bundle)
	if check(without) == 0 {
		t.Error("AWS_CA_BUNDLE of another authority: the certificate is trusted")
	}
	if check(withFile) != 0 {
		t.Error("origin.ca_file does not come before AWS_CA_BUNDLE")
	}

	pemtest.Replace(t, bundle, old.Cert)
	if check(without) != 0 {
		t.Error("AWS_CA_BUNDLE does not count for the store")
	}

	s := start(t, "serve", "--config", withFile)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	bucket := "bucket"
	if _, err := client(store.Host, proxytest.AccessKey, proxytest.SecretKey).CreateBucket(t.Context(), &s3.CreateBucketInput{
		Bucket: &bucket,
	}); err != nil {
		t.Fatal(err)
	}

	put := func() error {
		front.CloseClientConnections()
		_, err := client(
			listen,
			"appkey",
			"appsecretappsecret",
		).PutObject(
			t.Context(),
			&s3.PutObjectInput{Bucket: &bucket, Key: new("k"), Body: bytes.NewReader([]byte("x"))},
		)

		return err
	}
	if err := put(); err != nil {
		t.Error(err)
	}

	show(next)
	if put() == nil {
		t.Error("a certificate of another authority than the file's is trusted")
	}
	pemtest.Replace(t, file, next.Cert)
	eventually(t, "the new authority", func() bool { return put() == nil })
	s.stop()

	s.end(t)
}

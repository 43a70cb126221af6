package main

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/pemfile/pemtest"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// eventually waits several intervals of checking a file.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("never: %s", what)
}

// tlsConfig returns a configuration with a certificate for name.
func tlsConfig(t *testing.T, pair pemtest.Pair, listen, admin string) (config, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	pemtest.Replace(t, cert, pair.Cert)
	pemtest.Replace(t, key, pair.Key)
	return writeConfig(
		t,
		sink(t).URL,
		listen,
		admin,
		"tls: {ends_on_this_machine: true}",
		fmt.Sprintf("tls: {cert_file: %s, key_file: %s}", cert, key),
	), cert, key
}

func TestCertificateIsReplacedWhileServing(t *testing.T) {
	listen, admin := freePort(t), freePort(t)
	config, cert, key := tlsConfig(t, pemtest.New(t, "old"), listen, admin)
	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)

	shown := func() string {
		conn, err := tls.Dial("tcp", listen, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	if name := shown(); name != "old" {
		t.Fatalf("the certificate of %q", name)
	}

	end := time.Now().Add(30 * time.Minute).Truncate(time.Second)
	next := pemtest.Between(t, "new", time.Now().Add(-time.Minute), end)
	pemtest.Replace(t, key, next.Key)
	pemtest.Replace(t, cert, next.Cert)
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil { // the proxy runs in this process
		t.Fatal(err)
	}

	eventually(t, "the new certificate", func() bool { return shown() == "new" })
	waitMetric(
		t,
		"http://"+admin+"/metrics",
		fmt.Sprintf("cmekproxy_tls_certificate_expiry_timestamp_seconds %v", float64(end.Unix())),
	)
	s.end(t)
}

func TestExpiredCertificateIsNamed(t *testing.T) {
	t.Parallel()
	listen, admin := freePort(t), freePort(t)
	expired := pemtest.Between(t, "expired", time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour))
	config, cert, _ := tlsConfig(t, expired, listen, admin)

	var out output
	if code := run(t.Context(), []string{"check", "--config", config}, &out, &out); code != 1 {
		t.Errorf("check exits with %d", code)
	}
	if want := "FAIL  certificate " + cert; !strings.Contains(out.String(), want) ||
		!strings.Contains(out.String(), "expired on") {
		t.Errorf("check does not say %q:\n%s", want, out.String())
	}

	valid, _, _ := tlsConfig(t, pemtest.New(t, "valid"), listen, admin)
	out.buf.Reset()
	run(t.Context(), []string{"check", "--config", valid}, &out, &out)
	if want := "ok    certificate "; !strings.Contains(out.String(), want) {
		t.Errorf("check does not say %q:\n%s", want, out.String())
	}
}

// secretVolume is a directory of secrets as Kubernetes mounts it.
type secretVolume struct {
	t        *testing.T
	dir      string
	versions int
}

func (v *secretVolume) path() string { return filepath.Join(v.dir, "secret") }

// write replaces the secret by changing the ..data link.
func (v *secretVolume) write(secret string) {
	v.t.Helper()
	v.versions++
	version := fmt.Sprintf("..version%d", v.versions)

	must := func(err error) {
		v.t.Helper()
		if err != nil {
			v.t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(v.dir, version), 0o700))
	must(os.WriteFile(filepath.Join(v.dir, version, "secret"), []byte(secret), 0o440))

	must(os.Symlink(version, filepath.Join(v.dir, "..data_tmp")))
	must(os.Rename(filepath.Join(v.dir, "..data_tmp"), filepath.Join(v.dir, "..data")))
	if v.versions == 1 {
		must(os.Symlink(filepath.Join("..data", "secret"), v.path()))
	}
}

// TestSecretsInFilesAreReadAgain: no signal is needed, for secrets of
// clients and of the store.
func TestSecretsInFilesAreReadAgain(t *testing.T) {
	t.Parallel()
	clientSecret, storeSecret := &secretVolume{t: t, dir: t.TempDir()}, &secretVolume{t: t, dir: t.TempDir()}
	clientSecret.write("first-client-secret")
	storeSecret.write("wrong-store-secret")
	listen, admin := freePort(t), freePort(t)
	store := signedSink(t, "storekey", "right-store-secret")

	config := writeConfig(t, store.URL, listen, admin,
		"secret_key: appsecretappsecret", "secret_key: file:"+clientSecret.path(),
		"secret_key: storesecretstoresecret", "secret_key: file:"+storeSecret.path())
	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)

	put := func(secret string) error {
		bucket, key := "bucket", "key"
		_, err := client(
			listen,
			"appkey",
			secret,
		).PutObject(
			t.Context(),
			&s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x")},
		)

		return err
	}
	if put("first-client-secret") == nil {
		t.Fatal("the store took a wrong secret")
	}

	storeSecret.write("right-store-secret")
	eventually(t, "the new secret of the store is used", func() bool { return put("first-client-secret") == nil })
	clientSecret.write("second-client-secret")
	eventually(t, "the new secret of the client is taken", func() bool { return put("second-client-secret") == nil })
	if put("first-client-secret") == nil {
		t.Error("the old secret of the client is still taken")
	}

	clientSecret.write("short") // and therefore refused
	time.Sleep(filesInterval + time.Second)
	if err := put("second-client-secret"); err != nil {
		t.Errorf("after a bad secret, with the one before: %v", err)
	}
	s.end(t)
}

// signedSink is a sink that verifies signatures.
func signedSink(t *testing.T, accessKey, secret string) *httptest.Server {
	t.Helper()
	verifier := &sigv4.Verifier{
		Now:    time.Now,
		Secret: func(id string) (string, bool) { return secret, id == accessKey },
	}
	store := sink(t)
	keep := store.Config.Handler

	store.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := verifier.Verify(r); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		keep.ServeHTTP(w, r)
	})

	return store
}

// shownName returns the name in the certificate that a server presents.
func shownName(t *testing.T, address string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
}

package pemfile_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/pemfile"
)

// pair is a self-signed certificate for 127.0.0.1 and localhost, in PEM.
type pair struct{ cert, key []byte }

func newPair(t *testing.T, name string, from, to time.Time) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}
}

func validPair(t *testing.T, name string) pair {
	t.Helper()
	return newPair(t, name, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

func (p pair) tls(t *testing.T) tls.Certificate {
	t.Helper()
	out, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// replace writes a file beside path and renames it, as tools that renew
// certificates do.
func replace(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func newServer(t *testing.T, p pair) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte(r.Proto)) }))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{p.tls(t)}}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func get(client *http.Client, url string) error {
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

// eventually allows for the second between two checks of a file.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 300 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("never: %s", what)
}

func TestTransportTrustsTheFile(t *testing.T) {
	first, second := validPair(t, "first"), validPair(t, "second")
	one, two := newServer(t, first), newServer(t, second)
	path := filepath.Join(t.TempDir(), "ca.pem")
	replace(t, path, first.cert)

	pool, err := pemfile.OpenPool(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := pool.Transport(&http.Transport{ForceAttemptHTTP2: true})
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}

	if err := get(client, one.URL); err != nil {
		t.Errorf("the authority in the file: %v", err)
	}
	unknown := &tls.CertificateVerificationError{}
	if err := get(client, two.URL); !errors.As(err, &unknown) {
		t.Errorf("an authority that is not in the file: %v", err)
	}

	replace(t, path, second.cert)
	eventually(t, "the new authority is trusted", func() bool { return get(client, two.URL) == nil })
	if err := get(client, one.URL); !errors.As(err, &unknown) {
		t.Errorf("the authority that was taken away: %v", err)
	}
}

func TestOpenPoolRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": "", "text": "hello", "key only": string(validPair(t, "x").key)} {
		path := filepath.Join(dir, name)
		replace(t, path, []byte(content))
		if _, err := pemfile.OpenPool(path, nil); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, path := range []string{dir, filepath.Join(dir, "missing")} {
		if _, err := pemfile.OpenPool(path, nil); err == nil {
			t.Errorf("%s was opened", path)
		}
	}
}

// serverFiles are the files of a Server.
type serverFiles struct {
	pemfile.ServerConfig
	dir string
}

func newServerFiles(t *testing.T, p pair) *serverFiles {
	t.Helper()
	dir := t.TempDir()
	f := &serverFiles{dir: dir}
	f.CertFile, f.KeyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	f.write(t, p)
	return f
}

func (f *serverFiles) write(t *testing.T, p pair) {
	t.Helper()
	replace(t, f.CertFile, p.cert)
	replace(t, f.KeyFile, p.key)
}

// serve starts a TLS server with the files, and returns its address.
func (f *serverFiles) serve(t *testing.T) (*pemfile.Server, string) {
	t.Helper()
	server, err := pemfile.OpenServer(f.ServerConfig)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server.TLS())
	if err != nil {
		t.Fatal(err)
	}
	running := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
	go running.Serve(listener)
	t.Cleanup(func() { running.Close() })
	return server, listener.Addr().String()
}

// shown is the name in the certificate that a server shows.
func shown(t *testing.T, address string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
}

func TestServerCertificateIsReplaced(t *testing.T) {
	files := newServerFiles(t, validPair(t, "old"))
	server, address := files.serve(t)
	if name := shown(t, address); name != "old" {
		t.Errorf("the certificate of %q", name)
	}

	next := validPair(t, "new")
	replace(t, files.CertFile, next.cert) // for a moment, the two files do not belong together
	if err := server.Check(); err == nil {
		t.Error("a certificate without its key was taken")
	}
	if name := shown(t, address); name != "old" {
		t.Errorf("with half of the files: the certificate of %q", name)
	}
	replace(t, files.KeyFile, next.key)
	eventually(t, "the new certificate is shown", func() bool { return shown(t, address) == "new" })
	if name := server.Certificate().Subject.CommonName; name != "new" {
		t.Errorf("Certificate: %q", name)
	}
}

func TestClientCAIsReplaced(t *testing.T) {
	files := newServerFiles(t, validPair(t, "server"))
	first, second := validPair(t, "first"), validPair(t, "second")
	files.ClientCAFile = filepath.Join(files.dir, "ca.crt")
	replace(t, files.ClientCAFile, first.cert)
	_, address := files.serve(t)
	call := func(p *pair) error {
		cfg := &tls.Config{InsecureSkipVerify: true}
		if p != nil {
			cfg.Certificates = []tls.Certificate{p.tls(t)}
		}
		return get(&http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}, "https://"+address)
	}

	if call(nil) == nil || call(&second) == nil {
		t.Error("a client without a certificate of the authority got in")
	}
	if err := call(&first); err != nil {
		t.Errorf("a client of the authority: %v", err)
	}
	replace(t, files.ClientCAFile, second.cert)
	eventually(t, "a client of the new authority gets in", func() bool { return call(&second) == nil })
	if call(&first) == nil {
		t.Error("a client of the old authority got in")
	}
}

func TestCertificateThatIsNotValidNow(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		from, to time.Time
		want     string
	}{
		"valid":     {now.Add(-time.Hour), now.Add(time.Hour), ""},
		"expired":   {now.Add(-2 * time.Hour), now.Add(-time.Hour), "expired"},
		"too early": {now.Add(time.Hour), now.Add(2 * time.Hour), "not valid before"},
	} {
		t.Run(name, func(t *testing.T) {
			server, err := pemfile.OpenServer(newServerFiles(t, newPair(t, name, c.from, c.to)).ServerConfig)
			if err != nil {
				t.Fatal(err)
			}
			err = server.Valid(now)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

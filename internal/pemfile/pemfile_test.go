package pemfile_test

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/pemfile"
	"github.com/cmekproxy/cmekproxy/internal/pemfile/pemtest"
)

func newServer(t *testing.T, p pemtest.Pair) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_,
			_ = w.Write([]byte(r.Proto))
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{p.TLS(t)}}
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

// eventually waits long enough for the next check of a file.
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
	first, second := pemtest.New(t, "first"), pemtest.New(t, "second")
	one, two := newServer(t, first), newServer(t, second)
	path := filepath.Join(t.TempDir(), "ca.pem")
	pemtest.Replace(t, path, first.Cert)

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

	pemtest.Replace(t, path, second.Cert)
	eventually(t, "the new authority is trusted", func() bool { return get(client, two.URL) == nil })

	if err := get(client, one.URL); !errors.As(err, &unknown) {
		t.Errorf("the authority that was taken away: %v", err)
	}
}

func TestOpenPoolRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"empty": "", "text": "hello",
		"key only": string(pemtest.New(t, "x").Key),
	} {
		path := filepath.Join(dir, name)
		pemtest.Replace(t, path, []byte(content))
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

// serverFiles contains the files of a Server.
type serverFiles struct {
	pemfile.ServerConfig
	dir string
}

func newServerFiles(t *testing.T, p pemtest.Pair) *serverFiles {
	t.Helper()
	dir := t.TempDir()
	f := &serverFiles{dir: dir}
	f.CertFile, f.KeyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	f.write(t, p)
	return f
}

func (f *serverFiles) write(t *testing.T, p pemtest.Pair) {
	t.Helper()
	pemtest.Replace(t, f.CertFile, p.Cert)
	pemtest.Replace(t, f.KeyFile, p.Key)
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

// shown returns the name in the certificate that a server presents.
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
	files := newServerFiles(t, pemtest.New(t, "old"))
	server, address := files.serve(t)
	if name := shown(t, address); name != "old" {
		t.Errorf("the certificate of %q", name)
	}

	next := pemtest.New(t, "new")
	pemtest.Replace(t, files.CertFile, next.Cert) // for a moment, the two files do not match

	if err := server.Check(); err == nil {
		t.Error("a certificate without its key was taken")
	}
	if name := shown(t, address); name != "old" {
		t.Errorf("with half of the files: the certificate of %q", name)
	}

	pemtest.Replace(t, files.KeyFile, next.Key)
	eventually(t, "the new certificate is shown", func() bool { return shown(t, address) == "new" })

	if name := server.Certificate().Subject.CommonName; name != "new" {
		t.Errorf("Certificate: %q", name)
	}
}

func TestClientCAIsReplaced(t *testing.T) {
	files := newServerFiles(t, pemtest.New(t, "server"))
	first, second := pemtest.New(t, "first"), pemtest.New(t, "second")
	soon := pemtest.Between(t, "soon", time.Now().Add(-time.Hour), time.Now().Add(time.Minute))
	files.ClientCAFile = filepath.Join(files.dir, "ca.crt")
	pemtest.Replace(t, files.ClientCAFile, first.Cert)
	server, address := files.serve(t)
	if got := server.ClientAuthorityExpiry(); !got.Equal(first.TLS(t).Leaf.NotAfter) {
		t.Errorf("the authority expires on %v", got)
	}
	call := func(p *pemtest.Pair) error {
		cfg := &tls.Config{InsecureSkipVerify: true}
		if p != nil {
			cfg.Certificates = []tls.Certificate{p.TLS(t)}
		}
		return get(&http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}},
			"https://"+address)
	}

	if call(nil) == nil || call(&second) == nil {
		t.Error("a client without a certificate of the authority got in")
	}
	if err := call(&first); err != nil {
		t.Errorf("a client of the authority: %v", err)
	}

	pemtest.Replace(t, files.ClientCAFile, append(second.Cert, soon.Cert...))
	eventually(t, "a client of the new authority gets in", func() bool { return call(&second) == nil })

	if call(&first) == nil {
		t.Error("a client of the old authority got in")
	}
	if got := server.ClientAuthorityExpiry(); !got.Equal(soon.TLS(t).Leaf.NotAfter) {
		t.Errorf("the first of two authorities expires on %v", got)
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
			server, err := pemfile.OpenServer(newServerFiles(t, pemtest.Between(t, name, c.from, c.to)).ServerConfig)
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

package origin_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/pemfile"
	"github.com/cmekproxy/cmekproxy/internal/pemfile/pemtest"
)

// Times of the tests. A store that is late takes longer than short, other
// stores answer at once, and slow clients pause.
const (
	short = time.Second
	pause = 2500 * time.Millisecond
	long  = time.Minute
)

func sendTo(t *testing.T, cfg origin.TransportConfig, r *http.Request) (*http.Response, error) {
	t.Helper()
	transport := origin.NewTransport(cfg)
	t.Cleanup(transport.CloseIdleConnections)
	return transport.RoundTrip(r.WithContext(t.Context()))
}

func requestTo(t *testing.T, method, url string, body io.Reader, length int64) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	r.ContentLength = length
	return r
}

// deaf starts a server that accepts connections but neither reads nor
// writes.
func deaf(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
		}
	}()

	return listener.Addr().String()
}

func serverOf(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server
}

func TestAStoreThatIsLate(t *testing.T) {
	t.Parallel()
	silent := serverOf(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})

	for _, row := range []struct {
		name    string
		cfg     origin.TransportConfig
		request *http.Request
		want    error
	}{
		{
			"no TLS handshake",
			origin.TransportConfig{ConnectTimeout: short, ResponseTimeout: long, IdleTimeout: long},
			requestTo(t, "GET", "https://"+deaf(t)+"/b/k", nil, 0), origin.ErrConnect,
		},
		{
			"no answer",
			origin.TransportConfig{ConnectTimeout: long, ResponseTimeout: short, IdleTimeout: long},
			requestTo(t, "GET", silent.URL+"/b/k", nil, 0), origin.ErrResponse,
		},
		{
			"no answer to an upload",
			origin.TransportConfig{ConnectTimeout: long, ResponseTimeout: short, IdleTimeout: long},
			requestTo(t, "PUT", silent.URL+"/b/k", bytes.NewReader(make([]byte, 100_000)), 100_000), origin.ErrResponse,
		},
		{
			"an upload that is not taken",
			origin.TransportConfig{ConnectTimeout: long, ResponseTimeout: long, IdleTimeout: short},
			requestTo(t, "PUT", "http://"+deaf(t)+"/b/k", bytes.NewReader(make([]byte, 64<<20)),
				64<<20), origin.ErrIdle,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			resp, err := sendTo(t, row.cfg, row.request)
			if err == nil {
				resp.Body.Close()
			}
			if !errors.Is(err, row.want) {
				t.Errorf("%v, want %v", err, row.want)
			}
		})
	}
}

// Some stores take minutes to copy an object or complete an upload, and
// send nothing meanwhile.
func TestCopiesAndCompletionsMayTakeLonger(t *testing.T) {
	t.Parallel()
	server := serverOf(t, func(http.ResponseWriter, *http.Request) { time.Sleep(pause) })
	copied := requestTo(t, "PUT", server.URL+"/b/k", nil, 0)
	copied.Header.Set("X-Amz-Copy-Source", "/b/source")

	for _, r := range []*http.Request{copied, requestTo(t, "POST", server.URL+"/b/k?uploadId=u", nil, 0)} {
		t.Run(r.Method, func(t *testing.T) {
			t.Parallel()
			resp, err := sendTo(t, origin.TransportConfig{ResponseTimeout: short}, r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		})
	}
}

// half returns a handler that sends the first half of a body and then calls
// then.
func half(size int, then func(http.ResponseWriter, *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(size))
		w.Write(make([]byte, size/2))
		http.NewResponseController(w).Flush()
		then(w, r)
	}
}

func TestAnAnswerThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		then func(http.ResponseWriter, *http.Request)
		want error
	}{
		"silence": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, origin.ErrIdle},
		"a cut":   {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, origin.ErrBroken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := serverOf(t, half(100_000, row.then))
			resp, err := sendTo(t, origin.TransportConfig{ResponseTimeout: long, IdleTimeout: short},
				requestTo(t, "GET", server.URL+"/b/k", nil, 0))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()

			got, err := io.ReadAll(resp.Body)
			if len(got) != 50_000 || !errors.Is(err, row.want) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
				t.Error("it looks like the end of an object that is too short")
			}
		})
	}
}

func TestAConnectionThatEndsBeforeTheAnswer(t *testing.T) {
	server := serverOf(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	resp, err := sendTo(t, origin.TransportConfig{}, requestTo(t, "GET", server.URL+"/b/k", nil, 0))
	if err == nil {
		resp.Body.Close()
	}
	if !errors.Is(err, origin.ErrBroken) || errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// pausing is a reader that pauses before each byte.
type pausing struct{ left int }

func (p *pausing) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	p.left--
	time.Sleep(pause)
	b[0] = 'x'
	return 1, nil
}

// A client's pauses do not count against the store.
func TestTheClientsTimeIsNotTheStores(t *testing.T) {
	t.Parallel()
	all := origin.TransportConfig{ConnectTimeout: short, ResponseTimeout: short, IdleTimeout: short}
	t.Run("upload", func(t *testing.T) {
		t.Parallel()
		server := serverOf(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
		resp, err := sendTo(t, all, requestTo(t, "PUT", server.URL+"/b/k", &pausing{2}, 2))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()

		if got, err := io.ReadAll(resp.Body); string(got) != "xx" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})

	t.Run("download", func(t *testing.T) {
		t.Parallel()
		const size = 8 << 20 // more than the kernel buffers
		server := serverOf(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, size)) })
		resp, err := sendTo(t, all, requestTo(t, "GET", server.URL+"/b/k", nil, 0))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()

		time.Sleep(pause)
		if n, err := io.CopyN(io.Discard, resp.Body, size/2); err != nil {
			t.Fatal(n, err)
		}

		time.Sleep(pause)
		if n, err := io.Copy(io.Discard, resp.Body); n != size/2 || err != nil {
			t.Error(n, err)
		}
	})

	t.Run("an answer before the upload's end", func(t *testing.T) {
		t.Parallel()
		server := serverOf(t, func(w http.ResponseWriter, r *http.Request) {
			control := http.NewResponseController(w)
			control.EnableFullDuplex()
			w.WriteHeader(http.StatusOK)
			control.Flush()
			io.Copy(w, r.Body)
		})

		resp, err := sendTo(t, all, requestTo(t, "PUT", server.URL+"/b/k", &pausing{1}, 1))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()

		time.Sleep(pause)
		time.Sleep(pause)

		if got, err := io.ReadAll(resp.Body); string(got) != "x" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// The CA file decides which certificates are trusted.
func TestAuthorities(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)

	try := func(transport *origin.Transport) error {
		transport.CloseIdleConnections()
		resp, err := transport.RoundTrip(requestTo(t, "GET", server.URL+"/b/k", nil, 0))
		if err == nil {
			resp.Body.Close()
		}
		return err
	}

	if try(origin.NewTransport(origin.TransportConfig{})) == nil {
		t.Error("the system trusts the test's certificate")
	}

	transport := origin.NewTransport(origin.TransportConfig{Authorities: trusting(t, server.Certificate())})
	if err := try(transport); err != nil {
		t.Error(err)
	}
}

// trusting returns a pool with only this certificate.
func trusting(t *testing.T, certificate *x509.Certificate) *pemfile.Pool {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}

	pool, err := pemfile.OpenPool(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// If the file is changed, the authorities in it are trusted, and the old ones
// are not, also on connections that exist.
func TestAuthoritiesThatChange(t *testing.T) {
	t.Parallel()
	first, second := pemtest.New(t, "first"), pemtest.New(t, "second")
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{first.TLS(t)}}
	server.StartTLS()
	t.Cleanup(server.Close)

	file := filepath.Join(t.TempDir(), "ca.pem")
	pemtest.Replace(t, file, first.Cert)
	pool, err := pemfile.OpenPool(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := origin.NewTransport(origin.TransportConfig{Authorities: pool, ConnectTimeout: long})
	t.Cleanup(transport.CloseIdleConnections)
	try := func() error {
		resp, err := transport.RoundTrip(requestTo(t, "GET", server.URL+"/b/k", nil, 0))
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	}

	if err := try(); err != nil {
		t.Fatal(err)
	}
	pemtest.Replace(t, file, second.Cert)
	for range 500 {
		if err = try(); err != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok {
		t.Errorf("the authority that was taken away: %v", err)
	}
}

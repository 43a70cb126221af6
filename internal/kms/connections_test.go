package kms_test

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// attempt is the timeout of an attempt in the proxy.
const attempt = 2 * time.Second

// lostFlows breaks the connections of a key while several callers use it,
// and checks that each is served again. The proxy should recover within 10
// seconds. The limit here is longer for busy machines, but much shorter
// than the quarter of an hour that TCP needs.
func lostFlows(t *testing.T, f *kmstest.Forwarder, w kms.Wrapper) {
	t.Helper()
	dek, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	wantDEK(t, "before", w, blob, nil, dek)

	f.Lose()
	start := time.Now()
	var wg sync.WaitGroup

	for range 4 {
		wg.Go(func() {
			for time.Since(start) < 30*time.Second {
				if _, err := kms.Unwrap(t.Context(), w, blob, nil); err == nil {
					return
				} else if !kms.IsUnreachable(err) {
					t.Errorf("%v, want unreachable", err)
				}
			}

			t.Error("not back after 30 seconds")
		})
	}

	wg.Wait()
	t.Logf("back after %v", time.Since(start))
}

// With HTTP/1.1 each concurrent call has its own connection, so many
// connections can be dead. They must not each fail a call.
func TestLostPool(t *testing.T) {
	server := kmstest.StartTest(t)
	f := kmstest.StartForwarder(t, strings.TrimPrefix(server.URL(), "http://"))
	w := server.NewKey(t, func(c *kms.AWSConfig) {
		c.Endpoint, c.Timeout = "http://"+f.Addr(), attempt
	})

	_, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	server.SetFaults(kmstest.Faults{LatencyMS: 300})
	var wg sync.WaitGroup

	for range 16 {
		wg.Go(func() { _, _ = kms.Unwrap(t.Context(), w, blob, nil) })
	}

	wg.Wait()
	server.SetFaults(kmstest.Faults{})

	if f.Flows() < 8 {
		t.Fatalf("%d connections for 16 calls at a time", f.Flows())
	}

	f.Lose()
	for attempts := 1; ; attempts++ {
		if _, err = kms.Unwrap(t.Context(), w, blob, nil); err == nil {
			return
		}
		if attempts == 3 {
			t.Fatalf("not back after %d attempts: %v", attempts, err)
		}
	}
}

// startTLS serves a handler over TLS and HTTP/2 behind a forwarder. It also
// returns the certificate.
func startTLS(t *testing.T, handler http.Handler, protocol string) (*kmstest.Forwarder, *x509.Certificate, string) {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Proto != protocol {
			t.Errorf("%s, want %s", r.Proto, protocol)
		}
		handler.ServeHTTP(w, r)
	}))

	server.EnableHTTP2 = protocol == "HTTP/2.0"
	server.StartTLS()
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)

	file := t.TempDir() + "/ca.pem"
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
		0o600))

	return kmstest.StartForwarder(t, strings.TrimPrefix(server.URL, "https://")), server.Certificate(), file
}

func TestAWSLostFlows(t *testing.T) {
	for _, protocol := range []string{"HTTP/2.0", "HTTP/1.1"} {
		server := kmstest.StartTest(t)
		f, _, bundle := startTLS(t, server, protocol)
		t.Setenv("AWS_CA_BUNDLE", bundle)
		w := server.NewKey(t, func(c *kms.AWSConfig) { c.Endpoint, c.Timeout = "https://"+f.Addr(), attempt })
		lostFlows(t, f, w)
	}
}

func TestVaultLostFlows(t *testing.T) {
	t.Parallel()
	server := kmstest.StartVault(t)
	f, _, ca := startTLS(t, server, "HTTP/2.0")
	w := server.NewKey(t, func(c *kms.VaultConfig) {
		c.Address, c.CAFile, c.Timeout = "https://"+f.Addr(), ca,
			attempt
	})
	lostFlows(t, f, w)
}

func TestAzureLostFlows(t *testing.T) {
	t.Parallel()
	server := kmstest.StartAzure(t)
	server.CreateKey(t, "k", "oct-HSM")
	f, cert, _ := startTLS(t, server, "HTTP/2.0")
	server.SetURL("https://" + f.Addr())
	w := server.OpenKey(t, "k", func(c *kms.AzureConfig) {
		c.Algorithm, c.Timeout, c.Transport = kms.AzureA256KW, attempt, kms.NewAzureTransport(cert)
	})
	lostFlows(t, f, w)
}

func TestGCPLostFlows(t *testing.T) {
	t.Parallel()
	server := kmstest.StartGCP(t)
	f := kmstest.StartForwarder(t, server.Endpoint())
	w := server.NewKey(t, func(c *kms.GCPConfig) { c.Endpoint, c.Timeout, c.MaxAttempts = f.Addr(), attempt, 1 })
	lostFlows(t, f, w)
}

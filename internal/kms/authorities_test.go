package kms_test

import (
	"crypto/tls"
	"encoding/pem"
	"io"
	"net"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"google.golang.org/api/option"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// certificate returns a certificate for 127.0.0.1, and its authority.
func certificate(t *testing.T) (tls.Certificate, []byte) {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	return server.TLS.Certificates[0], pem.EncodeToMemory(&pem.Block{
		Type: "CERTIFICATE", Bytes: server.Certificate().Raw,
	})
}

// terminateTLS forwards TLS connections to a server without TLS, and
// returns its own address.
func terminateTLS(t *testing.T, to string) string {
	t.Helper()
	cert, _ := certificate(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"},
	})

	must(t, err)
	t.Cleanup(func() { _ = l.Close() })

	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}

			server, err := net.Dial("tcp", to)
			if err != nil {
				_ = client.Close()
				return
			}

			for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1])
					_ = pair[0].Close()
				}()
			}
		}
	}()

	return l.Addr().String()
}

func TestVaultAuthorities(t *testing.T) {
	t.Parallel()
	plain := kmstest.StartVault(t)
	secure := httptest.NewTLSServer(plain)
	defer secure.Close()
	_, right := certificate(t)
	wantAuthorities(t, filepath.Join(t.TempDir(), "ca"), right,
		func(t *testing.T, file string, report kms.Report) kms.Wrapper {
			return plain.NewKey(t, func(c *kms.VaultConfig) {
				c.Address, c.CAFile, c.Report = secure.URL, file, report
			})
		})
}

func TestAzureAuthorities(t *testing.T) {
	t.Parallel()
	server := kmstest.StartAzure(t)
	_, right := certificate(t)
	wantAuthorities(t, filepath.Join(t.TempDir(), "ca"), right,
		func(t *testing.T, file string, report kms.Report) kms.Wrapper {
			return server.NewKey(t, "oct-HSM",
				func(c *kms.AzureConfig) { c.Transport, c.CAFile, c.Report = nil, file, report })
		})

	for name, cfg := range map[string]kms.AzureConfig{
		"no CA file":       {CAFile: "/nonexistent"},
		"transport and CA": {CAFile: "/x", Transport: server.Client()},
	} {
		cfg.KeyID = "https://my-vault.vault.azure.net/keys/my-key"
		_, err := kms.NewAzure(cfg)
		wantKind(t, name, err, kms.Invalid)
	}
}

func TestGCPAuthorities(t *testing.T) {
	t.Parallel()
	server := kmstest.StartGCP(t)
	address := terminateTLS(t, server.Endpoint())
	_, right := certificate(t)
	wantAuthorities(t, filepath.Join(t.TempDir(), "ca"), right,
		func(t *testing.T, file string, report kms.Report) kms.Wrapper {
			return server.NewKey(t, func(c *kms.GCPConfig) {
				c.Options, c.Endpoint, c.CAFile, c.Report = []option.ClientOption{option.WithoutAuthentication()},
					address, file, report
			})
		})

	_, err := kms.NewGCP(t.Context(), kms.GCPConfig{
		KeyID: gcpKey1, CAFile: "/nonexistent", Options: []option.ClientOption{option.WithoutAuthentication()},
	})

	wantKind(t, "no CA file", err, kms.Invalid)
}

// Package pemtest creates certificates for tests.
//
// There is no example: it is for tests, which show its use.
package pemtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"testing"
	"time"
)

// Pair is a self-signed certificate with its key, in PEM.
type Pair struct{ Cert, Key []byte }

// New returns a certificate for 127.0.0.1 and localhost that is valid now,
// for servers and clients.
func New(tb testing.TB, name string) Pair {
	tb.Helper()
	return Between(tb, name, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

// Between is New with a given period of validity.
func Between(tb testing.TB, name string, from, to time.Time) Pair {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(tb, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(tb, err)

	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}

	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(tb, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(tb, err)

	return Pair{
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}
}

// TLS returns the pair as a tls.Certificate.
func (p Pair) TLS(tb testing.TB) tls.Certificate {
	tb.Helper()
	out, err := tls.X509KeyPair(p.Cert, p.Key)
	must(tb, err)
	return out
}

// Replace writes a file next to path and renames it, like tools that renew
// certificates.
func Replace(tb testing.TB, path string, data []byte) {
	tb.Helper()
	must(tb, os.WriteFile(path+".new", data, 0o600))
	must(tb, os.Rename(path+".new", path))
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

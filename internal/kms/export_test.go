package kms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"

	"cloud.google.com/go/auth"
)

// NewAzureTransport returns the transport of the Azure provider for a
// server with that certificate.
func NewAzureTransport(cert *x509.Certificate) *http.Client {
	client, err := newAzureTransport("", nil)
	if err != nil {
		panic(err) // there is no file to read
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool}
	return client
}

// NewGCPWithCredentials is NewGCP with credentials that are asked after a
// refusal.
func NewGCPWithCredentials(ctx context.Context, cfg GCPConfig, creds *auth.Credentials) (*GCP, error) {
	g, err := NewGCP(ctx, cfg)
	if err == nil {
		g.creds = creds
	}
	return g, err
}

// ShareGCPTokens exports shareGCPTokens.
var ShareGCPTokens = shareGCPTokens

// AssociatedData exports associatedData.
var AssociatedData = associatedData

// ReencodeBundle parses a bundle and encodes it again.
func ReencodeBundle(blob []byte) (again []byte, ok bool) {
	b, err := parseBundle(blob)
	if err != nil {
		return nil, false
	}
	again, err = b.bytes()
	return again, err == nil
}

// Opened returns the key of a member.
func (m *Member) Opened() (Wrapper, error) { return m.get("unwrap") }

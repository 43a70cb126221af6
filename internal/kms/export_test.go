package kms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"

	"cloud.google.com/go/auth"
)

// NewAzureTransport is the transport of Azure's provider for a server with that
// certificate.
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

// NewGCPWithCredentials is NewGCP with credentials to be asked about a refusal.
func NewGCPWithCredentials(ctx context.Context, cfg GCPConfig, creds *auth.Credentials) (*GCP, error) {
	g, err := NewGCP(ctx, cfg)
	if err == nil {
		g.creds = creds
	}
	return g, err
}

// ShareGCPTokens is what NewGCP does to the default credentials.
var ShareGCPTokens = shareGCPTokens

// AssociatedData is what blobs are bound to.
var AssociatedData = associatedData

package kms

import (
	"context"

	"cloud.google.com/go/auth"
)

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

package kms

import (
	"context"

	"cloud.google.com/go/auth"
)

// gcpTokens gets tokens apart from the calls that need them; see logins.
type gcpTokens struct {
	from   *auth.Credentials
	logins logins[*auth.Token]
}

// Token implements auth.TokenProvider.
func (t *gcpTokens) Token(ctx context.Context) (*auth.Token, error) {
	return t.logins.wait(ctx, "", t.from.Token)
}

// shareGCPTokens returns creds whose tokens all callers share.
func shareGCPTokens(creds *auth.Credentials) *auth.Credentials {
	return auth.NewCredentials(&auth.CredentialsOptions{
		TokenProvider:          &gcpTokens{from: creds},
		JSON:                   creds.JSON(),
		ProjectIDProvider:      auth.CredentialsPropertyFunc(creds.ProjectID),
		QuotaProjectIDProvider: auth.CredentialsPropertyFunc(creds.QuotaProjectID),
		UniverseDomainProvider: auth.CredentialsPropertyFunc(creds.UniverseDomain),
	})
}

// haveToken waits for a token until ctx ends, so that no attempt has to.
func (g *GCP) haveToken(ctx context.Context, op string) error {
	if g.creds == nil {
		return nil
	}
	_, err := g.creds.Token(ctx)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return contextError(ctx, op, g.name)
	}
	kind, cause := g.credentialsKind(ctx)
	return &Error{Kind: kind, Op: op, KeyID: g.name, Err: cause}
}

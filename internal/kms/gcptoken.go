package kms

import (
	"context"
	"fmt"

	"cloud.google.com/go/auth"
)

// gcpTokens gets tokens separately from the calls that need them; see
// logins.
type gcpTokens struct {
	from   func() *auth.Credentials
	logins logins[*auth.Token]
}

// Token implements auth.TokenProvider.
func (t *gcpTokens) Token(ctx context.Context) (*auth.Token, error) {
	creds := t.from()
	return t.logins.wait(ctx, fmt.Sprintf("%p", creds), creds.Token)
}

// shareGCPTokens returns the current credentials of from. Their tokens come
// from the credentials that from returns at the time, and all callers share
// them.
func shareGCPTokens(from func() *auth.Credentials) *auth.Credentials {
	creds := from()
	return auth.NewCredentials(&auth.CredentialsOptions{
		TokenProvider:          &gcpTokens{from: from},
		JSON:                   creds.JSON(),
		ProjectIDProvider:      auth.CredentialsPropertyFunc(creds.ProjectID),
		QuotaProjectIDProvider: auth.CredentialsPropertyFunc(creds.QuotaProjectID),
		UniverseDomainProvider: auth.CredentialsPropertyFunc(creds.UniverseDomain),
	})
}

// haveToken waits for a token until ctx ends, so that attempts need not
// wait.
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

	kind, cause := gcpTokenKind(err)
	return &Error{Kind: kind, Op: op, KeyID: g.name, Err: cause}
}

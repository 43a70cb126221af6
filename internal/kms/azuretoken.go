package kms

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"golang.org/x/sync/singleflight"
)

// azureTokens is a credential that never blocks an attempt. The client of
// Key Vault learns only during an attempt which token it needs, and would
// wait for it there. azureTokens returns at once: either a token, or a
// noTokenError that says which token is missing. (*Azure).attempt then gets
// that token outside the time limit, and repeats the attempt.
type azureTokens struct {
	from   func() azcore.TokenCredential
	logins logins[azcore.AccessToken]

	mu    sync.Mutex
	ready map[string]azcore.AccessToken // fetched and not yet returned
}

// noTokenError is returned if there is no token yet for these options.
type noTokenError struct{ options policy.TokenRequestOptions }

func (*noTokenError) Error() string { return "no token yet" }

// azureWait is the context key that makes an attempt wait for its tokens.
type azureWait struct{}

// azureTokenError is an error of a credential, which the client must not
// retry.
type azureTokenError struct{ error }

// NonRetriable marks the error for the client.
func (azureTokenError) NonRetriable() {}

// Unwrap returns the credential's own error.
func (e azureTokenError) Unwrap() error { return e.error }

// GetToken implements azcore.TokenCredential. The client caches the token
// and asks again only if it is about to expire or was refused, so each
// token is returned once.
func (t *azureTokens) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if token, ok := t.take(o); ok {
		return token, nil
	}
	if ctx.Value(azureWait{}) == nil {
		t.begin(o) // also for a client that can continue with its current token
		return azcore.AccessToken{}, &noTokenError{o}
	}

	if err := t.fetch(ctx, o); err != nil {
		return azcore.AccessToken{}, err
	}

	token, ok := t.take(o)
	if !ok {
		return azcore.AccessToken{}, azureTokenError{errors.New("the token was given to another call")}
	}

	return token, nil
}

// fetch gets a token for the client, and waits for it until ctx ends.
func (t *azureTokens) fetch(ctx context.Context, o policy.TokenRequestOptions) error {
	t.mu.Lock()
	_, ok := t.ready[azureTokenName(o)]
	t.mu.Unlock()

	if ok {
		return nil
	}

	select {
	case r := <-t.begin(o):
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// begin starts getting a token, or joins the login in progress.
func (t *azureTokens) begin(o policy.TokenRequestOptions) <-chan singleflight.Result {
	name := azureTokenName(o)
	return t.logins.begin(name, func(ctx context.Context) (azcore.AccessToken, error) {
		token, err := t.from().GetToken(ctx, o)
		if err != nil {
			return token, azureTokenError{err}
		}

		t.mu.Lock()
		defer t.mu.Unlock()

		if t.ready == nil {
			t.ready = make(map[string]azcore.AccessToken)
		}
		t.ready[name] = token
		return token, nil
	})
}

func (t *azureTokens) take(o policy.TokenRequestOptions) (azcore.AccessToken, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := azureTokenName(o)
	token, ok := t.ready[name]
	delete(t.ready, name)
	return token, ok
}

func azureTokenName(o policy.TokenRequestOptions) string {
	return fmt.Sprintf("%q %q %q %v", o.Scopes, o.TenantID, o.Claims, o.EnableCAE)
}

// attempt makes one call within the timeout. Waiting for a token does not
// count toward the timeout.
func (a *Azure) attempt(ctx context.Context, run func(call context.Context) error) error {
	err := a.bounded(ctx, run)
	var missing *noTokenError
	if !errors.As(err, &missing) {
		return err
	}
	if err := a.tokens.fetch(ctx, missing.options); err != nil {
		return err
	}

	// If Key Vault refuses this token too, the attempt itself waits for the
	// next one.
	return a.bounded(context.WithValue(ctx, azureWait{}, struct{}{}), run)
}

func (a *Azure) bounded(ctx context.Context, run func(call context.Context) error) error {
	call, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return run(call)
}

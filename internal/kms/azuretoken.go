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

// azureTokens stands between the client of Key Vault and a credential. The
// client learns in the middle of an attempt which token it needs, and would
// wait for it there. So this answers at once: with a token, or with an
// noTokenError that says which one is missing. (*Azure).attempt then gets that
// one in its own time, and makes the attempt again.
type azureTokens struct {
	from   func() azcore.TokenCredential
	logins logins[azcore.AccessToken]

	mu    sync.Mutex
	ready map[string]azcore.AccessToken // got, and not given out yet
}

// noTokenError says that there is no token yet for these options.
type noTokenError struct{ options policy.TokenRequestOptions }

func (*noTokenError) Error() string { return "no token yet" }

// azureWait is the key of a context whose attempt waits for its tokens.
type azureWait struct{}

// azureTokenError is the error of a credential, which the client does not
// retry.
type azureTokenError struct{ error }

// NonRetriable tells the client that it is.
func (azureTokenError) NonRetriable() {}

// Unwrap returns the credential's own error.
func (e azureTokenError) Unwrap() error { return e.error }

// GetToken implements azcore.TokenCredential. The client keeps what it is given
// and asks again only if that is about to expire or was refused, so each token
// is given once.
func (t *azureTokens) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if token, ok := t.take(o); ok {
		return token, nil
	}
	if ctx.Value(azureWait{}) == nil {
		t.begin(o) // also for a client that goes on with the token it has
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

// fetch has a token ready for the client. It waits for it until ctx ends.
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

// begin gets a token, or joins the login that gets it.
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

// attempt makes one call within the timeout, which waiting for a token does not
// use up.
func (a *Azure) attempt(ctx context.Context, run func(call context.Context) error) error {
	err := a.bounded(ctx, run)
	var missing *noTokenError
	if !errors.As(err, &missing) {
		return err
	}
	if err := a.tokens.fetch(ctx, missing.options); err != nil {
		return err
	}

	// Should Key Vault refuse this token too, then the next one is waited for
	// within the attempt.
	return a.bounded(context.WithValue(ctx, azureWait{}, struct{}{}), run)
}

func (a *Azure) bounded(ctx context.Context, run func(call context.Context) error) error {
	call, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return run(call)
}

package kms_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/auth"
	"github.com/aws/aws-sdk-go-v2/aws"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// slowKey is a key of a KMS whose logins take longer than an attempt.
type slowKey struct {
	key    kms.Wrapper
	logins func() int
	slow   func(login time.Duration)
	expire func() // invalidates all tokens
}

const (
	shortAttempt = 1500 * time.Millisecond
	longLogin    = 2 * time.Second
)

// eachSlowKey runs a test for each provider with a separate login.
func eachSlowKey(t *testing.T, test func(t *testing.T, k slowKey)) {
	t.Run("vault-transit", func(t *testing.T) {
		t.Parallel()
		server := kmstest.StartVault(t)
		server.AddAppRole("role", "secret", kmstest.VaultToken{TTL: time.Hour})

		key := server.NewKey(t, func(c *kms.VaultConfig) {
			c.Login.AppRole, c.Timeout = &kms.VaultAppRole{RoleID: "role", SecretID: "secret"}, shortAttempt
		})

		test(t, slowKey{
			key: key, logins: func() int { return server.Calls()["auth/approle/login"] }, expire: server.RevokeTokens,
			slow: func(login time.Duration) { server.SetTrouble(kmstest.Trouble{LoginLatency: login}) },
		})
	})

	t.Run("azure-keyvault", func(t *testing.T) {
		t.Parallel()
		server := kmstest.StartAzure(t)
		test(t, slowKey{
			key:    server.NewKey(t, "oct-HSM", func(c *kms.AzureConfig) { c.Timeout = shortAttempt }),
			logins: func() int { return server.Calls()["token"] }, expire: server.RevokeTokens,
			slow: func(login time.Duration) { server.SetTrouble(kmstest.Trouble{LoginLatency: login}) },
		})
	})

	t.Run("aws-kms", func(t *testing.T) {
		t.Parallel()
		test(t, awsSlowKey(t))
	})

	t.Run("gcp-kms", func(t *testing.T) {
		t.Parallel()
		test(t, gcpSlowKey(t))
	})
}

// gcpTokens issues tokens slowly.
type gcpTokens struct {
	latency atomic.Int64
	made    atomic.Int64
}

// Token implements auth.TokenProvider.
func (p *gcpTokens) Token(ctx context.Context) (*auth.Token, error) {
	p.made.Add(1)
	select {
	case <-time.After(time.Duration(p.latency.Load())):
		return &auth.Token{Value: "token", Expiry: time.Now().Add(time.Hour)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// expiring is a token cache that can be cleared.
type expiring struct {
	*gcpTokens
	cached atomic.Pointer[auth.Credentials]
}

func (p *expiring) expire() {
	p.cached.Store(auth.NewCredentials(&auth.CredentialsOptions{
		TokenProvider: auth.NewCachedTokenProvider(p.gcpTokens, nil),
	}))
}

// Token implements auth.TokenProvider.
func (p *expiring) Token(ctx context.Context) (*auth.Token, error) { return p.cached.Load().Token(ctx) }

// perRPC gets a token for each call, as Google's client does over TLS.
type perRPC struct{ creds *auth.Credentials }

func (p perRPC) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := p.creds.Token(ctx)
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token.Value}, nil
}

func (perRPC) RequireTransportSecurity() bool { return false }

func gcpSlowKey(t *testing.T) slowKey {
	server, tokens := kmstest.StartGCP(t), &expiring{gcpTokens: new(gcpTokens)}
	tokens.expire()
	creds := auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: tokens})
	shared := kms.ShareGCPTokens(func() *auth.Credentials { return creds })
	conn, err := grpc.NewClient(server.Endpoint(), grpc.WithPerRPCCredentials(perRPC{shared}),
		grpc.WithTransportCredentials(insecure.NewCredentials()))

	must(t, err)
	server.NewKey(t, nil)

	key, err := kms.NewGCPWithCredentials(t.Context(), kms.GCPConfig{
		KeyID: gcpKey1, Options: []option.ClientOption{option.WithGRPCConn(conn)}, MaxAttempts: 1,
		Timeout: shortAttempt,
	}, shared)

	must(t, err)
	t.Cleanup(func() { _ = key.Close() })

	return slowKey{
		key: key, logins: func() int { return int(tokens.made.Load()) }, expire: tokens.expire,
		slow: func(login time.Duration) { tokens.latency.Store(int64(login)) },
	}
}

func awsSlowKey(t *testing.T) slowKey {
	var latency, made atomic.Int64
	source := aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		made.Add(1)
		select {
		case <-time.After(time.Duration(latency.Load())):
			return aws.Credentials{AccessKeyID: kmstest.AccessKeyID, SecretAccessKey: "s"}, nil
		case <-ctx.Done():
			return aws.Credentials{}, ctx.Err()
		}
	})

	key := kmstest.StartTest(t).NewKey(t, func(c *kms.AWSConfig) {
		c.Credentials, c.Timeout = source, shortAttempt
	})

	return slowKey{
		key: key, logins: func() int { return int(made.Load()) }, expire: func() {}, // see package awscreds
		slow: func(login time.Duration) { latency.Store(int64(login)) },
	}
}

// A login is not part of the attempt that needs it, and may take longer.
func TestSlowLogin(t *testing.T) {
	eachSlowKey(t, func(t *testing.T, k slowKey) {
		k.slow(longLogin)
		dek, blob, err := kms.Generate(t.Context(), k.key, nil)
		must(t, err)
		k.slow(0)
		wantDEK(t, "with the same token", k.key, blob, nil, dek)
		k.slow(longLogin)
		k.expire()
		wantDEK(t, "after the token ended", k.key, blob, nil, dek)
	})
}

// All callers wait for one login.
func TestLoginIsShared(t *testing.T) {
	eachSlowKey(t, func(t *testing.T, k slowKey) {
		k.slow(longLogin)
		var wg sync.WaitGroup

		for range 16 {
			wg.Go(func() {
				if _, _, err := kms.Generate(t.Context(), k.key, nil); err != nil {
					t.Error(err)
				}
			})
		}

		wg.Wait()
		if n := k.logins(); n != 1 {
			t.Errorf("%d logins for 16 calls at a time, want 1", n)
		}
	})
}

// A login continues after its first caller has left, and serves the next
// one.
func TestLoginSurvivesItsCaller(t *testing.T) {
	eachSlowKey(t, func(t *testing.T, k slowKey) {
		k.slow(longLogin)
		short, cancel := context.WithTimeout(t.Context(), longLogin/4)
		defer cancel()

		_, _, err := kms.Generate(short, k.key, nil)
		wantKind(t, "a caller that does not wait for the login", err, kms.Unreachable)
		gone, cancel := context.WithCancel(t.Context())
		time.AfterFunc(longLogin/4, cancel)
		_, _, err = kms.Generate(gone, k.key, nil)
		wantKind(t, "a caller that went away", err, kms.Canceled)

		if _, _, err := kms.Generate(t.Context(), k.key, nil); err != nil {
			t.Errorf("the next caller: %v", err)
		}
		if n := k.logins(); n != 1 {
			t.Errorf("%d logins, want 1", n)
		}
	})
}

// A response that takes longer than an attempt counts as none, unlike a
// login.
func TestSlowAnswerIsBounded(t *testing.T) {
	server := kmstest.StartVault(t)
	open := func(timeout time.Duration) kms.Wrapper {
		return server.NewKey(t, func(c *kms.VaultConfig) { c.Timeout = timeout })
	}

	patient, hasty := open(time.Minute), open(100*time.Millisecond)
	server.SetTrouble(kmstest.Trouble{Latency: 300 * time.Millisecond})

	if _, _, err := kms.Generate(t.Context(), patient, nil); err != nil {
		t.Errorf("with a longer timeout: %v", err)
	}
	_, _, err := kms.Generate(t.Context(), hasty, nil)
	wantKind(t, "with a shorter timeout", err, kms.Unreachable)
}

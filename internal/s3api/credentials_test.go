package s3api_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/cmekproxy/cmekproxy/internal/awscreds"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// If the source of the store's credentials hangs, the client is not at
// fault, and the wait is limited.
func TestStoreCredentialsThatHang(t *testing.T) {
	var hang atomic.Bool
	good := credentials.NewStaticCredentialsProvider(storeAccess, storeSecret, "")
	source := aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		if hang.Load() {
			<-ctx.Done()
			return aws.Credentials{}, ctx.Err()
		}
		creds, err := good.Retrieve(ctx)
		creds.CanExpire, creds.Expires = true, time.Now() // so that each request asks for credentials
		return creds, err
	})

	creds, err := awscreds.New(t.Context(), awscreds.Config{
		Load: func(context.Context) (aws.CredentialsProvider, error) { return source, nil },
		Wait: 200 * time.Millisecond, Timeout: 300 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}

	p := newProxy(t, func(p *proxy, cfg *s3api.Config, _ *keyring.Config) {
		store := proxytest.OriginConfig(store.transport)
		store.Credentials = creds
		p.origin = &tap{next: origin.New(store)}
		cfg.Origin = p.origin
	})
	p.put("k", []byte("text"))

	hang.Store(true)
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
		t.Run(method, func(t *testing.T) {
			a := p.send(request{method: method, path: "/" + p.bucket + "/k"})
			if a.StatusCode != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" {
				t.Errorf(
					"%d %s, Retry-After %q; want 503 with Retry-After",
					a.StatusCode,
					a.Code,
					a.Header.Get("Retry-After"),
				)
			}
		})
	}

	hang.Store(false)
	for range 20 { // the hanging attempt may have to end first
		if a := p.send(request{method: http.MethodGet, path: "/" + p.bucket + "/k"}); a.StatusCode == http.StatusOK {
			return
		}
	}
	t.Error("the source answers again, and the store is not asked")
}

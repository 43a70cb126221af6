package awscreds_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/cmekproxy/cmekproxy/internal/awscreds"
)

// isolate hides this machine's AWS configuration from the SDK.
func isolate(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, value := range map[string]string{
		"HOME": dir, "AWS_EC2_METADATA_DISABLED": "true", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "",
		"AWS_PROFILE":                 "",
		"AWS_SHARED_CREDENTIALS_FILE": "", "AWS_CONFIG_FILE": "", "AWS_WEB_IDENTITY_TOKEN_FILE": "",
		"AWS_CA_BUNDLE":                      "",
		"AWS_CONTAINER_CREDENTIALS_FULL_URI": "", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "",
	} {
		t.Setenv(name, value)
	}

	return dir
}

// open returns a Provider for the SDK's default chain.
func open(t *testing.T, change func(*awscreds.Config)) *awscreds.Provider {
	t.Helper()
	cfg := awscreds.Config{Load: func(ctx context.Context) (aws.CredentialsProvider, error) {
		chain, err := config.LoadDefaultConfig(ctx, config.WithRegion("eu-central-1"))
		return chain.Credentials, err
	}}

	if change != nil {
		change(&cfg)
	}

	p, err := awscreds.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}

	return p
}

func profile(id string) []byte {
	return fmt.Appendf(nil, "[default]\naws_access_key_id = %s\naws_secret_access_key = secret-of-%s\n", id, id)
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func wantID(t *testing.T, p aws.CredentialsProvider, want string) {
	t.Helper()
	creds, err := p.Retrieve(t.Context())
	if err != nil || creds.AccessKeyID != want {
		t.Errorf("credentials of %q, %v; want %q", creds.AccessKeyID, err, want)
	}
}

// eventually waits long enough for the next check of a file.
func eventually(t *testing.T, p aws.CredentialsProvider, want string) {
	t.Helper()
	for range 400 {
		if creds, err := p.Retrieve(t.Context()); err == nil && creds.AccessKeyID == want {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("the credentials of %q are never seen", want)
}

func TestRotatedFile(t *testing.T) {
	path := filepath.Join(isolate(t), "credentials")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", path)
	write(t, path, profile("ONE"))
	p := open(t, nil)
	wantID(t, p, "ONE")
	write(t, path, profile("SECOND"))
	eventually(t, p, "SECOND")

	for _, half := range []string{"", "[default]\naws_acc", "[default]\naws_access_key_id = THIRD\n"} {
		write(t, path, []byte(half))
		time.Sleep(1100 * time.Millisecond) // the file is checked once a second
		wantID(t, p, "SECOND")              // until the new one works
	}

	write(t, path, profile("THIRD"))
	eventually(t, p, "THIRD")
}

// Kubernetes changes all files of a volume at once, through the link
// "..data".
func TestRotatedVolume(t *testing.T) {
	volume := isolate(t)
	for version, id := range map[string]string{"..1": "ONE", "..2": "TWO"} {
		write(t, filepath.Join(volume, version, "credentials"), profile(id))
	}

	link := func(version string) {
		t.Helper()
		next := filepath.Join(volume, "..data_tmp")
		if err := errors.Join(os.Symlink(version, next), os.Rename(next, filepath.Join(volume, "..data"))); err != nil {
			t.Fatal(err)
		}
	}

	link("..1")
	path := filepath.Join(volume, "credentials")
	if err := os.Symlink(filepath.Join("..data", "credentials"), path); err != nil {
		t.Fatal(err)
	}

	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", path)

	p := open(t, nil)
	wantID(t, p, "ONE")
	link("..2")
	eventually(t, p, "TWO")
}

// endpoint is the agent that gives a container its credentials.
type endpoint struct {
	*httptest.Server
	mu     sync.Mutex
	tokens []string
	calls  atomic.Int64
	life   time.Duration
	hang   atomic.Bool
	end    chan struct{}
}

func newEndpoint(t *testing.T, life time.Duration) *endpoint {
	t.Helper()
	e := &endpoint{life: life, end: make(chan struct{})}
	e.Server = httptest.NewServer(e)
	t.Cleanup(func() {
		close(e.end)
		e.Close()
	})
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", e.URL)
	return e
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := e.calls.Add(1)
	e.mu.Lock()
	e.tokens = append(e.tokens, r.Header.Get("Authorization"))
	e.mu.Unlock()

	if e.hang.Load() {
		select {
		case <-e.end:
		case <-r.Context().Done():
		}
		return
	}

	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"AccessKeyId":"AK%d","SecretAccessKey":"s","Token":"t","Expiration":%q}`,
		n, time.Now().Add(e.life).UTC().Format(time.RFC3339))
}

// The token of a pod identity is read each time credentials are requested.
func TestRotatedPodIdentityToken(t *testing.T) {
	file := filepath.Join(isolate(t), "token")
	e := newEndpoint(t, time.Minute) // the SDK asks again 5 minutes before the expiry
	t.Setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file)
	p := open(t, nil)

	for _, token := range []string{"one", "two"} {
		write(t, file, []byte(token))
		if _, err := p.Retrieve(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	if len(e.tokens) != 2 || e.tokens[0] != "one" || e.tokens[1] != "two" {
		t.Errorf("tokens %q were sent", e.tokens)
	}
}

// The same holds for the token of a web identity, such as a Kubernetes
// service account.
func TestRotatedWebIdentityToken(t *testing.T) {
	file := filepath.Join(isolate(t), "token")
	var tokens []string
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tokens = append(tokens, r.FormValue("WebIdentityToken"))
		_, _ = fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>`+
			`<AccessKeyId>AK</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>%s</Expiration>`+
			`</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
			time.Now().UTC().Format(time.RFC3339))
	}))
	defer sts.Close()

	t.Setenv("AWS_ENDPOINT_URL_STS", sts.URL)
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", file)
	t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/proxy")
	p := open(t, nil)

	for _, token := range []string{"one", "two"} {
		write(t, file, []byte(token))
		wantID(t, p, "AK")
	}

	if len(tokens) != 2 || tokens[0] != "one" || tokens[1] != "two" {
		t.Errorf("tokens %q were sent", tokens)
	}
}

func TestCredentialsAreKept(t *testing.T) {
	isolate(t)
	e := newEndpoint(t, time.Hour)
	p := open(t, nil)
	var wg sync.WaitGroup

	for range 16 {
		wg.Go(func() { wantID(t, p, "AK1") })
	}

	wg.Wait()
	if n := e.calls.Load(); n != 1 {
		t.Errorf("the source was asked %d times, want once", n)
	}
}

// If a source hangs, the Provider gives up, and later callers are not
// delayed when it answers again.
func TestSourceThatHangs(t *testing.T) {
	isolate(t)
	e := newEndpoint(t, time.Hour)
	e.hang.Store(true)
	p := open(t, func(c *awscreds.Config) { c.Wait, c.Timeout = 100*time.Millisecond, 200*time.Millisecond })

	for range 3 {
		_, err := p.Retrieve(t.Context())
		if !errors.Is(err, awscreds.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want a timeout", err)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()

	if _, err := p.Retrieve(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v to a caller that went away", err)
	}

	e.hang.Store(false)
	for range 100 {
		if _, err := p.Retrieve(t.Context()); err == nil {
			return
		}
	}

	t.Error("the source answers, and there are no credentials")
}

func TestNoSource(t *testing.T) {
	isolate(t)
	broken := errors.New("broken")
	_, err := awscreds.New(t.Context(), awscreds.Config{
		Load: func(context.Context) (aws.CredentialsProvider, error) { return nil, broken },
	})
	if !errors.Is(err, broken) {
		t.Errorf("%v, want the error of Load", err)
	}

	_, err = awscreds.New(t.Context(), awscreds.Config{
		Load: func(context.Context) (aws.CredentialsProvider, error) { return nil, nil },
	})
	if err == nil {
		t.Error("a Load that gives nothing was taken")
	}

	p := open(t, nil)
	if _, err := p.Retrieve(t.Context()); err == nil || errors.Is(err, awscreds.ErrTimeout) {
		t.Errorf("%v, want the SDK's error where there are no credentials", err)
	}
}

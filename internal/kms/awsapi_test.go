package kms_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// sentRequests is an HTTP client that keeps what it would send.
type sentRequests []string

var errNotSent = errors.New("not sent")

// Do implements aws.HTTPClient.
func (s *sentRequests) Do(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	scope := regexp.MustCompile(`Credential=[^,]*`).FindString(r.Header.Get("Authorization"))
	*s = append(*s, fmt.Sprintf("%s %s\nhost %q\nlength %d\n%s\n%s\n%s\n%s\n%s", r.Method, r.URL, r.Host, r.ContentLength,
		r.Header.Get("Content-Type"), r.Header.Get("X-Amz-Target"), r.Header.Get("X-Amz-Security-Token"), scope, body))
	return nil, errNotSent
}

// Our calls go where those of the SDK's client go, with the same content.
func TestAWSCallsAreThoseOfTheSDK(t *testing.T) {
	const id = "key/1234abcd-12ab-34cd-56ef-1234567890ab"
	t.Setenv("AWS_CA_BUNDLE", "") // the SDK refuses it with an HTTP client
	for _, row := range []struct {
		name, partition, region string
		change                  func(t *testing.T, c *kms.AWSConfig)
		host                    string
	}{
		{name: "a region", partition: "aws", region: "eu-central-1", host: "//kms.eu-central-1.amazonaws.com/"},
		{name: "China", partition: "aws-cn", region: "cn-north-1", host: "//kms.cn-north-1.amazonaws.com.cn/"},
		{
			name: "FIPS", partition: "aws", region: "us-east-1", host: "//kms-fips.us-east-1.amazonaws.com/",
			change: func(_ *testing.T, c *kms.AWSConfig) { c.FIPS = true },
		},
		{
			name: "FIPS by the environment", partition: "aws", region: "us-east-1", host: "//kms-fips.us-east-1.amazonaws.com/",
			change: func(t *testing.T, _ *kms.AWSConfig) { t.Setenv("AWS_USE_FIPS_ENDPOINT", "true") },
		},
		{
			name: "dual stack", partition: "aws", region: "us-east-1", host: "//kms.us-east-1.api.aws/",
			change: func(t *testing.T, _ *kms.AWSConfig) { t.Setenv("AWS_USE_DUALSTACK_ENDPOINT", "true") },
		},
		{
			name: "a VPC endpoint", partition: "aws", region: "us-east-1", host: "//vpce-1.kms.us-east-1.vpce.amazonaws.com/",
			change: func(_ *testing.T, c *kms.AWSConfig) { c.Endpoint = "https://vpce-1.kms.us-east-1.vpce.amazonaws.com" },
		},
		{
			name: "a port and a path", partition: "aws", region: "us-east-1", host: "//kms.example:8443/aws",
			change: func(_ *testing.T, c *kms.AWSConfig) { c.Endpoint = "https://kms.example:8443/aws" },
		},
		{
			name: "an endpoint by the environment", partition: "aws", region: "us-east-1", host: "//kms.example/",
			change: func(t *testing.T, _ *kms.AWSConfig) { t.Setenv("AWS_ENDPOINT_URL_KMS", "http://kms.example") },
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			var ours, theirs sentRequests
			cfg := kms.AWSConfig{
				KeyID:      fmt.Sprintf("arn:%s:kms:%s:111122223333:%s", row.partition, row.region, id),
				HTTPClient: &ours, Credentials: credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "secret", "session"),
			}
			if row.change != nil {
				row.change(t, &cfg)
			}

			key, err := kms.NewAWS(t.Context(), cfg)
			must(t, err)
			client := sdkClient(t, cfg, row.region, &theirs)
			callBoth(t, key, client, cfg.KeyID)
			if !slices.Equal(ours, theirs) {
				t.Errorf("the SDK's client sends\n%s\nwe send\n%s", strings.Join(theirs, "\n"), strings.Join(ours, "\n"))
			}
			if len(ours) != 4 || !strings.Contains(ours[0], row.host) {
				t.Errorf("%d requests, to another endpoint than %s:\n%s", len(ours), row.host, ours[0])
			}
		})
	}
}

// sdkClient returns the SDK's client with the same configuration.
func sdkClient(t *testing.T, cfg kms.AWSConfig, region string, http aws.HTTPClient) *awskms.Client {
	t.Helper()
	options := []func(*config.LoadOptions) error{
		config.WithRegion(region), config.WithCredentialsProvider(cfg.Credentials), config.WithHTTPClient(http),
		config.WithRetryMaxAttempts(1),
	}
	if cfg.FIPS {
		options = append(options, config.WithUseFIPSEndpoint(aws.FIPSEndpointStateEnabled))
	}
	sdk, err := config.LoadDefaultConfig(t.Context(), options...)
	must(t, err)

	return awskms.NewFromConfig(sdk, func(o *awskms.Options) {
		if cfg.Endpoint != "" {
			o.BaseEndpoint = &cfg.Endpoint
		}
	})
}

// callBoth makes the same calls with a key and with the SDK's client.
func callBoth(t *testing.T, key *kms.AWS, client *awskms.Client, id string) {
	t.Helper()
	dek, blob, ec := kmstest.NewDEK(), make([]byte, 184), kms.EncryptionContext{"one": "1"}
	_, generate := client.GenerateDataKey(t.Context(), &awskms.GenerateDataKeyInput{
		KeyId: &id, KeySpec: "AES_256", EncryptionContext: ec,
	})
	_, wrap := client.Encrypt(t.Context(), &awskms.EncryptInput{KeyId: &id, Plaintext: dek, EncryptionContext: ec})
	_, unwrap := client.Decrypt(t.Context(), &awskms.DecryptInput{
		KeyId: &id, CiphertextBlob: blob, EncryptionContext: ec,
	})
	_, describe := client.DescribeKey(t.Context(), &awskms.DescribeKeyInput{KeyId: &id})
	for _, err := range []error{generate, wrap, unwrap, describe} {
		if !errors.Is(err, errNotSent) {
			t.Errorf("the SDK's client: %v", err)
		}
	}

	_, _, err := key.Generate(t.Context(), ec)
	wantKind(t, "generate", err, kms.Unreachable)
	_, err = key.Wrap(t.Context(), dek, ec)
	wantKind(t, "wrap", err, kms.Unreachable)
	_, err = key.Unwrap(t.Context(), blob, ec)
	wantKind(t, "unwrap", err, kms.Unreachable)
	wantKind(t, "describe", key.Enabled(t.Context()), kms.Unreachable)
}

// A KMS whose clock is ahead refuses the first signature. The next one has
// the time of its Date header.
func TestAWSLearnsTheClockOfAWS(t *testing.T) {
	const ahead = 20 * time.Minute
	behind := kmstest.StartTest(t)
	var mu sync.Mutex
	cached := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := time.Now().Add(ahead)
		w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
		mu.Lock()
		defer mu.Unlock()
		if cached {
			w.Header().Set("Age", "60")
		}

		signed, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
		if err != nil || now.Sub(signed).Abs() > 5*time.Minute {
			w.Header().Set("X-Amzn-Requestid", "1")
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"__type":"InvalidSignatureException","message":"Signature expired: %v"}`, signed)
			return
		}
		behind.ServeHTTP(w, r)
	}))
	defer server.Close()

	w := behind.NewKey(t, func(c *kms.AWSConfig) { c.Endpoint = server.URL })
	cached = true
	for range 2 {
		_, _, err := kms.Generate(t.Context(), w, nil)
		wantKind(t, "the time of an answer from a cache", err, kms.Unreachable)
	}
	mu.Lock()
	cached = false
	mu.Unlock()

	_, _, err := kms.Generate(t.Context(), w, nil)
	wantKind(t, "the first signature", err, kms.Unreachable)
	if _, _, err := kms.Generate(t.Context(), w, nil); err != nil {
		t.Errorf("the next signature: %v", err)
	}
}

// The trace has the request that was refused, not the one that asked why.
func TestAWSTraceOfAnInvalidState(t *testing.T) {
	var refused string
	kmsServer := kmstest.StartTest(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kmsServer.ServeHTTP(w, r)
		if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".Decrypt") {
			refused = w.Header().Get("X-Amzn-Requestid")
		}
	}))
	defer server.Close()

	w := kmsServer.NewKey(t, func(c *kms.AWSConfig) { c.Endpoint = server.URL })
	_, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	must(t, kmsServer.ScheduleKeyDeletion(w.KeyID()))

	trace := new(kms.Trace)
	_, err = w.Unwrap(kms.WithTrace(t.Context(), trace), blob, nil)
	wantKind(t, "pending deletion", err, kms.PendingDeletion)
	if trace.RequestID() != refused || kmsServer.Calls()["DescribeKey"] != 1 {
		t.Errorf("request id %q, want %q", trace.RequestID(), refused)
	}
}

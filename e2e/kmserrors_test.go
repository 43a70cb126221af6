package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
)

// outcome is the result of a request from a client with default settings.
type outcome struct {
	Code     string
	Status   int
	Attempts int
}

// TestKMSErrors makes the KMS fail in each possible way, and checks what
// clients with default settings see. A client must retry if a retry may
// succeed, and otherwise must not.
func TestKMSErrors(t *testing.T) {
	t.Parallel() // with TestRevocation
	s := newStage(t)
	s.configure(setting{2 * time.Second, 0})
	c := s.customer
	for _, row := range []struct {
		name       string
		take, give func()
		code       string
		status     int
		retried    bool
	}{
		{"disabled", c.disable, c.enable, "KMS.DisabledException", 400, false},
		{"pending deletion", c.scheduleDeletion, c.cancelDeletion, "KMS.KMSInvalidStateException", 400, false},
		{"denied", func() { c.policy(allowAccount, denyProxy) }, func() { c.policy(allowAccount) }, "AccessDenied", 403, false},
		{"throttled", func() { c.faults(`{"throttle_next":1000000000}`) }, func() { c.faults("{}") }, "SlowDown", 503, true},
		{"unreachable", c.relay.refuse, func() { c.must(nil, c.relay.open()) }, "ServiceUnavailable", 503, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			defer progress(t)
			s.awaitService(t)
			row.take()
			purge(t, s)
			defer row.give()
			results := map[string]map[string]outcome{"go-sdk": s.goAttempts()}
			if selected("boto3") {
				results["boto3"] = s.pythonAttempts(t)
			}
			for client, operations := range results {
				for operation, got := range operations {
					if got.Code != row.code || got.Status != row.status || (got.Attempts > 1) != row.retried {
						t.Errorf("%s %s: %+v, want %s %d, retried: %v", client, operation, got, row.code, row.status, row.retried)
					}
				}
			}
		})
	}

	t.Run("throttled for a moment", func(t *testing.T) {
		s.awaitService(t)
		c.faults(`{"throttle_next":1000000000}`)
		purge(t, s)
		time.AfterFunc(1500*time.Millisecond, func() { c.faults("{}") })
		for operation, got := range s.goAttempts() {
			if got.Status != 200 {
				t.Errorf("%s: %+v, want that the retries get through", operation, got)
			}
		}
	})
}

// goAttempts makes a GET and a PUT with the default settings of aws-sdk-go-v2.
func (s *stage) goAttempts() map[string]outcome {
	api := newGoSDK(s.endpoint).s3
	get, getErr := api.GetObject(context.Background(), &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String("small-1")})
	put, putErr := api.PutObject(context.Background(), &s3.PutObjectInput{Bucket: &s.bucket, Key: aws.String("new"), Body: bytes.NewReader([]byte("x"))})
	out := make(map[string]outcome)
	if getErr == nil {
		_ = get.Body.Close()
		out["GetObject"] = attempted(get.ResultMetadata, nil)
	} else {
		out["GetObject"] = attempted(middleware.Metadata{}, getErr)
	}

	if putErr == nil {
		out["PutObject"] = attempted(put.ResultMetadata, nil)
	} else {
		out["PutObject"] = attempted(middleware.Metadata{}, putErr)
	}
	return out
}

func attempted(meta middleware.Metadata, err error) outcome {
	var answer smithy.APIError
	var response *awshttp.ResponseError
	var gaveUp *retry.MaxAttemptsError
	switch {
	case err == nil:
		results, _ := retry.GetAttemptResults(meta)
		return outcome{Status: 200, Attempts: len(results.Results)}
	case !errors.As(err, &answer) || !errors.As(err, &response):
		return outcome{Code: err.Error()}
	case errors.As(err, &gaveUp):
		return outcome{answer.ErrorCode(), response.HTTPStatusCode(), gaveUp.Attempt}
	default:
		return outcome{answer.ErrorCode(), response.HTTPStatusCode(), 1}
	}
}

// pythonAttempts does the same with boto3.
func (s *stage) pythonAttempts(t *testing.T) map[string]outcome {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), pythonCommand(), "py/attempts.py", s.endpoint.url, region, s.bucket, "small-2")
	cmd.Env = environment("AWS_ACCESS_KEY_ID="+s.endpoint.accessKey, "AWS_SECRET_ACCESS_KEY="+s.endpoint.secret, "AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE=/nonexistent", "AWS_SHARED_CREDENTIALS_FILE=/nonexistent")
	text, err := cmd.Output()
	if err != nil {
		t.Fatal(fmt.Errorf("%w: %s", err, text))
	}
	var out map[string]outcome
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

//go:build !nodev

package main

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// TestSweepsWaitForTheKMS: if the KMS is overloaded, objects are neither
// reported as bad nor skipped.
func TestSweepsWaitForTheKMS(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "example")
	server := kmstest.StartTest(t)

	arns := make([]string, 2)
	for i := range arns {
		var err error
		if arns[i], err = server.CreateKey(); err != nil {
			t.Fatal(err)
		}
	}

	keys := fmt.Sprintf(
		"keys: [{name: next, provider: aws-kms, key_id: %q, endpoint: %q}, {name: main, provider: aws-kms, key_id: %q, endpoint: %q}]\nunused: [",
		arns[1],
		server.URL(),
		arns[0],
		server.URL(),
	)

	listen, admin := freePort(t), freePort(t)
	store := proxytest.ServeStore(t)
	config := writeConfig(t, store, listen, admin, "keys: [", keys)
	dropLine(t, config, "unused: ")
	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)

	direct := client(strings.TrimPrefix(store, "http://"), proxytest.AccessKey, proxytest.SecretKey)
	app := client(listen, "appkey", "appsecretappsecret")
	commands := map[string][]string{"verified": {"verify"}, "rewrapped": {"rewrap", "--to", "next"}} // by bucket
	for bucket := range commands {
		if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
			t.Fatal(err)
		}
		if _, err := app.PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: &bucket, Key: new("key"), Body: strings.NewReader("text"),
		}); err != nil {
			t.Fatal(err)
		}
	}
	s.end(t)

	server.SetFaults(kmstest.Faults{ThrottleNext: 1 << 30})
	sweeps := make(map[string]*started)
	for bucket, command := range commands {
		sweeps[command[0]] = start(t, append(command, "--config", config, "s3://"+bucket)...)
	}
	time.Sleep(10 * time.Second) // longer than the calls of a request may take
	for command, sweep := range sweeps {
		select {
		case code := <-sweep.code:
			t.Fatalf("%s has ended with %d while the KMS had no time:\n%s", command, code, sweep.out.String())
		default:
		}
	}

	server.SetFaults(kmstest.Faults{})
	for command, sweep := range sweeps {
		select {
		case code := <-sweep.code:
			if code != 0 {
				t.Errorf("%s: exit code %d:\n%s", command, code, sweep.out.String())
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s does not end when the KMS is back", command)
		}
	}
}

// dropLine removes the line of a file that begins with text.
func dropLine(t *testing.T, path, text string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	var kept strings.Builder
	for line := range strings.Lines(string(content)) {
		if !strings.HasPrefix(line, text) {
			kept.WriteString(line)
		}
	}

	if err := os.WriteFile(path, []byte(kept.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

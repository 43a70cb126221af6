package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

func TestRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"-create-key", "2", "-region", "eu-central-1"}, w)
		_ = w.Close()
	}()
	line, err := bufio.NewReader(r).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var ready struct {
		Endpoint string
		Keys     []string
	}
	if err := json.Unmarshal(line, &ready); err != nil || len(ready.Keys) != 2 {
		t.Fatalf("%s: %v", line, err)
	}
	key, err := kms.NewAWS(ctx, kms.AWSConfig{
		KeyID: ready.Keys[1], Endpoint: ready.Endpoint,
		Credentials: credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "example", ""),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := kms.Generate(ctx, key, nil); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

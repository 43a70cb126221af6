//go:build !nodev

package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	awshttp "github.com/aws/smithy-go/transport/http"

	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// If the store refuses the proxy's own credentials while it runs, each
// operation fails with 500: an object that exists is never missing, and no
// client believes that it has lost its rights.
func TestStoreRefusesTheProxy(t *testing.T) {
	store, bucket, key := proxytest.ServeStore(t), "bucket", "k"
	missing := "missing"
	direct := client(strings.TrimPrefix(store, "http://"), proxytest.AccessKey, proxytest.SecretKey)
	if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}

	listen, admin := freePort(t), freePort(t)
	config := writeConfig(t, store, listen, admin, "actions: [read, write]", "actions: [read, write, delete, list, admin]")
	valid, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	app := client(listen, "appkey", "appsecretappsecret")
	once := func(o *s3.Options) { o.RetryMaxAttempts = 1 }
	put := &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("text")}
	if _, err := app.PutObject(t.Context(), put, once); err != nil {
		t.Fatal(err)
	}

	for name, change := range map[string][2]string{
		"an unknown access key": {"access_key: storekey", "access_key: nobody"},
		"a wrong secret":        {"secret_key: storesecretstoresecret", "secret_key: othersecretothersecret"},
	} {
		t.Run(name, func(t *testing.T) {
			reload := func(text string, works bool) {
				t.Helper()
				if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				signalSelf(t, syscall.SIGHUP)
				head := &s3.HeadObjectInput{Bucket: &bucket, Key: &key}
				eventually(t, "the reload", func() bool {
					_, err := app.HeadObject(t.Context(), head, once)
					return (err == nil) == works
				})
			}
			reload(string(valid), true) // the store accepts the credentials
			reload(strings.Replace(string(valid), change[0], change[1], 1), false)

			for operation, send := range storeOperations(app, bucket, key, missing, once) {
				var refusal *awshttp.ResponseError
				if err := send(t.Context()); !errors.As(err, &refusal) || refusal.HTTPStatusCode() != http.StatusInternalServerError {
					t.Errorf("%s: %v", operation, err)
				}
			}
		})
	}
	s.end(t)
}

// storeOperations are operations that the proxy sends to the store in
// different ways. Some begin with a HEAD.
func storeOperations(
	app *s3.Client, bucket, key, missing string, once func(*s3.Options),
) map[string]func(context.Context) error {
	source := bucket + "/" + key
	return map[string]func(context.Context) error{
		"HeadObject": func(ctx context.Context) error {
			_, err := app.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: &key}, once)
			return err
		},
		"HeadObject, missing": func(ctx context.Context) error {
			_, err := app.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: &missing}, once)
			return err
		},
		"HeadBucket": func(ctx context.Context) error {
			_, err := app.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &bucket}, once)
			return err
		},
		"GetBucketEncryption": func(ctx context.Context) error {
			_, err := app.GetBucketEncryption(ctx, &s3.GetBucketEncryptionInput{Bucket: &bucket}, once)
			return err
		},
		"GetObjectAttributes": func(ctx context.Context) error {
			_, err := app.GetObjectAttributes(ctx, &s3.GetObjectAttributesInput{
				Bucket: &bucket, Key: &key, ObjectAttributes: []types.ObjectAttributes{types.ObjectAttributesEtag},
			}, once)
			return err
		},
		"CopyObject": func(ctx context.Context) error {
			_, err := app.CopyObject(ctx, &s3.CopyObjectInput{Bucket: &bucket, Key: &missing, CopySource: &source}, once)
			return err
		},
		"GetObject": func(ctx context.Context) error {
			_, err := app.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key}, once)
			return err
		},
		"DeleteObject": func(ctx context.Context) error {
			_, err := app.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: &key}, once)
			return err
		},
		"ListObjectsV2": func(ctx context.Context) error {
			_, err := app.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &bucket}, once)
			return err
		},
		"PutObject": func(ctx context.Context) error {
			_, err := app.PutObject(ctx, &s3.PutObjectInput{
				Bucket: &bucket, Key: &missing, Body: strings.NewReader("text"),
			}, once)
			return err
		},
	}
}

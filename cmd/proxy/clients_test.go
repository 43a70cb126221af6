package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// A signal puts other clients and grants in force, all of them at once; a bad file leaves those that there were.
func TestReloadOfClients(t *testing.T) {
	listen, admin := freePort(t), freePort(t)
	path := writeConfig(t, sink(t).URL, listen, admin)
	s := start(t, "serve", "--config", path)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(old, changed string) {
		t.Helper()
		if !bytes.Contains(text, []byte(old)) {
			t.Fatalf("%q is not in the configuration", old)
		}
		if err := os.WriteFile(path, bytes.Replace(text, []byte(old), []byte(changed), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	put := func(accessKey, bucket string) string {
		key := "k"
		_, err := client(listen, accessKey, "appsecretappsecret").PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x")})
		return errorCode(err)
	}
	until := func(accessKey, bucket, code string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); put(accessKey, bucket) != code; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s in %s never gets %q", accessKey, bucket, code)
			}
		}
	}
	until("appkey", "logs", "")
	rewrite(`buckets: ["*"], actions: [read, write]`, `buckets: [data], actions: [read, write]`)
	until("appkey", "logs", "AccessDenied")
	until("appkey", "data", "")
	rewrite("appkey", "newkey")
	until("appkey", "logs", "InvalidAccessKeyId")
	until("newkey", "logs", "")
	rewrite("actions: [read, write]", "actions: [reed]")
	for range 20 { // nothing tells but the log that it was looked at
		until("newkey", "logs", "")
		time.Sleep(20 * time.Millisecond)
	}
	s.end(t)
}

func TestSessionCredentials(t *testing.T) {
	listen, admin := freePort(t), freePort(t)
	file := filepath.Join(t.TempDir(), "sessions.json")
	write := func(expires time.Time) {
		t.Helper()
		text := fmt.Sprintf(`[{"access_key":"ASIAAPP","secret_key":"temporary-secret","session_token":"temporary-token","expires":%q,"client":"app"}]`, expires.Format(time.RFC3339))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(time.Now().Add(-time.Minute))
	s := start(t, "serve", "--config", writeConfig(t, sink(t).URL, listen, admin, "keys: [", "session_credentials_file: "+file+"\nkeys: ["))
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	put := func(token string) string {
		bucket, key := "bucket", "k"
		c := client(listen, "", "")
		_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x")}, func(o *s3.Options) {
			o.Credentials = credentials.NewStaticCredentialsProvider("ASIAAPP", "temporary-secret", token)
		})
		return errorCode(err)
	}
	if code := put("temporary-token"); code != "ExpiredToken" {
		t.Errorf("expired: %q", code)
	}
	write(time.Now().Add(time.Hour))
	for deadline := time.Now().Add(time.Minute); put("temporary-token") != ""; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the file is not read again")
		}
	}
	if code := put("another-token"); code != "InvalidToken" {
		t.Errorf("another token: %q", code)
	}
	if code := put(""); code != "InvalidAccessKeyId" {
		t.Errorf("no token: %q", code)
	}
	s.end(t)
}

func errorCode(err error) string {
	var answered interface{ ErrorCode() string }
	if err == nil {
		return ""
	}
	if errors.As(err, &answered) {
		return answered.ErrorCode()
	}
	return err.Error()
}

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
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/cmekproxy/cmekproxy/internal/access"
)

// A signal applies changed clients and grants, all at once.
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
		_, err := client(
			listen,
			accessKey,
			"appsecretappsecret",
		).PutObject(
			t.Context(),
			&s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x")},
		)

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

	s.end(t)
}

// An invalid configuration changes nothing, and is logged.
func TestBadReloadOfClients(t *testing.T) {
	path := writeConfig(t, "http://127.0.0.1:1", "127.0.0.1:0", "127.0.0.1:0")
	file, err := readConfig(path)
	if err != nil {
		t.Fatal(err)
	}

	core, logs := observer.New(zap.InfoLevel)
	a, err := newServer(t.Context(), file.Config, zap.New(core), "")
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	a.file = file

	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	may := func(accessKey, bucket string) bool {
		c, ok := a.clients.Now().Client(accessKey)
		return ok && c.May(access.Write, bucket)
	}

	reload := func(old, changed string) string {
		t.Helper()
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("%q is not in the configuration", old)
		}
		if err := os.WriteFile(path, bytes.ReplaceAll(good, []byte(old), []byte(changed)), 0o600); err != nil {
			t.Fatal(err)
		}

		a.reload(t.Context(), bySignal)
		return logs.TakeAll()[0].Message
	}

	const stays = "config reload failed; keeping the current configuration"
	for name, change := range map[string][2]string{
		"an unknown action":  {"actions: [read, write]", "actions: [reed]"},
		"an unknown setting": {"clients:", "klients: 1\nclients:"},
		"two of one access key": {
			"keys: [",
			"  - {name: b, access_key: appkey, secret_key: appsecretappsecret, allow: [{buckets: [a], actions: [read]}]}\nkeys: [",
		},
		"clients, but no rule":      {`{buckets: ["*"], key: main}`, `{buckets: ["*"], key: none}`},
		"no client at all":          {"clients:", "#"},
		"a client without a secret": {", secret_key: appsecretappsecret", ""},
	} {
		if said := reload(change[0], change[1]); said != stays || !may("appkey", "logs") {
			t.Errorf("%s: %s, may: %v", name, said, may("appkey", "logs"))
		}
	}

	if said := reload(`buckets: ["*"], actions`, `buckets: [data], actions`); said != "configuration reloaded" ||
		may("appkey", "logs") ||
		!may("appkey", "data") {
		t.Errorf("a good one: %s", said)
	}
}

func TestSessionCredentials(t *testing.T) {
	listen, admin := freePort(t), freePort(t)
	file := filepath.Join(t.TempDir(), "sessions.json")
	write := func(expires time.Time) {
		t.Helper()
		text := fmt.Sprintf(
			`[{"access_key":"ASIAAPP","secret_key":"temporary-secret","session_token":"temporary-token","expires":%q,"client":"app"}]`,
			expires.Format(time.RFC3339),
		)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	write(time.Now().Add(-time.Minute))
	s := start(
		t,
		"serve",
		"--config",
		writeConfig(t, sink(t).URL, listen, admin, "keys: [", "session_credentials_file: "+file+"\nkeys: ["),
	)

	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	put := func(token string) string {
		bucket, key := "bucket", "k"
		c := client(listen, "", "")
		_, err := c.PutObject(
			t.Context(),
			&s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x")},
			func(o *s3.Options) {
				o.Credentials = credentials.NewStaticCredentialsProvider("ASIAAPP", "temporary-secret", token)
			},
		)

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

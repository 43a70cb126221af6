//go:build !nodev

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// What init writes from flags passes check against a real store, with a
// client's upload through the proxy.
func TestInitFromFlags(t *testing.T) {
	store, dir, bucket := proxytest.ServeStore(t), t.TempDir(), "bucket"
	direct := client(strings.TrimPrefix(store, "http://"), proxytest.AccessKey, proxytest.SecretKey)
	if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	path, secret := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "given.secret")
	if err := os.WriteFile(secret, []byte(proxytest.SecretKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	listen, admin := freePort(t), freePort(t)
	args := []string{
		"init", "--config", path, "--store-endpoint", store, "--store-access-key", proxytest.AccessKey,
		"--store-secret-file", secret, "--provider", "local", "--key", filepath.Join(dir, "kms.key"), "--bucket", bucket,
		"--listen", listen, "--admin-listen", admin,
	}
	code, out, stderr := command(t, args...)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}

	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	made, err := os.ReadFile(filepath.Join(dir, clientSecretFile))
	if err != nil || len(made) != 41 {
		t.Fatalf("the secret has %d bytes, %v", len(made), err)
	}
	for name, printed := range map[string]string{"stdout": out, "the configuration": string(text)} {
		if strings.Contains(printed, strings.TrimSpace(string(made))) || strings.Contains(printed, proxytest.SecretKey) {
			t.Errorf("a secret is in %s:\n%s", name, printed)
		}
	}
	if want := "next:\n  cmekproxy check --config " + path + " --bucket bucket\n  cmekproxy serve --config " + path + "\n"; !strings.HasSuffix(out, want) {
		t.Errorf("%s\nwant at its end %s", out, want)
	}

	if code, out, stderr := command(t, "check", "--config", path, "--bucket", bucket); code != 0 {
		t.Errorf("check: exit code %d:\n%s%s", code, out, stderr)
	}
	cfg, err := config.Parse(path, text, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, "serve", "--config", path)
	waitStatus(t, "http://"+admin+"/readyz", 200)
	app, key := client(listen, cfg.Clients[0].AccessKey, strings.TrimSpace(string(made))), "key"
	if _, err := app.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &bucket, Key: &key, Body: strings.NewReader("text"),
	}); err != nil {
		t.Error(err)
	}
	s.end(t)

	// A second one changes nothing without --force, and keeps secrets with it.
	if code, _, stderr := command(t, args...); code != 1 || !strings.Contains(stderr, "give --force") {
		t.Errorf("the second time: exit code %d: %s", code, stderr)
	}
	if code, _, stderr := command(t, append(args, "--force")...); code != 0 {
		t.Errorf("with --force: exit code %d: %s", code, stderr)
	}
	if again, err := os.ReadFile(filepath.Join(dir, clientSecretFile)); err != nil || !bytes.Equal(made, again) {
		t.Errorf("--force has changed the secret, %v", err)
	}
}

func TestInitRefusesFlags(t *testing.T) {
	dir := t.TempDir()
	valid := []string{"--store-endpoint", "https://s3.example.com", "--bucket", "bucket", "--key", "alias/k"}
	for _, row := range []struct {
		name string
		args []string
		want string
	}{
		{"nothing", nil, "give --store-endpoint, --key, --bucket"},
		{"Vault", []string{"--provider", "vault"}, "--vault-address, --key, --vault-token-file"},
		{"an endpoint without a scheme", []string{"--store-endpoint", "s3.example.com"}, "--store-endpoint: "},
		{"a bucket with capitals", append(valid, "--bucket", "Bucket"), "3 to 63 lowercase letters"},
		{"a provider that does not exist", append(valid, "--provider", "kms"), "choose one of aws-kms"},
		{"an access key with a space", append(valid, "--store-access-key", "a b"), "--store-access-key: "},
		{"no secret", append(valid, "--store-access-key", "a"), "give --store-secret-file"},
		{"a secret that is missing", append(valid, "--store-access-key", "a", "--store-secret-file", dir+"/no"), "write the secret key into this file"},
		{"other credentials", append(valid, "--store-credentials", "vault"), "answer default, env or file"},
		{"a port", append(valid, "--listen", "9000"), "--listen: "},
		{"a region of another endpoint", append(valid, "--store-endpoint", "https://s3.eu-west-1.amazonaws.com", "--store-region", "us-east-1"), "in the region eu-west-1"},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			code, _, stderr := command(t, append([]string{"init", "--config", path}, row.args...)...)
			if code != 2 || !strings.Contains(stderr, row.want) {
				t.Errorf("exit code %d, want 2 and %q: %s", code, row.want, stderr)
			}
			if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) > 0 {
				t.Errorf("files: %v, %v", files, err)
			}
		})
	}
}

// answers is a terminal at which somebody types these lines.
type answers struct {
	lines  []string
	hidden int // that were typed without echo
}

func (a *answers) secret(ctx context.Context, prompt string) (string, error) {
	a.hidden++
	return a.line(ctx, prompt)
}

func (a *answers) line(context.Context, string) (string, error) {
	if len(a.lines) == 0 {
		return "", errors.New("the input ended before an answer")
	}
	line := a.lines[0]
	a.lines = a.lines[1:]
	return line, nil
}

// At the terminal, wrong answers are refused with what is right, and the
// question is asked again.
func TestInitAsks(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	typed := &answers{lines: []string{
		"", "s3.example.com", "https://s3.example.com", // an endpoint needs a scheme
		"",             // the region
		"none", "file", // the credentials
		"a b", "AKSTORE", // the access key
		"two words", "typedsecret${X}",
		"kms", "local",
		filepath.Join(dir, "kms.key"),
		"My_Bucket", "one, two-*",
		"", // a random access key
	}}
	s := &setup{path: filepath.Join(dir, "config.yaml"), given: map[string]*string{}, ask: typed, out: &out}
	if err := s.run(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []string{
		"an answer is needed", "origin.endpoint", "answer default, env or file", "origin.access_key", "no white space",
		"choose one of aws-kms", "3 to 63 lowercase letters",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("nothing says %q:\n%s", want, &out)
		}
	}

	text, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Parse(s.path, text, os.LookupEnv)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if cfg.Origin.SecretKey.Reveal() != "typedsecret${X}" || typed.hidden != 2 || strings.Contains(out.String(), "typedsecret") {
		t.Errorf("the secret was typed %d times; printed:\n%s", typed.hidden, &out)
	}
	if got := fmt.Sprint(cfg.Encryption.Rules[0].Buckets, cfg.Clients[0].Allow[0].Buckets); got != "[one two-*] [one two-*]" {
		t.Errorf("buckets %s", got)
	}

	// Nothing is written if the input ends.
	s = &setup{
		path: filepath.Join(t.TempDir(), "config.yaml"), given: map[string]*string{},
		ask: &answers{lines: []string{"https://s3.example.com"}}, out: &out,
	}
	if err := s.run(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing was written") || exists(s.path) {
		t.Errorf("the input ended: %v", err)
	}
}

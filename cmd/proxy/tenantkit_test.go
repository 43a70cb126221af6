//go:build !nodev

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"go.yaml.in/yaml/v4"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/tenantkit"
)

// command runs a command and returns its exit code and output.
func command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

var initVault = []string{"tenant", "init", "vault", "--name", "acme", "--bucket", "data"}

func TestTenantInit(t *testing.T) {
	args := slices.Concat(initVault, []string{"--address", "https://vault.acme.example"})
	code, stdout, stderr := command(t, args...)
	if code != 0 || !strings.HasPrefix(stdout, "#!/bin/sh\n") || strings.Contains(stdout, "keys:\n") ||
		!strings.Contains(stderr, "provider: vault-transit") || !strings.Contains(stderr, "cmekproxy tenant check acme") {
		t.Errorf("%d\n%s\n%s", code, stdout, stderr)
	}

	path := filepath.Join(t.TempDir(), "kit.sh")
	code, none, _ := command(t, slices.Concat(args, []string{"--output", path})...)
	written, err := os.ReadFile(path)
	if code != 0 || err != nil || none != "" || string(written) != stdout {
		t.Errorf("%d, %v, %q", code, err, none)
	}
	if code, _, stderr = command(t, slices.Concat(args, []string{"--output", path})...); code != 1 || !strings.Contains(stderr, "exists") {
		t.Errorf("an existing file: %d, %s", code, stderr)
	}

	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"no provider", []string{"tenant", "init"}, "want one provider (aws|gcp|azure|vault)"},
		{"unknown provider", []string{"tenant", "init", "ibm"}, "no kit for this provider"},
		{"missing", initVault, "--address is missing"},
		{"hostile", slices.Concat(initVault, []string{"--address", "https://x'; rm -rf /"}), "--address is"},
		{"of another provider", slices.Concat(args, []string{"--region", "eu-central-1"}), "--region is not for vault"},
		{"unknown format", slices.Concat(args, []string{"--format", "chef"}), "one of: cli, terraform"},
		{"unknown command", []string{"tenant", "remove"}, "unknown command"},
	} {
		if code, stdout, stderr := command(t, tc.args...); code != 2 || stdout != "" || !strings.Contains(stderr, tc.want) {
			t.Errorf("%s: %d, %s%s", tc.name, code, stdout, stderr)
		}
	}
}

// kitKey is a key of the AWS look-alike with the key policy of the kit, and
// the role with which the proxy uses it. text has the entry for the
// configuration.
func kitKey(t *testing.T, a *awsTenants, inspect, bucketKeys bool) (arn, text string) {
	t.Helper()
	t.Setenv("AWS_ENDPOINT_URL_STS", a.URL())
	kit, err := tenantkit.Init(tenantkit.Order{
		Provider: tenantkit.AWS, Format: "cloudformation", Inspect: inspect, BucketKeys: bucketKeys, Values: map[string]string{
			"name": "acme", "bucket": tenantBucket, "account": "111122223333", "region": "us-east-1",
			"vendor-principal": "arn:aws:iam::111122223333:user/AKIDEXAMPLE", "external-id": "an-external-id",
		},
	})
	if err != nil {
		t.Fatal(err)
	}

	var stack struct {
		Resources map[string]struct {
			Properties map[string]any `yaml:"Properties"`
		} `yaml:"Resources"`
	}
	if err := yaml.Unmarshal([]byte(kit.Artifact), &stack); err != nil {
		t.Fatal(err)
	}
	policy, err := json.Marshal(stack.Resources["Key"].Properties["KeyPolicy"])
	if err != nil {
		t.Fatal(err)
	}

	role := a.SetRole(kmstest.Role{
		Name: "cmekproxy-acme", Trusted: a.UserARN("AKIDEXAMPLE"), ExternalID: "an-external-id",
	})
	a.add(t, "acme")
	arn = a.arns["acme"]
	bound := strings.ReplaceAll(string(policy), `{"Fn::GetAtt":["Role","Arn"]}`, `"`+role+`"`)
	if err := a.PutKeyPolicy(arn, bound); err != nil {
		t.Fatal(err)
	}
	if err := a.SetAlias("alias/acme", arn); err != nil {
		t.Fatal(err)
	}
	return arn, fmt.Sprintf(`{name: acme, provider: aws-kms, key_id: alias/acme, region: us-east-1, endpoint: "%s", `+
		`role_arn: "%s", external_id: an-external-id}`, a.URL(), role)
}

// The least permissions of the kit are enough for the proxy: it starts without
// an error, writes, reads and copies objects, and the key owner's check passes.
func TestProxyOnTheKeyPolicyOfTheKit(t *testing.T) {
	t.Run("own data keys", func(t *testing.T) { proxyOnTheKit(t, "", false, "16 checks: 0 failed, 0 warnings, 4 not checked") })
	t.Run("bucket keys", func(t *testing.T) {
		proxyOnTheKit(t, ", dek_reuse: {max_age: 1h}", true, "15 checks: 0 failed, 0 warnings, 5 not checked")
	})
}

func proxyOnTheKit(t *testing.T, reuse string, bucketKeys bool, summary string) {
	a := newAWSTenants(t)
	arn, entry := kitKey(t, a, false, bucketKeys)
	p := startTenants(t, entry, `rules: [{buckets: ["*"], key: tenants}]`,
		`rules: [{buckets: [`+tenantBucket+`], prefixes: [acme/], key: acme`+reuse+`}, {buckets: ["*"], key: acme}]`)

	if err := p.put(t.Context(), "acme/cat.jpg", "cat"); err != nil {
		t.Fatal(err)
	}
	if body, err := p.get(t.Context(), "acme/cat.jpg"); err != nil || body != "cat" {
		t.Errorf("%q, %v", body, err)
	}
	_, err := p.CopyObject(t.Context(), &s3.CopyObjectInput{
		Bucket: new(tenantBucket), Key: new("acme/copy.jpg"), CopySource: new(tenantBucket + "/acme/cat.jpg"),
	})
	if err != nil {
		t.Error(err)
	}
	if body, err := p.get(t.Context(), "acme/copy.jpg"); err != nil || body != "cat" {
		t.Errorf("the copy: %q, %v", body, err)
	}
	if err := p.put(t.Context(), "beta/cat.jpg", "cat"); codeOf(err) != "AccessDenied" {
		t.Errorf("outside of the prefix: %v, want AccessDenied by the key policy", err)
	}
	if state := p.ask(t, "GET", "/admin/keys"); !strings.Contains(state, arn) {
		t.Error(state)
	}

	code, stdout, stderr := command(t, "check", "--config", p.config)
	if !strings.Contains(stdout, "ok    key acme (aws-kms)") {
		t.Errorf("check: %d, %s%s", code, stdout, stderr)
	}
	code, stdout, stderr = command(t, "tenant", "check", "acme", "--config", p.config)
	if code != 0 || !strings.Contains(stdout, summary) {
		t.Errorf("%d, %s%s", code, stdout, stderr)
	}
}

// offlineConfig writes a configuration with keys and rules for commands.
func offlineConfig(t *testing.T, keys, rules string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	text := fmt.Sprintf(`origin: {endpoint: "http://127.0.0.1:1", region: us-east-1}
keys: [%s]
encryption: {rules: [%s]}
`, keys, rules)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTenantCheck(t *testing.T) {
	a := newAWSTenants(t)
	_, entry := kitKey(t, a, true, false)
	path := offlineConfig(t, entry, `{buckets: [data], prefixes: [acme/], key: acme}`)
	page := filepath.Join(t.TempDir(), "acme.html")

	code, stdout, stderr := command(t, "tenant", "check", "acme", "--config", path, "--format", "json", "--page", page)
	var report tenantkit.Report
	if err := json.Unmarshal([]byte(stdout), &report); code != 0 || err != nil || report.Warned != 1 ||
		report.Objects != "s3://data/acme/" || report.Revocation.Window != "12s" || report.Provider != "aws-kms" {
		t.Fatalf("%d, %v, %s%s", code, err, stdout, stderr)
	}
	html, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	_, sum, err := report.JSON()
	if err != nil || !strings.Contains(string(html), sum) {
		t.Errorf("the page does not have the sum %s, %v", sum, err)
	}
	for _, secret := range []string{"an-external-id", "SecretAccessKey", "SessionToken"} {
		if strings.Contains(stdout+string(html), secret) {
			t.Errorf("%s is in the report", secret)
		}
	}

	// Outside of what the policy allows, it does not work.
	code, stdout, stderr = command(t, "tenant", "check", "acme", "--config", path, "--prefix", "beta/")
	if code != 1 || !strings.Contains(stdout, "FAIL") || !strings.Contains(stderr, "checks failed") {
		t.Errorf("%d, %s%s", code, stdout, stderr)
	}
}

func TestTenantCheckTemplate(t *testing.T) {
	a := newAWSTenants(t)
	t.Setenv("AWS_ENDPOINT_URL_STS", a.URL())
	a.add(t, "acme")
	path := offlineConfig(t, fmt.Sprintf(
		`{name: tenants, provider: aws-kms, key_id: "alias/tenant-${prefix.1}", region: us-east-1, endpoint: "%s"}`, a.URL()),
		`{buckets: [data], key: tenants}`)

	code, stdout, stderr := command(t, "tenant", "check", "tenants:acme", "--config", path)
	for _, part := range []string{"key tenants:acme (aws-kms), " + a.arns["acme"], "objects s3://data/acme/"} {
		if code != 0 || !strings.Contains(stdout, part) {
			t.Errorf("%d, no %q: %s%s", code, part, stdout, stderr)
		}
	}
	if code, _, stderr := command(t, "tenant", "check", "tenants:beta", "--config", path); code != 1 ||
		!strings.Contains(stderr, "NotFoundException") {
		t.Errorf("a tenant without a key: %d, %s", code, stderr)
	}
}

// A tenant of tenants_dir is checked by its name, and a file with an error is
// named.
func TestTenantCheckFile(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(t.TempDir(), "kms.key")
	if err := kms.CreateLocalKeyFile(key); err != nil {
		t.Fatal(err)
	}
	for name, objects := range map[string]string{"acme": "[{buckets: [data], prefixes: [acme/]}]", "beta": "[]"} {
		text := fmt.Sprintf("key: {provider: local, key_file: %s}\nobjects: %s\n", key, objects)
		if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	text := `origin: {endpoint: "http://127.0.0.1:1", region: us-east-1}
encryption: {rules: [{buckets: [data], tenants: true}]}
tenants_dir: ` + dir + "\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	code, stdout, stderr := command(t, "tenant", "check", "acme", "--config", path)
	if code != 0 || !strings.Contains(stdout, "objects s3://data/acme/") {
		t.Errorf("%d, %s%s", code, stdout, stderr)
	}
	for name, want := range map[string]string{"beta": "beta.yaml", "gamma": `no key and no tenant with the name "gamma"`} {
		if code, _, stderr := command(t, "tenant", "check", name, "--config", path); code == 0 ||
			!strings.Contains(stderr, want) {
			t.Errorf("%s: %d, %s", name, code, stderr)
		}
	}
}

func TestTenantCheckRefuses(t *testing.T) {
	key := filepath.Join(t.TempDir(), "kms.key")
	if err := kms.CreateLocalKeyFile(key); err != nil {
		t.Fatal(err)
	}
	path := offlineConfig(t, fmt.Sprintf(`{name: main, provider: local, key_file: %[1]s}, `+
		`{name: two, provider: local, key_file: %[1]s}, {name: both, provider: all-of, members: [main, two]}, `+
		`{name: files, provider: local, key_file: "/keys/${bucket}/${prefix.1}.key"}`, key),
		`{buckets: [data], prefixes: [hr/], key: main}, {buckets: ["x-*"], key: both}, {buckets: ["*"], key: files}`)

	for _, tc := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no name", nil, 2, "want one name of a key, got 0"},
		{"unknown", []string{"acme"}, 2, `no key and no tenant with the name "acme"`},
		{"several keys", []string{"both"}, 2, "check each of main, two"},
		{"a template", []string{"files"}, 2, "name a tenant, as in files:acme"},
		{"not a template", []string{"main:acme"}, 2, "no key and no tenant with the name"},
		{"too few values", []string{"files:data"}, 2, "too few values"},
		{"not a value", []string{"files:../x"}, 2, "must be 1 to 64"},
		{"prefix of another", []string{"files:data/acme", "--prefix", "beta/"}, 2, `belong to the tenant "data/beta"`},
		{"no bucket", []string{"two"}, 2, "give --bucket"},
		{"format", []string{"main", "--format", "xml"}, 2, "must be text or json"},
		{"page", []string{"main", "--page", "/nonexistent/page.html"}, 1, "--page"},
		{"no key file", []string{"files:data/acme"}, 1, "opening the key files:data/acme"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := append([]string{"tenant", "check", "--config", path}, tc.args...)
			if code, _, stderr := command(t, args...); code != tc.code || !strings.Contains(stderr, tc.want) {
				t.Errorf("%d, %s", code, stderr)
			}
		})
	}

	if code, stdout, stderr := command(t, "tenant", "check", "main", "--config", path); code != 0 ||
		!strings.Contains(stdout, "s3://data/hr/") {
		t.Errorf("%d, %s%s", code, stdout, stderr)
	}
}

// It ends when it is told to.
func TestTenantCheckIsInterrupted(t *testing.T) {
	a := newAWSTenants(t)
	t.Setenv("AWS_ENDPOINT_URL_STS", a.URL())
	a.add(t, "acme")
	a.SetFaults(kmstest.Faults{Hang: true})
	path := offlineConfig(t, fmt.Sprintf(`{name: acme, provider: aws-kms, key_id: "%s", endpoint: "%s"}`,
		a.arns["acme"], a.URL()), `{buckets: [data], key: acme}`)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	if code := run(ctx, []string{"tenant", "check", "acme", "--config", path}, &out, &errs); code != 1 {
		t.Errorf("%d, %s%s", code, &out, &errs)
	}
}

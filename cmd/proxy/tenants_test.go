//go:build !nodev

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

const tenantBucket = "data"

// tenantProxy is a running proxy with a template, in front of its own store.
type tenantProxy struct {
	*s3.Client
	store         *s3.Client
	config, admin string
}

// startTenants starts a proxy whose only key is the template.
func startTenants(t *testing.T, key string, changes ...string) *tenantProxy {
	t.Helper()
	address := proxytest.ServeStore(t)
	listen, admin := freePort(t), freePort(t)
	dir := t.TempDir()
	text := strings.NewReplacer(changes...).Replace(fmt.Sprintf(`listen: %s
admin_listen: %s
origin: {endpoint: "%s", region: us-east-1, access_key: storekey, secret_key: storesecretstoresecret, checksum_trailer: true, etag_part_count: true}
clients:
  - {name: app, access_key: appkey, secret_key: appsecretappsecret, allow: [{buckets: ["*"], actions: [read, write, list]}]}
keys: [%s]
encryption: {rules: [{buckets: ["*"], key: tenants}]}
dek_cache: {ttl: 1m, revocation_probe: 5s}
audit: {file: %s}
`, listen, admin, address, key, filepath.Join(dir, "audit.log")))

	p := &tenantProxy{
		Client: client(listen, "appkey", "appsecretappsecret"), admin: "http://" + admin,
		store:  client(strings.TrimPrefix(address, "http://"), proxytest.AccessKey, proxytest.SecretKey),
		config: filepath.Join(dir, "config.yaml"),
	}
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	s := start(t, "serve", "--config", p.config)
	waitStatus(t, p.admin+"/readyz", http.StatusOK)
	t.Cleanup(func() {
		s.stop()
		s.end(t)
	})
	if _, err := p.store.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: new(tenantBucket)}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *tenantProxy) put(ctx context.Context, key, body string) error {
	_, err := p.PutObject(ctx, &s3.PutObjectInput{Bucket: new(tenantBucket), Key: &key, Body: strings.NewReader(body)})
	return err
}

func (p *tenantProxy) get(ctx context.Context, key string) (string, error) {
	out, err := p.GetObject(ctx, &s3.GetObjectInput{Bucket: new(tenantBucket), Key: &key})
	if err != nil {
		return "", err
	}
	defer out.Body.Close()
	body, err := io.ReadAll(io.LimitReader(out.Body, 1<<20))
	return string(body), err
}

// codeOf returns the S3 error code; "" for no error.
func codeOf(err error) string {
	var answer smithy.APIError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &answer):
		return answer.ErrorCode()
	default:
		return err.Error()
	}
}

// admits sends a request to the admin port and returns the answer.
func (p *tenantProxy) ask(t *testing.T, method, path string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, p.admin+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %s, %v", path, resp.Status, body, err)
	}
	return string(body)
}

// awsTenants is a KMS with a key for each tenant.
type awsTenants struct {
	*kmstest.Server
	arns map[string]string
}

func newAWSTenants(t *testing.T) *awsTenants {
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "example")
	return &awsTenants{Server: kmstest.StartTest(t), arns: make(map[string]string)}
}

func (a *awsTenants) add(t *testing.T, tenant string) {
	t.Helper()
	arn, err := a.CreateKey()
	if err == nil {
		err = a.SetAlias("alias/tenant-"+tenant, arn)
	}
	if err != nil {
		t.Fatal(err)
	}
	a.arns[tenant] = arn
}

func (a *awsTenants) key() string {
	return fmt.Sprintf(
		`{name: tenants, provider: aws-kms, key_id: "alias/tenant-${prefix.1}", endpoint: "%s", region: %s, timeout: 20s}`,
		a.URL(), a.Region())
}

func (a *awsTenants) total() (n int) {
	for _, calls := range a.Calls() {
		n += calls
	}
	return n
}

// forEach runs a function for each of n tenants, some at a time.
func forEach(n int, do func(i int)) {
	var all sync.WaitGroup
	const workers = 8
	for w := range workers {
		all.Go(func() {
			for i := w; i < n; i += workers {
				do(i)
			}
		})
	}
	all.Wait()
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// aThousand returns the number of tenants, and the one that is revoked. The
// race detector makes each of them ten times as expensive; CI runs the tests
// with a thousand without it.
func aThousand() (tenants, revoked int) {
	if raceDetector {
		return 150, 51
	}
	return 1000, 517
}

// TestAThousandTenants: one bucket, one rule, a thousand keys that are made
// while the proxy runs. When one is disabled, its prefix alone is unreadable.
func TestAThousandTenants(t *testing.T) {
	tenants, revoked := aThousand()
	a := newAWSTenants(t)
	p := startTenants(t, a.key())
	name := func(i int) string { return fmt.Sprint("t", i) }
	for i := range tenants {
		a.add(t, name(i))
	}

	before := heap()
	forEach(tenants, func(i int) {
		if err := p.put(t.Context(), name(i)+"/doc", "of "+name(i)); err != nil {
			t.Errorf("%s: %v", name(i), err)
		}
	})
	t.Logf("%d tenants: %d KiB of heap, store and KMS included; KMS calls: %v",
		tenants, (int64(heap())-int64(before))>>10, a.Calls())
	// One of each for a tenant, and a few retries on a slow machine.
	about := func(calls int) bool { return calls >= tenants && calls <= tenants+tenants/10 }
	if c := a.Calls(); !about(c["GenerateDataKey"]) || !about(c["DescribeKey"]) {
		t.Errorf("KMS calls: %v", c)
	}

	var page struct{ Keys []keyStatus }
	if err := json.Unmarshal([]byte(p.ask(t, http.MethodGet, "/admin/keys")), &page); err != nil {
		t.Fatal(err)
	}
	if len(page.Keys) != 1+shownTenants || page.Keys[0].Open == nil || *page.Keys[0].Open != tenants {
		t.Errorf("/admin/keys shows %d keys, the first is %+v", len(page.Keys), page.Keys[0])
	}
	metrics := p.ask(t, http.MethodGet, "/metrics")
	if n := strings.Count(metrics, `"tenants`); n > 100 || strings.Contains(metrics, "tenants:") ||
		!strings.Contains(metrics, fmt.Sprintf(`cmekproxy_key_template_open{key="tenants"} %d`, tenants)) {
		t.Errorf("%d time series", n)
	}

	// Without their data keys, the other tenants are not probed in the
	// meantime: a thousand probes in 5 s would take most of a slow machine.
	p.ask(t, http.MethodPost, "/admin/purge?key=tenants")
	if body, err := p.get(t.Context(), name(revoked)+"/doc"); err != nil || body != "of "+name(revoked) {
		t.Fatal(body, err)
	}
	if err := a.DisableKey(a.arns[name(revoked)]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the tenant's objects are unreadable", func() bool {
		_, err := p.get(t.Context(), name(revoked)+"/doc")
		return codeOf(err) == "KMS.DisabledException"
	})
	var bad sync.Map
	forEach(tenants, func(i int) {
		body, err := p.get(t.Context(), name(i)+"/doc")
		if i != revoked && (err != nil || body != "of "+name(i)) || i == revoked && err == nil {
			bad.Store(i, err)
		}
	})
	bad.Range(func(i, err any) bool {
		t.Errorf("tenant %v: %v", i, err)
		return true
	})
	if err := a.EnableKey(a.arns[name(revoked)]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the tenant's objects are readable again", func() bool {
		body, _ := p.get(t.Context(), name(revoked)+"/doc")
		return body == "of "+name(revoked)
	})
	t.Logf("after a revocation, with probes every 5 s: %v", a.Calls())

	// Without DEKs, nobody is asked about the keys. On a slow machine, the data
	// key may have expired since it was last used.
	eventually(t, "a purge of one tenant", func() bool {
		_, err := p.get(t.Context(), name(7)+"/doc")
		got := p.ask(t, http.MethodPost, "/admin/purge?key=tenants:t7")
		return err == nil && strings.Contains(got, `"purged": 1`)
	})
	p.ask(t, http.MethodPost, "/admin/purge?key=tenants")
	time.Sleep(time.Second) // what is on its way
	idle := a.total()
	time.Sleep(6 * time.Second)
	if n := a.total() - idle; n != 0 {
		t.Errorf("%d KMS calls for idle tenants in an interval", n)
	}
}

// TestTenantsAreSeparate: an object under the key of another tenant is refused,
// whoever has put it there, and so are names that could be anyone's.
func TestTenantsAreSeparate(t *testing.T) {
	a := newAWSTenants(t)
	a.add(t, "acme")
	a.add(t, "beta")
	p := startTenants(t, a.key())
	for _, tenant := range []string{"acme", "beta"} {
		if err := p.put(t.Context(), tenant+"/doc", tenant); err != nil {
			t.Fatal(err)
		}
	}

	// In the store, acme's object is copied to beta's prefix.
	if _, err := p.store.CopyObject(t.Context(), &s3.CopyObjectInput{
		Bucket: new(tenantBucket), Key: new("beta/copied"), CopySource: new(tenantBucket + "/acme/doc"),
	}); err != nil {
		t.Fatal(err)
	}

	// Someone who may use acme's key, and write to the store, makes an object
	// for beta's prefix with a proxy of their own.
	text, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	forger := filepath.Join(t.TempDir(), "config.yaml")
	listen, admin := freePort(t), freePort(t)
	own := strings.NewReplacer("alias/tenant-${prefix.1}", a.arns["acme"], p.admin[len("http://"):], admin,
		"listen: "+strings.TrimPrefix(strings.SplitN(string(text), "\n", 2)[0], "listen: "), "listen: "+listen,
		"audit: {", "#").Replace(string(text))
	if err := os.WriteFile(forger, []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, "serve", "--config", forger)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	if _, err := client(listen, "appkey", "appsecretappsecret").PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: new(tenantBucket), Key: new("beta/forged"), Body: strings.NewReader("from acme"),
	}); err != nil {
		t.Fatal(err)
	}
	s.stop()
	s.end(t)

	for _, row := range []struct{ key, put, get string }{
		{"beta/copied", "", "AccessDenied"},
		{"beta/forged", "", "AccessDenied"},
		{"nobody/doc", "KMS.NotFoundException", "NoSuchKey"},
		{"doc", "InvalidArgument", "NoSuchKey"},
		{"acme%2Fdoc", "InvalidArgument", "NoSuchKey"},
		{"//doc", "InvalidArgument", "NoSuchKey"},
		{"${bucket}/doc", "InvalidArgument", "NoSuchKey"},
		{"ac me/doc", "InvalidArgument", "NoSuchKey"},
		{"äcme/doc", "InvalidArgument", "NoSuchKey"},
		{"acme\n/doc", "InvalidArgument", "NoSuchKey"},
		{strings.Repeat("a", 65) + "/doc", "InvalidArgument", "NoSuchKey"},
		{"acme/../beta/doc", "InvalidArgument", ""},
	} {
		t.Run(row.key, func(t *testing.T) {
			if _, err := p.get(t.Context(), row.key); row.get != "" && codeOf(err) != row.get {
				t.Errorf("get: %v", err)
			}
			if row.put == "" {
				return
			}
			if err := p.put(t.Context(), row.key, "x"); codeOf(err) != row.put {
				t.Errorf("put: %v", err)
			}
		})
	}
	if body, err := p.get(t.Context(), "beta/doc"); err != nil || body != "beta" {
		t.Errorf("%q, %v", body, err)
	}

	records, err := os.ReadFile(filepath.Join(filepath.Dir(p.config), "audit.log"))
	if want := `"kms_key_name":"tenants:acme","kms_key":"` + a.arns["acme"] + `"`; err != nil ||
		!strings.Contains(string(records), want) {
		t.Errorf("the audit log does not name the tenant: %.500s, %v", records, err)
	}
}

// TestKMSOfTenantsIsAway: a key that cannot be opened now is tried again.
func TestKMSOfTenantsIsAway(t *testing.T) {
	a := newAWSTenants(t)
	a.add(t, "acme")
	a.add(t, "beta")
	p := startTenants(t, a.key(), "timeout: 5s", "timeout: 300ms")
	if err := p.put(t.Context(), "acme/doc", "acme"); err != nil {
		t.Fatal(err)
	}
	a.SetFaults(kmstest.Faults{Operations: []string{"DescribeKey", "GenerateDataKey", "Decrypt"}, Drop: true})
	quick := p.Options().Copy()
	quick.RetryMaxAttempts = 1
	once := &tenantProxy{Client: s3.New(quick)}
	if err := once.put(t.Context(), "beta/doc", "beta"); codeOf(err) != "ServiceUnavailable" {
		t.Errorf("unreachable: %v", err)
	}
	if body, err := once.get(t.Context(), "acme/doc"); err != nil || body != "acme" {
		t.Errorf("acme, whose data key is cached: %q, %v", body, err)
	}
	a.SetFaults(kmstest.Faults{})
	eventually(t, "the key is opened", func() bool { return p.put(t.Context(), "beta/doc", "beta") == nil })
}

// TestCommandsWithTenants: commands know the bucket and the key of each object,
// so they find the key of its tenant.
func TestCommandsWithTenants(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"old", "acme"} {
		if err := kms.CreateLocalKeyFile(filepath.Join(dir, name+".key")); err != nil {
			t.Fatal(err)
		}
	}
	p := startTenants(t, fmt.Sprintf(`{name: tenants, provider: local, key_file: "%s/${prefix.1}.key"}, `+
		`{name: old, provider: local, key_file: "%s/old.key"}`, dir, dir),
		"key: tenants}", "key: tenants, allowed_keys: [old]}")

	// The key of beta is made while the proxy runs.
	if err := p.put(t.Context(), "beta/doc", "of beta"); codeOf(err) != "KMS.NotFoundException" {
		t.Errorf("a key that is missing: %v", err)
	}
	if err := kms.CreateLocalKeyFile(filepath.Join(dir, "beta.key")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "beta can write", func() bool { return p.put(t.Context(), "beta/doc", "of beta") == nil })
	if err := p.put(t.Context(), "acme/doc", "of acme"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: new(tenantBucket), Key: new("acme/old"), Body: strings.NewReader("of acme, old"),
		ServerSideEncryption: "aws:kms", SSEKMSKeyId: new("old"),
	}); err != nil {
		t.Fatal(err)
	}
	putParts(t, p.Client, tenantBucket, "beta/parts", bytes.Repeat([]byte("x"), 5<<20), []byte("end"))

	command := func(args ...string) (int, string) {
		var out bytes.Buffer
		code := run(t.Context(), append(args, "--config", p.config), &out, &out)
		return code, out.String()
	}
	for _, row := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"check"}, 0, "${prefix.1}.key, not tried"},
		{[]string{"decrypt", "s3://data/acme/doc", "-o", "-"}, 0, "of acme"},
		{[]string{"verify", "s3://data"}, 0, ""},
		{[]string{"inventory", "s3://data"}, 0, "local:"},
		{[]string{"rewrap", "s3://data"}, 0, ""},
		{[]string{"verify", "s3://data"}, 0, ""},
		{[]string{"decrypt", "s3://data/acme/old", "-o", "-"}, 0, "of acme, old"},
		{[]string{"rewrap", "s3://data", "--to", "old"}, 0, ""},
		{[]string{"rewrap", "s3://data", "--to", "tenants"}, 0, ""},
	} {
		if code, out := command(row.args...); code != row.code || !strings.Contains(out, row.want) {
			t.Errorf("%v: exit code %d: %s", row.args, code, out)
		}
	}

	// Everything is under the keys of tenants now.
	if err := os.Remove(filepath.Join(dir, "old.key")); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"acme/old": "of acme, old", "beta/doc": "of beta"} {
		if body, err := p.get(t.Context(), key); err != nil || body != want {
			t.Errorf("%s: %q, %v", key, body, err)
		}
	}

	// Without acme's key file, its objects alone cannot be read.
	if err := os.Rename(filepath.Join(dir, "acme.key"), filepath.Join(dir, "acme.away")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "acme is unreadable", func() bool {
		_, err := p.get(t.Context(), "acme/doc")
		return codeOf(err) == "KMS.NotFoundException"
	})
	if body, err := p.get(t.Context(), "beta/doc"); err != nil || body != "of beta" {
		t.Errorf("beta: %q, %v", body, err)
	}
	if code, out := command("verify", "s3://data", "--keep-going"); code == 0 || !strings.Contains(out, "acme/doc") ||
		strings.Contains(out, "beta/doc") {
		t.Errorf("verify without acme's key: exit code %d: %s", code, out)
	}
}

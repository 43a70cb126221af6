//go:build !nodev

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// fileTenants is a running proxy with a directory of tenants. The bucket data
// is the tenants', and everything else is under the key default.
type fileTenants struct {
	*tenantProxy
	listen, tenants, keys, audit string
	end                          func() // ends the proxy
}

func startFileTenants(t *testing.T, changes ...string) *fileTenants {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"tenants", "keys"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f := &fileTenants{
		tenants: filepath.Join(dir, "tenants"), keys: filepath.Join(dir, "keys"), audit: filepath.Join(dir, "audit.log"),
	}
	f.newKey(t, "default")
	f.startIn(t, dir, proxytest.ServeStore(t), changes...)
	if _, err := f.store.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: new(tenantBucket)}); err != nil {
		t.Fatal(err)
	}
	return f
}

// startIn starts the proxy, in front of the store at an address.
func (f *fileTenants) startIn(t *testing.T, dir, address string, changes ...string) {
	t.Helper()
	listen, admin := freePort(t), freePort(t)
	text := strings.NewReplacer(changes...).Replace(fmt.Sprintf(`listen: %s
admin_listen: %s
origin: {endpoint: "%s", region: us-east-1, access_key: storekey, secret_key: storesecretstoresecret, checksum_trailer: true, etag_part_count: true}
clients:
  - {name: app, access_key: appkey, secret_key: appsecretappsecret, allow: [{buckets: ["*"], actions: [read, write, delete, list, admin]}]}
keys: [{name: default, provider: local, key_file: %s/default.key}]
encryption:
  rules:
    - {buckets: [data], tenants: true, customer_keys: allow}
    - {buckets: ["*"], key: default}
dek_cache: {ttl: 1m, revocation_probe: 5s}
audit: {file: %s}
tenants_dir: %s
`, listen, admin, address, f.keys, f.audit, f.tenants))

	f.listen = listen
	f.tenantProxy = &tenantProxy{
		Client: client(listen, "appkey", "appsecretappsecret"), admin: "http://" + admin,
		store:  client(strings.TrimPrefix(address, "http://"), proxytest.AccessKey, proxytest.SecretKey),
		config: filepath.Join(dir, "config.yaml"),
	}
	if err := os.WriteFile(f.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	s := start(t, "serve", "--config", f.config)
	waitStatus(t, f.admin+"/readyz", http.StatusOK)
	f.end = sync.OnceFunc(func() {
		s.stop()
		s.end(t)
	})
	t.Cleanup(f.end)
}

func (f *fileTenants) newKey(t *testing.T, name string) {
	t.Helper()
	if err := kms.CreateLocalKeyFile(filepath.Join(f.keys, name+".key")); err != nil {
		t.Fatal(err)
	}
}

// file is the file of a tenant, with its own prefix, client and local key.
func (f *fileTenants) file(name string) string {
	return fmt.Sprintf(`key: {provider: local, key_file: %s/%s.key}
objects: [{buckets: [data], prefixes: [%s/]}]
clients: [{name: %s-app, access_key: AK%s, secret_key: secret-of-%s}]
`, f.keys, name, name, name, name, name)
}

// write writes the file of a tenant, and renames it to its place.
func (f *fileTenants) write(t *testing.T, name, text string) {
	t.Helper()
	temporary := filepath.Join(f.tenants, "."+name)
	if err := os.WriteFile(temporary, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, filepath.Join(f.tenants, name+".yaml")); err != nil {
		t.Fatal(err)
	}
}

// add makes a tenant with a new key, and waits until it is served.
func (f *fileTenants) add(t *testing.T, name string) {
	t.Helper()
	f.newKey(t, name)
	f.write(t, name, f.file(name))
	eventually(t, name+" is served", func() bool { return f.put(t.Context(), name+"/doc", "of "+name) == nil })
}

// as returns a client of a tenant.
func (f *fileTenants) as(tenant string) *tenantProxy {
	return &tenantProxy{Client: client(f.listen, "AK"+tenant, "secret-of-"+tenant)}
}

// status returns the answer of /admin/tenants.
func (f *fileTenants) status(t *testing.T) (s tenantsStatus) {
	t.Helper()
	if err := json.Unmarshal([]byte(f.ask(t, http.MethodGet, "/admin/tenants")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// waitProblem waits until one file has an error, and returns the error.
func (f *fileTenants) waitProblem(t *testing.T, file string) (found tenantStatus) {
	t.Helper()
	eventually(t, file+" has an error", func() bool {
		for _, p := range f.status(t).Files {
			if filepath.Base(p.Path) == file {
				found = p
				return true
			}
		}
		return false
	})
	return found
}

// TestTenantsComeAndGo: a tenant is added, its key changed, and removed, while
// the proxy runs and other tenants are served.
func TestTenantsComeAndGo(t *testing.T) {
	f := startFileTenants(t)
	if err := f.put(t.Context(), "acme/doc", "x"); codeOf(err) != "AccessDenied" {
		t.Errorf("put without a tenant: %v", err)
	}
	f.add(t, "beta")
	f.add(t, "acme")

	acme := f.as("acme")
	if err := acme.put(t.Context(), "acme/own", "own"); err != nil {
		t.Error(err)
	}
	if body, err := acme.get(t.Context(), "acme/doc"); err != nil || body != "of acme" {
		t.Errorf("%q, %v", body, err)
	}
	for _, key := range []string{"beta/doc", "doc", "nobody/doc"} {
		if err := acme.put(t.Context(), key, "x"); codeOf(err) != "AccessDenied" {
			t.Errorf("acme puts %s: %v", key, err)
		}
		if _, err := acme.get(t.Context(), key); codeOf(err) != "AccessDenied" {
			t.Errorf("acme gets %s: %v", key, err)
		}
	}

	// Another key: the old objects need read_keys.
	f.newKey(t, "acme-2")
	changed := strings.Replace(f.file("acme"), "acme.key", "acme-2.key", 1)
	f.write(t, "acme", changed)
	eventually(t, "the old object is refused", func() bool {
		_, err := f.get(t.Context(), "acme/doc")
		return codeOf(err) == "AccessDenied"
	})
	if err := f.put(t.Context(), "acme/new", "new"); err != nil {
		t.Error(err)
	}
	f.write(t, "acme", f.file("acme"))
	eventually(t, "the old object is read", func() bool { _, err := f.get(t.Context(), "acme/doc"); return err == nil })
	if _, err := f.get(t.Context(), "acme/new"); codeOf(err) != "AccessDenied" {
		t.Errorf("an object under the other key: %v", err)
	}

	// Removed.
	if err := os.Remove(filepath.Join(f.tenants, "acme.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "acme is refused", func() bool {
		_, err := f.get(t.Context(), "acme/doc")
		return codeOf(err) == "AccessDenied"
	})
	if _, err := acme.get(t.Context(), "acme/doc"); codeOf(err) != "InvalidAccessKeyId" {
		t.Errorf("acme's client: %v", err)
	}
	if err := f.put(t.Context(), "acme/doc", "x"); codeOf(err) != "AccessDenied" {
		t.Errorf("put: %v", err)
	}
	if _, err := f.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: new(tenantBucket), Key: new("acme/doc")}); codeOf(err) != "Forbidden" {
		t.Errorf("head: %v", err)
	}
	for _, key := range []string{"acme/../beta/doc", "./acme/doc"} {
		if err := f.put(t.Context(), key, "x"); codeOf(err) != "InvalidArgument" {
			t.Errorf("%s: %v", key, err)
		}
	}
	if body, err := f.get(t.Context(), "beta/doc"); err != nil || body != "of beta" {
		t.Errorf("beta: %q, %v", body, err)
	}

	records, err := os.ReadFile(f.audit)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"event":"tenant","result":"ok","kms_key_name":"tenant:acme","tenant":"acme","operation":"added"`,
		`"operation":"changed"`, `"operation":"removed","purged":`,
		`"event":"create","result":"ok","kms_key_name":"tenant:acme"`, `"client":"acme-app"`,
	} {
		if !strings.Contains(string(records), want) {
			t.Errorf("the audit log does not have %s", want)
		}
	}
	if strings.Contains(string(records), "secret-of") {
		t.Error("a secret is in the audit log")
	}
}

// slowReader gives a part of its data, and the rest when it is told.
type slowReader struct {
	first, rest io.Reader
	wait        chan struct{}
}

func (r *slowReader) Read(p []byte) (int, error) {
	if n, err := r.first.Read(p); !errors.Is(err, io.EOF) {
		return n, err
	}
	<-r.wait
	return r.rest.Read(p)
}

// TestRemovedTenantsTransfers: running transfers of a removed tenant end, those
// of others go on.
func TestRemovedTenantsTransfers(t *testing.T) {
	f := startFileTenants(t)
	f.add(t, "acme")
	f.add(t, "beta")
	const size = 32 << 20
	big := strings.Repeat("x", size)
	for _, tenant := range []string{"acme", "beta"} {
		if err := f.put(t.Context(), tenant+"/big", big); err != nil {
			t.Fatal(err)
		}
	}

	reads := make(map[string]io.ReadCloser)
	for _, tenant := range []string{"acme", "beta"} {
		out, err := f.GetObject(t.Context(), &s3.GetObjectInput{Bucket: new(tenantBucket), Key: new(tenant + "/big")})
		if err != nil {
			t.Fatal(err)
		}
		defer out.Body.Close()
		if _, err := io.ReadFull(out.Body, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		reads[tenant] = out.Body
	}

	upload := &slowReader{strings.NewReader(big[:size/2]), strings.NewReader(big[size/2:]), make(chan struct{})}
	put := make(chan error)
	go func() {
		req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodPut, f.presign(t, "acme/upload"), upload)
		if err == nil {
			req.ContentLength = size
			var resp *http.Response
			if resp, err = http.DefaultClient.Do(req); err == nil {
				resp.Body.Close()
				if resp.StatusCode/100 != 2 {
					err = errors.New(resp.Status)
				}
			}
		}
		put <- err
	}()

	time.Sleep(300 * time.Millisecond) // for the upload to begin
	if err := os.Remove(filepath.Join(f.tenants, "acme.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "acme is refused", func() bool {
		_, err := f.get(t.Context(), "acme/doc")
		return codeOf(err) == "AccessDenied"
	})
	close(upload.wait)
	if err := <-put; err == nil {
		t.Error("the upload of the removed tenant succeeded")
	}
	if n, err := io.Copy(io.Discard, reads["acme"]); err == nil {
		t.Errorf("the download of the removed tenant went on to its end: %d more bytes", n)
	}
	if n, err := io.Copy(io.Discard, reads["beta"]); err != nil || n != size-1<<20 {
		t.Errorf("the download of the other tenant: %d more bytes, %v", n, err)
	}
	if _, err := f.store.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: new(tenantBucket), Key: new("acme/upload")}); err == nil {
		t.Error("the object of the upload is in the store")
	}
}

// presign returns a URL for a PUT of an object.
func (p *tenantProxy) presign(t *testing.T, key string) string {
	t.Helper()
	req, err := s3.NewPresignClient(p.Client).PresignPutObject(t.Context(), &s3.PutObjectInput{Bucket: new(tenantBucket), Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	return req.URL
}

// TestTenantFileErrors: an error in one file is named, and touches no other
// tenant. The tenant stays as it was, and a new one is refused.
func TestTenantFileErrors(t *testing.T) {
	f := startFileTenants(t)
	f.add(t, "acme")
	f.add(t, "beta")
	f.newKey(t, "gamma")

	for _, row := range []struct{ name, tenant, old, changed, want string }{
		{"a broken file", "acme", "objects:", "objects: [", "acme.yaml:3:1: this is not YAML"},
		{"an unknown field", "acme", "objects:", "object:", `unknown key "object"`},
		{"a variable", "acme", "secret-of-acme", `"${HOME}"`, "variables"},
		{"objects of another", "acme", "[acme/]", "[acme/, beta/x/]", "tenants acme and beta both have objects in s3://data/beta/x/"},
		{"the access key of another", "acme", "AKacme", "AKbeta", "the same access_key"},
		{"the client of another", "acme", "acme-app", "beta-app", `a client named \"beta-app\"`},
		{"the client of the configuration", "acme", "acme-app", "app", "already has a client"},
		{"another bucket", "acme", "[data]", "[other]", "gives this prefix to tenants"},
		{"a new one with the same objects", "gamma", "[gamma/]", "[acme/]", "tenants gamma and acme both have objects"},
	} {
		t.Run(row.name, func(t *testing.T) {
			f.write(t, row.tenant, strings.Replace(f.file(row.tenant), row.old, row.changed, 1))
			problem := f.waitProblem(t, row.tenant+".yaml")
			if !strings.Contains(problem.Error, strings.ReplaceAll(row.want, `\"`, `"`)) || problem.Served != (row.tenant == "acme") {
				t.Errorf("%+v", problem)
			}
			for _, tenant := range []string{"acme", "beta"} {
				if body, err := f.as(tenant).get(t.Context(), tenant+"/doc"); err != nil || body != "of "+tenant {
					t.Errorf("%s: %q, %v", tenant, body, err)
				}
			}
			if err := f.put(t.Context(), "gamma/doc", "x"); codeOf(err) != "AccessDenied" {
				t.Errorf("gamma: %v", err)
			}
			if !strings.Contains(f.ask(t, http.MethodGet, "/metrics"), "cmekproxy_tenant_file_errors 1\n") {
				t.Error("no metric")
			}

			f.write(t, row.tenant, f.file(row.tenant))
			eventually(t, "the error is gone", func() bool { return len(f.status(t).Files) == 0 })
			_ = os.Remove(filepath.Join(f.tenants, "gamma.yaml"))
		})
	}

	for _, name := range []string{"Acme.yaml", "acme.yml", "-.yaml", "x\n.yaml", "README"} {
		if err := os.WriteFile(filepath.Join(f.tenants, name), []byte(f.file("gamma")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(f.tenants, ".hidden.yaml"), []byte(f.file("gamma")), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "five names are errors", func() bool { return len(f.status(t).Files) == 5 })
	waitMetric(t, f.admin+"/metrics", "cmekproxy_tenants 2")
}

// TestTenantsAtTheStart: of two tenants in conflict none is served, a broken
// file leaves its objects refused, and the rule below is not used instead.
func TestTenantsAtTheStart(t *testing.T) {
	dir := t.TempDir()
	f := &fileTenants{tenants: filepath.Join(dir, "tenants"), keys: dir, audit: filepath.Join(dir, "audit.log")}
	if err := os.Mkdir(f.tenants, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"default", "acme", "beta", "gamma", "delta"} {
		f.newKey(t, name)
		f.write(t, name, f.file(name))
	}
	if err := os.Remove(filepath.Join(f.tenants, "default.yaml")); err != nil {
		t.Fatal(err)
	}
	f.write(t, "beta", strings.Replace(f.file("beta"), "[beta/]", "[acme/sub/]", 1))
	f.write(t, "gamma", "key: [\n")
	address := proxytest.ServeStore(t)
	f.startIn(t, dir, address)
	if _, err := f.store.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: new(tenantBucket)}); err != nil {
		t.Fatal(err)
	}

	status := f.status(t)
	if status.Served != 1 || len(status.Files) != 3 {
		t.Errorf("%+v", status)
	}
	for _, key := range []string{"acme/doc", "acme/sub/doc", "beta/doc", "gamma/doc"} {
		if err := f.put(t.Context(), key, "x"); codeOf(err) != "AccessDenied" {
			t.Errorf("%s: %v", key, err)
		}
	}
	if err := f.put(t.Context(), "delta/doc", "of delta"); err != nil {
		t.Error(err)
	}

	// One of them is mended: both are served.
	f.write(t, "beta", f.file("beta"))
	eventually(t, "both are served", func() bool {
		return f.put(t.Context(), "acme/doc", "of acme") == nil && f.put(t.Context(), "beta/doc", "of beta") == nil
	})
	f.end()

	// An object that someone has put into the area under another key is refused,
	// also without a tenant.
	if err := os.Remove(filepath.Join(f.tenants, "delta.yaml")); err != nil {
		t.Fatal(err)
	}
	f.startIn(t, dir, address)
	if _, err := f.get(t.Context(), "delta/doc"); codeOf(err) != "AccessDenied" {
		t.Errorf("after a restart without the tenant: %v", err)
	}
	if body, err := f.get(t.Context(), "acme/doc"); err != nil || body != "of acme" {
		t.Errorf("%q, %v", body, err)
	}
}

// TestTenantsDirectory: a directory that is missing, or another empty one,
// leaves all tenants as they were.
func TestTenantsDirectory(t *testing.T) {
	f := startFileTenants(t)
	f.add(t, "acme")
	away := f.tenants + "-away"
	served := func() {
		t.Helper()
		if body, err := f.as("acme").get(t.Context(), "acme/doc"); err != nil || body != "of acme" {
			t.Errorf("%q, %v", body, err)
		}
		waitStatus(t, f.admin+"/readyz", http.StatusOK)
	}

	if err := os.Rename(f.tenants, away); err != nil {
		t.Fatal(err)
	}
	waitMetric(t, f.admin+"/metrics", "cmekproxy_tenants_dir_failed 1")
	served()
	if err := os.Mkdir(f.tenants, 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is empty", func() bool { return strings.Contains(f.status(t).Error, "the directory is empty") })
	served()
	if err := os.Remove(f.tenants); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, f.tenants); err != nil {
		t.Fatal(err)
	}
	waitMetric(t, f.admin+"/metrics", "cmekproxy_tenants_dir_failed 0")
	served()

	// The last file of the same directory is removed.
	if err := os.Remove(filepath.Join(f.tenants, "acme.yaml")); err != nil {
		t.Fatal(err)
	}
	waitMetric(t, f.admin+"/metrics", "cmekproxy_tenants 0")
	if _, err := f.get(t.Context(), "acme/doc"); codeOf(err) != "AccessDenied" {
		t.Errorf("%v", err)
	}

	var out output
	if err := os.Rename(f.tenants, away); err != nil {
		t.Fatal(err)
	}
	if code := run(t.Context(), []string{"serve", "--config", f.config}, &out, &out); code == 0 ||
		!strings.Contains(out.String(), "tenants_dir") {
		t.Errorf("serve without the directory: exit code %d: %s", code, out.String())
	}
}

// TestTenantsInAVolume: the files of a Kubernetes volume change together.
func TestTenantsInAVolume(t *testing.T) {
	f := startFileTenants(t)
	for _, name := range []string{"acme", "beta"} {
		f.newKey(t, name)
	}
	version := 0
	swap := func(files map[string]string) {
		t.Helper()
		version++
		data := fmt.Sprintf("..v%d", version)
		if err := os.Mkdir(filepath.Join(f.tenants, data), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(f.tenants, data, name+".yaml"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_ = os.Symlink(filepath.Join("..data", name+".yaml"), filepath.Join(f.tenants, name+".yaml"))
		}
		link := filepath.Join(f.tenants, "..data_tmp")
		if err := errors.Join(os.Symlink(data, link), os.Rename(link, filepath.Join(f.tenants, "..data"))); err != nil {
			t.Fatal(err)
		}
		if version > 1 {
			if err := os.RemoveAll(filepath.Join(f.tenants, fmt.Sprintf("..v%d", version-1))); err != nil {
				t.Fatal(err)
			}
		}
	}

	acme, beta := f.file("acme"), f.file("beta")
	swap(map[string]string{"acme": acme, "beta": beta})
	waitMetric(t, f.admin+"/metrics", "cmekproxy_tenants 2")
	if err := errors.Join(f.put(t.Context(), "acme/doc", "a"), f.put(t.Context(), "beta/doc", "b")); err != nil {
		t.Fatal(err)
	}

	// The two exchange their prefixes, which no order of single changes allows.
	swap(map[string]string{"acme": strings.Replace(acme, "[acme/]", "[beta/]", 1), "beta": strings.Replace(beta, "[beta/]", "[acme/]", 1)})
	eventually(t, "they are exchanged", func() bool {
		_, err := f.get(t.Context(), "acme/doc")
		return codeOf(err) == "AccessDenied"
	})
	if s := f.status(t); s.Served != 2 || len(s.Files) != 0 {
		t.Errorf("%+v", s)
	}
	if err := f.as("acme").put(t.Context(), "beta/new", "x"); err != nil {
		t.Error(err)
	}

	swap(map[string]string{"acme": acme})
	eventually(t, "beta is removed", func() bool {
		_, err := f.as("beta").get(t.Context(), "beta/doc")
		return codeOf(err) == "InvalidAccessKeyId"
	})
	if body, err := f.as("acme").get(t.Context(), "acme/doc"); err != nil || body != "a" {
		t.Errorf("%q, %v", body, err)
	}
	swap(nil)
	waitMetric(t, f.admin+"/metrics", "cmekproxy_tenants 0")
}

// TestTenantsOnly: the objects of tenants are under their own keys, whatever
// the client asks for, and whatever was chosen for the bucket.
func TestTenantsOnly(t *testing.T) {
	f := startFileTenants(t)
	f.add(t, "acme")
	f.add(t, "beta")
	for _, key := range []string{"default", "tenant:beta", "alias/x"} {
		_, err := f.PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: new(tenantBucket), Key: new("acme/x"), Body: strings.NewReader("x"),
			ServerSideEncryption: "aws:kms", SSEKMSKeyId: &key,
		})
		if codeOf(err) != "AccessDenied" {
			t.Errorf("key %s: %v", key, err)
		}
	}
	out, err := f.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: new(tenantBucket), Key: new("acme/x"), Body: strings.NewReader("x"),
		ServerSideEncryption: "aws:kms", SSEKMSKeyId: new("tenant:acme"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: new(tenantBucket), Key: new("acme/x"), Body: strings.NewReader("x"),
		ServerSideEncryption: "aws:kms", SSEKMSKeyId: out.SSEKMSKeyId,
	}); err != nil {
		t.Errorf("the id of its own key: %v", err)
	}

	// Copied in the store, and copied by the proxy.
	if _, err := f.store.CopyObject(t.Context(), &s3.CopyObjectInput{
		Bucket: new(tenantBucket), Key: new("beta/copied"), CopySource: new(tenantBucket + "/acme/x"),
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.get(t.Context(), "beta/copied"); codeOf(err) != "AccessDenied" {
		t.Errorf("an object under the key of another tenant: %v", err)
	}
	if _, err := f.CopyObject(t.Context(), &s3.CopyObjectInput{
		Bucket: new(tenantBucket), Key: new("beta/proper"), CopySource: new(tenantBucket + "/acme/x"),
	}); err != nil {
		t.Fatal(err)
	}
	if body, err := f.get(t.Context(), "beta/proper"); err != nil || body != "x" {
		t.Errorf("%q, %v", body, err)
	}
	if answer, err := f.GetBucketEncryption(t.Context(), &s3.GetBucketEncryptionInput{Bucket: new(tenantBucket)}); err != nil ||
		answer.ServerSideEncryptionConfiguration.Rules[0].ApplyServerSideEncryptionByDefault.KMSMasterKeyID != nil {
		t.Errorf("GetBucketEncryption: %+v, %v", answer, err)
	}
}

// TestCommandsWithTenantFiles: commands find the keys of tenants, and name
// files with errors.
func TestCommandsWithTenantFiles(t *testing.T) {
	f := startFileTenants(t)
	f.add(t, "acme")
	f.add(t, "beta")
	putParts(t, f.Client, tenantBucket, "beta/parts", bytes.Repeat([]byte("x"), 5<<20), []byte("end"))
	f.newKey(t, "acme-2")
	command := func(args ...string) (int, string) {
		var out bytes.Buffer
		code := run(t.Context(), append(args, "--config", f.config), &out, &out)
		return code, out.String()
	}
	for _, row := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"check"}, 0, "2 tenants"},
		{[]string{"decrypt", "s3://data/acme/doc", "-o", "-"}, 0, "of acme"},
		{[]string{"verify", "s3://data"}, 0, ""},
		{[]string{"inventory", "s3://data"}, 0, "local:"},
		{[]string{"rewrap", "s3://data"}, 0, ""},
	} {
		if code, out := command(row.args...); code != row.code || !strings.Contains(out, row.want) {
			t.Errorf("%v: exit code %d: %s", row.args, code, out)
		}
	}

	// To another key, with the old one in read_keys.
	text, err := os.ReadFile(f.config)
	if err != nil {
		t.Fatal(err)
	}
	withOld := strings.Replace(string(text), "keys: [", fmt.Sprintf("keys: [{name: acme-old, provider: local, key_file: %s/acme.key}, ", f.keys), 1)
	if err := os.WriteFile(f.config, []byte(withOld), 0o600); err != nil {
		t.Fatal(err)
	}
	f.write(t, "acme", strings.Replace(f.file("acme"), "acme.key", "acme-2.key", 1)+"read_keys: [acme-old]\n")
	f.write(t, "beta", "key: [\n")
	if code, out := command("check"); code == 0 || !strings.Contains(out, "beta.yaml:2:1") {
		t.Errorf("check with a broken file: exit code %d: %s", code, out)
	}
	for _, row := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"decrypt", "s3://data/acme/doc", "-o", "-"}, 0, "of acme"},
		{[]string{"rewrap", "s3://data/acme/"}, 0, "beta.yaml"},
		{[]string{"verify", "s3://data/acme/"}, 0, ""},
		{[]string{"decrypt", "s3://data/beta/doc", "-o", "-"}, 1, "beta.yaml"},
		{[]string{"verify", "s3://data/beta/"}, 1, ""},
	} {
		if code, out := command(row.args...); code != row.code || !strings.Contains(out, row.want) {
			t.Errorf("%v: exit code %d: %s", row.args, code, out)
		}
	}
	if err := os.Remove(filepath.Join(f.keys, "acme.key")); err != nil {
		t.Fatal(err)
	}
	f.write(t, "acme", strings.Replace(f.file("acme"), "acme.key", "acme-2.key", 1))
	if code, out := command("decrypt", "s3://data/acme/doc", "-o", "-"); code != 0 || !strings.Contains(out, "of acme") {
		t.Errorf("after rewrap: exit code %d: %s", code, out)
	}
}

// TestAThousandTenantFiles: a thousand tenants cost nothing while they are
// idle, and adding one more neither parses nor opens the others again.
func TestAThousandTenantFiles(t *testing.T) {
	tenants, revoked := aThousand()
	a := newAWSTenants(t)
	name := func(i int) string { return fmt.Sprint("t", i) }
	dir := t.TempDir()
	f := &fileTenants{tenants: filepath.Join(dir, "tenants"), keys: dir, audit: filepath.Join(dir, "audit.log")}
	if err := os.Mkdir(f.tenants, 0o700); err != nil {
		t.Fatal(err)
	}
	file := func(tenant string) string {
		return fmt.Sprintf(`key: {provider: aws-kms, key_id: %s, endpoint: "%s", region: %s, timeout: 20s}
objects: [{buckets: [data], prefixes: [%s/]}]
clients: [{name: %s-app, access_key: AK%s, secret_key: secret-of-%s}]
`, a.arns[tenant], a.URL(), a.Region(), tenant, tenant, tenant, tenant)
	}
	for i := range tenants {
		a.add(t, name(i))
		f.write(t, name(i), file(name(i)))
	}
	f.newKey(t, "default")

	before, start := heap(), time.Now()
	f.startIn(t, dir, proxytest.ServeStore(t), "revocation_probe: 5s", "revocation_probe: 10s")
	t.Logf("start with %d tenants: %v, %d KiB of heap, store included",
		tenants, time.Since(start), (int64(heap())-int64(before))>>10)
	if _, err := f.store.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: new(tenantBucket)}); err != nil {
		t.Fatal(err)
	}
	if n := a.total(); n != 0 {
		t.Errorf("%d KMS calls for idle tenants", n)
	}

	a.add(t, "added")
	start = time.Now()
	f.write(t, "added", file("added"))
	eventually(t, "the new tenant is served", func() bool { return f.as("added").put(t.Context(), "added/doc", "x") == nil })
	t.Logf("served %v after its file was there; KMS calls: %v", time.Since(start), a.Calls())

	before = heap()
	forEach(tenants, func(i int) {
		if err := f.put(t.Context(), name(i)+"/doc", "of "+name(i)); err != nil {
			t.Errorf("%s: %v", name(i), err)
		}
	})
	t.Logf("%d open keys: %d KiB of heap, store and KMS included; KMS calls: %v",
		tenants, (int64(heap())-int64(before))>>10, a.Calls())
	metrics := f.ask(t, http.MethodGet, "/metrics")
	if n := strings.Count(metrics, `="tenant`); n > 100 || strings.Contains(metrics, "tenant:") ||
		!strings.Contains(metrics, fmt.Sprintf("cmekproxy_tenants %d\n", tenants+1)) {
		t.Errorf("%d time series", n)
	}

	// One is revoked by its owner, one by its file.
	if err := a.DisableKey(a.arns[name(revoked)]); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(f.tenants, name(revoked+1)+".yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are unreadable", func() bool {
		_, disabled := f.get(t.Context(), name(revoked)+"/doc")
		_, removed := f.get(t.Context(), name(revoked+1)+"/doc")
		return codeOf(disabled) == "KMS.DisabledException" && codeOf(removed) == "AccessDenied"
	})
	forEach(tenants, func(i int) {
		body, err := f.get(t.Context(), name(i)+"/doc")
		if gone := i == revoked || i == revoked+1; !gone && (err != nil || body != "of "+name(i)) || gone && err == nil {
			t.Errorf("tenant %d: %q, %v", i, body, err)
		}
	})
}

// TestUnopenedKeysOfTenants: an attempt to use a key that cannot be opened is in
// the audit log, with its request.
func TestUnopenedKeysOfTenants(t *testing.T) {
	f := startFileTenants(t)
	f.write(t, "acme", f.file("acme")) // without the key
	waitMetric(t, f.admin+"/metrics", "cmekproxy_tenants 1")
	if err := f.as("acme").put(t.Context(), "acme/doc", "x"); codeOf(err) != "KMS.NotFoundException" {
		t.Errorf("%v", err)
	}
	records, err := os.ReadFile(f.audit)
	if want := `"event":"create","result":"key not found","kms_key_name":"tenant:acme","source":"kms","tenant":"acme","client":"acme-app"`; err != nil ||
		!strings.Contains(string(records), want) {
		t.Errorf("%s, %v", records, err)
	}
}

// TestReloadWithTenants: a configuration that does not fit the tenants is
// refused as a whole.
func TestReloadWithTenants(t *testing.T) {
	f := startFileTenants(t)
	f.newKey(t, "acme")
	f.write(t, "acme", f.file("acme"))
	f.write(t, "beta", "key: [secret-of-beta")
	text, err := os.ReadFile(f.config)
	if err != nil {
		t.Fatal(err)
	}
	file, err := readConfig(f.config)
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.InfoLevel)
	s, err := newServer(t.Context(), file.Config, zap.New(core), "")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	s.file = file
	said := func() string {
		t.Helper()
		var out []string
		for _, entry := range logs.TakeAll() {
			out = append(out, fmt.Sprint(entry.Message, entry.ContextMap()))
		}
		if all := strings.Join(out, "\n"); !strings.Contains(all, "secret-of") {
			return all
		}
		t.Error("a secret was logged")
		return ""
	}
	if got := said(); strings.Count(got, "the file of a tenant has an error") != 1 || !strings.Contains(got, "beta.yaml:2:1") {
		t.Errorf("at the start: %s", got)
	}
	s.followTenants()
	if got := said(); got != "" {
		t.Errorf("without a change: %s", got)
	}

	known := func(accessKey string) bool { _, ok := s.clients.Now().Client(accessKey); return ok }
	for _, row := range []struct{ name, old, changed, want string }{
		{
			"another area", "- {buckets: [data], tenants", "- {buckets: [other], tenants",
			"tenant acme: no rule gives its objects in bucket data to tenants",
		},
		{"a client of that name", "name: app,", "name: acme-app,", "tenant acme: its client acme-app has the name"},
		{"its access key", "access_key: appkey,", "access_key: AKacme,", "tenant acme: its client acme-app has the name"},
		{"a good one", "access_key: appkey,", "access_key: newkey,", "configuration reloaded"},
	} {
		next := strings.Replace(string(text), row.old, row.changed, 1)
		if err := os.WriteFile(f.config, []byte(next), 0o600); err != nil || next == string(text) {
			t.Fatal(err)
		}
		s.reload(t.Context(), bySignal)
		good := row.name == "a good one"
		if got := said(); !strings.Contains(got, row.want) || !known("AKacme") || known("appkey") == good || known("newkey") != good {
			t.Errorf("%s: %s", row.name, got)
		}
	}

	// The tenants are compared with the new configuration.
	f.newKey(t, "beta")
	f.write(t, "beta", strings.Replace(f.file("beta"), "AKbeta", "newkey", 1))
	s.followTenants()
	if got := said(); !strings.Contains(got, "already has a client with this access_key") {
		t.Errorf("%s", got)
	}
	f.write(t, "beta", strings.Replace(f.file("beta"), "AKbeta", "appkey", 1)) // which is free now
	s.followTenants()
	if got := said(); !strings.Contains(got, "tenant added") || !known("appkey") {
		t.Errorf("%s", got)
	}
}

// TestTenantsWithoutAudit: without an audit record, access is only removed.
func TestTenantsWithoutAudit(t *testing.T) {
	f := startFileTenants(t)
	f.newKey(t, "acme")
	f.write(t, "acme", f.file("acme"))
	file, err := readConfig(f.config)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newServer(t.Context(), file.Config, zap.NewNop(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	out := &failingWriter{}
	log, err := audit.New(audit.Config{Out: out, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	s.useAudit(log)
	names := func() string { s.followTenants(); return strings.Join(s.tenants.state.Load().Names(), " ") }

	out.err = errors.New("no space left")
	f.newKey(t, "beta")
	f.write(t, "beta", f.file("beta"))
	if got := names(); got != "acme" {
		t.Errorf("added without a record: %s", got)
	}
	if err := os.Remove(filepath.Join(f.tenants, "acme.yaml")); err != nil {
		t.Fatal(err)
	}
	if got := names(); got != "" {
		t.Errorf("not removed: %s", got)
	}
	out.err = nil
	if got := names(); got != "beta" {
		t.Errorf("not added later: %s", got)
	}
}

// TestLimitsOfATenant: all clients of a tenant share its limit, and others are
// not affected.
func TestLimitsOfATenant(t *testing.T) {
	f := startFileTenants(t)
	f.add(t, "acme")
	f.add(t, "beta")
	f.write(t, "acme", strings.Replace(f.file("acme"), "clients: [", "clients: [{name: acme-2, access_key: AKacme2, secret_key: secret-of-acme2}, ", 1)+
		"limits: {max_concurrent_requests: 1, kms_max_concurrent: 1}\n")
	eventually(t, "acme's second client is served", func() bool {
		_, err := f.as("acme2").get(t.Context(), "acme/doc")
		return err == nil
	})

	acme := f.as("acme").presign(t, "acme/slow")
	once := func(tenant, key string) string {
		c := f.as(tenant)
		quick := c.Options().Copy()
		quick.RetryMaxAttempts = 1
		c.Client = s3.New(quick)
		_, err := c.get(t.Context(), key)
		return codeOf(err)
	}
	// A request that is slow leaves its slot for one for slow requests, so two
	// of them may be needed.
	eventually(t, "acme's second client is refused", func() bool {
		conn, err := net.Dial("tcp", f.listen)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_, after, _ := strings.Cut(acme, f.listen)
		fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000\r\n\r\nx", after, f.listen)
		return once("acme2", "acme/doc") == "SlowDown"
	})
	if code := once("beta", "beta/doc"); code != "" {
		t.Errorf("beta: %s", code)
	}
}

// failingWriter fails while it has an error.
type failingWriter struct{ err error }

func (w *failingWriter) Write(p []byte) (int, error) { return len(p), w.err }

// TestRecoveryOfATenant: each tenant may have its own recovery key, which opens
// its objects only.
func TestRecoveryOfATenant(t *testing.T) {
	f := startFileTenants(t)
	f.add(t, "acme")
	f.add(t, "beta")
	command := func(code int, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		if got := run(t.Context(), args, &out, &out); got != code {
			t.Errorf("%v: exit code %d: %s", args, got, out.String())
		}
		return out.String()
	}
	private := filepath.Join(f.keys, "recovery.key")
	public := regexp.MustCompile(`(?m)^recovery_public_key: (\S+)$`).FindStringSubmatch(
		command(0, "recovery", "keygen", "-o", private))[1]
	recoverable := func(key string) string {
		return strings.Replace(f.file("acme"), "acme.key}", key+".key, recovery_public_key: \""+public+"\"}", 1)
	}
	f.write(t, "acme", recoverable("acme"))

	if out := command(0, "rewrap", "s3://data", "--config", f.config); !strings.Contains(out, "rewrapped  1 objects") {
		t.Errorf("the object of before does not get the recovery key:\n%s", out)
	}
	if out := command(0, "rewrap", "s3://data", "--config", f.config); !strings.Contains(out, "rewrapped  0 objects") {
		t.Errorf("again:\n%s", out)
	}

	// The key is lost.
	if err := os.Remove(filepath.Join(f.keys, "acme.key")); err != nil {
		t.Fatal(err)
	}
	command(1, "decrypt", "s3://data/acme/doc", "-o", "-", "--config", f.config)
	if out := command(0, "decrypt", "s3://data/acme/doc", "-o", "-", "--config", f.config, "--recovery-key", private); !strings.Contains(out, "of acme") {
		t.Errorf("with the recovery key: %s", out)
	}
	if out := command(1, "decrypt", "s3://data/beta/doc", "-o", "-", "--config", f.config, "--recovery-key", private); strings.Contains(out, "of beta") {
		t.Errorf("it opens the object of another tenant: %s", out)
	}

	f.newKey(t, "acme-2")
	f.write(t, "acme", recoverable("acme-2"))
	command(0, "rewrap", "s3://data/acme/", "--config", f.config, "--recovery-key", private)
	eventually(t, "the object is readable again", func() bool {
		body, _ := f.as("acme").get(t.Context(), "acme/doc")
		return body == "of acme"
	})
}

// TestTenantsShareALogin: keys that differ only in their names share a token.
func TestTenantsShareALogin(t *testing.T) {
	vault := kmstest.StartVault(t)
	vault.AddAppRole("role", "secret-id", kmstest.VaultToken{TTL: time.Hour, Renewable: true})
	vault.AddAppRole("other", "secret-id", kmstest.VaultToken{TTL: time.Hour, Renewable: true})
	f := startFileTenants(t)
	file := func(name, role string) string {
		_, rest, _ := strings.Cut(f.file(name), "\n")
		return fmt.Sprintf("key: {provider: vault-transit, address: %q, key_id: %s, login: {approle: {role_id: %s, secret_id: secret-id}}}\n%s",
			vault.URL(), name, role, rest)
	}
	for _, row := range []struct {
		name, role string
		logins     int
	}{{"a", "role", 1}, {"b", "role", 1}, {"c", "other", 2}} {
		vault.CreateKey(row.name, "aes256-gcm96", true)
		f.write(t, row.name, file(row.name, row.role))
		eventually(t, row.name+" is served", func() bool { return f.put(t.Context(), row.name+"/doc", "x") == nil })
		if n := vault.Calls()["auth/approle/login"]; n != row.logins {
			t.Errorf("%s: %d logins, not %d", row.name, n, row.logins)
		}
	}
}

// TestKeyChangesDuringAnUpload: a multipart upload and a download go on under
// another key if the old one is in also_known_as.
func TestKeyChangesDuringAnUpload(t *testing.T) {
	a := newAWSTenants(t)
	f := startFileTenants(t)
	for _, name := range []string{"old", "new"} {
		a.add(t, name)
	}
	_, rest, _ := strings.Cut(f.file("acme"), "\n")
	file := func(key, also string) string {
		return fmt.Sprintf("key: {provider: aws-kms, key_id: %q, endpoint: %q, region: %s%s}\n%s", a.arns[key], a.URL(), a.Region(), also, rest)
	}
	f.write(t, "acme", file("old", ""))
	eventually(t, "acme is served", func() bool { return f.put(t.Context(), "acme/doc", "of acme") == nil })

	const size = 32 << 20
	big := strings.Repeat("x", size)
	if err := f.put(t.Context(), "acme/big", big); err != nil {
		t.Fatal(err)
	}
	out, err := f.GetObject(t.Context(), &s3.GetObjectInput{Bucket: new(tenantBucket), Key: new("acme/big")})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	if _, err := io.ReadFull(out.Body, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	made, err := f.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: new(tenantBucket), Key: new("acme/parts")})
	if err != nil {
		t.Fatal(err)
	}
	var parts []types.CompletedPart
	upload := func(n int32) {
		t.Helper()
		part, err := f.UploadPart(t.Context(), &s3.UploadPartInput{
			Bucket: new(tenantBucket), Key: new("acme/parts"), UploadId: made.UploadId, PartNumber: &n, Body: strings.NewReader(big[:5<<20]),
		})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, types.CompletedPart{PartNumber: &n, ETag: part.ETag})
	}

	upload(1)
	f.write(t, "acme", file("new", fmt.Sprintf(", also_known_as: [%q]", a.arns["old"])))
	eventually(t, "the new key is used", func() bool {
		put, err := f.PutObject(t.Context(), &s3.PutObjectInput{Bucket: new(tenantBucket), Key: new("acme/new"), Body: strings.NewReader("x")})
		return err == nil && *put.SSEKMSKeyId == a.arns["new"]
	})
	upload(2)
	if n, err := io.Copy(io.Discard, out.Body); err != nil || n != size-1<<20 {
		t.Errorf("the download: %d more bytes, %v", n, err)
	}
	if _, err := f.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{
		Bucket: new(tenantBucket), Key: new("acme/parts"), UploadId: made.UploadId,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	}); err != nil {
		t.Fatal(err)
	}
	whole, err := f.GetObject(t.Context(), &s3.GetObjectInput{Bucket: new(tenantBucket), Key: new("acme/parts")})
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Body.Close()
	if n, err := io.Copy(io.Discard, whole.Body); err != nil || n != 10<<20 {
		t.Errorf("the object of two parts: %d bytes, %v", n, err)
	}
	if body, err := f.get(t.Context(), "acme/doc"); err != nil || body != "of acme" {
		t.Errorf("%q, %v", body, err)
	}

	// The old key is given up.
	f.write(t, "acme", file("new", ""))
	eventually(t, "the old object is refused", func() bool {
		_, err := f.get(t.Context(), "acme/doc")
		return codeOf(err) == "AccessDenied"
	})
	if body, err := f.get(t.Context(), "acme/new"); err != nil || body != "x" {
		t.Errorf("%q, %v", body, err)
	}
}

// TestSharedLoginEnds: a login is shared by keys that differ in their ids only,
// and ends with the last of them.
func TestSharedLoginEnds(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "example")
	vault := kmstest.StartVault(t)
	key := func(change func(*config.Key)) config.Key {
		k := config.Key{
			Name: "tenant:a", Provider: config.VaultTransit, Address: vault.URL(), KeyID: "a", Timeout: 2 * time.Second,
			Login: config.Login{Token: config.Secret(vault.NewToken(kmstest.VaultToken{}))},
		}
		change(&k)
		return k
	}
	aws := func(region, role string) config.Key {
		return config.Key{
			Provider: config.AWSKMS, KeyID: "arn:aws:kms:" + region + ":111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
			RoleARN: role, Timeout: time.Second,
		}
	}
	one := key(func(*config.Key) {})
	for _, row := range []struct {
		name   string
		a, b   config.Key
		shared bool
	}{
		{"another id", one, func() config.Key { k := one; k.Name, k.KeyID = "tenant:b", "b"; return k }(), true},
		{"another token", one, key(func(*config.Key) {}), false},
		{"another mount", one, func() config.Key { k := one; k.Mount = "other"; return k }(), false},
		{"another timeout", one, func() config.Key { k := one; k.Timeout = time.Second; return k }(), false},
		{"the same region", aws("eu-central-1", ""), aws("eu-central-1", ""), true},
		{"another region", aws("eu-central-1", ""), aws("eu-west-1", ""), false},
		{"another role", aws("eu-central-1", ""), aws("eu-central-1", "arn:aws:iam::111122223333:role/x"), false},
	} {
		t.Run(row.name, func(t *testing.T) {
			var s sharedKMS
			_, releaseA, err := s.open(t.Context(), row.a, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, releaseB, err := s.open(t.Context(), row.b, nil)
			if err != nil {
				t.Fatal(err)
			}
			if shared := len(s.logins) == 1; shared != row.shared {
				t.Errorf("%d logins", len(s.logins))
			}
			releaseA()
			if len(s.logins) != 1 {
				t.Errorf("%d logins after one is released", len(s.logins))
			}
			releaseB()
			if len(s.logins) != 0 {
				t.Errorf("%d logins at the end", len(s.logins))
			}
		})
	}
}

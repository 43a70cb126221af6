//go:build !nodev

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/pemfile/pemtest"
)

// reloading is a proxy that does not serve, with a configuration file.
type reloading struct {
	*server
	path string
	text string
	logs *observer.ObservedLogs
}

func newReloading(t *testing.T, changes ...string) *reloading {
	t.Helper()
	path := writeConfig(t, "http://127.0.0.1:1", "127.0.0.1:0", "127.0.0.1:0", changes...)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return startReloading(t, path, string(text))
}

func startReloading(t *testing.T, path, text string) *reloading {
	t.Helper()
	r := &reloading{path: path, text: text}
	r.write(t, text)
	file, err := readConfig(path)
	if err != nil {
		t.Fatal(err)
	}

	core, logs := observer.New(zap.DebugLevel)
	r.logs = logs
	if r.server, err = newServer(t.Context(), file.Config, zap.New(core), ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	level := zap.NewAtomicLevel()
	r.file, r.level = file, &level
	return r
}

func (r *reloading) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(r.path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// reloadWith reloads the configuration with a text replaced.
func (r *reloading) reloadWith(t *testing.T, old, changed string) (reloaded, error) {
	t.Helper()
	if !strings.Contains(r.text, old) {
		t.Fatalf("%q is not in the configuration", old)
	}
	r.write(t, strings.Replace(r.text, old, changed, 1))
	return r.reload(t.Context(), bySignal)
}

// reloadRow is a change of a setting, and what shows the value in force.
type reloadRow struct {
	setting      string
	old, changed string // text in the configuration
	see          func(r *reloading) any
}

// files of the rows, for settings that are paths.
const (
	rowKey  = "ROWDIR/other.key"
	rowCert = "ROWDIR/tls.crt"
)

// Where rows insert settings.
const (
	atTop     = "limits:"
	inLimits  = "limits: {"
	inRule    = `{buckets: ["*"], key: main}`
	inClient  = `actions: [read, write]}]}`
	inKMS     = "kms: {"
	inDEK     = "dek_cache: {"
	inAudit   = "audit: {"
	inOrigin  = "origin: {"
	inTracing = "tracing: {"
	second    = "{name: second, provider: local, key_file: ROWDIR/second.key}"
)

func seeSettings(r *reloading) any { return r.api.CurrentSettings() }

func seeClients(r *reloading) any {
	for _, id := range []string{"appkey", "otherkey"} {
		if c, ok := r.clients.Now().Client(id); ok {
			return *c
		}
	}
	anonymous, _ := r.clients.Now().Anonymous()
	return fmt.Sprint(anonymous)
}

func seeRules(r *reloading) any {
	var all []any
	for _, bucket := range []string{"bucket", "other"} {
		for _, client := range []string{"app", "nobody"} {
			for _, key := range []string{"key", "p/key"} {
				rule, err := r.keys.Rule(keyring.Object{Bucket: bucket, Key: key}, client)
				all = append(all, rule, fmt.Sprint(err))
			}
		}
	}
	return all
}

func seeFormat(r *reloading) any {
	return r.keys.Format(keyring.Object{Bucket: "bucket", Key: "key"}, "app")
}

// seeSecond returns the key that is named second, as it was opened.
func seeSecond(r *reloading) any {
	held := r.held["second"]
	return []any{held.config, held.shared, r.held["second/1"]}
}

func seeLogin(r *reloading) any {
	credentials, err := r.login.Retrieve(nil) //nolint:staticcheck // it is not used
	return fmt.Sprint(credentials.AccessKeyID, credentials.SecretAccessKey, err)
}

// seeTracing returns the header for the receiver of spans; package
// tracing tests that it arrives.
func seeTracing(r *reloading) any { return tracingHeader(r.current().Tracing.Headers) }

func seeAudit(r *reloading) any { return r.audit.Load() }

func seeLimits(r *reloading) any {
	h := r.held["main"]
	return h.limits
}

// rows returns a row for each setting outside keys.
func settingRows() []reloadRow {
	top := func(name, value string, see func(r *reloading) any) reloadRow {
		return reloadRow{name, atTop, name + ": " + value + "\n" + atTop, see}
	}
	in := func(section, at, name, value string, see func(r *reloading) any) reloadRow {
		return reloadRow{section + "." + name, at, at + name + ": " + value + ", ", see}
	}
	rule := func(name, changed string) reloadRow {
		return reloadRow{"encryption.rules." + name, inRule, changed, seeRules}
	}
	client := func(name, old, changed string) reloadRow {
		return reloadRow{"clients." + name, old, changed, seeClients}
	}
	certificate := "tls: {cert_file: " + rowCert + ", key_file: ROWDIR/tls.key"
	paths := func(r *reloading) any {
		if files := r.tls.Load(); files != nil {
			return files.settings
		}
		return nil
	}
	grace := func(r *reloading) any { return r.current().Limits }
	window := func(r *reloading) any { return []any{r.keys.Window(r.cache.TTL()), r.cache.TTL()} }
	current := func(of func(c *config.Config) any) func(r *reloading) any {
		return func(r *reloading) any { return of(r.current()) }
	}

	out := []reloadRow{
		{"listen", "listen: 127.0.0.1:0", "listen: 127.0.0.1:9", nil},
		{"admin_listen", "admin_listen: 127.0.0.1:0", "admin_listen: 127.0.0.1:9", nil},
		top("health_listen", "127.0.0.1:9", nil), top("metrics_listen", "127.0.0.1:9", nil),
		{"trusted_proxies", "trusted_proxies: [127.0.0.0/8]", "trusted_proxies: [10.0.0.0/8]", nil},
		{"proxy_protocol", atTop, "proxy_protocol: required\n" + atTop, nil},
		top("admin_token", "0123456789abcdef", func(r *reloading) any { return r.adminToken.Load().Reveal() }),
		top("domain", "s3.example.com", seeSettings), top("domains", "[s3.example.com]", seeSettings),
		top("session_credentials_file", "ROWDIR/sessions.json", func(r *reloading) any { return r.clients.CurrentSessions() }),
		{"tenants_dir", "tenants_dir: ROWDIR/tenants", "tenants_dir: ROWDIR", nil},
		{"tracing.endpoint", "https://127.0.0.1:1", "https://127.0.0.1:2", nil},
		{"tracing.insecure", inTracing, inTracing + "insecure: true, ", nil},
		{"tracing.ca_file", inTracing, inTracing + "ca_file: " + rowCert + ", ", nil},
		{"tracing.sampling_ratio", inTracing, inTracing + "sampling_ratio: 0.5, ", nil},
		{"tracing.service_name", inTracing, inTracing + "service_name: other, ", nil},
		{"tracing.object_keys", inTracing, inTracing + "object_keys: true, ", nil},
		{"tracing.headers.name", "name: First", "name: Second", seeTracing},
		{"tracing.headers.value", "value: one", "value: two", seeTracing},
		{"metrics.clients", atTop, "metrics: {clients: 7}\n" + atTop, nil},
		{"metrics.buckets", atTop, "metrics: {buckets: 7}\n" + atTop, nil},
		top("reload_on_change", "true", func(r *reloading) any { return r.file.ReloadOnChange }),
		{"tls.cert_file", "tls: {ends_on_this_machine: true", certificate, paths},
		{"tls.key_file", "tls: {ends_on_this_machine: true", certificate, paths},
		{"tls.client_ca_file", "tls: {ends_on_this_machine: true", certificate + ", client_ca_file: " + rowCert, paths},
		{"tls.ends_on_this_machine", "ends_on_this_machine: true", "ends_on_this_machine: false", seeSettings},

		{"origin.endpoint", "http://127.0.0.1:1", "http://127.0.0.1:2", nil},
		{"origin.region", "region: us-east-1", "region: us-east-2", nil},
		{"origin.access_key", "access_key: storekey", "access_key: other", seeLogin},
		{"origin.secret_key", "secret_key: storesecretstoresecret", "secret_key: other-secret", seeLogin},
		in("origin", inOrigin, "path_style", "false", nil),
		{"origin.checksum_trailer", "checksum_trailer: true", "checksum_trailer: false", nil},
		in("origin", inOrigin, "truncated_uploads", "accept", nil),
		{"origin.etag_part_count", "etag_part_count: true", "etag_part_count: false", nil},
		in("origin", inOrigin, "keys", "literal", nil), in("origin", inOrigin, "uniform_parts", "true", nil),
		{"origin.sse.algorithm", inOrigin, inOrigin + "sse: {algorithm: AES256}, ", nil},
		{"origin.sse.key_id", inOrigin, inOrigin + "sse: {algorithm: 'aws:kms', key_id: x}, ", nil},
		{"origin.sse.bucket_key", inOrigin, inOrigin + "sse: {algorithm: 'aws:kms', bucket_key: true}, ", nil},
		in("origin", inOrigin, "ca_file", rowCert, nil), in("origin", inOrigin, "connect_timeout", "7s", nil),
		in("origin", inOrigin, "response_timeout", "7s", nil), in("origin", inOrigin, "idle_timeout", "7s", nil),

		client("name", "{name: app, access", "{name: other, access"),
		client("access_key", "access_key: appkey", "access_key: otherkey"),
		client("secret_key", "appsecretappsecret", "othersecretothersecret"),
		client("anonymous", "access_key: appkey, secret_key: appsecretappsecret", "anonymous: true"),
		client("allow.buckets", `buckets: ["*"], actions`, `buckets: ["b*"], actions`),
		client("allow.prefixes", `buckets: ["*"], actions`, `buckets: ["*"], prefixes: [p/], actions`),
		client("allow.actions", inClient, `actions: [read]}]}`),

		rule("buckets", `{buckets: [bucket], key: main}`), rule("prefixes", `{buckets: ["*"], prefixes: [p/], key: main}`),
		rule("clients", `{buckets: ["*"], clients: [app], key: main}`), rule("key", `{buckets: ["*"], key: second}`),
		rule("plaintext_objects", `{buckets: ["*"], key: main, plaintext_objects: allow}`),
		rule("allowed_keys", `{buckets: ["*"], key: main, allowed_keys: [second]}`),
		rule("read_keys", `{buckets: ["*"], key: main, read_keys: [second]}`),
		rule("customer_keys", `{buckets: ["*"], key: main, customer_keys: deny}`),
		rule("seal_metadata", `{buckets: ["*"], key: main, seal_metadata: true}`),
		rule("dek_reuse.max_age", `{buckets: ["*"], key: main, dek_reuse: {max_age: 1h}}`),
		rule("dek_reuse.max_objects", `{buckets: ["*"], key: main, dek_reuse: {max_age: 1h, max_objects: 5}}`),
		rule("dek_reuse.max_bytes", `{buckets: ["*"], key: main, dek_reuse: {max_age: 1h, max_bytes: 5}}`),
		{"encryption.plaintext_objects", "encryption: {", "encryption: {plaintext_objects: allow, ", seeRules},
		{"encryption.customer_keys", "customer_keys: allow", "customer_keys: deny", seeRules},
		{"encryption.format_version", "encryption: {", "encryption: {format_version: 1, ", seeFormat},
		{"encryption.verify_head", "encryption: {", "encryption: {verify_head: true, ", seeSettings},
		{"encryption.bucket_defaults_file", "encryption: {", "encryption: {bucket_defaults_file: ROWDIR/defaults, ", nil},

		in("dek_cache", inDEK, "ttl", "77s", window), in("dek_cache", inDEK, "revocation_probe", "3s", window),
		{"dek_cache.max_entries", "max_entries: 100", "max_entries: 77", current(func(c *config.Config) any { return c.DEKCache.MaxEntries })},
		in("dek_cache", inDEK, "outage_wait", "7s", current(func(c *config.Config) any { return c.DEKCache.OutageWait })),
		in("kms", inKMS, "max_concurrent", "7", seeLimits), in("kms", inKMS, "max_per_second", "7", seeLimits),
		in("kms", inKMS, "max_open_keys", "7", current(func(c *config.Config) any { return c.KMS.MaxOpenKeys })),
		{"kms.timeout", "kms: {timeout: 2s", "kms: {timeout: 7s", seeLimits},
		in("kms", inKMS, "price_per_10000", "7", func(r *reloading) any { return r.advisor.Report().PricePer10000 }),
		in("kms", inKMS, "currency", "EUR", func(r *reloading) any { return r.advisor.Report().Currency }),
		{"log.level", atTop, "log: {level: error}\n" + atTop, func(r *reloading) any { return r.level.Level() }},
		{"log.access", atTop, "log: {access: 100}\n" + atTop, seeSettings},
		{"audit.file", inAudit, "audit: {file: ROWDIR/audit.log, ", seeAudit},
		{"audit.stdout", inAudit, "audit: {stdout: true, ", seeAudit},
		{"audit.max_size_mb", inAudit, "audit: {file: ROWDIR/audit.log, max_size_mb: 7, ", seeAudit},
		{"audit.max_age_days", inAudit, "audit: {file: ROWDIR/audit.log, max_age_days: 7, ", seeAudit},
		{"audit.max_files", inAudit, "audit: {file: ROWDIR/audit.log, max_files: 7}\n#", seeAudit},

		in("limits", inLimits, "header_timeout", "7s", nil), in("limits", inLimits, "idle_timeout", "77s", seeSettings),
		in("limits", inLimits, "max_concurrent_requests", "7", seeSettings),
		in("limits", inLimits, "max_concurrent_per_client", "7", seeSettings),
		in("limits", inLimits, "max_concurrent_unsigned", "7", seeSettings),
		in("limits", inLimits, "memory", "777MiB", seeSettings),
		in("limits", inLimits, "max_connections", "7", func(r *reloading) any { return r.open.most() }),
		in("limits", inLimits, "min_bytes_per_second", "7", seeSettings),
		{"limits.shutdown_grace", "shutdown_grace: 20s", "shutdown_grace: 19s", grace},
		in("limits", inLimits, "shutdown_delay", "1s", grace),
	}
	return append(out, reloadRow{
		"encryption.rules.tenants", `{buckets: [other], tenants: true}`, `{buckets: [other], key: main}`, seeRules,
	})
}

// keyRows are changes of the key that is named second: its text before, and
// after. A provider that cannot be opened here must make the reload fail for
// that reason.
func keyRows() []reloadRow {
	const (
		aws   = "name: second, provider: aws-kms, endpoint: 'http://127.0.0.1:1', key_id: 'arn:aws:kms:us-east-1:1:key/a'"
		vault = "name: second, provider: vault-transit, address: 'http://127.0.0.1:1', key_id: k"
		token = vault + ", login: {token: t}"
		azure = "name: second, provider: azure-keyvault, key_id: 'https://v.vault.azure.net/keys/k/v'"
		hsm   = "name: second, provider: pkcs11, module: /none.so, token: t, key_label: l"
	)
	var out []reloadRow
	row := func(setting, before, after string) {
		out = append(out, reloadRow{"keys." + setting, before, after, seeSecond})
	}
	add := func(setting, base, more string) { row(setting, base, base+", "+more) }

	row("provider", "name: second, provider: local, key_file: ROWDIR/second.key", token)
	row("key_id", aws, strings.Replace(aws, "key/a", "key/b", 1))
	add("role_arn", aws, "role_arn: 'arn:aws:iam::1:role/r'")
	add("external_id", aws+", role_arn: 'arn:aws:iam::1:role/r'", "external_id: x")
	row("endpoint", aws, strings.Replace(aws, "127.0.0.1:1'", "127.0.0.1:2'", 1))
	add("region", aws, "region: us-east-1")
	add("also_known_as", aws, "also_known_as: ['arn:aws:kms:us-east-1:123456789012:key/11111111-1111-1111-1111-111111111111']")
	add("insecure", aws, "insecure: true")
	row("fips", "name: second, provider: aws-kms, key_id: 'arn:aws:kms:us-east-1:1:key/a'",
		"name: second, provider: aws-kms, fips: true, key_id: 'arn:aws:kms:us-east-1:1:key/a'")
	row("address", token, strings.Replace(token, "127.0.0.1:1", "127.0.0.1:2", 1))
	add("namespace", token, "namespace: n")
	add("mount", token, "mount: m")
	row("login.token", token, vault+", login: {token: u}")
	row("login.token_file", token, vault+", login: {token_file: ROWDIR/token}")
	row("login.approle.role_id", vault+", login: {approle: {role_id: a}}", vault+", login: {approle: {role_id: b}}")
	row("login.approle.secret_id", vault+", login: {approle: {role_id: a}}", vault+", login: {approle: {role_id: a, secret_id: s}}")
	row("login.approle.secret_id_file", vault+", login: {approle: {role_id: a}}",
		vault+", login: {approle: {role_id: a, secret_id_file: ROWDIR/token}}")
	row("login.approle.mount", vault+", login: {approle: {role_id: a}}", vault+", login: {approle: {role_id: a, mount: m}}")
	row("login.kubernetes.role", vault+", login: {kubernetes: {role: a}}", vault+", login: {kubernetes: {role: b}}")
	row("login.kubernetes.token_file", vault+", login: {kubernetes: {role: a}}",
		vault+", login: {kubernetes: {role: a, token_file: ROWDIR/token}}")
	row("login.kubernetes.mount", vault+", login: {kubernetes: {role: a}}", vault+", login: {kubernetes: {role: a, mount: m}}")
	add("ca_file", aws, "ca_file: "+rowCert)
	add("envelope_id", token, "envelope_id: e")
	add("timeout", aws, "timeout: 7s")
	for _, more := range []string{"algorithm: A256KW", "bindings: [x]", "write_form: 1", "accept_form: 1"} {
		setting, _, _ := strings.Cut(more, ":")
		row(setting, "name: second, provider: local, key_file: ROWDIR/second.key", azure+", "+more)
	}
	row("module", "name: second, provider: local, key_file: ROWDIR/second.key", hsm)
	row("token", "name: second, provider: local, key_file: ROWDIR/second.key", hsm)
	row("key_label", "name: second, provider: local, key_file: ROWDIR/second.key", hsm)
	row("pin", "name: second, provider: local, key_file: ROWDIR/second.key", hsm+", pin: '1'")
	row("key_file", "name: second, provider: local, key_file: ROWDIR/second.key",
		"name: second, provider: local, key_file: "+rowKey)
	row("members", "name: second, provider: all-of, members: [main, third]", "name: second, provider: all-of, members: [third, main]")
	return out
}

// rowFiles fills the directory of a row.
func rowFiles(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"second.key", "other.key"} {
		if err := kms.CreateLocalKeyFile(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	pair := pemtest.New(t, "row")
	pemtest.Replace(t, filepath.Join(dir, "tls.crt"), pair.Cert)
	pemtest.Replace(t, filepath.Join(dir, "tls.key"), pair.Key)
	for name, text := range map[string]string{"sessions.json": "[]", "token": "t"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// rowBase is a configuration with a section for each row, and the text of the
// key that is named second.
func rowBase(t *testing.T, dir, key string) *reloading {
	t.Helper()
	debug.SetMemoryLimit(math.MaxInt64) // a proxy of this process has set one
	third := fmt.Sprintf("{name: third, provider: local, key_file: %s/other.key}", dir)
	return newReloading(t,
		"keys: [", "keys: ["+strings.ReplaceAll(key, "ROWDIR", dir)+", "+third+", ",
		"limits: {", "kms: {timeout: 2s}\ndek_cache: {max_entries: 100}\naudit: {max_files: 1}\n"+
			"tracing: {endpoint: https://127.0.0.1:1, headers: [{name: First, value: one}]}\n"+
			"trusted_proxies: [127.0.0.0/8]\nlimits: {",
	)
}

// The log and the answer of a reload say the truth about each setting: a test
// changes it, and looks at what is in force.
func TestReloadOfEachSetting(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "example")
	covered := make(map[string]bool)
	for _, row := range settingRows() {
		covered[row.setting] = true
		t.Run(row.setting, func(t *testing.T) { testReloadRow(t, row, second, row.old, row.changed) })
	}
	for _, row := range keyRows() {
		covered[row.setting] = true
		t.Run(row.setting, func(t *testing.T) { testReloadRow(t, row, "{"+row.old+"}", "{"+row.old+"}", "{"+row.changed+"}") })
	}

	// A key's name is its identity, and a recovery key needs a generated one:
	// TestReloadOfKeys has them.
	covered["keys.name"], covered["keys.recovery_public_key"] = true, true
	for _, name := range settingNames(reflect.TypeFor[config.Config](), "") {
		if !covered[name] {
			t.Errorf("no row for %s", name)
		}
	}
}

// settingNames returns the names of all settings.
func settingNames(of reflect.Type, path string) (names []string) {
	for f := range of.Fields() {
		name := strings.TrimPrefix(path+"."+f.Tag.Get("yaml"), ".")
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			names = append(names, settingNames(inner, name)...)
			continue
		}
		names = append(names, name)
	}
	return names
}

func testReloadRow(t *testing.T, row reloadRow, key, old, changed string) {
	t.Helper()
	dir := rowFiles(t)
	r := rowBase(t, dir, key)
	if strings.Contains(row.setting, "tenants") {
		if err := os.Mkdir(filepath.Join(dir, "tenants"), 0o700); err != nil {
			t.Fatal(err)
		}
		const tenants = "rules: [{buckets: [other], tenants: true}, {buckets: [u], tenants: true}, "
		r = startReloading(t, r.path, "tenants_dir: "+dir+"/tenants\n"+strings.Replace(r.text, "rules: [", tenants, 1))
	}

	within := func(s string) string { return strings.ReplaceAll(s, "ROWDIR", dir) }
	var before any
	if row.see != nil {
		before = row.see(r)
	}
	got, err := r.reloadWith(t, within(old), within(changed))
	if err != nil && strings.HasPrefix(row.setting, "keys.") && strings.Contains(err.Error(), "key second: ") {
		return // the reload has tried it
	}
	if err != nil {
		t.Fatal(err)
	}

	if isLive := row.see != nil; slices.Contains(got.Applied, row.setting) == isLive {
		if slices.Contains(got.NeedsRestart, row.setting) == isLive {
			t.Errorf("%+v", got)
		}
	} else if !slices.ContainsFunc(got.Applied, func(s string) bool { return strings.HasPrefix(row.setting, s+".") }) {
		t.Errorf("%+v", got) // a list that has become longer is named as a whole
	}
	if row.see != nil && reflect.DeepEqual(before, row.see(r)) {
		t.Errorf("it is said to be applied, and is %v as before", before)
	}
}

// An invalid configuration changes nothing, whatever is invalid.
func TestReloadOfAnInvalidConfiguration(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	dir := rowFiles(t)
	r := rowBase(t, dir, strings.ReplaceAll(second, "ROWDIR", dir))
	state := func() any {
		return []any{
			seeSettings(r), seeClients(r), seeRules(r), seeSecond(r), seeLogin(r), seeAudit(r), seeLimits(r), r.held["main"],
			r.tls.Load(), *r.adminToken.Load(), r.open.most(), r.current(), r.file, r.cache.TTL(), r.level.Level(),
			r.clients.CurrentSessions(), r.keys.Snapshot(),
		}
	}

	before := state()
	// Each row also has valid changes, which must not be applied either.
	valid := "limits: {idle_timeout: 99s, max_connections: 9, "
	for name, row := range map[string][2]string{
		"listen":                   {"listen: 127.0.0.1:0", "listen: nowhere"},
		"admin_token":              {atTop, "admin_token: short\n" + atTop},
		"tls":                      {"ends_on_this_machine: true", "cert_file: /none, key_file: /none"},
		"origin":                   {"http://127.0.0.1:1", "nothing"},
		"clients":                  {"access_key: appkey, ", ""},
		"keys":                     {"keys: [", "keys: [{name: main, provider: local, key_file: /none}, "},
		"keys of a file":           {"keys: [", "keys: [{name: hsm, provider: pkcs11, module: /none, token: t, key_label: k}, "},
		"encryption":               {inRule, `{buckets: ["*"], key: none}`},
		"dek_cache":                {"dek_cache: {", "dek_cache: {ttl: 0, "},
		"kms":                      {"kms: {", "kms: {max_concurrent: 0, "},
		"log":                      {atTop, "log: {access: often}\n" + atTop},
		"audit":                    {inAudit, "audit: {file: /none/audit.log, "},
		"session_credentials_file": {atTop, "session_credentials_file: /none\n" + atTop},
		"limits":                   {"shutdown_grace: 20s", "shutdown_grace: 2h"},
		"YAML":                     {atTop, "}\n" + atTop},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(r.text, row[0], row[1], 1)
			if text == r.text {
				t.Fatalf("no %q in the configuration", row[0])
			}
			r.write(t, strings.Replace(text, "limits: {", valid, 1))
			if got, err := r.reload(t.Context(), bySignal); err == nil {
				t.Fatalf("applied: %+v", got)
			}
			if !reflect.DeepEqual(state(), before) {
				t.Error("something has changed")
			}
		})
	}
}

// What a reload does to keys.
func TestReloadOfKeys(t *testing.T) {
	dir := rowFiles(t)
	key := strings.ReplaceAll(second, "ROWDIR", dir)
	obj := keyring.Object{Bucket: "bucket", Key: "key"}
	names := func(r *reloading) (out []string) {
		for _, s := range r.keys.Status() {
			out = append(out, s.Name)
		}
		return out
	}

	t.Run("a new key and its rule", func(t *testing.T) {
		r := newReloading(t)
		r.write(t, strings.NewReplacer("keys: [", "keys: ["+key+", ", "key: main}", "key: second}").Replace(r.text))
		if _, err := r.reload(t.Context(), bySignal); err != nil {
			t.Fatal(err)
		}
		id, err := r.keys.KeyID(t.Context(), obj, "app", "")
		if err != nil || id != r.held["second"].raw.KeyID() || !slices.Equal(names(r), []string{"second", "main"}) {
			t.Errorf("%s %v %v", id, err, names(r))
		}
	})

	t.Run("a removed key", func(t *testing.T) {
		r := newReloading(t, "keys: [", "keys: ["+key+", ", "key: main}", "key: second}")
		d, err := r.keys.Create(t.Context(), obj, "app", keyring.Choice{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Release()
		r.observer.KMSCall(t.Context(), "second", keyring.OpProbe, time.Second, nil)
		r.write(t, strings.NewReplacer(key+", ", "", "key: second}", "key: main}").Replace(r.text))
		if _, err := r.reload(t.Context(), bySignal); err != nil {
			t.Fatal(err)
		}

		if err := d.Check(t.Context()); err == nil {
			t.Error("its data key can be used")
		}
		if _, err := r.keys.Open(t.Context(), obj, d.KeyID, d.Wrapped); err == nil {
			t.Error("an object under it was opened")
		}
		if page := scrape(t, r.server); strings.Contains(page, `"second"`) || !slices.Equal(names(r), []string{"main"}) {
			t.Errorf("%v, or its metrics are still there", names(r))
		}
		if n := r.logs.FilterMessage("key removed or replaced: its data keys are purged").Len(); n != 1 {
			t.Errorf("logged %d times", n)
		}
	})

	t.Run("another name", func(t *testing.T) {
		r := newReloading(t)
		r.write(t, strings.NewReplacer("name: main", "name: other", "key: main}", "key: other}").Replace(r.text))
		if _, err := r.reload(t.Context(), bySignal); err != nil || !slices.Equal(names(r), []string{"other"}) {
			t.Errorf("%v %v", err, names(r))
		}
	})

	t.Run("a KMS that is away", func(t *testing.T) {
		t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "example")
		r := newReloading(t)
		got, err := r.reloadWith(t, "keys: [", "log: {level: warn}\nkeys: [{name: away, provider: aws-kms, timeout: 100ms, "+
			"region: us-east-1, endpoint: 'http://127.0.0.1:1', key_id: alias/a}, ")
		if err != nil || !slices.Contains(got.Applied, "log.level") || !r.keys.Unopened("away") {
			t.Errorf("%+v %v", got, err)
		}
	})
}

// TestReloadCutsARemovedKey: a running transfer ends when its key is removed.
func TestReloadCutsARemovedKey(t *testing.T) {
	d := newDrained(t, "dek_cache: {ttl: 5m, revocation_probe: 0}")
	s := start(t, "serve", "--config", d.config)
	body := slowly(t, d.put(t))
	text, err := os.ReadFile(d.config)
	if err != nil {
		t.Fatal(err)
	}

	other := filepath.Join(t.TempDir(), "other.key")
	if err := kms.CreateLocalKeyFile(other); err != nil {
		t.Fatal(err)
	}
	changed := strings.NewReplacer("name: main", "name: other", d.key, other, "key: main}", "key: other}").Replace(string(text))
	if err := os.WriteFile(d.config, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	status, got := askAdmin(t, http.MethodPost, "http://"+d.admin+"/admin/reload")
	if status != http.StatusOK || !strings.Contains(got, `"keys.name"`) || !strings.Contains(got, `"needs_restart": []`) {
		t.Errorf("%d %s", status, got)
	}
	mustBeCut(t, body)

	bucket, key := "bucket", "key"
	if _, err := d.app.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key}); err == nil {
		t.Error("an object under the removed key was read")
	}
	s.end(t)
}

func askAdmin(t *testing.T, method, url string) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// TestReloadStorm: while the configuration changes all the time, each request
// succeeds, or is refused with 503.
func TestReloadStorm(t *testing.T) {
	listen, admin := freePort(t), freePort(t)
	path := writeConfig(t, sink(t).URL, listen, admin)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(filepath.Dir(path), "other.key")
	if err := kms.CreateLocalKeyFile(other); err != nil {
		t.Fatal(err)
	}
	s := start(t, "serve", "--config", path)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)

	stop, ended := make(chan struct{}), sync.WaitGroup{}
	bucket := "bucket"
	var good atomic.Int64
	for i := range 4 {
		ended.Go(func() {
			app := client(listen, "appkey", "appsecretappsecret")
			key := fmt.Sprint("key", i)
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, err := app.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x")},
					func(o *s3.Options) { o.Retryer = aws.NopRetryer{} })
				var refused smithy.APIError
				if err == nil {
					good.Add(1)
				} else if !errors.As(err, &refused) || refused.ErrorCode() != "ServiceUnavailable" && refused.ErrorCode() != "SlowDown" {
					t.Errorf("a request failed: %v", err)
				}
			}
		})
	}

	changed := strings.NewReplacer("name: main", "name: other", filepath.Join(filepath.Dir(path), "kms.key"), other,
		"key: main}", "key: other}", "limits: {", "limits: {max_concurrent_requests: 99, ").Replace(string(text))
	for i := range 40 {
		if err := os.WriteFile(path, []byte([]string{changed, string(text)}[i%2]), 0o600); err != nil {
			t.Fatal(err)
		}
		if status, body := askAdmin(t, http.MethodPost, "http://"+admin+"/admin/reload"); status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
		eventually(t, "requests succeed meanwhile", func() bool { return good.Load() > int64(i) })
	}
	close(stop)
	ended.Wait()
	s.end(t)
}

// TestReloadFollowsKubernetes: a change of ..data replaces the configuration, a
// key and the certificate at once.
func TestReloadFollowsKubernetes(t *testing.T) {
	t.Parallel()
	listen, admin, dir := freePort(t), freePort(t), t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	version := func(n int, name string) {
		inside := at(fmt.Sprint("..version", n))
		pair := pemtest.New(t, name)
		if err := os.Mkdir(inside, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := kms.CreateLocalKeyFile(filepath.Join(inside, "kms.key")); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf(`listen: %s
admin_listen: %s
reload_on_change: true
origin: {endpoint: "http://127.0.0.1:1", region: us-east-1, access_key: a, secret_key: storesecret}
clients: [{name: %s, access_key: appkey, secret_key: appsecretappsecret, allow: [{buckets: ["*"], actions: [read]}]}]
keys: [{name: %s, provider: local, key_file: %s}]
encryption: {rules: [{buckets: ["*"], key: %s}]}
tls: {cert_file: %s, key_file: %s}
`, listen, admin, name, name, at("kms.key"), name, at("tls.crt"), at("tls.key"))
		for file, data := range map[string][]byte{"tls.crt": pair.Cert, "tls.key": pair.Key, "config.yaml": []byte(text)} {
			if err := os.WriteFile(filepath.Join(inside, file), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(filepath.Base(inside), at("..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(at("..data_tmp"), at("..data")); err != nil {
			t.Fatal(err)
		}
	}

	version(1, "first")
	for _, name := range []string{"config.yaml", "kms.key", "tls.crt", "tls.key"} {
		if err := os.Symlink(filepath.Join("..data", name), at(name)); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, "serve", "--config", at("config.yaml"))
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	if got := shownName(t, listen); got != "first" {
		t.Errorf("the certificate of %q", got)
	}

	version(2, "second")
	eventually(t, "the new key is used", func() bool {
		_, keys := askAdmin(t, http.MethodGet, "http://"+admin+"/admin/keys")
		return strings.Contains(keys, `"name": "second"`) && !strings.Contains(keys, `"name": "first"`)
	})
	eventually(t, "the new certificate is shown", func() bool { return shownName(t, listen) == "second" })
	s.end(t)
}

// With reload_on_change, an error in the file is logged once, and tried again.
func TestReloadOnChangeTriesAgain(t *testing.T) {
	r := newReloading(t, "limits:", "reload_on_change: true\nlimits:")
	token := filepath.Join(t.TempDir(), "token")
	r.write(t, strings.Replace(r.text, "limits:", "admin_token: file:"+token+"\nlimits:", 1))
	const failed = "config reload failed; keeping the current configuration"
	for range 3 {
		r.followFiles(t.Context())
	}
	if n := r.logs.FilterMessage(failed).Len(); n != 1 || *r.adminToken.Load() != "" {
		t.Errorf("logged %d times", n)
	}

	if err := os.WriteFile(token, []byte("0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.followFiles(t.Context())
	if *r.adminToken.Load() == "" {
		t.Error("not tried again")
	}
	r.followFiles(t.Context())
	if n := r.logs.FilterMessage("configuration reloaded").Len(); n != 1 {
		t.Errorf("reloaded %d times", n)
	}

	if err := os.Remove(r.path); err != nil {
		t.Fatal(err)
	}
	r.followFiles(t.Context())
	if n := r.logs.FilterMessage(failed).Len(); n != 2 || *r.adminToken.Load() == "" {
		t.Errorf("without the file, logged %d times", n)
	}
}

// The admin API says what a reload has done.
func TestReloadByTheAdminAPI(t *testing.T) {
	listen, admin := freePort(t), freePort(t)
	log := filepath.Join(t.TempDir(), "audit.log")
	path := writeConfig(t, sink(t).URL, listen, admin, "limits:", "audit: {file: "+log+"}\nlimits:")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, "serve", "--config", path)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)

	for _, row := range []struct {
		name, old, changed    string
		status                int
		applied, needsRestart []string
		problem               string
	}{
		{"nothing", "", "", http.StatusOK, []string{}, []string{}, ""},
		{
			"both", "limits: {", "limits: {header_timeout: 7s, idle_timeout: 77s, ", http.StatusOK,
			[]string{"limits.idle_timeout"},
			[]string{"limits.header_timeout"},
			"",
		},
		{"an error", "limits: {", "limits: {idle_timeout: 0s, ", 422, []string{}, []string{}, "idle_timeout must be from"},
		{"back", "", "", http.StatusOK, []string{"limits.idle_timeout"}, []string{}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(strings.Replace(string(text), row.old, row.changed, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			status, body := askAdmin(t, http.MethodPost, "http://"+admin+"/admin/reload")
			var got reloadAnswerJSON
			if err := json.Unmarshal([]byte(body), &got); err != nil || status != row.status {
				t.Fatalf("%d %s", status, body)
			}
			if !slices.Equal(got.Applied, row.applied) || !slices.Equal(got.NeedsRestart, row.needsRestart) ||
				!strings.Contains(got.Error, row.problem) || (got.Error == "") != (row.problem == "") {
				t.Errorf("%s", body)
			}
		})
	}

	const want = "applied: limits.idle_timeout; needs a restart: limits.header_timeout"
	if all := auditRecords(t, log); len(all) != 3 || all[0].Detail != "applied: none" || all[1].Detail != want {
		t.Errorf("%+v", all)
	}
	s.end(t)
}

func TestLogLevelByTheAdminAPI(t *testing.T) {
	r := newReloading(t)
	mux := r.adminAPI()
	ask := func(method, query string) (int, string) {
		w := httptest.NewRecorder()
		request, err := http.NewRequestWithContext(t.Context(), method, "/admin/log-level"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		mux.ServeHTTP(w, request)
		return w.Code, w.Body.String()
	}
	for _, row := range []struct {
		name, method, query string
		status              int
		level               string
	}{
		{"at the start", http.MethodGet, "", 200, "info"},
		{"debug", http.MethodPut, "?level=debug", 200, "debug"},
		{"error", http.MethodPut, "?level=error", 200, "error"},
		{"unknown", http.MethodPut, "?level=loud", 400, "error"},
		{"none", http.MethodPut, "", 400, "error"},
		{"too high", http.MethodPut, "?level=fatal", 400, "error"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if status, body := ask(row.method, row.query); status != row.status || r.level.String() != row.level {
				t.Errorf("%d %s, level %s", status, body, r.level)
			}
		})
	}

	// A reload of other settings leaves it, and one of log.level changes it.
	if _, err := r.reloadWith(t, "limits: {", "limits: {idle_timeout: 77s, "); err != nil || r.level.String() != "error" {
		t.Errorf("%v %s", err, r.level)
	}
	if _, err := r.reloadWith(t, atTop, "log: {level: warn}\n"+atTop); err != nil || r.level.String() != "warn" {
		t.Errorf("%v %s", err, r.level)
	}
}

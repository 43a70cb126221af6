package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// base is the smallest config. Tests change one line of it and expect its
// line numbers.
const base = `listen: 127.0.0.1:9000
origin:
  endpoint: http://127.0.0.1:7070
  region: us-east-1
clients:
  - name: app
    access_key: AKAPP
    secret_key: in-the-clear
    allow:
      - {buckets: ["*"], actions: [read]}
keys:
  - name: default
    provider: local
    key_file: /k
encryption:
  rules:
    - buckets: ["*"]
      key: default
`

func environment(names map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, ok := names[name]
		return value, ok
	}
}

func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("c.yaml", []byte(text), environment(nil))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// replace fails the test if base does not contain old, so that no case
// tests nothing.
func replace(t testing.TB, old, changed string) string {
	t.Helper()
	if strings.Count(base, old) != 1 {
		t.Fatalf("%q occurs %d times in the base config", old, strings.Count(base, old))
	}
	return strings.Replace(base, old, changed, 1)
}

// load reads and parses a file.
func load(path string, lookupEnv func(string) (string, bool)) (*config.Config, error) {
	text, err := config.Read(path)
	if err != nil {
		return nil, err
	}
	return config.Parse(path, text, lookupEnv)
}

func TestDefaults(t *testing.T) {
	want := &config.Config{
		Listen:        "127.0.0.1:9000",
		AdminListen:   "127.0.0.1:9001",
		ProxyProtocol: config.Off,
		Origin: config.Origin{
			Endpoint: "http://127.0.0.1:7070", Region: "us-east-1", PathStyle: true,
			ChecksumTrailer: config.Auto, TruncatedUploads: config.Refuse, ETagPartCount: config.Auto,
			SSE:            config.SSE{Algorithm: "none"},
			ConnectTimeout: 5 * time.Second, ResponseTimeout: 45 * time.Second, IdleTimeout: 30 * time.Second,
		},
		Clients: []config.Client{{
			Name: "app", AccessKey: "AKAPP", SecretKey: "in-the-clear",
			Allow: []config.Grant{{Buckets: []string{"*"}, Actions: []string{"read"}}},
		}},
		Keys: []config.Key{{Name: "default", Provider: config.Local, KeyFile: "/k", Timeout: 2 * time.Second}},
		Encryption: config.Encryption{
			Rules: []config.Rule{
				{Buckets: []string{"*"}, Key: "default", PlaintextObjects: config.Deny, CustomerKeys: config.Deny},
			},
			PlaintextObjects: config.Deny, CustomerKeys: config.Deny, FormatVersion: 2,
		},
		DEKCache: config.DEKCache{
			TTL: 5 * time.Minute, MaxEntries: 100000, RevocationProbe: 10 * time.Second, OutageWait: 30 * time.Second,
		},
		KMS: config.KMS{
			MaxConcurrent: 64, MaxPerSecond: 1000, Timeout: 2 * time.Second, MaxOpenKeys: 1000,
			PricePer10000: 0.03, Currency: "USD",
		},
		Audit:   config.Audit{MaxSizeMB: 100},
		Tracing: config.Tracing{SamplingRatio: 0.01, ServiceName: "cmekproxy"},
		Log:     config.Log{Level: "info", Access: "on"},
		Limits: config.Limits{
			HeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
			MaxConcurrentRequests: 1024, MaxConnections: 4096, MinBytesPerSecond: 1024, ShutdownGrace: 30 * time.Second,
			ShutdownDelay: 5 * time.Second,
		},
	}
	if got := parse(t, base); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// AWS_CA_BUNDLE applies to the store, as in all AWS SDKs, unless the
// configuration overrides it.
func TestCABundle(t *testing.T) {
	const own = "  region: us-east-1\n  ca_file: /own.pem\n"
	for _, row := range []struct {
		text, bundle, want string
	}{
		{base, "", ""},
		{base, "/bundle.pem", "/bundle.pem"},
		{replace(t, "  region: us-east-1\n", own), "/bundle.pem", "/own.pem"},
	} {
		names := map[string]string{}
		if row.bundle != "" {
			names["AWS_CA_BUNDLE"] = row.bundle
		}

		c, err := config.Parse("c.yaml", []byte(row.text), environment(names))
		if err != nil {
			t.Fatal(err)
		}
		if c.Origin.CAFile != row.want {
			t.Errorf("AWS_CA_BUNDLE=%s: %q, want %q", row.bundle, c.Origin.CAFile, row.want)
		}
	}
}

func TestAccepted(t *testing.T) {
	tests := []struct {
		name, text string
		holds      func(*config.Config) bool
	}{
		{
			"domain", base + "domain: s3.example.com\n",
			func(c *config.Config) bool { return c.Domain == "s3.example.com" },
		},
		{
			"domains", base + "domains: [s3.example.com, s3.internal]\n",
			func(c *config.Config) bool {
				return slices.Equal(c.Domains, []string{"s3.example.com", "s3.internal"})
			},
		},
		{
			"members and a recovery key", replace(t, "    key_file: /k\n", "    key_file: /k\n"+
				"  - {name: two, provider: local, key_file: l}\n  - {name: both, provider: all-of, members: [default, two], "+
				"recovery_public_key: \"cmekproxy-recovery-public-v1:RQAf6D+0YBC7AIldXIoxd88pyQYVhYIHTfiY/2FGtVI=\"}\n"),
			func(c *config.Config) bool { return c.Keys[2].IsTogether() && len(c.Keys[2].Members) == 2 },
		},
		{
			"path_style off", replace(t, "  region: us-east-1", "  region: us-east-1\n  path_style: false"),
			func(c *config.Config) bool {
				return !c.Origin.PathStyle
			},
		},
		{"probe off", base + "dek_cache: {revocation_probe: 0}\n", func(c *config.Config) bool {
			return c.DEKCache.RevocationProbe == 0 && c.DEKCache.TTL == 5*time.Minute
		}},
		{"default probe with a short ttl", base + "dek_cache: {ttl: 10s}\n", func(c *config.Config) bool {
			return c.DEKCache.RevocationProbe == 0
		}},
		{
			"default shutdown_delay with a short shutdown_grace", base + "limits: {shutdown_grace: 2s}\n",
			func(c *config.Config) bool {
				return c.Limits.ShutdownDelay == 2*time.Second
			},
		},
		{
			"memory", base + "limits: {memory: 512MiB}\n",
			func(c *config.Config) bool { return c.Limits.Memory == 512<<20 },
		},
		{
			"shutdown_delay off", base + "limits: {shutdown_delay: 0}\n",
			func(c *config.Config) bool { return c.Limits.ShutdownDelay == 0 },
		},
		{"longest ttl", base + "dek_cache: {ttl: 24h}\n", func(c *config.Config) bool {
			return c.DEKCache.TTL == 24*time.Hour && c.DEKCache.RevocationProbe == 10*time.Second
		}},
		{"a timeout for all keys", base + "kms: {timeout: 5s}\n", func(c *config.Config) bool {
			return c.KMS.Timeout == 5*time.Second && c.Keys[0].Timeout == 5*time.Second
		}},
		{"a timeout for one key", replace(t, "    provider: local\n    key_file: /k\n",
			"    provider: gcp-kms\n    key_id: k\n    timeout: 7s\n") +
			"kms: {timeout: 5s}\n", func(c *config.Config) bool { return c.Keys[0].Timeout == 7*time.Second }},
		{
			"outage_wait off", base + "dek_cache: {outage_wait: 0}\n",
			func(c *config.Config) bool { return c.DEKCache.OutageWait == 0 },
		},
		{
			"default outage_wait with a short idle_timeout", base + "limits: {idle_timeout: 10s}\n",
			func(c *config.Config) bool {
				return c.DEKCache.OutageWait == 5*time.Second
			},
		},
		{"price", base + "kms: {price_per_10000: 0.15, currency: €}\n", func(c *config.Config) bool {
			return c.KMS.PricePer10000 == 0.15 && c.KMS.Currency == "€"
		}},
		{"rule inherits", base + "  plaintext_objects: allow\n", func(c *config.Config) bool {
			return c.Encryption.Rules[0].PlaintextObjects == config.Allow
		}},
		{"rule overrides", base + "      plaintext_objects: allow\n", func(c *config.Config) bool {
			return c.Encryption.Rules[0].PlaintextObjects == config.Allow &&
				c.Encryption.PlaintextObjects == config.Deny
		}},
		{"numbers as text", replace(t, "AKAPP", "0123"), func(c *config.Config) bool {
			return c.Clients[0].AccessKey == "0123"
		}},
		{
			"empty text is as good as none", replace(t, "    key_file: /k", "    key_file: /k\n    role_arn: \"\""),
			func(c *config.Config) bool {
				return c.Keys[0].RoleARN == ""
			},
		},
		{
			"trusted proxies", base + "trusted_proxies: [10.1.0.0/24, 10.2.0.7/32, fd00::/8]\nproxy_protocol: required\n",
			func(c *config.Config) bool { return len(c.TrustedProxies) == 3 && c.ProxyProtocol == config.Required },
		},
		{"free ports", replace(t, "9000", "0") + "admin_listen: 127.0.0.1:0\n", func(c *config.Config) bool {
			return c.AdminListen == "127.0.0.1:0"
		}},
		{"one port on two addresses", base + "admin_listen: 127.0.0.2:9000\n", func(c *config.Config) bool {
			return c.AdminListen == "127.0.0.2:9000"
		}},
		{
			"rules after a narrower one", replace(t, "    - buckets: [\"*\"]",
				"    - {buckets: [\"*\"], prefixes: [x], key: default}\n    - buckets: [\"*\"]"),
			func(c *config.Config) bool {
				return len(c.Encryption.Rules) == 2
			},
		},
		{"a document marker", "---\n" + base + "...\n", func(*config.Config) bool { return true }},
		{"line ends of Windows", strings.ReplaceAll(base, "\n", "\r\n"), func(*config.Config) bool { return true }},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if c := parse(t, tt.text); !tt.holds(c) {
				t.Errorf("not as expected: %+v", c)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	if _, err := load(path, environment(nil)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := load(dir, environment(nil)); err == nil {
		t.Error("a directory was read")
	}

	if err := os.WriteFile(path, []byte(base), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := load(path, environment(nil)); err != nil || c.Listen != "127.0.0.1:9000" {
		t.Errorf("a good file: %v, %v", c, err)
	}

	if err := os.WriteFile(path, []byte(base+strings.Repeat("#", 1<<20)), 0o600); err != nil {
		t.Fatal(err)
	}

	_, err := load(path, environment(nil))
	if want := path + ":1:1: the file is larger than 1 MiB"; err == nil || err.Error() != want {
		t.Errorf("a large file: %v", err)
	}
}

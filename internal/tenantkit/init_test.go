package tenantkit_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/tenantkit"
)

var update = flag.Bool("update", false, "write the files in testdata again")

// facts are the values of each provider, for the tenant acme.
var facts = map[string]map[string]string{
	tenantkit.AWS: {
		"name": "acme", "bucket": "data", "account": "444455556666", "region": "eu-central-1",
		"vendor-principal": "arn:aws:iam::111122223333:role/cmekproxy", "external-id": "0123456789abcdef",
	},
	tenantkit.GCP: {
		"name": "acme", "bucket": "data", "project": "acme-keys", "location": "europe-west3",
		"service-account": "proxy@vendor.iam.gserviceaccount.com",
	},
	tenantkit.Azure: {
		"name": "acme", "bucket": "data", "location": "westeurope", "vault-name": "acme-keys",
		"azure-tenant": "72f988bf-0000-0000-0000-2d7cd011db47", "app-id": "11111111-2222-3333-4444-555555555555",
	},
	tenantkit.Vault: {"name": "acme", "bucket": "data", "address": "https://vault.acme.example:8200"},
}

// with returns the facts of a provider with changes: name, value and so on.
func with(provider string, changes ...string) map[string]string {
	out := maps.Clone(facts[provider])
	for i := 0; i < len(changes); i += 2 {
		out[changes[i]] = changes[i+1]
	}
	return out
}

func make1(t *testing.T, o tenantkit.Order) *tenantkit.Kit {
	t.Helper()
	kit, err := tenantkit.Init(o)
	if err != nil {
		t.Fatal(err)
	}
	return kit
}

// everyOrder returns an order for each provider and format, without and with
// everything that is optional.
func everyOrder() map[string]tenantkit.Order {
	out := make(map[string]tenantkit.Order)
	for _, provider := range tenantkit.Providers() {
		for _, format := range tenantkit.Formats(provider) {
			plain := tenantkit.Order{Provider: provider, Format: format, Values: facts[provider]}
			out[provider+"-"+format] = plain
			full := plain
			full.BucketKeys, full.Inspect = provider == tenantkit.AWS, provider != tenantkit.Azure
			if provider == tenantkit.Vault {
				full.Values = with(provider, "namespace", "team/app", "mount", "kms/transit")
			}
			out[provider+"-"+format+"-full"] = full
		}
	}
	return out
}

func TestInitGolden(t *testing.T) {
	for name, order := range everyOrder() {
		t.Run(name, func(t *testing.T) {
			kit := make1(t, order)
			got := kit.Artifact + "\n===== entry =====\n" + kit.Entry + "\n===== steps =====\n" + kit.Steps
			path := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s is not (-update):\n%s", path, got)
			}
			for i, line := range strings.Split(got, "\n") {
				if len(line) > 130 || strings.TrimRight(line, " ") != line {
					t.Errorf("line %d is too long, or ends in a space: %q", i+1, line)
				}
			}
		})
	}
}

// The entry is loadable as it is, with the rest of a configuration.
func TestEntryLoads(t *testing.T) {
	const rest = `
listen: 127.0.0.1:9000
origin: {endpoint: "https://store.example", region: us-east-1}
clients:
  - {name: app, access_key: AKEXAMPLE, secret_key: "a long secret", allow: [{buckets: ["*"], actions: [read]}]}
`
	for _, odd := range []string{"acme", "123", "true", "null", "0x10", "1e5", "no"} {
		for name, order := range everyOrder() {
			order.Values = maps.Clone(order.Values)
			order.Values["name"] = odd
			kit := make1(t, order)
			cfg, err := config.Parse("entry.yaml", []byte(kit.Entry+rest), func(string) (string, bool) { return "", false })
			if err != nil {
				t.Errorf("%s of %s: %v\n%s", name, odd, err, kit.Entry)
				continue
			}
			if k, r := cfg.Keys[0], cfg.Encryption.Rules[0]; k.Name != odd || r.Key != odd || r.Prefixes[0] != odd+"/" {
				t.Errorf("%s of %s: key %q, rule %+v", name, odd, k.Name, r)
			}
		}
	}
}

func TestInitRefuses(t *testing.T) {
	hostile := []string{
		"", "ac me", "acme\n", "a\ncme", `ac"me`, "ac'me", "ac$(id)me", "ac`id`me", "${jndi}", "acme;id", "../acme",
		"acme/", "-acme", "acme-", "Acme", "äcme", "acme\x00", "a{{.name}}", "acme#", "acme: x", strings.Repeat("a", 49),
		"%s", "a\\nb", "*", "a*", "acme|id", "acme&", "<acme>",
	}
	for _, provider := range tenantkit.Providers() {
		for _, name := range hostile {
			_, err := tenantkit.Init(tenantkit.Order{Provider: provider, Values: with(provider, "name", name)})
			if err == nil || !strings.Contains(err.Error(), "--name") {
				t.Errorf("%s, name %q: %v", provider, name, err)
			}
		}
	}

	for _, v := range tenantkit.Values() {
		for _, provider := range tenantkit.Providers() {
			if !v.For(provider) {
				continue
			}
			for _, value := range []string{
				"a b", "a\n", "x\"y", "x'y", "$(id)", "${x}", "`id`", "x;y", "x*", "x?", "ü", "a\u2028b", "x\x00", "x\\y",
				"{{x}}", "x/../y/", "#x", "'; id; '", "%{x}", "-x\n- y",
			} {
				_, err := tenantkit.Init(tenantkit.Order{Provider: provider, Values: with(provider, v.Name, value)})
				if err == nil || !strings.Contains(err.Error(), "--"+v.Name) {
					t.Errorf("%s, %s %q: %v", provider, v.Name, value, err)
				}
			}
		}
	}

	for _, tc := range []struct {
		name  string
		order tenantkit.Order
		want  string
	}{
		{"unknown provider", tenantkit.Order{Provider: "ibm"}, "no kit for this provider"},
		{"no values", tenantkit.Order{Provider: "gcp"}, "--service-account is missing"},
		{
			"format of another",
			tenantkit.Order{Provider: "gcp", Format: "cloudformation", Values: facts["gcp"]},
			"one of: gcloud, terraform",
		},
		{
			"value of another",
			tenantkit.Order{Provider: "gcp", Values: with("gcp", "account", "111122223333")},
			"--account is not for gcp",
		},
		{"bucket keys", tenantkit.Order{Provider: "gcp", BucketKeys: true, Values: facts["gcp"]}, "only for aws"},
		{
			"prefix of a whole bucket",
			tenantkit.Order{Provider: "gcp", WholeBucket: true, Values: with("gcp", "prefix", "acme/")},
			"exclude each other",
		},
		{"inspect", tenantkit.Order{Provider: "azure", Inspect: true, Values: facts["azure"]}, "not for azure"},
		{
			"the whole account",
			tenantkit.Order{Provider: "aws", Values: with("aws", "vendor-principal", "arn:aws:iam::111122223333:root")},
			"--vendor-principal",
		},
		{
			"everyone",
			tenantkit.Order{Provider: "aws", Values: with("aws", "vendor-principal", "*")},
			"--vendor-principal",
		},
		{
			"http",
			tenantkit.Order{Provider: "vault", Values: with("vault", "address", "http://vault.example")},
			"--address",
		},
	} {
		if _, err := tenantkit.Init(tc.order); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

func TestWholeBucket(t *testing.T) {
	server := kmstest.StartTest(t)
	order := tenantkit.Order{
		Provider: tenantkit.AWS, Format: "terraform", WholeBucket: true, Values: facts[tenantkit.AWS],
	}
	if kit := make1(t, order); strings.Contains(kit.Entry, "prefixes") {
		t.Error(kit.Entry)
	}

	key := deploy(t, server, order)
	for name, tc := range map[string]struct {
		ec   kms.EncryptionContext
		want bool
	}{
		"any object":     {kms.EncryptionContext{"bucket": "data", "key": "x"}, true},
		"another bucket": {kms.EncryptionContext{"bucket": "data2", "key": "x"}, false},
		"no object":      {kms.EncryptionContext{"bucket": "data"}, false},
	} {
		dek, _, err := kms.Generate(t.Context(), key, tc.ec)
		clear(dek)
		if (err == nil) != tc.want {
			t.Errorf("%s: %v", name, err)
		}
	}

	s := subject(key, "aws-kms")
	s.Prefix = ""
	if got := results(tenantkit.Check(t.Context(), s)); got["outside.prefix"] != no || got["outside.bucket"] != ok {
		t.Error(got)
	}
}

var vaultPath = regexp.MustCompile(`(?s)path "([^"]+)" \{\s*capabilities = \["(\w+)"\]\s*\}`)

// The policy of the kit for Vault has the paths that the provider and Check
// use, which the test server counts, and no others.
func TestVaultPolicyIsExact(t *testing.T) {
	for _, format := range tenantkit.Formats(tenantkit.Vault) {
		server := kmstest.StartVault(t)
		server.CreateKey("acme", "aes256-gcm96", false)
		server.AddAppRole("role", "secret", kmstest.VaultToken{
			NoDefaultPolicy: true, TTL: time.Hour, Renewable: true,
			Grants: map[string][]string{"sys/capabilities-self": {"update"}, "transit/keys/acme": {"read"}},
		})
		key := server.OpenKey(t, "acme", func(c *kms.VaultConfig) {
			c.Login.AppRole = &kms.VaultAppRole{RoleID: "role", SecretID: "secret"}
		})
		tenantkit.Check(t.Context(), subject(key, "vault-transit"))
		called := []string{"update auth/token/renew-self"} // after two thirds of the lifetime of the token
		for name := range server.Calls() {
			switch name {
			case "encrypt", "decrypt":
				called = append(called, "update transit/"+name+"/acme")
			case "keys":
				called = append(called, "read transit/keys/acme")
			case "sys/capabilities-self":
				called = append(called, "update "+name)
			case "auth/token/lookup-self":
				called = append(called, "read "+name)
			case "auth/approle/login": // needs no permission
			default:
				t.Errorf("%s was called", name)
			}
		}

		var allowed []string
		kit := make1(t, tenantkit.Order{
			Provider: tenantkit.Vault, Format: format, Inspect: true, Values: facts[tenantkit.Vault],
		})
		for _, m := range vaultPath.FindAllStringSubmatch(kit.Artifact, -1) {
			allowed = append(allowed, m[2]+" "+m[1])
		}
		slices.Sort(called)
		slices.Sort(allowed)
		if !slices.Equal(called, allowed) {
			t.Errorf("%s: the proxy calls %q, the policy allows %q", format, called, allowed)
		}
	}
}

func TestExternalIDIsRandom(t *testing.T) {
	values := with(tenantkit.AWS)
	delete(values, "external-id")
	id := regexp.MustCompile(`external_id: "([0-9a-f]{32})"`)
	seen := make(map[string]bool)
	for range 3 {
		kit := make1(t, tenantkit.Order{Provider: tenantkit.AWS, Values: values})
		found := id.FindStringSubmatch(kit.Entry)
		if found == nil || !strings.Contains(kit.Artifact, `"sts:ExternalId": "`+found[1]+`"`) || seen[found[1]] {
			t.Fatalf("%v in\n%s", found, kit.Entry)
		}
		seen[found[1]] = true
	}
}

type policy struct {
	Statement []struct {
		Sid, Effect string
		Principal   any
		Action      any
		Condition   map[string]map[string]any
	}
}

// policies returns the key policy and the trust policy of an artifact for AWS,
// for a role with this ARN.
func policies(t *testing.T, format, artifact, role string) (key, trust string) {
	t.Helper()
	if format == "terraform" {
		found := regexp.MustCompile(`(?s)<<-POLICY\n(.*?)\n\s*POLICY\n`).FindAllStringSubmatch(artifact, -1)
		if len(found) != 2 {
			t.Fatalf("%d policies", len(found))
		}
		return strings.ReplaceAll(found[1][1], "${aws_iam_role.cmekproxy.arn}", role), found[0][1]
	}

	var stack struct {
		Resources struct {
			Role struct {
				Properties struct {
					AssumeRolePolicyDocument map[string]any `yaml:"AssumeRolePolicyDocument"`
				} `yaml:"Properties"`
			} `yaml:"Role"`
			Key struct {
				DeletionPolicy string         `yaml:"DeletionPolicy"`
				Properties     map[string]any `yaml:"Properties"`
			} `yaml:"Key"`
		} `yaml:"Resources"`
	}
	if err := yaml.Unmarshal([]byte(artifact), &stack); err != nil {
		t.Fatal(err)
	}
	p := stack.Resources.Key.Properties
	if p["EnableKeyRotation"] != true || p["PendingWindowInDays"] != 30 || p["MultiRegion"] != false ||
		stack.Resources.Key.DeletionPolicy != "Retain" {
		t.Errorf("key: %v", p)
	}
	encode := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(b), `{"Fn::GetAtt":["Role","Arn"]}`, `"`+role+`"`)
	}
	return encode(p["KeyPolicy"]), encode(stack.Resources.Role.Properties.AssumeRolePolicyDocument)
}

// canonical returns JSON with sorted names.
func canonical(t *testing.T, text string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAWSFormatsAgree(t *testing.T) {
	for _, full := range []bool{false, true} {
		var keys, trusts []string
		for _, format := range tenantkit.Formats(tenantkit.AWS) {
			kit := make1(t, tenantkit.Order{
				Provider: tenantkit.AWS, Format: format, Values: facts[tenantkit.AWS], BucketKeys: full, Inspect: full,
			})
			key, trust := policies(t, format, kit.Artifact, "arn:aws:iam::444455556666:role/cmekproxy-acme")
			keys, trusts = append(keys, canonical(t, key)), append(trusts, canonical(t, trust))
		}
		if keys[0] != keys[1] || trusts[0] != trusts[1] {
			t.Errorf("%s\n%s\n%s\n%s", keys[0], keys[1], trusts[0], trusts[1])
		}
		if !strings.Contains(trusts[0], `"sts:ExternalId": "0123456789abcdef"`) {
			t.Error(trusts[0])
		}
	}
}

// actions returns what the statements for anyone but the account's root allow.
func actions(t *testing.T, text string) (list []string) {
	t.Helper()
	var p policy
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	for _, s := range p.Statement {
		if s.Sid == "YourAccountAdministersTheKey" {
			continue
		}
		switch a := s.Action.(type) {
		case string:
			list = append(list, a)
		case []any:
			for _, one := range a {
				list = append(list, one.(string))
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// deploy gives the key policy of an artifact to a new key, and returns the key
// as the vendor opens it: with the role and the external id.
func deploy(t *testing.T, server *kmstest.Server, o tenantkit.Order) *kms.AWS {
	t.Helper()
	t.Setenv("AWS_ENDPOINT_URL_STS", server.URL())
	o.Values = maps.Clone(o.Values)
	o.Values["account"] = "111122223333" // the server has one account
	kit := make1(t, o)
	role := server.SetRole(kmstest.Role{
		Name: "cmekproxy-acme", Trusted: server.UserARN(kmstest.AccessKeyID), ExternalID: o.Values["external-id"],
	})
	key, _ := policies(t, o.Format, kit.Artifact, role)

	arn, err := server.CreateKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.PutKeyPolicy(arn, key); err != nil {
		t.Fatal(err)
	}
	if err := server.SetAlias("alias/acme", arn); err != nil {
		t.Fatal(err)
	}
	return server.OpenKey(t, "alias/acme", func(c *kms.AWSConfig) {
		c.RoleARN, c.ExternalID = role, o.Values["external-id"]
	})
}

// The policy allows exactly what the provider calls, which the test server
// counts: with less, a call would be refused.
func TestAWSPolicyIsExact(t *testing.T) {
	for _, format := range tenantkit.Formats(tenantkit.AWS) {
		t.Run(format, func(t *testing.T) {
			server := kmstest.StartTest(t)
			order := tenantkit.Order{Provider: tenantkit.AWS, Format: format, Values: facts[tenantkit.AWS]}
			key := deploy(t, server, order)
			ctx, ec := t.Context(), kms.EncryptionContext{"bucket": "data", "key": "acme/cat.jpg"}
			dek, wrapped, err := kms.Generate(ctx, key, ec)
			if err == nil {
				_, err = kms.Unwrap(ctx, key, wrapped, ec)
			}
			if err == nil {
				_, err = kms.Wrap(ctx, key, dek, ec)
			}
			if err == nil {
				_, _, err = kms.RoundTrip(ctx, key)
			}
			if err == nil {
				err = key.Enabled(ctx)
			}
			if err == nil {
				_, err = key.Target(ctx)
			}
			if err != nil {
				t.Fatal(err)
			}

			var called []string
			for name := range server.Calls() {
				if !strings.HasPrefix(name, "sts:") {
					called = append(called, "kms:"+name)
				}
			}
			slices.Sort(called)
			policy, _ := policies(t, format, make1(t, order).Artifact, "arn:aws:iam::111122223333:role/x")
			if allowed := actions(t, policy); !slices.Equal(called, allowed) {
				t.Errorf("the provider calls %q, the policy allows %q", called, allowed)
			}
		})
	}
}

func TestAWSPolicyRefuses(t *testing.T) {
	server := kmstest.StartTest(t)
	order := tenantkit.Order{Provider: tenantkit.AWS, Format: "cloudformation", Values: facts[tenantkit.AWS]}
	own := deploy(t, server, order)
	order.BucketKeys = true
	shared := deploy(t, server, order)

	for _, tc := range []struct {
		name       string
		ec         kms.EncryptionContext
		own, bkeys bool // whether each policy allows it
	}{
		{"its object", kms.EncryptionContext{"bucket": "data", "key": "acme/x"}, true, true},
		{"a bucket key", kms.EncryptionContext{"bucket": "data"}, false, true},
		{"another prefix", kms.EncryptionContext{"bucket": "data", "key": "beta/x"}, false, false},
		{"a prefix that begins so", kms.EncryptionContext{"bucket": "data", "key": "acme2/x"}, false, false},
		{"another bucket", kms.EncryptionContext{"bucket": "data2", "key": "acme/x"}, false, false},
		{"no bucket", kms.EncryptionContext{"key": "acme/x"}, false, false},
		{"nothing", nil, false, false},
		{"one more name", kms.EncryptionContext{"bucket": "data", "key": "acme/x", "a": "b"}, false, false},
		{"another case", kms.EncryptionContext{"Bucket": "data", "Key": "acme/x"}, false, false},
		{"the trial", kms.TrialContext(), true, true},
		{"another object of the trial", kms.EncryptionContext{"bucket": kms.TrialBucket, "key": "x"}, false, false},
	} {
		for _, policy := range []struct {
			name string
			key  kms.Wrapper
			want bool
		}{{"own data keys", own, tc.own}, {"bucket keys", shared, tc.bkeys}} {
			dek, _, err := kms.Generate(t.Context(), policy.key, tc.ec)
			clear(dek)
			if got := err == nil; got != policy.want || err != nil && !kms.IsRevoked(err) {
				t.Errorf("%s, %s: %v", tc.name, policy.name, err)
			}
		}
	}

	if _, err := kms.NewAWS(t.Context(), kms.AWSConfig{
		KeyID: "alias/acme", Region: server.Region(), Endpoint: server.URL(), ExternalID: "another-one",
		RoleARN: "arn:aws:iam::111122223333:role/cmekproxy-acme",
	}); err == nil {
		t.Error("the role was assumed with another external id")
	}
}

// A shell reads each script as it is meant. CI also runs shellcheck; see e2e.
func TestScriptsParse(t *testing.T) {
	for name, order := range everyOrder() {
		if strings.Contains(name, "terraform") || order.Provider == tenantkit.AWS {
			continue
		}
		script := make1(t, order).Artifact
		if !strings.HasPrefix(script, "#!/bin/sh\n") || !strings.Contains(script, "\nset -eu\n") {
			t.Errorf("%s does not begin as it should", name)
		}
		c := exec.CommandContext(t.Context(), "sh", "-n")
		c.Stdin = strings.NewReader(script)
		var out bytes.Buffer
		c.Stderr = &out
		if err := c.Run(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, &out)
		}
	}
}

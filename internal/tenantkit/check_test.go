package tenantkit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/iam/apiv1/iampb"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/tenantkit"
)

// changesNothing are the operations of the test servers that Check may send.
// The data keys that it makes protect nothing. Everything else changes a key,
// or might.
var changesNothing = []string{
	// AWS KMS and STS
	"GenerateDataKey", "Encrypt", "Decrypt", "DescribeKey", "GetKeyPolicy", "ListGrants", "GetKeyRotationStatus",
	"sts:AssumeRole", "sts:GetCallerIdentity",
	// Google
	"GetCryptoKey", "TestIamPermissions", "GetIamPolicy",
	// Azure
	"wrapkey", "unwrapkey", "getkey", "token",
	// Vault; "keys" is a GET, because the server refuses other methods there
	"encrypt", "decrypt", "keys", "sys/capabilities-self", "auth/token/lookup-self", "auth/token/renew-self",
}

var now = time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)

func subject(w kms.Wrapper, provider string) tenantkit.Subject {
	return tenantkit.Subject{
		Tool: "cmekproxy test", Name: "acme", Provider: provider, Wrapper: w, Bucket: "data", Prefix: "acme/",
		TTL: 5 * time.Minute, Probe: 10 * time.Second, Timeout: 2 * time.Second, Now: func() time.Time { return now },
	}
}

// results returns the result of each check of a report, sorted.
func results(r *tenantkit.Report) map[string]tenantkit.Result {
	out := make(map[string]tenantkit.Result)
	for _, row := range r.Rows {
		if _, twice := out[row.Check]; twice {
			panic("two rows " + row.Check)
		}
		out[row.Check] = row.Result
	}
	return out
}

func want(t *testing.T, r *tenantkit.Report, want map[string]tenantkit.Result) {
	t.Helper()
	if got := results(r); !maps.Equal(got, want) {
		var text bytes.Buffer
		_ = r.WriteText(&text)
		for check, result := range want {
			if got[check] != result {
				t.Errorf("%s: %q, want %q", check, got[check], result)
			}
		}
		t.Errorf("%s", &text)
	}
}

func evidence(r *tenantkit.Report, check string) string {
	for _, row := range r.Rows {
		if row.Check == check {
			return row.Evidence + " | " + row.Do
		}
	}
	return ""
}

func wantCalls(t *testing.T, calls map[string]int) {
	t.Helper()
	if len(calls) < 4 {
		t.Errorf("only %v", calls)
	}
	for name := range calls {
		if !slices.Contains(changesNothing, name) {
			t.Errorf("%s was sent", name)
		}
	}
}

const (
	ok   = tenantkit.OK
	warn = tenantkit.Warn
	fail = tenantkit.Fail
	no   = tenantkit.NotChecked
)

// used are the rows of a key that works, at a KMS that cannot limit it to
// objects.
func used(more map[string]tenantkit.Result) map[string]tenantkit.Result {
	out := map[string]tenantkit.Result{
		"generate": ok, "unwrap": ok,
		"context.bucket": ok, "context.key": ok, "context.missing": ok, "context.none": ok,
		"outside.prefix": no, "outside.bucket": no,
	}
	maps.Copy(out, more)
	return out
}

func TestCheckAWS(t *testing.T) {
	order := func(change func(*tenantkit.Order)) tenantkit.Order {
		o := tenantkit.Order{Provider: tenantkit.AWS, Format: "cloudformation", Values: facts[tenantkit.AWS]}
		if change != nil {
			change(&o)
		}
		return o
	}
	for _, tc := range []struct {
		name       string
		order      tenantkit.Order
		bucketKeys bool
		want       map[string]tenantkit.Result
	}{
		{"least privilege", order(nil), false, map[string]tenantkit.Result{
			"permissions": no, "everyone": no, "grants": no, "rotation": no,
		}},
		{"with --inspect", order(func(o *tenantkit.Order) { o.Inspect = true }), false, map[string]tenantkit.Result{
			"permissions": ok, "everyone": ok, "grants": ok, "rotation": ok,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := kmstest.StartTest(t)
			key := deploy(t, server, tc.order)
			if err := server.EnableKeyRotation(key.KeyID()); err != nil {
				t.Fatal(err)
			}
			report := tenantkit.Check(t.Context(), subject(key, "aws-kms"))
			expect := used(map[string]tenantkit.Result{
				"wrap": ok, "outside.prefix": ok, "outside.bucket": ok, "state": ok, "owner": ok, "where": ok,
			})
			maps.Copy(expect, tc.want)
			want(t, report, expect)
			wantCalls(t, server.Calls())
			if report.Failed != 0 || report.Warned != 0 {
				t.Errorf("%d failed, %d warnings", report.Failed, report.Warned)
			}
		})
	}

	t.Run("bucket keys", func(t *testing.T) {
		server := kmstest.StartTest(t)
		key := deploy(t, server, order(func(o *tenantkit.Order) { o.BucketKeys = true }))
		s := subject(key, "aws-kms")
		s.BucketKeys = true
		want(t, tenantkit.Check(t.Context(), s), map[string]tenantkit.Result{
			"generate": ok, "unwrap": ok, "wrap": ok, "context.bucket": ok, "context.added": ok, "context.none": ok,
			"outside.prefix": no, "outside.bucket": ok, "state": ok, "owner": ok, "where": ok,
			"permissions": no, "everyone": no, "grants": no, "rotation": no,
		})
	})
}

// statements returns a key policy for the user of the test.
func statements(list ...string) string {
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(list, ",") + `]}`
}

func allow(principal, actions, condition string) string {
	if condition != "" {
		condition = `,"Condition":` + condition
	}
	return fmt.Sprintf(`{"Sid":"s","Effect":"Allow","Principal":%s,"Action":%s,"Resource":"*"%s}`,
		principal, actions, condition)
}

func TestCheckAWSTooMuch(t *testing.T) {
	const (
		us      = `{"AWS":"arn:aws:iam::111122223333:user/AKIDEXAMPLE"}`
		reading = `["kms:Decrypt","kms:Encrypt","kms:GenerateDataKey","kms:DescribeKey","kms:GetKeyPolicy",` +
			`"kms:ListGrants","kms:GetKeyRotationStatus"]`
		condition = `{"StringLike":{"kms:EncryptionContext:key":"*"}}`
	)
	enough := allow(us, reading, "")
	for _, tc := range []struct {
		name, policy string
		check        string
		want         tenantkit.Result
		evidence     string
	}{
		{"enough", statements(enough), "permissions", ok, "no action that changes the key"},
		{"everything", statements(allow(us, `"kms:*"`, "")), "permissions", fail, "PutKeyPolicy"},
		{"all of AWS", statements(allow(us, `"*"`, "")), "permissions", fail, "ScheduleKeyDeletion"},
		{"a pattern", statements(enough, allow(us, `"kms:Create*"`, "")), "permissions", fail, "CreateAlias, CreateGrant"},
		{"lower case", statements(enough, allow(us, `"kms:putkeypolicy"`, "")), "permissions", fail, "PutKeyPolicy"},
		{"grants", statements(enough, allow(us, `"kms:CreateGrant"`, "")), "permissions", fail, "CreateGrant"},
		{"conditional", statements(enough, allow(us, `"kms:CreateGrant"`, condition)), "permissions", warn, "CreateGrant"},
		{"more uses", statements(enough, allow(us, `"kms:ReEncrypt*"`, "")), "permissions", warn, "ReEncryptFrom"},
		{
			"denied again", statements(enough, allow(us, `"kms:CreateGrant"`, ""), strings.Replace(
				allow(us, `"kms:CreateGrant"`, ""), "Allow", "Deny", 1)), "permissions", ok, "no action",
		},
		{"everyone", statements(allow(`"*"`, reading, "")), "everyone", fail, "all of AWS"},
		{"everyone may change", statements(allow(`{"AWS":"*"}`, `"kms:*"`, "")), "permissions", fail, "PutKeyPolicy"},
		{"everyone, conditional", statements(enough, allow(`"*"`, reading, condition)), "everyone", warn, "condition"},
		{"not everyone", statements(enough), "everyone", ok, "no"},
		{"not limited to the prefix", statements(enough), "outside.prefix", warn, "does not restrict it"},
		{"not limited to the bucket", statements(enough), "outside.bucket", warn, "does not restrict it"},
		{"not rotated", statements(enough), "rotation", warn, "not automatic"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := kmstest.StartTest(t)
			t.Setenv("AWS_ENDPOINT_URL_STS", server.URL())
			key := server.NewKey(t, nil)
			if err := server.PutKeyPolicy(key.KeyID(), tc.policy); err != nil {
				t.Fatal(err)
			}
			report := tenantkit.Check(t.Context(), subject(key, "aws-kms"))
			if got := results(report)[tc.check]; got != tc.want || !strings.Contains(evidence(report, tc.check), tc.evidence) {
				t.Errorf("%s: %q, %s", tc.check, got, evidence(report, tc.check))
			}
			wantCalls(t, server.Calls())
		})
	}
}

func TestCheckAWSGrantsAndRegions(t *testing.T) {
	server := kmstest.StartTest(t)
	t.Setenv("AWS_ENDPOINT_URL_STS", server.URL())
	arn, err := server.CreateMultiRegionKey()
	if err != nil {
		t.Fatal(err)
	}
	key := server.OpenKey(t, arn, nil)
	check := func() *tenantkit.Report { return tenantkit.Check(t.Context(), subject(key, "aws-kms")) }
	grant := func(to string, operations ...string) string {
		id, err := server.CreateGrant(arn, kmstest.Grant{GranteePrincipal: server.UserARN(to), Operations: operations})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}

	if got := results(check()); got["grants"] != ok || got["where"] != warn {
		t.Error(got)
	}

	other := kmstest.StartRegion(t, kmstest.Config{Region: "eu-west-1"})
	if _, err := server.Replicate(arn, other); err != nil {
		t.Fatal(err)
	}
	if e := evidence(check(), "where"); !strings.Contains(e, "us-east-1, eu-west-1") || !strings.Contains(e, "every one") {
		t.Error(e)
	}

	grant("someone", "Decrypt")
	if r := check(); results(r)["grants"] != warn || !strings.Contains(evidence(r, "grants"), "someone Decrypt") {
		t.Error(evidence(r, "grants"))
	}
	grant(kmstest.AccessKeyID, "Decrypt")
	if r := check(); results(r)["grants"] != warn || !strings.Contains(evidence(r, "grants"), "for the proxy") {
		t.Error(evidence(r, "grants"))
	}
	grant(kmstest.AccessKeyID, "Decrypt", "CreateGrant")
	if r := check(); results(r)["grants"] != fail {
		t.Error(evidence(r, "grants"))
	}
}

func TestCheckGCP(t *testing.T) {
	for _, tc := range []struct {
		name   string
		access kmstest.GCPAccess
		want   map[string]tenantkit.Result
	}{
		{"least privilege", kmstest.GCPAccess{}, map[string]tenantkit.Result{
			"state": no, "permissions": ok, "others": no,
		}},
		{"inspected", kmstest.GCPAccess{
			Permissions: kms.GCPReading, Rotation: 90 * 24 * time.Hour, DestroyAfter: 30 * 24 * time.Hour,
			Bindings: []*iampb.Binding{{Role: "roles/cloudkms.admin", Members: []string{"user:admin@acme.example"}}},
		}, map[string]tenantkit.Result{
			"state": ok, "permissions": ok, "others": ok, "rotation": ok, "deletion": ok,
		}},
		{"too much", kmstest.GCPAccess{
			Permissions: append(slices.Clone(kms.GCPReading), "cloudkms.cryptoKeys.setIamPolicy"),
			Bindings: []*iampb.Binding{{
				Role: "roles/cloudkms.cryptoKeyDecrypter", Members: []string{"allUsers"},
			}},
		}, map[string]tenantkit.Result{
			"state": ok, "permissions": fail, "others": fail, "rotation": warn, "deletion": warn,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := kmstest.StartGCP(t)
			key := server.NewKey(t, nil)
			server.SetAccess(key.KeyID(), tc.access)
			report := tenantkit.Check(t.Context(), subject(key, "gcp-kms"))
			expect := used(tc.want)
			expect["where"] = ok
			want(t, report, expect)
			wantCalls(t, server.Calls())
			if !strings.Contains(evidence(report, "where"), "europe-west3") ||
				!strings.Contains(evidence(report, "context.key"), "enforced by the KMS") {
				t.Error(evidence(report, "where"), evidence(report, "context.key"))
			}
		})
	}
}

func TestCheckAzure(t *testing.T) {
	usual := map[string]tenantkit.Result{
		"state": ok, "export": ok, "deletion": ok, "operations": ok, "binding": warn, "permissions": no, "where": no,
	}
	for _, tc := range []struct {
		name   string
		kind   string
		about  kmstest.AzureAttributes
		change map[string]tenantkit.Result
	}{
		{"RSA", "RSA-2048", kmstest.AzureAttributes{}, nil},
		{"exportable", "RSA-2048", kmstest.AzureAttributes{Exportable: true}, map[string]tenantkit.Result{"export": fail}},
		{
			"purgeable", "RSA-2048",
			kmstest.AzureAttributes{RecoveryLevel: "Recoverable+Purgeable"},
			map[string]tenantkit.Result{"deletion": warn},
		},
		{
			"expires", "RSA-2048",
			kmstest.AzureAttributes{Expires: now.Add(time.Hour).Unix()},
			map[string]tenantkit.Result{"expiry": warn},
		},
		{
			"expired", "RSA-2048",
			kmstest.AzureAttributes{Expires: now.Unix()},
			map[string]tenantkit.Result{"state": fail},
		},
		{
			"unreadable", "oct-HSM", kmstest.AzureAttributes{Unreadable: true}, map[string]tenantkit.Result{
				"state": no, "export": "", "deletion": "", "operations": "", "binding": "",
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := kmstest.StartAzure(t)
			key := server.NewKey(t, tc.kind, nil)
			server.SetAttributes("key-1", tc.about)
			report := tenantkit.Check(t.Context(), subject(key, "azure-keyvault"))
			expect := used(usual)
			for check, result := range tc.change {
				if expect[check] = result; result == "" {
					delete(expect, check)
				}
			}
			want(t, report, expect)
			wantCalls(t, server.Calls())
			if !strings.Contains(evidence(report, "context.key"), "enforced by cmekproxy's envelope, not by the KMS") {
				t.Error(evidence(report, "context.key"))
			}
		})
	}
}

func TestCheckVault(t *testing.T) {
	reads := map[string][]string{"transit/keys/key-1": {"read"}}
	for _, tc := range []struct {
		name  string
		token kmstest.VaultToken
		about kmstest.VaultAttributes
		want  map[string]tenantkit.Result
	}{
		{"default policy", kmstest.VaultToken{}, kmstest.VaultAttributes{}, map[string]tenantkit.Result{
			"state": no, "permissions": ok, "policies": ok,
		}},
		{"nothing else", kmstest.VaultToken{NoDefaultPolicy: true}, kmstest.VaultAttributes{}, map[string]tenantkit.Result{
			"state": no, "permissions": no, "policies": no,
		}},
		{"inspected", kmstest.VaultToken{Grants: reads}, kmstest.VaultAttributes{}, map[string]tenantkit.Result{
			"state": ok, "rotation": warn, "export": ok, "deletion": ok, "permissions": ok, "policies": ok,
		}},
		{
			"weak key",
			kmstest.VaultToken{Grants: reads},
			kmstest.VaultAttributes{Exportable: true, DeletionAllowed: true},
			map[string]tenantkit.Result{
				"state": ok, "rotation": warn, "export": fail, "deletion": warn, "permissions": ok, "policies": ok,
			},
		},
		{"creates keys", kmstest.VaultToken{CreateKeys: true}, kmstest.VaultAttributes{}, map[string]tenantkit.Result{
			"state": no, "permissions": fail, "policies": ok,
		}},
		{"exports", kmstest.VaultToken{Grants: map[string][]string{
			"transit/export/encryption-key/key-1": {"read"},
		}}, kmstest.VaultAttributes{}, map[string]tenantkit.Result{"state": no, "permissions": fail, "policies": ok}},
		{
			"root",
			kmstest.VaultToken{Grants: map[string][]string{"*": {"root"}}},
			kmstest.VaultAttributes{},
			map[string]tenantkit.Result{
				"state": ok, "rotation": warn, "export": ok, "deletion": ok, "permissions": fail, "policies": fail,
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := kmstest.StartVault(t)
			token := server.NewToken(tc.token)
			key := server.NewKey(t, func(c *kms.VaultConfig) { c.Login.Token = token })
			server.SetAttributes("key-1", tc.about)
			report := tenantkit.Check(t.Context(), subject(key, "vault-transit"))
			expect := used(tc.want)
			expect["where"] = no
			want(t, report, expect)
			wantCalls(t, server.Calls())
			if tc.name == "default policy" && report.Revocation.Commands[0] != "vault policy delete app" {
				t.Error(report.Revocation.Commands)
			}

			var all bytes.Buffer
			if err := errors.Join(report.WriteText(&all), report.WritePage(&all)); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(all.String(), token) {
				t.Error("the token is in the report")
			}
		})
	}
}

func TestCheckLocal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms.key")
	if err := kms.CreateLocalKeyFile(path); err != nil {
		t.Fatal(err)
	}
	key, err := kms.NewLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	report := tenantkit.Check(t.Context(), subject(key, "local"))
	want(t, report, used(map[string]tenantkit.Result{"owner": warn, "permissions": ok, "where": ok}))
	if c := report.Revocation.Commands; len(c) != 1 || !strings.HasSuffix(c[0], path) {
		t.Error(c)
	}
}

// A key that does not work gives one failure, and no more that follow from it.
func TestCheckBroken(t *testing.T) {
	server := kmstest.StartTest(t)
	t.Setenv("AWS_ENDPOINT_URL_STS", server.URL())
	key := server.NewKey(t, nil)
	if err := server.DisableKey(key.KeyID()); err != nil {
		t.Fatal(err)
	}
	report := tenantkit.Check(t.Context(), subject(key, "aws-kms"))
	if got := results(report); got["generate"] != fail || got["context"] != no || got["outside"] != no ||
		got["state"] != fail || report.Failed != 2 {
		t.Error(got)
	}

	server.SetFaults(kmstest.Faults{Drop: true, Operations: []string{
		"GenerateDataKey", "DescribeKey", "GetKeyPolicy", "ListGrants", "GetKeyRotationStatus",
	}})
	report = tenantkit.Check(t.Context(), subject(key, "aws-kms"))
	if got := results(report); got["generate"] != fail || got["state"] != no || got["permissions"] != no ||
		report.Failed != 1 {
		t.Error(got)
	}
}

// ignoring is a KMS that does not check the encryption context.
type ignoring struct{ kms.Wrapper }

func (i ignoring) Wrap(ctx context.Context, dek []byte, _ kms.EncryptionContext) ([]byte, error) {
	return i.Wrapper.Wrap(ctx, dek, nil)
}

func (i ignoring) Unwrap(ctx context.Context, wrapped []byte, _ kms.EncryptionContext) ([]byte, error) {
	return i.Wrapper.Unwrap(ctx, wrapped, nil)
}

func TestCheckIgnoredContext(t *testing.T) {
	server := kmstest.StartVault(t)
	report := tenantkit.Check(t.Context(), subject(ignoring{server.NewKey(t, nil)}, "vault-transit"))
	if report.Failed != 4 || !strings.Contains(evidence(report, "context.key"), "another object") {
		t.Error(results(report))
	}
}

func TestWindow(t *testing.T) {
	server := kmstest.StartVault(t)
	key := server.NewKey(t, nil)
	for _, tc := range []struct {
		ttl, probe, timeout time.Duration
		want                string
	}{
		{5 * time.Minute, 10 * time.Second, 2 * time.Second, "12s"},
		{5 * time.Minute, 0, 2 * time.Second, "5m0s"},
		{11 * time.Second, 10 * time.Second, 2 * time.Second, "11s"},
		{5 * time.Minute, time.Second, 2 * time.Second, "2s"},
	} {
		s := subject(key, "vault-transit")
		s.TTL, s.Probe, s.Timeout = tc.ttl, tc.probe, tc.timeout
		if got := tenantkit.Check(t.Context(), s).Revocation.Window; got != tc.want {
			t.Errorf("%+v: %s", tc, got)
		}
	}
}

// hostile is what a description or a tag could contain.
const hostile = "</pre><script>alert(1)</script>\x1b[31m\u202e\"'`&{{.}}\n"

func hostileReport(t *testing.T) *tenantkit.Report {
	t.Helper()
	server := kmstest.StartAzure(t)
	key := server.NewKey(t, "oct-HSM", nil)
	server.SetAttributes("key-1", kmstest.AzureAttributes{
		RecoveryLevel: hostile, Tags: map[string]string{hostile: hostile, "long": strings.Repeat("ü", 10_000)},
	})
	s := subject(key, "azure-keyvault")
	s.Name, s.Prefix = "acme"+hostile, hostile
	return tenantkit.Check(t.Context(), s)
}

func TestHostileTexts(t *testing.T) {
	report := hostileReport(t)
	var text, page bytes.Buffer
	if err := errors.Join(report.WriteText(&text), report.WritePage(&page)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"\x1b", "\u202e", "\x00"} {
		if strings.Contains(text.String(), bad) || strings.Contains(page.String(), bad) {
			t.Errorf("%q is in the report", bad)
		}
	}
	if len(page.String()) > 60_000 {
		t.Errorf("the page has %d bytes", page.Len())
	}
	rows := wellFormed(t, page.String())
	if len(rows) != len(report.Rows) {
		t.Errorf("%d rows, want %d", len(rows), len(report.Rows))
	}
}

func TestJSONAndPage(t *testing.T) {
	server := kmstest.StartVault(t)
	report := tenantkit.Check(t.Context(), subject(server.NewKey(t, nil), "vault-transit"))
	text, sum, err := report.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var back tenantkit.Report
	if err := json.Unmarshal(text, &back); err != nil || len(back.Rows) != len(report.Rows) || back.Time != "2026-11-30T09:00:00Z" {
		t.Errorf("%v\n%s", err, text)
	}

	var page bytes.Buffer
	if err := report.WritePage(&page); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{sum, "2026-11-30T09:00:00Z", "vault:transit/key-1", "s3://data/acme/", "12s"} {
		if !strings.Contains(page.String(), part) {
			t.Errorf("not in the page: %s", part)
		}
	}
}

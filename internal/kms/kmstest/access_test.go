package kmstest_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// official is the AWS client for a key, with its own access key.
type official struct {
	*awskms.Client
	t   *testing.T
	key *string
}

func newOfficial(t *testing.T, s *kmstest.Server, accessKeyID, key string) *official {
	t.Helper()
	endpoint := s.URL()
	return &official{awskms.New(awskms.Options{
		Region: s.Region(), BaseEndpoint: &endpoint, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(accessKeyID, "example", ""),
	}), t, &key}
}

func (o *official) generate(ec map[string]string) ([]byte, error) {
	out, err := o.GenerateDataKey(o.t.Context(), &awskms.GenerateDataKeyInput{
		KeyId: o.key, KeySpec: types.DataKeySpecAes256, EncryptionContext: ec,
	})
	if err != nil {
		return nil, err
	}
	return out.CiphertextBlob, nil
}

func (o *official) encrypt(ec map[string]string) error {
	_, err := o.Encrypt(o.t.Context(), &awskms.EncryptInput{
		KeyId: o.key, Plaintext: []byte("x"), EncryptionContext: ec,
	})
	return err
}

func (o *official) decrypt(blob []byte, ec map[string]string) error {
	_, err := o.Decrypt(o.t.Context(), &awskms.DecryptInput{KeyId: o.key, CiphertextBlob: blob, EncryptionContext: ec})
	return err
}

func (o *official) describe() error {
	_, err := o.DescribeKey(o.t.Context(), &awskms.DescribeKeyInput{KeyId: o.key})
	return err
}

func (o *official) putPolicy(document string) error {
	_, err := o.PutKeyPolicy(o.t.Context(), &awskms.PutKeyPolicyInput{KeyId: o.key, Policy: &document})
	return err
}

// code returns AWS's name of an error, or "".
func code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func want(t *testing.T, what string, err error, name string) {
	t.Helper()
	if code(err) != name {
		t.Errorf("%s: %v, want %q", what, err, name)
	}
}

const denied = "AccessDeniedException"

// policyOf returns a policy document with the statements.
func policyOf(statements ...string) string {
	return `{"Version":"2012-10-17","Id":"x","Statement":[` + strings.Join(statements, ",") + `]}`
}

func statement(effect, principal, action, condition string) string {
	if condition != "" {
		condition = `,"Condition":` + condition
	}
	return fmt.Sprintf(`{"Sid":"s","Effect":%q,"Principal":%s,"Action":%s,"Resource":"*"%s}`,
		effect, principal, action, condition)
}

const (
	rootPrincipal = `{"AWS":"arn:aws:iam::111122223333:root"}`
	appPrincipal  = `{"AWS":["arn:aws:iam::111122223333:user/APP"]}`
	allActions    = `"kms:*"`
)

func TestKeyPolicies(t *testing.T) {
	server := kmstest.StartTest(t)
	arn, err := server.CreateKey()
	must(t, err)
	app, admin := newOfficial(t, server, "APP", arn), newOfficial(t, server, "ADMIN", arn)
	ec := map[string]string{"bucket": "b", "key": "dir/file"}
	blob, err := app.generate(ec)
	must(t, err)

	root := statement("Allow", rootPrincipal, allActions, "")
	allowIf := func(condition string) string {
		return policyOf(statement("Allow", appPrincipal, allActions, condition))
	}

	denyIf := func(condition string) string {
		return policyOf(root, statement("Deny", `"*"`, `"kms:Decrypt"`, condition))
	}

	const bucket = `"kms:EncryptionContext:bucket"`
	for _, c := range []struct {
		name, policy string
		want         string // for GenerateDataKey, Decrypt, DescribeKey: Y or n each
	}{
		{"root", policyOf(root), "YYY"},
		{"everyone", policyOf(statement("Allow", `"*"`, allActions, "")), "YYY"},
		{"everyone as AWS", policyOf(statement("Allow", `{"AWS":"*"}`, allActions, "")), "YYY"},
		{"account id", policyOf(statement("Allow", `{"AWS":"111122223333"}`, allActions, "")), "YYY"},
		{"the user", policyOf(statement("Allow", appPrincipal, allActions, "")), "YYY"},
		{"another user", policyOf(statement("Allow", `{"AWS":"arn:aws:iam::111122223333:user/APP2"}`, allActions,
			"")), "nnn"},
		{"a role", policyOf(statement("Allow", `{"AWS":"arn:aws:iam::111122223333:role/APP"}`, allActions, "")), "nnn"},
		{"another account", policyOf(statement("Allow", `{"AWS":"arn:aws:iam::444455556666:root"}`, allActions,
			"")), "nnn"},
		{"one action", policyOf(statement("Allow", appPrincipal, `"kms:Decrypt"`, "")), "nYn"},
		{"in any case", policyOf(statement("Allow", appPrincipal, `"kms:decrypt"`, "")), "nYn"},
		{"two actions", policyOf(statement("Allow", appPrincipal, `["kms:Decrypt","kms:DescribeKey"]`, "")), "nYY"},
		{"wildcard", policyOf(statement("Allow", appPrincipal, `"kms:De*"`, "")), "nYY"},
		{"question mark", policyOf(statement("Allow", appPrincipal, `"kms:D?crypt"`, "")), "nYn"},
		{"all services", policyOf(statement("Allow", appPrincipal, `"*"`, "")), "YYY"},
		{"part of a name", policyOf(statement("Allow", appPrincipal, `["kms:Decryp","kms:ecrypt","kms:Decrypts"]`,
			"")), "nnn"},
		{"deny wins", policyOf(statement("Deny", appPrincipal, `"kms:Decrypt"`, ""), root), "YnY"},
		{"deny wins last", policyOf(root, statement("Deny", appPrincipal, `"kms:Decrypt"`, "")), "YnY"},
		{"deny another", policyOf(root, statement("Deny", `{"AWS":"arn:aws:iam::111122223333:user/X"}`, allActions,
			"")), "YYY"},
		{"deny the account", policyOf(root, statement("Deny", rootPrincipal, allActions, "")), "nnn"},

		{"equal", allowIf(`{"StringEquals":{` + bucket + `:"b"}}`), "YYn"}, // DescribeKey has no context
		{"not equal", allowIf(`{"StringEquals":{` + bucket + `:"B"}}`), "nnn"},
		{"one of two", allowIf(`{"StringEquals":{` + bucket + `:["a","b"]}}`), "YYn"},
		{"name in any case", allowIf(`{"StringEquals":{"kms:encryptioncontext:BUCKET":"b"}}`), "YYn"},
		{"absent name", allowIf(`{"StringEquals":{"kms:EncryptionContext:x":"b"}}`), "nnn"},
		{"equals takes no star", allowIf(`{"StringEquals":{` + bucket + `:"*"}}`), "nnn"},
		{"both keys", allowIf(`{"StringEquals":{` + bucket + `:"b","kms:EncryptionContext:key":"dir/file"}}`), "YYn"},
		{"one key of two", allowIf(`{"StringEquals":{` + bucket + `:"b","kms:EncryptionContext:key":"x"}}`), "nnn"},
		{"both operators", allowIf(`{"StringEquals":{` + bucket + `:"b"},"StringLike":{` + bucket + `:"x*"}}`), "nnn"},
		{"like", allowIf(`{"StringLike":{"kms:EncryptionContext:key":"dir/*"}}`), "YYn"},
		{"like one", allowIf(`{"StringLike":{"kms:EncryptionContext:key":"dir?fil?"}}`), "YYn"},
		{"not like", allowIf(`{"StringLike":{"kms:EncryptionContext:key":"dir/*.txt"}}`), "nnn"},
		{"like the end", allowIf(`{"StringLike":{"kms:EncryptionContext:key":["file","?file"]}}`), "nnn"},
		{"like the beginning", allowIf(`{"StringLike":{"kms:EncryptionContext:key":["dir","dir?"]}}`), "nnn"},
		{"like has no dots", allowIf(`{"StringLike":{"kms:EncryptionContext:key":"dir.file"}}`), "nnn"},
		{"unequal", allowIf(`{"StringNotEquals":{` + bucket + `:"a"}}`), "YYY"}, // a missing value is unequal
		{"not unequal", allowIf(`{"StringNotEquals":{` + bucket + `:["a","b"]}}`), "nnY"},
		{"deny one context", denyIf(`{"StringEquals":{` + bucket + `:"b"}}`), "YnY"},
		{"deny another context", denyIf(`{"StringEquals":{` + bucket + `:"a"}}`), "YYY"},
		{"deny all except one", denyIf(`{"StringNotEquals":{` + bucket + `:"a"}}`), "YnY"},
		{"deny all except this", denyIf(`{"StringNotEquals":{` + bucket + `:"b"}}`), "YYY"},
	} {
		must(t, admin.putPolicy(c.policy))
		_, generateErr := app.generate(ec)
		got := ""

		for _, err := range []error{generateErr, app.decrypt(blob, ec), app.describe()} {
			switch code(err) {
			case "":
				got += "Y"
			case denied:
				got += "n"
			default:
				t.Errorf("%s: %v", c.name, err)
			}
		}

		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestRefusalsAreInTheWordsOfAWS(t *testing.T) {
	server := kmstest.StartTest(t)
	w := server.NewKey(t, nil)
	check := func(document, want string) {
		t.Helper()
		must(t, server.PutKeyPolicy(w.KeyID(), document))
		_, _, err := kms.Generate(t.Context(), w, nil)
		e, ok := errors.AsType[*kms.Error](err)
		if !ok || e.Kind != kms.Denied || e.Reason != denied || e.Err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}

	who := "User: " + server.UserARN(kmstest.AccessKeyID) +
		" is not authorized to perform: kms:GenerateDataKey on resource: "
	check(policyOf(statement("Allow", appPrincipal, allActions, "")),
		who+w.KeyID()+" because no resource-based policy allows the kms:GenerateDataKey action")

	check(policyOf(statement("Deny", `"*"`, allActions, "")), who+w.KeyID()+
		" with an explicit deny in a resource-based policy")
}

// A caller without permission does not learn whether a key is enabled or
// whether a blob is valid.
func TestPolicyBeforeState(t *testing.T) {
	server := kmstest.StartTest(t)
	arn, err := server.CreateKey()
	must(t, err)
	other, err := server.CreateKey()
	must(t, err)
	app := newOfficial(t, server, "APP", arn)
	blob, err := newOfficial(t, server, "APP", other).generate(nil)
	must(t, err)
	want(t, "another key's blob", app.decrypt(blob, nil), "IncorrectKeyException")
	must(t, server.DisableKey(arn))
	want(t, "disabled", app.encrypt(nil), "DisabledException")
	must(t, server.PutKeyPolicy(arn, policyOf(statement("Deny", `"*"`, allActions, ""))))
	want(t, "disabled and denied", app.encrypt(nil), denied)
	want(t, "another key's blob, denied", app.decrypt(blob, nil), denied)
	must(t, server.PutKeyPolicy(other, policyOf(statement("Deny", `"*"`, allActions, ""))))
	app.key = nil // the blob names the key

	want(t, "no key named, denied", app.decrypt(blob, nil), denied)
}

func TestReEncryptNeedsBothKeys(t *testing.T) {
	server := kmstest.StartTest(t)
	from, err := server.CreateKey()
	must(t, err)
	to, err := server.CreateKey()
	must(t, err)
	app := newOfficial(t, server, "APP", from)
	ec := map[string]string{"a": "1"}
	blob, err := app.generate(ec)
	must(t, err)

	reEncrypt := func() error {
		_, err := app.ReEncrypt(t.Context(), &awskms.ReEncryptInput{
			CiphertextBlob: blob, SourceEncryptionContext: ec, DestinationKeyId: &to,
			DestinationEncryptionContext: map[string]string{"a": "2"},
		})
		return err
	}

	only := func(action, value string) string {
		return policyOf(statement("Allow", appPrincipal, action, `{"StringEquals":{"kms:EncryptionContext:a":"`+
			value+`"}}`))
	}

	for _, c := range []struct{ name, from, to, want string }{
		{"both", only(`"kms:ReEncryptFrom"`, "1"), only(`"kms:ReEncryptTo"`, "2"), ""},
		{"wildcards", only(`"kms:ReEncrypt*"`, "1"), only(`"kms:ReEncrypt*"`, "2"), ""},
		{"not from", only(`"kms:ReEncryptTo"`, "1"), only(`"kms:ReEncryptTo"`, "2"), denied},
		{"not to", only(`"kms:ReEncryptFrom"`, "1"), only(`"kms:ReEncryptFrom"`, "2"), denied},
		{"contexts swapped", only(`"kms:ReEncrypt*"`, "2"), only(`"kms:ReEncrypt*"`, "1"), denied},
	} {
		must(t, server.PutKeyPolicy(from, c.from))
		must(t, server.PutKeyPolicy(to, c.to))
		want(t, c.name, reEncrypt(), c.want)
	}
}

func TestPoliciesThatAreRefused(t *testing.T) {
	server := kmstest.StartTest(t)
	arn, err := server.CreateKey()
	must(t, err)
	admin := newOfficial(t, server, "ADMIN", arn)
	good := policyOf(statement("Deny", `"*"`, `"kms:Encrypt"`, ""))
	must(t, admin.putPolicy(good))
	swap := func(before, after string) string { return strings.Replace(good, before, after, 1) }
	condition := func(c string) string { return policyOf(statement("Allow", `"*"`, allActions, c)) }
	for name, document := range map[string]string{
		"not JSON":              "x",
		"cut":                   good[:len(good)-1],
		"trailing":              good + "{}",
		"list":                  "[" + good + "]",
		"null":                  "null",
		"no version":            swap(`"Version":"2012-10-17",`, ""),
		"unknown version":       swap("2012-10-17", "2012-10-18"),
		"unknown element":       swap(`"Id"`, `"Colour"`),
		"element in lower case": swap(`"Version"`, `"version"`),
		"no statement":          policyOf(),
		"one statement, no list": `{"Version":"2012-10-17","Statement":` +
			statement("Allow", `"*"`, allActions, "") + `}`,
		"unknown effect":         swap("Deny", "deny"),
		"no effect":              swap(`"Effect":"Deny",`, ""),
		"no principal":           swap(`"Principal":"*",`, ""),
		"another principal":      swap(`"Principal":"*"`, `"Principal":{"Service":"s3.amazonaws.com"}`),
		"principal in a string":  swap(`"Principal":"*"`, `"Principal":"arn:aws:iam::111122223333:root"`),
		"not a principal":        swap(`"Principal":"*"`, `"Principal":{"AWS":"bob"}`),
		"principal with a star":  swap(`"Principal":"*"`, `"Principal":{"AWS":"arn:aws:iam::111122223333:user/*"}`),
		"no principals":          swap(`"Principal":"*"`, `"Principal":{"AWS":[]}`),
		"NotPrincipal":           swap(`"Principal"`, `"NotPrincipal"`),
		"NotAction":              swap(`"Action"`, `"NotAction"`),
		"no action":              swap(`"Action":"kms:Encrypt",`, ""),
		"another service":        swap("kms:Encrypt", "s3:Encrypt"),
		"action of null":         swap(`"kms:Encrypt"`, "null"),
		"action of numbers":      swap(`"kms:Encrypt"`, "[1]"),
		"no resource":            swap(`,"Resource":"*"`, ""),
		"another resource":       swap(`"Resource":"*"`, `"Resource":"`+arn+`"`),
		"unknown operator":       condition(`{"StringNotLike":{"kms:EncryptionContext:a":"b"}}`),
		"operator if exists":     condition(`{"ArnEqualsIfExists":{"kms:EncryptionContext:a":"b"}}`),
		"unknown condition key":  condition(`{"StringEquals":{"kms:ViaService":"b"}}`),
		"condition key, no name": condition(`{"StringEquals":{"kms:EncryptionContext:":"b"}}`),
		"condition, no key":      condition(`{"StringEquals":{}}`),
		"condition, no value":    condition(`{"StringEquals":{"kms:EncryptionContext:a":[]}}`),
		"condition of null":      condition(`{"StringEquals":{"kms:EncryptionContext:a":null}}`),
		"names, one value":       condition(`{"StringEquals":{"kms:EncryptionContextKeys":"b"}}`),
		"value, several":         condition(`{"ForAllValues:StringEquals":{"kms:EncryptionContext:a":"b"}}`),
		"policy variable":        condition(`{"StringEquals":{"kms:EncryptionContext:a":"${aws:username}"}}`),
	} {
		err := admin.putPolicy(document)
		if _, ok := errors.AsType[*types.MalformedPolicyDocumentException](err); !ok {
			t.Errorf("%s: %v, want MalformedPolicyDocumentException", name, err)
		}
	}

	want(t, "too long", admin.putPolicy(good+strings.Repeat(" ", 32<<10)), "LimitExceededException")
	_, err = admin.CreateKey(t.Context(), &awskms.CreateKeyInput{Policy: aws.String("x")})
	want(t, "CreateKey", err, "MalformedPolicyDocumentException")
	_, err = admin.GetKeyPolicy(t.Context(), &awskms.GetKeyPolicyInput{KeyId: &arn})
	want(t, "reading a policy that does not allow it", err, denied)
	good += " "
	good = strings.Replace(good, `"Statement":[`, `"Statement":[{"Effect":"Allow","Principal":"*","Action":"kms:Get*","Resource":"*"},`, 1)
	must(t, admin.putPolicy(good))
	out, err := admin.GetKeyPolicy(t.Context(), &awskms.GetKeyPolicyInput{KeyId: &arn})
	must(t, err)

	if aws.ToString(out.Policy) != good || aws.ToString(out.PolicyName) != "default" {
		t.Errorf("the policy is %q, want the last one that was taken", aws.ToString(out.Policy))
	}

	_, err = admin.GetKeyPolicy(t.Context(), &awskms.GetKeyPolicyInput{KeyId: &arn, PolicyName: aws.String("x")})
	want(t, "another policy name", err, "NotFoundException")
	want(t, "no such key", newOfficial(t, server, "ADMIN", arn+"x").putPolicy(good), "NotFoundException")
}

func TestCreateKeyWithAPolicy(t *testing.T) {
	server := kmstest.StartTest(t)
	admin := newOfficial(t, server, "ADMIN", "")
	create := func(policy *string) *string {
		out, err := admin.CreateKey(t.Context(), &awskms.CreateKeyInput{Policy: policy})
		must(t, err)
		return out.KeyMetadata.Arn
	}

	admin.key = create(nil)
	want(t, "default", admin.encrypt(nil), "")
	out, err := admin.GetKeyPolicy(t.Context(), &awskms.GetKeyPolicyInput{KeyId: admin.key})
	must(t, err)

	if !strings.Contains(aws.ToString(out.Policy), "arn:aws:iam::111122223333:root") {
		t.Errorf("the default policy does not allow the account: %s", aws.ToString(out.Policy))
	}
	admin.key = create(aws.String(policyOf(statement("Allow", appPrincipal, allActions, ""))))
	want(t, "of another's policy", admin.encrypt(nil), denied)
}

// A test that removes permissions must be able to restore them.
func TestNobodyIsLockedOut(t *testing.T) {
	server := kmstest.StartTest(t)
	arn, err := server.CreateKey()
	must(t, err)
	admin := newOfficial(t, server, "ADMIN", arn)
	must(t, admin.putPolicy(policyOf(statement("Deny", `"*"`, `"*"`, ""))))
	want(t, "denied to all", admin.encrypt(nil), denied)
	_, err = admin.DisableKey(t.Context(), &awskms.DisableKeyInput{KeyId: &arn})
	must(t, err)
	_, err = admin.EnableKey(t.Context(), &awskms.EnableKeyInput{KeyId: &arn})
	must(t, err)
	must(t, admin.putPolicy(policyOf(statement("Allow", rootPrincipal, allActions, ""))))

	want(t, "allowed again", admin.encrypt(nil), "")
}

func TestPoliciesAndGrantsSurviveARestart(t *testing.T) {
	cfg := kmstest.Config{StateFile: filepath.Join(t.TempDir(), "state")}
	first, err := kmstest.Start(cfg)
	must(t, err)
	arn, err := first.CreateKey()
	must(t, err)
	must(t, first.PutKeyPolicy(arn, policyOf(statement("Allow", appPrincipal, allActions, ""))))

	_, err = first.CreateGrant(arn, kmstest.Grant{
		GranteePrincipal: first.UserARN("GRANTEE"), Operations: []string{"Encrypt"},
		Constraints: kmstest.GrantConstraints{EncryptionContextSubset: map[string]string{"bucket": "b"}},
	})

	must(t, err)
	must(t, first.Close())

	second, err := kmstest.Start(cfg)
	must(t, err)
	defer second.Close()

	want(t, "the user of the policy", newOfficial(t, second, "APP", arn).encrypt(nil), "")
	want(t, "another user", newOfficial(t, second, "OTHER", arn).encrypt(nil), denied)
	grantee := newOfficial(t, second, "GRANTEE", arn)
	want(t, "the grantee", grantee.encrypt(map[string]string{"bucket": "b"}), "")
	want(t, "the grantee, beyond its constraint", grantee.encrypt(nil), denied)
}

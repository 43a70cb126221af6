package kmstest_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// newGranted returns a key whose policy allows only ADMIN, with clients for
// ADMIN and for APP, which needs grants.
func newGranted(t *testing.T) (server *kmstest.Server, admin, app *official) {
	t.Helper()
	server = kmstest.StartTest(t)
	arn, err := server.CreateKey()
	must(t, err)
	adminOnly := statement("Allow", `{"AWS":"`+server.UserARN("ADMIN")+`"}`, allActions, "")
	must(t, server.PutKeyPolicy(arn, policyOf(adminOnly)))
	return server, newOfficial(t, server, "ADMIN", arn), newOfficial(t, server, "APP", arn)
}

func (o *official) grant(in *awskms.CreateGrantInput) *awskms.CreateGrantOutput {
	o.t.Helper()
	in.KeyId = o.key
	out, err := o.CreateGrant(o.t.Context(), in)
	must(o.t, err)
	return out
}

func TestGrants(t *testing.T) {
	server, admin, app := newGranted(t)
	ec := map[string]string{"bucket": "b", "key": "k"}
	blob, err := admin.generate(ec)
	must(t, err)
	want(t, "without a grant", app.decrypt(blob, ec), denied)

	out := admin.grant(&awskms.CreateGrantInput{
		GranteePrincipal: aws.String(server.UserARN("APP")),
		Operations:       []types.GrantOperation{types.GrantOperationDecrypt, types.GrantOperationDescribeKey},
	})

	want(t, "granted", app.decrypt(blob, ec), "")
	want(t, "granted DescribeKey", app.describe(), "")
	want(t, "not granted", app.encrypt(ec), denied)
	want(t, "granted to another", newOfficial(t, server, "APP2", *app.key).decrypt(blob, ec), denied)

	adminOnly := statement("Allow", `{"AWS":"`+server.UserARN("ADMIN")+`"}`, allActions, "")
	must(t, admin.putPolicy(policyOf(adminOnly, statement("Deny", appPrincipal, `"kms:Decrypt"`, ""))))
	want(t, "granted and denied", app.decrypt(blob, ec), denied)
	must(t, admin.putPolicy(policyOf(adminOnly)))
	want(t, "no longer denied", app.decrypt(blob, ec), "")

	_, err = admin.RevokeGrant(t.Context(), &awskms.RevokeGrantInput{KeyId: admin.key, GrantId: out.GrantId})
	must(t, err)
	want(t, "revoked", app.decrypt(blob, ec), denied)
	_, err = admin.RevokeGrant(t.Context(), &awskms.RevokeGrantInput{KeyId: admin.key, GrantId: out.GrantId})
	want(t, "revoked twice", err, "NotFoundException")
	_, err = admin.RetireGrant(t.Context(), &awskms.RetireGrantInput{GrantToken: out.GrantToken})

	want(t, "retired after it was revoked", err, "InvalidGrantTokenException")
}

func TestRetiredGrants(t *testing.T) {
	server, admin, app := newGranted(t)
	for name, retire := range map[string]func(*awskms.CreateGrantOutput) *awskms.RetireGrantInput{
		"by token": func(out *awskms.CreateGrantOutput) *awskms.RetireGrantInput {
			return &awskms.RetireGrantInput{GrantToken: out.GrantToken}
		},
		"by id": func(out *awskms.CreateGrantOutput) *awskms.RetireGrantInput {
			return &awskms.RetireGrantInput{KeyId: admin.key, GrantId: out.GrantId}
		},
	} {
		encrypt := []types.GrantOperation{types.GrantOperationEncrypt}
		out := admin.grant(&awskms.CreateGrantInput{
			GranteePrincipal: aws.String(server.UserARN("APP")), Operations: encrypt,
		})

		other := admin.grant(&awskms.CreateGrantInput{
			GranteePrincipal: aws.String(server.UserARN("APP2")), Operations: encrypt,
		})

		want(t, name+", before", app.encrypt(nil), "")
		_, err := app.RetireGrant(t.Context(), retire(out))
		must(t, err)
		want(t, name+", after", app.encrypt(nil), denied)
		want(t, name+", another grant", newOfficial(t, server, "APP2", *app.key).encrypt(nil), "")

		must(t, server.RetireGrant(*admin.key, *other.GrantId))
	}

	_, err := app.RetireGrant(t.Context(), &awskms.RetireGrantInput{KeyId: admin.key})
	want(t, "half a name", err, "ValidationException")
	_, err = app.RetireGrant(t.Context(), &awskms.RetireGrantInput{GrantToken: aws.String("x"), KeyId: admin.key})
	want(t, "two names", err, "ValidationException")
}

func TestGrantConstraints(t *testing.T) {
	server, admin, app := newGranted(t)
	for _, c := range []struct {
		name        string
		constraints types.GrantConstraints
		ec          map[string]string
		want        string
	}{
		{"subset", subset("bucket", "b"), map[string]string{"bucket": "b", "key": "k"}, ""},
		{"subset, name in any case", subset("BUCKET", "b"), map[string]string{"bucket": "b"}, ""},
		{"subset, other value", subset("bucket", "b"), map[string]string{"bucket": "B"}, denied},
		{"subset, other name", subset("bucket", "b"), map[string]string{"key": "b"}, denied},
		{"subset, no context", subset("bucket", "b"), nil, denied},
		{"equals", equals("bucket", "b"), map[string]string{"bucket": "b"}, ""},
		{"equals, and more", equals("bucket", "b"), map[string]string{"bucket": "b", "key": "k"}, denied},
		{"equals, other value", equals("bucket", "b"), map[string]string{"bucket": "c"}, denied},
		{"equals, no context", equals("bucket", "b"), nil, denied},
	} {
		out := admin.grant(&awskms.CreateGrantInput{
			GranteePrincipal: aws.String(server.UserARN("APP")), Constraints: &c.constraints,
			Operations: []types.GrantOperation{types.GrantOperationEncrypt, types.GrantOperationDescribeKey},
		})

		want(t, c.name, app.encrypt(c.ec), c.want)
		want(t, c.name+": DescribeKey has no context to constrain", app.describe(), "")
		must(t, server.RevokeGrant(*admin.key, *out.GrantId))
	}
}

func subset(name, value string) types.GrantConstraints {
	return types.GrantConstraints{EncryptionContextSubset: map[string]string{name: value}}
}

func equals(name, value string) types.GrantConstraints {
	return types.GrantConstraints{EncryptionContextEquals: map[string]string{name: value}}
}

func TestListGrants(t *testing.T) {
	server, admin, _ := newGranted(t)
	constraints := subset("bucket", "b")
	in := &awskms.CreateGrantInput{
		GranteePrincipal: aws.String(server.UserARN("APP")), RetiringPrincipal: aws.String(server.UserARN("ADMIN")),
		Operations: []types.GrantOperation{types.GrantOperationDecrypt}, Constraints: &constraints,
		Name: aws.String("one"),
	}

	one := *admin.grant(in).GrantId
	if again := *admin.grant(in).GrantId; again != one {
		t.Error("the same grant under the same name was made twice")
	}

	in.Operations = append(in.Operations, types.GrantOperationEncrypt)
	two := *admin.grant(in).GrantId
	in.Name, in.GranteePrincipal = nil, aws.String(server.UserARN("APP2"))
	three, four := *admin.grant(in).GrantId, *admin.grant(in).GrantId
	for name, c := range map[string]struct {
		in   awskms.ListGrantsInput
		want []string
	}{
		"all":        {awskms.ListGrantsInput{}, []string{one, two, three, four}},
		"by grantee": {awskms.ListGrantsInput{GranteePrincipal: in.GranteePrincipal}, []string{three, four}},
		"by id":      {awskms.ListGrantsInput{GrantId: &two}, []string{two}},
		"none":       {awskms.ListGrantsInput{GranteePrincipal: aws.String(server.UserARN("X"))}, nil},
	} {
		slices.Sort(c.want)
		if got := grantIDs(t, admin, &c.in); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}

	out, err := admin.ListGrants(t.Context(), &awskms.ListGrantsInput{KeyId: admin.key, GrantId: &one})
	must(t, err)
	g := out.Grants[0]
	if aws.ToString(g.GranteePrincipal) != server.UserARN("APP") ||
		aws.ToString(g.RetiringPrincipal) != server.UserARN("ADMIN") ||
		aws.ToString(g.Name) != "one" || aws.ToString(g.KeyId) != *admin.key || g.CreationDate.IsZero() ||
		!slices.Equal(g.Operations, []types.GrantOperation{"Decrypt"}) ||
		g.Constraints.EncryptionContextSubset["bucket"] != "b" || out.Truncated {
		t.Errorf("listed as %+v", g)
	}
}

func grantIDs(t *testing.T, o *official, in *awskms.ListGrantsInput) (ids []string) {
	t.Helper()
	in.KeyId = o.key
	out, err := o.ListGrants(t.Context(), in)
	must(t, err)
	for _, g := range out.Grants {
		ids = append(ids, aws.ToString(g.GrantId))
	}
	slices.Sort(ids)
	return ids
}

func TestGrantsThatAreRefused(t *testing.T) {
	server, admin, _ := newGranted(t)
	c := newClient(t, server)
	key, grantee := `"KeyId":"`+*admin.key+`"`, `,"GranteePrincipal":"`+server.UserARN("APP")+`"`
	pairs := strings.TrimSuffix(strings.Repeat(`"X":"",`, 9), ",")

	for i := range 9 {
		pairs = strings.Replace(pairs, "X", string(rune('a'+i)), 1)
	}

	must(t, server.SetAlias("alias/x", *admin.key))
	const operations = `,"Operations":["Decrypt"]`
	for _, row := range []struct{ want, operation, body string }{
		{"", "CreateGrant", key + grantee + operations},
		{"InvalidArnException", "CreateGrant", key + operations},
		{"InvalidArnException", "CreateGrant", key + `,"GranteePrincipal":"*"` + operations},
		{"InvalidArnException", "CreateGrant", key + grantee + operations + `,"RetiringPrincipal":"bob"`},
		{"ValidationException", "CreateGrant", key + grantee},
		{"ValidationException", "CreateGrant", key + grantee + `,"Operations":[]`},
		{"ValidationException", "CreateGrant", key + grantee + `,"Operations":["Sign"]`},
		{"ValidationException", "CreateGrant", key + grantee + `,"Operations":["kms:Decrypt"]`},
		{"ValidationException", "CreateGrant", key + grantee + operations + `,"Colour":"red"`},
		{"ValidationException", "CreateGrant", key + grantee + operations + `,"Constraints":{"SourceArn":"x"}`},
		{"ValidationException", "CreateGrant", key + grantee + operations +
			`,"Constraints":{"EncryptionContextEquals":{}}`},
		{"ValidationException", "CreateGrant", key + grantee + operations +
			`,"Constraints":{"EncryptionContextSubset":{` + pairs + `}}`},
		{"NotFoundException", "CreateGrant", `"KeyId":"alias/x"` + grantee + operations},
		{"NotFoundException", "ListGrants", `"KeyId":"1234abcd-12ab-34cd-56ef-1234567890ab"`},
		{"InvalidGrantIdException", "RevokeGrant", key + `,"GrantId":"x"`},
		{"NotFoundException", "RevokeGrant", key + `,"GrantId":"` + strings.Repeat("0a", 32) + `"`},
		{"InvalidGrantTokenException", "RetireGrant", `"GrantToken":"x"`},
	} {
		c.want(row.want, row.operation, "{"+row.body+"}")
	}

	must(t, server.DisableKey(*admin.key))
	c.want("DisabledException", "CreateGrant", "{"+key+grantee+operations+"}")
}

// A tenant gives a proxy access with a grant, and revokes it.
func TestGrantToAProxy(t *testing.T) {
	server, admin, _ := newGranted(t)
	w := server.OpenKey(t, *admin.key, nil)
	if _, _, err := kms.Generate(t.Context(), w, nil); !kms.IsRevoked(err) {
		t.Errorf("without a grant: %v, want denied", err)
	}

	id, err := server.CreateGrant(w.KeyID(), kmstest.Grant{
		GranteePrincipal: server.UserARN(kmstest.AccessKeyID), Operations: []string{"GenerateDataKey", "Decrypt"},
	})

	must(t, err)
	_, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)

	if _, err := w.Unwrap(t.Context(), blob, nil); err != nil {
		t.Errorf("with a grant: %v", err)
	}

	must(t, server.RevokeGrant(w.KeyID(), id))
	if _, err := w.Unwrap(t.Context(), blob, nil); !kms.IsRevoked(err) {
		t.Errorf("after it was revoked: %v, want denied", err)
	}
}

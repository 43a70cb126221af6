package tenantkit_test

import (
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/tenantkit"
)

const (
	ownerAccount = "444455556666"
	ourRole      = "arn:aws:iam::444455556666:role/cmekproxy-acme"
	ourSession   = "arn:aws:sts::444455556666:assumed-role/cmekproxy-acme/cmekproxy"
	ourUser      = "arn:aws:iam::111122223333:user/vendor"
)

// Policies have more forms than the test server takes.
func TestPolicyForms(t *testing.T) {
	for _, tc := range []struct {
		name, us, statement string
		changing            string // joined; "" for none
		conditional, all    bool
	}{
		{"role, by session", ourSession, `{"Effect":"Allow","Principal":{"AWS":"` + ourRole + `"},"Action":"kms:PutKeyPolicy"}`, "PutKeyPolicy", false, false},
		{"role with a path", ourSession, `{"Effect":"Allow","Principal":{"AWS":["arn:aws:iam::444455556666:role/a/b/cmekproxy-acme"]},"Action":["kms:Disable*"]}`, "DisableKey DisableKeyRotation", false, false},
		{"another role", ourSession, `{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::444455556666:role/other"},"Action":"kms:*"}`, "", false, false},
		{"same name, another account", ourSession, `{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::999999999999:role/cmekproxy-acme"},"Action":"kms:*"}`, "", false, false},
		{"same name, a user", ourSession, `{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::444455556666:user/cmekproxy-acme"},"Action":"kms:*"}`, "", false, false},
		{"the owner's account", ourSession, `{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::444455556666:root"},"Action":"kms:*"}`, "", false, false},
		{"the vendor's account", ourUser, `{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:CreateGrant"}`, "CreateGrant", false, false},
		{"the vendor's account id", ourUser, `{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:CreateGrant"}`, "CreateGrant", false, false},
		{"a service", ourUser, `{"Effect":"Allow","Principal":{"Service":"s3.amazonaws.com"},"Action":"kms:*"}`, "", false, false},
		{"NotAction", ourUser, `{"Effect":"Allow","Principal":{"AWS":"` + ourUser + `"},"NotAction":"kms:D*"}`, "CancelKeyDeletion CreateAlias CreateGrant", false, false},
		{"NotPrincipal", ourUser, `{"Effect":"Allow","NotPrincipal":{"AWS":"arn:aws:iam::444455556666:root"},"Action":"kms:CreateGrant"}`, "CreateGrant", false, true},
		{"a star", ourUser, `{"Effect":"Allow","Principal":{"AWS":["*"]},"Action":"kms:CreateGrant","Condition":{"Bool":{"kms:GrantIsForAWSResource":true}}}`, "", true, true},
		{"a question mark", ourUser, `{"Effect":"Allow","Principal":{"AWS":"` + ourUser + `"},"Action":"kms:TagResourc?"}`, "TagResource", false, false},
		{"a deny with a condition", ourUser, `[{"Effect":"Allow","Principal":"*","Action":"kms:CreateGrant"},{"Effect":"Deny","Principal":"*","Action":"kms:*","Condition":{"Bool":{"a":true}}}]`, "CreateGrant", false, true},
		{"a deny for everyone", ourUser, `[{"Effect":"Allow","Principal":"*","Action":"kms:CreateGrant"},{"Effect":"Deny","Principal":{"AWS":"*"},"Action":"kms:Create*"}]`, "", false, true},
		{"a deny for others", ourUser, `[{"Effect":"Allow","Principal":"*","Action":"kms:CreateGrant"},{"Effect":"Deny","Principal":{"AWS":"` + ourRole + `"},"Action":"kms:*"}]`, "CreateGrant", false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			changing, conditional, all, err := tenantkit.JudgePolicy(ownerAccount, []string{tc.us}, `{"Statement":`+tc.statement+`}`)
			got := strings.Join(changing, " ")
			if err != nil || !strings.HasPrefix(got, tc.changing) || (got == "") != (tc.changing == "") ||
				(len(conditional) > 0) != tc.conditional || (len(all) > 0) != tc.all {
				t.Errorf("%q, conditional %q, everyone %q, %v", changing, conditional, all, err)
			}
		})
	}

	for _, bad := range []string{"", "x", "[]", `{"Statement":1}`, `{"Statement":[{"Action":1}]}`, `{"Statement":[{"Principal":1}]}`} {
		if _, _, _, err := tenantkit.JudgePolicy(ownerAccount, nil, bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

// FuzzPolicy judges policies that come from a KMS.
func FuzzPolicy(f *testing.F) {
	f.Add(`{"Statement":[{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"kms:*","Condition":{"a":{"b":["c"]}}}]}`)
	f.Add(`{"Statement":{"Effect":"Deny","NotPrincipal":"x","NotAction":["k?s:*("]}}`)
	f.Fuzz(func(t *testing.T, text string) {
		_, _, _, _ = tenantkit.JudgePolicy(ownerAccount, []string{ourSession, ourUser}, text)
	})
}

package kmstest_test

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// Only the trusted principal can assume a role, with the external id, and the
// role may do only what a key policy gives to itself.
func TestRoles(t *testing.T) {
	server := kmstest.StartTest(t)
	t.Setenv("AWS_ENDPOINT_URL_STS", server.URL())
	role := server.SetRole(kmstest.Role{Name: "r", Trusted: server.UserARN("VENDOR"), ExternalID: "id-of-acme"})
	arn, err := server.CreateKey()
	must(t, err)
	forRole := policyOf(statement("Allow", `{"AWS":"`+role+`"}`, allActions, ""))

	for _, tc := range []struct{ name, user, id, policy, want string }{
		{"trusted", "VENDOR", "id-of-acme", forRole, ""},
		{"another external id", "VENDOR", "id-of-beta", forRole, "AccessDenied"},
		{"no external id", "VENDOR", "", forRole, "AccessDenied"},
		{"another user", "OTHER", "id-of-acme", forRole, "AccessDenied"},
		{"policy for the account", "VENDOR", "id-of-acme", "", "AccessDeniedException"},
	} {
		policy := tc.policy
		if policy == "" {
			policy = policyOf(statement("Allow", `{"AWS":"arn:aws:iam::111122223333:root"}`, allActions, ""))
		}
		must(t, server.PutKeyPolicy(arn, policy))
		key := server.OpenKey(t, arn, func(c *kms.AWSConfig) {
			c.Credentials = credentials.NewStaticCredentialsProvider(tc.user, "example", "")
			c.RoleARN, c.ExternalID = role, tc.id
		})
		d := key.Describe(t.Context())
		if tc.want == "" && (d.KeyErr != nil || d.Caller != "arn:aws:sts::111122223333:assumed-role/r/cmekproxy") {
			t.Errorf("%s: %v, caller %q", tc.name, d.KeyErr, d.Caller)
		}
		if tc.want != "" && (d.KeyErr == nil || !strings.Contains(d.KeyErr.Error(), tc.want)) {
			t.Errorf("%s: %v, want %s", tc.name, d.KeyErr, tc.want)
		}
	}
}

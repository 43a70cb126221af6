package kmstest

import "slices"

// user returns the ARN of the user with an access key, or of the role for a
// key from AssumeRole.
func (s *store) user(accessKeyID string) string {
	s.mu.Lock()
	defer s.mu.Unlock()

	if role, ok := s.sessions[accessKeyID]; ok {
		return s.roleARN(role)
	}
	return "arn:aws:iam::" + s.account + ":user/" + accessKeyID
}

// authorize evaluates the policy of a key and then its grants. Grants can
// allow what the policy does not allow, but not what it denies
// (https://docs.aws.amazon.com/kms/latest/developerguide/policy-evaluation.html).
// Only the operations that a proxy calls, and those that describe a key, are
// authorized. Operations that change a key are for the test itself, which must not lock itself out.
func (s *store) authorize(k *key, a access) error {
	const refusal = "User: %s is not authorized to perform: %s on resource: %s "
	switch k.rules.decide(a) {
	case effectDeny:
		return refuse("AccessDeniedException", refusal+"with an explicit deny in a resource-based policy",
			a.caller, a.action, s.arn(k))
	case effectAllow:
		return nil
	}

	if slices.ContainsFunc(k.Grants, func(g *storedGrant) bool { return g.allows(a) }) {
		return nil
	}
	return refuse("AccessDeniedException", refusal+"because no resource-based policy allows the %s action",
		a.caller, a.action, s.arn(k), a.action)
}

// defaultPolicy returns the policy that AWS gives to a key created without
// one: it allows all users of the account whose IAM policies allow the
// action.
func (s *store) defaultPolicy() string {
	return `{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : "arn:aws:iam::` + s.account + `:root"
    },
    "Action" : "kms:*",
    "Resource" : "*"
  } ]
}`
}

// setPolicy sets the policy of a key; "" means the default policy.
func (s *store) setPolicy(k *key, document string) error {
	if document == "" {
		document = s.defaultPolicy()
	}
	rules, err := parsePolicy(document)
	if err != nil {
		return err
	}
	k.Policy, k.rules = document, rules
	return nil
}

type policyIn struct {
	KeyID      string `json:"KeyId"`
	PolicyName string
	Policy     string
	// BypassPolicyLockoutSafetyCheck is ignored, because no one can be
	// locked out here.
	BypassPolicyLockoutSafetyCheck bool
}

type getPolicyIn struct {
	KeyID      string `json:"KeyId"`
	PolicyName string
}

func (s *store) putKeyPolicy(in policyIn) (any, error) {
	k, err := s.findPolicy(in.KeyID, in.PolicyName)
	if err != nil {
		return nil, err
	}
	if in.Policy == "" {
		return nil, refuse("ValidationException", "1 validation error detected: Value at 'policy' failed to satisfy "+
			"constraint: Member must have length greater than or equal to 1")
	}

	if err := s.setPolicy(k, in.Policy); err != nil {
		return nil, err
	}
	return nil, s.save()
}

func (s *store) getKeyPolicy(caller string, in getPolicyIn) (any, error) {
	k, err := s.findPolicy(in.KeyID, in.PolicyName)
	if err == nil {
		err = s.authorize(k, access{caller, "kms:GetKeyPolicy", nil})
	}
	if err != nil {
		return nil, err
	}
	return object{"Policy": k.Policy, "PolicyName": "default"}, nil
}

// findPolicy finds the key of a policy. Each key has one policy.
func (s *store) findPolicy(id, name string) (*key, error) {
	k, err := s.findNoAlias(id)
	if err == nil && name != "" && name != "default" {
		return nil, refuse("NotFoundException", "No such policy exists")
	}
	return k, err
}

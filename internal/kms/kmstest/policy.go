package kmstest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// keyPolicy is a key policy
// (https://docs.aws.amazon.com/kms/latest/developerguide/key-policy-overview.html).
// It supports only a part of the language and refuses the rest, because a
// test could pass for the wrong reason if a condition were ignored.
type keyPolicy struct {
	Version   string
	ID        string `json:"Id"`
	Statement []statement
}

type statement struct {
	Sid              string
	Effect           string
	Principal        principals
	Action, Resource stringList
	// Condition maps operators, such as StringEquals, to condition keys,
	// such as kms:EncryptionContext:bucket.
	Condition map[string]map[string]stringList
}

const (
	effectAllow = "Allow"
	effectDeny  = "Deny"
)

// access is a caller's request to a key. context is nil for actions without
// an encryption context.
type access struct {
	caller  string // ARN
	action  string // such as kms:Decrypt
	context map[string]string
}

// decide returns the effect of the statements that apply to a: effectDeny
// if any of them denies, otherwise effectAllow if any allows, otherwise "".
func (p *keyPolicy) decide(a access) string {
	effect := ""
	for _, s := range p.Statement {
		if !s.speaksOf(a) {
			continue
		}
		if s.Effect == effectDeny {
			return effectDeny
		}

		effect = effectAllow
	}

	return effect
}

func (s *statement) speaksOf(a access) bool {
	action := func(pattern string) bool { return matchesPattern(strings.ToLower(pattern), strings.ToLower(a.action)) }
	principal := func(p string) bool { return p == "*" || isPrincipal(p, a.caller) }
	if !slices.ContainsFunc(s.Principal, principal) || !slices.ContainsFunc(s.Action, action) {
		return false
	}

	for operator, keys := range s.Condition {
		for key, values := range keys {
			if !holds(operator, values, requestValues(key, a.context)) {
				return false
			}
		}
	}

	return true
}

// isPrincipal reports whether an ARN or account id in a policy or grant
// includes the caller. The account's root includes all its users and roles,
// whose IAM policies AWS then evaluates. Here users are allowed everything, and
// roles have no IAM policies.
func isPrincipal(name, caller string) bool {
	account := strings.Split(caller, ":")[4]
	isRole := strings.Contains(caller, ":role/")
	return name == caller || !isRole && (name == account || name == "arn:aws:iam::"+account+":root")
}

// requestValues returns the values of a condition key in a request.
func requestValues(key string, context map[string]string) []string {
	if strings.EqualFold(key, contextKeys) {
		return slices.Collect(maps.Keys(context))
	}
	return contextValues(key, context)
}

// contextValues returns the values of a condition key in a request. There
// is at most one, unless several names in the encryption context differ
// only by case
// (https://docs.aws.amazon.com/kms/latest/developerguide/conditions-kms.html#conditions-kms-encryption-context).
func contextValues(key string, context map[string]string) (values []string) {
	for name, value := range context {
		if strings.EqualFold(key[len(contextKey):], name) {
			values = append(values, value)
		}
	}
	return values
}

// holds evaluates one line of a condition. A value that is missing from the
// request is equal to nothing. With IfExists and with ForAllValues, the line
// holds if the request has no value
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html).
func holds(operator string, wanted, got []string) bool {
	if plain, ok := strings.CutSuffix(operator, "IfExists"); ok {
		return len(got) == 0 || holds(plain, wanted, got)
	}
	if single, ok := strings.CutPrefix(operator, "ForAllValues:"); ok {
		return !slices.ContainsFunc(got, func(g string) bool { return !holds(single, wanted, []string{g}) })
	}

	some := func(matches func(want, got string) bool) bool {
		return slices.ContainsFunc(got, func(g string) bool {
			return slices.ContainsFunc(wanted, func(w string) bool { return matches(w, g) })
		})
	}

	equal := func(want, got string) bool { return want == got }
	switch operator {
	case "StringEquals":
		return some(equal)
	case "StringNotEquals":
		return !some(equal)
	default: // parsePolicy accepts no other operator
		return some(matchesPattern)
	}
}

// matchesPattern reports whether s matches a pattern, where "*" matches any
// run of characters and "?" matches one.
func matchesPattern(pattern, s string) bool {
	form := regexp.QuoteMeta(pattern)
	form = strings.ReplaceAll(strings.ReplaceAll(form, `\*`, `.*`), `\?`, `.`)
	return regexp.MustCompile(`(?s)^` + form + `$`).MatchString(s)
}

const (
	policyLimit = 32 << 10 // in bytes
	contextKey  = "kms:EncryptionContext:"
	contextKeys = "kms:EncryptionContextKeys"
)

var (
	principalForm = regexp.MustCompile(`^arn:aws:iam::\d{12}:(root|(user|role)/[\w+=,.@/-]+)$`)
	accountForm   = regexp.MustCompile(`^\d{12}$`)
	actionForm    = regexp.MustCompile(`^(\*|kms:[A-Za-z*?]+)$`)
)

// parsePolicy parses a policy document. Errors are of type *apiError.
func parsePolicy(document string) (*keyPolicy, error) {
	if len(document) > policyLimit {
		return nil, refuse("LimitExceededException", "The policy is longer than %d bytes.", policyLimit)
	}

	var p keyPolicy
	decoder := json.NewDecoder(strings.NewReader(document))
	err := decoder.Decode(&p)
	if err == nil {
		if _, end := decoder.Token(); !errors.Is(end, io.EOF) {
			err = errors.New("text after the policy")
		}
	}

	if err == nil {
		err = p.check()
	}
	if err != nil {
		return nil, refuse("MalformedPolicyDocumentException", "The policy is not valid: %v.", err)
	}

	return &p, nil
}

func (p *keyPolicy) check() error {
	if p.Version != "2012-10-17" && p.Version != "2008-10-17" {
		return fmt.Errorf("no version %q", p.Version)
	}
	if len(p.Statement) == 0 {
		return errors.New("no statement")
	}

	for i, s := range p.Statement {
		if err := s.check(); err != nil {
			return fmt.Errorf("statement %d: %w", i+1, err)
		}
	}

	return nil
}

func (s *statement) check() error {
	switch {
	case s.Effect != effectAllow && s.Effect != effectDeny:
		return fmt.Errorf("no effect %q", s.Effect)
	case len(s.Principal) == 0 || len(s.Action) == 0 || len(s.Resource) == 0:
		return errors.New("no principal, no action, or no resource")
	}

	for _, p := range s.Principal {
		if p != "*" && !accountForm.MatchString(p) && !principalForm.MatchString(p) {
			return fmt.Errorf("no principal %q", p)
		}
	}

	for _, a := range s.Action {
		if !actionForm.MatchString(a) {
			return fmt.Errorf("no action %q", a)
		}
	}

	for _, r := range s.Resource {
		if r != "*" {
			return fmt.Errorf("resource %q: in a key policy it is *, which is this key", r)
		}
	}

	for operator, keys := range s.Condition {
		if err := checkCondition(operator, keys); err != nil {
			return err
		}
	}

	return nil
}

func checkCondition(operator string, keys map[string]stringList) error {
	single, isSet := strings.CutPrefix(operator, "ForAllValues:")
	single = strings.TrimSuffix(single, "IfExists")
	if !slices.Contains([]string{"StringEquals", "StringNotEquals", "StringLike"}, single) {
		return fmt.Errorf("no condition operator %q", operator)
	}
	if len(keys) == 0 {
		return errors.New("a condition without a key")
	}

	for key, values := range keys {
		names := strings.EqualFold(key, contextKeys)
		if names != isSet { // such a condition means something that nobody wants
			return fmt.Errorf("key %q with operator %q: only %s has several values", key, operator, contextKeys)
		}
		if !names && len(key) <= len(contextKey) || !names && !strings.EqualFold(key[:len(contextKey)], contextKey) {
			return fmt.Errorf("no condition key %q", key)
		}
		if len(values) == 0 {
			return fmt.Errorf("no value for %q", key)
		}

		for _, v := range values {
			if strings.Contains(v, "${") {
				return fmt.Errorf("no policy variables, as in %q", v)
			}
		}
	}

	return nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *keyPolicy) UnmarshalJSON(data []byte) error {
	type plain keyPolicy
	return readExactly(data, (*plain)(p), "Version", "Id", "Statement")
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *statement) UnmarshalJSON(data []byte) error {
	type plain statement
	return readExactly(data, (*plain)(s), "Sid", "Effect", "Principal", "Action", "Resource", "Condition")
}

// readExactly parses an object with these names only. Package json would
// ignore case, but AWS does not.
func readExactly(data []byte, to any, names ...string) error {
	var got map[string]json.RawMessage
	if err := json.Unmarshal(data, &got); err != nil {
		return err
	}
	for name := range got {
		if !slices.Contains(names, name) {
			return fmt.Errorf("no element %q", name)
		}
	}
	return json.Unmarshal(data, to)
}

// stringList is a string or a list of strings.
type stringList []string

// UnmarshalJSON implements json.Unmarshaler.
func (t *stringList) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return errors.New("null for a string")
	}
	var one string
	if json.Unmarshal(data, &one) == nil {
		*t = stringList{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(t))
}

// principals is "*" or {"AWS": stringList}.
type principals []string

// UnmarshalJSON implements json.Unmarshaler.
func (p *principals) UnmarshalJSON(data []byte) error {
	if string(data) == `"*"` {
		*p = principals{"*"}
		return nil
	}
	var in struct{ AWS stringList }
	if err := readExactly(data, &in, "AWS"); err != nil {
		return err
	}
	*p = principals(in.AWS)
	return nil
}

package tenantkit

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// The actions of AWS KMS on a key, as the proxy sees them
// (https://docs.aws.amazon.com/kms/latest/developerguide/kms-api-permissions-reference.html).
var (
	// awsChanging change the key or who may use it.
	awsChanging = []string{
		"CancelKeyDeletion", "CreateAlias", "CreateGrant", "DeleteAlias", "DeleteImportedKeyMaterial", "DisableKey",
		"DisableKeyRotation", "EnableKey", "EnableKeyRotation", "ImportKeyMaterial", "PutKeyPolicy", "ReplicateKey",
		"RetireGrant", "RevokeGrant", "RotateKeyOnDemand", "ScheduleKeyDeletion", "SynchronizeMultiRegionKey",
		"TagResource", "UntagResource", "UpdateAlias", "UpdateKeyDescription", "UpdatePrimaryRegion",
	}
	// awsUnneeded use the key, but the proxy does not.
	awsUnneeded = []string{
		"DeriveSharedSecret", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext",
		"GenerateDataKeyWithoutPlaintext", "GenerateMac", "ReEncryptFrom", "ReEncryptTo", "Sign",
	}
)

// awsPolicy is a key policy. It takes whatever AWS accepts, and more.
type awsPolicy struct{ Statement awsStatements }

type awsStatements []awsStatement

type awsStatement struct {
	Sid, Effect  string
	Principal    awsPrincipals
	NotPrincipal awsPrincipals
	Action       awsTexts
	NotAction    awsTexts
	Condition    map[string]map[string]any
}

// UnmarshalJSON implements json.Unmarshaler: one statement, or several.
func (s *awsStatements) UnmarshalJSON(data []byte) error {
	var one awsStatement
	if json.Unmarshal(data, &one) == nil {
		*s = awsStatements{one}
		return nil
	}
	return json.Unmarshal(data, (*[]awsStatement)(s))
}

// awsTexts is one text, or several.
type awsTexts []string

// UnmarshalJSON implements json.Unmarshaler.
func (t *awsTexts) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*t = awsTexts{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(t))
}

// awsPrincipals are principals of any kind: accounts, roles, users, services.
type awsPrincipals []string

// UnmarshalJSON implements json.Unmarshaler.
func (p *awsPrincipals) UnmarshalJSON(data []byte) error {
	var all awsTexts
	if json.Unmarshal(data, &all) == nil {
		*p = awsPrincipals(all)
		return nil
	}

	var kinds map[string]awsTexts
	if err := json.Unmarshal(data, &kinds); err != nil {
		return err
	}
	for _, list := range kinds {
		*p = append(*p, list...)
	}
	slices.Sort(*p)
	return nil
}

// awsIdentity is the proxy's identity, and the key's account.
type awsIdentity struct {
	arns    []string // of the role and of the caller
	account string   // of the key
}

var awsARN = regexp.MustCompile(`^arn:[a-z0-9-]+:(?:iam|sts)::([0-9]{12}):(user|role|assumed-role)/(.+)$`)

// awsPerson returns account and name of a user or role. The ARN of an assumed
// role has a session at its end, and no path.
func awsPerson(arn string) (account, kind, name string) {
	m := awsARN.FindStringSubmatch(arn)
	if m == nil {
		return "", "", ""
	}
	parts := strings.Split(m[3], "/")
	if m[2] == "assumed-role" {
		return m[1], "role", parts[0]
	}
	return m[1], m[2], parts[len(parts)-1]
}

// is reports whether a principal is the proxy, or the account of the proxy if
// that is not the account of the key.
func (i *awsIdentity) is(principal string) bool {
	for _, arn := range i.arns {
		account, kind, name := awsPerson(arn)
		pa, pk, pn := awsPerson(principal)
		switch {
		case principal == arn, account != "" && account == pa && kind == pk && name == pn:
			return true
		case account != "" && account != i.account &&
			(principal == account || strings.HasSuffix(principal, ":iam::"+account+":root")):
			return true
		}
	}
	return false
}

// awsPlace returns region and account of the ARN of a key.
func awsPlace(arn string) (region, account string) {
	parts := strings.Split(arn, ":")
	if len(parts) < 6 {
		return "", ""
	}
	return parts[3], parts[4]
}

// awsGiven is what a key policy gives to the proxy, and to everyone.
type awsGiven struct {
	changing    []string // without a condition
	conditional []string // likewise, with a condition
	unneeded    []string
	everyone    []string // statements for all principals, without a condition
	restricted  []string // likewise, with a condition
	others      []string // other principals that the policy names
}

// judge reads a policy. Statements that deny without a condition count, others
// that deny do not: the result may be stricter than AWS.
func (i *awsIdentity) judge(text string) (g awsGiven, err error) {
	var p awsPolicy
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return g, fmt.Errorf("the policy cannot be read: %w", err)
	}

	var denied []string
	for _, s := range p.Statement {
		all := slices.Contains(s.Principal, "*") || len(s.NotPrincipal) > 0
		ours := all || slices.ContainsFunc(s.Principal, i.is)
		if s.Effect == "Deny" {
			if ours && len(s.NotPrincipal) == 0 && len(s.Condition) == 0 {
				denied = append(denied, s.among(slices.Concat(awsChanging, awsUnneeded))...)
			}
			continue
		}

		what := cmp.Or(s.Sid, strings.Join(s.Action, " "))
		switch {
		case all && len(s.Condition) == 0:
			g.everyone = append(g.everyone, what)
		case all:
			g.restricted = append(g.restricted, what)
		}
		for _, principal := range s.Principal {
			if principal != "*" && !i.is(principal) && !slices.Contains(g.others, principal) {
				g.others = append(g.others, principal)
			}
		}
		if !ours {
			continue
		}

		if len(s.Condition) == 0 {
			g.changing = append(g.changing, s.among(awsChanging)...)
		} else {
			g.conditional = append(g.conditional, s.among(awsChanging)...)
		}
		g.unneeded = append(g.unneeded, s.among(awsUnneeded)...)
	}

	for _, list := range []*[]string{&g.changing, &g.conditional, &g.unneeded} {
		*list = slices.DeleteFunc(*list, func(a string) bool { return slices.Contains(denied, a) })
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return g, nil
}

// among returns those of the actions that the statement is about.
func (s *awsStatement) among(actions []string) (list []string) {
	for _, action := range actions {
		match := func(pattern string) bool { return matchesAction(pattern, "kms:"+action) }
		if len(s.NotAction) > 0 && !slices.ContainsFunc(s.NotAction, match) || slices.ContainsFunc(s.Action, match) {
			list = append(list, action)
		}
	}
	return list
}

// matchesAction reports whether an action matches a pattern, in which "*"
// matches anything and "?" one character. AWS ignores the case.
func matchesAction(pattern, action string) bool {
	form := regexp.QuoteMeta(strings.ToLower(pattern))
	form = strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(form)
	return regexp.MustCompile(`^` + form + `$`).MatchString(strings.ToLower(action))
}

func (c *checker) aws(d kms.AWSDescription) {
	region, account := awsPlace(c.Wrapper.KeyID())
	us := &awsIdentity{account: account}
	if c.RoleARN != "" {
		us.arns = append(us.arns, c.RoleARN)
	}
	if d.Caller != "" {
		us.arns = append(us.arns, d.Caller)
		c.report.fact("the proxy's identity", d.Caller)
	}

	c.awsKey(region, d)
	c.awsPolicy(us, d)
	c.awsGrants(us, d)

	switch {
	case d.RotationErr != nil:
		c.unread("rotation", "Rotation", d.RotationErr)
	case d.Rotation:
		c.rotation(fmt.Sprintf("%d days", d.RotationDays))
	default:
		c.rotation("")
	}
}

func (c *checker) awsKey(region string, d kms.AWSDescription) {
	if d.KeyErr != nil {
		c.unread("state", "State of the key", d.KeyErr)
		c.where(NotChecked, "region "+region+"; whether there are replicas is not known", "")
		return
	}

	c.state(d.State, "Enabled")
	if d.Manager == "CUSTOMER" {
		c.row(OK, "owner", "Who manages the key", "the customer ("+d.Manager+")", "")
	} else {
		c.row(Fail, "owner", "Who manages the key", d.Manager,
			"Use a key that the customer manages, with its own policy.")
	}

	switch others := len(d.Regions) > 1; {
	case others:
		c.where(Warn, "regions "+strings.Join(d.Regions, ", ")+": a multi-Region key with replicas",
			"To revoke, disable the key in every one of these regions.")
	case d.Replication != "":
		c.where(Warn, "region "+region+"; it is a multi-Region key, so its owner can make replicas",
			"Without a need for replicas, use a key of one Region.")
	default:
		c.where(OK, "region "+region+" only: it is not a multi-Region key", "")
	}

	c.report.fact("description", d.Text)
	c.report.fact("origin of the key material", d.Origin)
	c.report.fact("usage", d.Usage+", "+d.Spec)
	c.report.fact("made", date(d.Created))
	c.report.fact("deleted on", date(d.Deletion))
}

func (c *checker) awsPolicy(us *awsIdentity, d kms.AWSDescription) {
	const ours, all = "What the proxy may do with the key", "Whether everyone may use the key"
	if d.PolicyErr != nil {
		c.unread("permissions", ours, d.PolicyErr)
		c.unread("everyone", all, d.PolicyErr)
		return
	}
	given, err := us.judge(d.Policy)
	if err != nil {
		c.notChecked("permissions", ours, err.Error())
		c.notChecked("everyone", all, err.Error())
		return
	}

	const fix = "Use the key policy of cmekproxy tenant init aws."
	switch {
	case len(us.arns) == 0:
		c.notChecked("permissions", ours, fmt.Sprintf("AWS does not say who the proxy is: %v", d.CallerErr))
	case len(given.changing) > 0:
		c.row(Fail, "permissions", ours, "the key policy gives it too much: "+strings.Join(given.changing, ", "), fix)
	case len(given.conditional) > 0:
		c.row(Warn, "permissions", ours, "under a condition, the key policy gives it: "+
			strings.Join(given.conditional, ", "), fix)
	case len(given.unneeded) > 0:
		c.row(Warn, "permissions", ours, "it also gives what the proxy does not use: "+
			strings.Join(given.unneeded, ", "), fix)
	default:
		c.row(OK, "permissions", ours, "the key policy gives it no action that changes the key, or who may use it. "+
			"IAM policies of the account "+us.account+" are not shown", "")
	}

	switch {
	case len(given.everyone) > 0:
		c.row(Fail, "everyone", all, "yes, all of AWS: "+strings.Join(given.everyone, ", "),
			"Name the principals in the key policy.")
	case len(given.restricted) > 0:
		c.row(Warn, "everyone", all, "under a condition: "+strings.Join(given.restricted, ", "),
			"Read the condition, or name the principals.")
	default:
		c.row(OK, "everyone", all, "no", "")
	}
	c.report.fact("others in the key policy", strings.Join(given.others, ", "))
}

func (c *checker) awsGrants(us *awsIdentity, d kms.AWSDescription) {
	const title = "Grants on the key"
	if d.GrantsErr != nil {
		c.unread("grants", title, d.GrantsErr)
		return
	}

	var changing, ours, others []string
	changes := func(operation string) bool { return slices.Contains(awsChanging, operation) }
	for _, g := range d.Grants {
		text := g.Grantee + " " + strings.Join(g.Operations, "+")
		switch {
		case us.is(g.Grantee) && slices.ContainsFunc(g.Operations, changes):
			changing = append(changing, text)
		case us.is(g.Grantee):
			ours = append(ours, text)
		default:
			others = append(others, text)
		}
	}

	switch {
	case len(changing) > 0:
		c.row(Fail, "grants", title, "the proxy can pass the key on: "+strings.Join(changing, "; "),
			"Revoke this grant: aws kms revoke-grant.")
	case len(ours) > 0:
		c.row(Warn, "grants", title, "for the proxy: "+strings.Join(ours, "; ")+". Revoking a grant takes minutes",
			"Use the key policy instead of a grant.")
	case len(others) > 0:
		c.row(Warn, "grants", title, "for others: "+strings.Join(others, "; "), "Check that each of them is wanted.")
	default:
		c.row(OK, "grants", title, "none", "")
	}
}

package kmstest

import (
	"encoding/base64"
	"encoding/hex"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Grant has the parameters of
// https://docs.aws.amazon.com/kms/latest/APIReference/API_CreateGrant.html.
type Grant struct {
	// GranteePrincipal is the ARN of the principal that may perform
	// Operations. Required.
	GranteePrincipal string
	// RetiringPrincipal is stored and listed, but retiring a grant is not
	// authorized.
	RetiringPrincipal string `json:",omitempty"`
	// Operations are names such as Decrypt. At least one.
	Operations []string
	// Constraints restrict the encryption contexts. The zero value does
	// not.
	Constraints GrantConstraints `json:",omitzero"`
	// Name makes a repeated CreateGrant return the first grant. If it is
	// empty, each call creates a grant.
	Name string `json:",omitempty"`
}

// GrantConstraints are pairs that the encryption context must contain, or
// be equal to. Names are compared without case, values are not. Empty means
// no constraint.
type GrantConstraints struct {
	EncryptionContextSubset map[string]string `json:",omitempty"`
	EncryptionContextEquals map[string]string `json:",omitempty"`
}

// storedGrant is a Grant in the state file.
type storedGrant struct {
	Grant
	ID      string
	Token   string
	Created time.Time
}

// allows reports whether the grant covers a. AWS applies constraints only
// to operations with an encryption context, and therefore not to
// DescribeKey.
func (g *storedGrant) allows(a access) bool {
	operation := strings.TrimPrefix(a.action, "kms:")
	if !isPrincipal(g.GranteePrincipal, a.caller) || !slices.Contains(g.Operations, operation) {
		return false
	}
	if operation == "DescribeKey" {
		return true
	}
	subset, equals := g.Constraints.EncryptionContextSubset, g.Constraints.EncryptionContextEquals
	return holdsPairs(a.context, subset) &&
		(len(equals) == 0 || len(equals) == len(a.context) && holdsPairs(a.context, equals))
}

func holdsPairs(context, pairs map[string]string) bool {
	for name, value := range pairs {
		if !slices.Contains(contextValues(contextKey+name, context), value) {
			return false
		}
	}
	return true
}

type (
	createGrantIn struct {
		Grant
		KeyID       string `json:"KeyId"`
		GrantTokens []string
	}
	listGrantsIn struct {
		KeyID            string `json:"KeyId"`
		GrantID          string `json:"GrantId"`
		GranteePrincipal string
		Marker           string
		Limit            int
	}
	grantIn struct {
		KeyID   string `json:"KeyId"`
		GrantID string `json:"GrantId"`
	}
	retireGrantIn struct {
		KeyID      string `json:"KeyId"`
		GrantID    string `json:"GrantId"`
		GrantToken string
	}
)

// grantOperations are the operations that a grant on a symmetric key can
// allow.
var grantOperations = []string{
	"CreateGrant", "Decrypt", "DescribeKey", "Encrypt", "GenerateDataKey", "GenerateDataKeyPair",
	"GenerateDataKeyPairWithoutPlaintext", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom", "ReEncryptTo",
	"RetireGrant",
}

var grantIDForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (s *store) createGrant(in createGrantIn) (any, error) {
	if err := in.check(); err != nil {
		return nil, err
	}

	k, err := s.findNoAlias(in.KeyID)
	if err == nil {
		err = s.checkEnabled(k)
	}
	if err != nil {
		return nil, err
	}

	again := func(g *storedGrant) bool { return in.Name != "" && reflect.DeepEqual(g.Grant, in.Grant) }
	if i := slices.IndexFunc(k.Grants, again); i >= 0 {
		return object{"GrantId": k.Grants[i].ID, "GrantToken": k.Grants[i].Token}, nil
	}

	g := &storedGrant{
		Grant: in.clone(), ID: hex.EncodeToString(random(32)), Token: base64.StdEncoding.EncodeToString(random(96)),
		Created: s.now(),
	}

	k.Grants = append(k.Grants, g)
	return object{"GrantId": g.ID, "GrantToken": g.Token}, s.save()
}

// check validates a grant. It refuses a constraint without pairs, which
// would have no effect.
func (g *Grant) check() error {
	for _, p := range []string{g.GranteePrincipal, g.RetiringPrincipal} {
		if !principalForm.MatchString(p) && (p != "" || g.GranteePrincipal == "") {
			return refuse("InvalidArnException", "%q is not the ARN of a principal.", p)
		}
	}

	if len(g.Operations) == 0 {
		return refuse("ValidationException", "A grant needs an operation.")
	}

	for _, o := range g.Operations {
		if !slices.Contains(grantOperations, o) {
			return refuse("ValidationException", "%s is not an operation of a grant on a symmetric key.", o)
		}
	}

	for _, pairs := range []map[string]string{
		g.Constraints.EncryptionContextSubset, g.Constraints.EncryptionContextEquals,
	} {
		if pairs != nil && len(pairs) == 0 || len(pairs) > 8 {
			return refuse("ValidationException", "A grant constraint has 1 to 8 pairs.")
		}
	}

	return nil
}

func (g *Grant) clone() Grant {
	c := *g
	c.Operations = slices.Clone(g.Operations)
	c.Constraints.EncryptionContextSubset = maps.Clone(g.Constraints.EncryptionContextSubset)
	c.Constraints.EncryptionContextEquals = maps.Clone(g.Constraints.EncryptionContextEquals)
	return c
}

// listGrants returns all grants in one page, because test keys have few.
func (s *store) listGrants(caller string, in listGrantsIn) (any, error) {
	k, err := s.findNoAlias(in.KeyID)
	if err == nil {
		err = s.authorize(k, access{caller, "kms:ListGrants", nil})
	}
	if err != nil {
		return nil, err
	}

	entries := []object{}
	for _, g := range k.Grants {
		if in.GrantID != "" && in.GrantID != g.ID ||
			in.GranteePrincipal != "" && in.GranteePrincipal != g.GranteePrincipal {
			continue
		}

		e := object{
			"KeyId": s.arn(k), "GrantId": g.ID, "CreationDate": g.Created.Unix(), "Operations": g.Operations,
			"GranteePrincipal": g.GranteePrincipal, "IssuingAccount": "arn:aws:iam::" + s.account + ":root",
		}

		if g.RetiringPrincipal != "" {
			e["RetiringPrincipal"] = g.RetiringPrincipal
		}
		if g.Name != "" {
			e["Name"] = g.Name
		}

		if !reflect.ValueOf(g.Constraints).IsZero() {
			e["Constraints"] = g.Constraints
		}
		entries = append(entries, e)
	}

	return object{"Grants": entries, "Truncated": false}, nil
}

func (s *store) revokeGrant(in grantIn) (any, error) {
	if !grantIDForm.MatchString(in.GrantID) {
		return nil, refuse("InvalidGrantIdException", "%q is not a grant id.", in.GrantID)
	}

	k, err := s.findNoAlias(in.KeyID)
	if err != nil {
		return nil, err
	}

	i := slices.IndexFunc(k.Grants, func(g *storedGrant) bool { return g.ID == in.GrantID })
	if i < 0 {
		return nil, refuse("NotFoundException", "Grant %s is not found on %s.", in.GrantID, s.arn(k))
	}

	k.Grants = slices.Delete(k.Grants, i, i+1)
	return nil, s.save()
}

// retireGrant accepts a grant token, or a key with a grant id.
func (s *store) retireGrant(in retireGrantIn) (any, error) {
	byID := in.KeyID != "" && in.GrantID != ""
	switch {
	case (in.GrantToken != "") == byID, !byID && in.KeyID+in.GrantID != "":
		return nil, refuse("ValidationException", "Give either a grant token, or a key id and a grant id.")
	case byID:
		return s.revokeGrant(grantIn{KeyID: in.KeyID, GrantID: in.GrantID})
	}

	for _, k := range s.Keys {
		for _, g := range k.Grants {
			if g.Token == in.GrantToken {
				return s.revokeGrant(grantIn{KeyID: k.ID, GrantID: g.ID})
			}
		}
	}

	return nil, refuse("InvalidGrantTokenException", "")
}

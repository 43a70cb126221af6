//go:build pkcs11 && cgo

package kms

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/miekg/pkcs11"
)

// hsmProperties are the attributes of a key that say whether it can leave the
// HSM.
var hsmProperties = []struct {
	attribute uint
	name      string
	leaves    string // what the value means if it is bad
	bad       bool
}{
	{pkcs11.CKA_SENSITIVE, "CKA_SENSITIVE", "it can be read in plaintext", false},
	{pkcs11.CKA_EXTRACTABLE, "CKA_EXTRACTABLE", "it can be wrapped and taken out", true},
	{pkcs11.CKA_ALWAYS_SENSITIVE, "CKA_ALWAYS_SENSITIVE", "", false},
	{pkcs11.CKA_NEVER_EXTRACTABLE, "CKA_NEVER_EXTRACTABLE", "", false},
	{pkcs11.CKA_LOCAL, "CKA_LOCAL", "", false}, // made in the token
}

// hsmDescription is what DescribeToken reads.
type hsmDescription struct {
	Facts  [][2]string
	Leaves []string
}

// DescribeToken returns what the token says about itself and the key, and why
// the key can leave the token; "" if it cannot. Texts come from the token: they
// may contain anything.
func (h *hsm) DescribeToken(ctx context.Context) (facts [][2]string, leaves string, err error) {
	out, err := h.call(ctx, "describe", func() ([]byte, error) {
		return h.withSession(func(s *hsmSession) ([]byte, error) {
			_, token, err := h.findToken()
			if err != nil {
				return nil, err
			}

			d := hsmDescription{Facts: [][2]string{
				{"token", token.Label},
				{"manufacturer", token.ManufacturerID},
				{"model", token.Model},
				{"serial number", token.SerialNumber},
			}}
			if err := h.properties(s, &d); err != nil {
				return nil, err
			}
			return json.Marshal(d)
		})
	})
	if err != nil {
		return nil, "", err
	}

	var d hsmDescription
	if err := json.Unmarshal(out, &d); err != nil {
		return nil, "", &Error{Kind: Internal, Op: "describe", KeyID: h.id, Err: err}
	}
	return d.Facts, strings.Join(d.Leaves, ", "), nil
}

// properties reads the attributes one by one, because tokens refuse a request
// with one that they do not have. The first two must be known.
func (h *hsm) properties(s *hsmSession, d *hsmDescription) error {
	for _, p := range hsmProperties {
		got, err := h.module.ctx.GetAttributeValue(s.handle, s.key, []*pkcs11.Attribute{
			pkcs11.NewAttribute(p.attribute, nil),
		})
		switch {
		case err != nil && p.leaves != "":
			return err
		case err != nil || len(got) != 1 || len(got[0].Value) != 1:
			d.Facts = append(d.Facts, [2]string{p.name, "unknown"})
			continue
		}

		value := got[0].Value[0] != 0
		d.Facts = append(d.Facts, [2]string{p.name, map[bool]string{true: "true", false: "false"}[value]})
		if p.leaves != "" && value == p.bad {
			d.Leaves = append(d.Leaves, p.leaves)
		}
	}
	return nil
}

//go:build pkcs11 && cgo

package kms_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

func TestPKCS11Describe(t *testing.T) {
	tok := newToken(t)
	for _, tc := range []struct {
		name                   string
		sensitive, extractable bool
		want                   string
	}{
		{"safe", true, false, ""},
		{"extractable", true, true, "taken out"},
		{"readable", false, true, "plaintext"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			label := fmt.Sprintf("described %d", keysMade.Add(1))
			tok.as(t, testPIN, func(s pkcs11.SessionHandle) {
				_, err := tok.ctx.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)},
					[]*pkcs11.Attribute{
						pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
						pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
						pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
						pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, tc.sensitive),
						pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, tc.extractable),
					})
				must(t, err)
			})

			key := openHSM(t, kms.PKCS11Config{Module: tok.module, TokenLabel: tok.label, KeyLabel: label, PIN: testPIN})
			facts, leaves, err := key.(interface {
				DescribeToken(ctx context.Context) (facts [][2]string, leaves string, err error)
			}).DescribeToken(t.Context())
			if err != nil || (leaves == "") != (tc.want == "") || !strings.Contains(leaves, tc.want) {
				t.Errorf("%q, %v, want %q", leaves, err, tc.want)
			}
			if !slices.Contains(facts, [2]string{"token", tok.label}) || !slices.Contains(facts, [2]string{"CKA_LOCAL", "true"}) {
				t.Errorf("%q", facts)
			}
		})
	}
}

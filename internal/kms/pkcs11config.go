package kms

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// DefaultPKCS11Timeout bounds one call where PKCS11Config does not.
const DefaultPKCS11Timeout = 5 * time.Second

// PKCS11Config configures NewPKCS11.
type PKCS11Config struct {
	// Module is the path of the HSM vendor's PKCS#11 library. Required. It is
	// loaded into this process once and stays.
	Module string
	// TokenLabel is the label of the token. Empty: the token in Slot.
	TokenLabel string
	// Slot is the id of the token's slot. It means nothing where TokenLabel is
	// set, which is the better choice: many modules number their slots anew at
	// each start.
	Slot uint
	// KeyLabel is the key's CKA_LABEL, and KeyID its CKA_ID. One of them is
	// required. What is empty is not looked at, so that together they must
	// name one key only. They become part of the KeyID that is stored with
	// each object: keep both as they are for as long as such objects exist.
	KeyLabel string
	KeyID    []byte
	// PIN is that of the token's user (CKU_USER). It appears in no error.
	// Empty: no login, for tokens that need none.
	PIN string
	// Timeout bounds one call. 0: DefaultPKCS11Timeout.
	Timeout time.Duration
}

// check refuses what can never work.
func (c PKCS11Config) check() error {
	switch {
	case c.Module == "":
		return errors.New("no module is named")
	case c.KeyLabel == "" && len(c.KeyID) == 0:
		return errors.New("neither a label nor an id of the key is named")
	case len(c.uri(c.TokenLabel)) > maxPKCS11KeyID:
		return errors.New("the labels of token and key are too long together")
	}
	return nil
}

// maxPKCS11KeyID is what docs/format.md allows a key id.
const maxPKCS11KeyID = 512

// uri names the key as RFC 7512 does. What is not an unreserved character is
// percent-encoded, so that it is printable ASCII, and two names never give one
// URI.
func (c PKCS11Config) uri(tokenLabel string) string {
	var b strings.Builder
	b.WriteString("pkcs11:token=" + percentEncode(tokenLabel))

	if c.KeyLabel != "" {
		b.WriteString(";object=" + percentEncode(c.KeyLabel))
	}
	if len(c.KeyID) > 0 {
		b.WriteString(";id=")
		for _, octet := range c.KeyID {
			fmt.Fprintf(&b, "%%%02X", octet)
		}
	}

	return b.String()
}

func percentEncode(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

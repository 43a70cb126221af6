package kms

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// DefaultPKCS11Timeout limits one call if PKCS11Config does not.
const DefaultPKCS11Timeout = 5 * time.Second

// PKCS11Config configures NewPKCS11.
type PKCS11Config struct {
	// Module is the path of the HSM vendor's PKCS #11 library. Required. It
	// is loaded into this process once and never unloaded.
	Module string
	// TokenLabel is the label of the token. Empty means the token in Slot.
	TokenLabel string
	// Slot is the id of the token's slot, used only if TokenLabel is empty.
	// Prefer TokenLabel, because many modules renumber their slots at each
	// start.
	Slot uint
	// KeyLabel is the key's CKA_LABEL, and KeyID its CKA_ID. At least one
	// is required; an empty one matches anything. They must match exactly
	// one key. They are part of the key id in each object's envelope, so
	// keep both unchanged as long as such objects exist.
	KeyLabel string
	KeyID    []byte
	// PIN is the PIN of the token's user (CKU_USER). It never appears in
	// errors. Empty means no login, for tokens that need none.
	PIN string
	// Timeout limits one call. 0 means DefaultPKCS11Timeout.
	Timeout time.Duration
}

// check returns an error for a configuration that cannot work.
func (c PKCS11Config) check() error {
	switch {
	case c.Module == "":
		return errors.New("no module is configured")
	case c.KeyLabel == "" && len(c.KeyID) == 0:
		return errors.New("neither label nor id of the key is configured")
	case len(c.uri(c.TokenLabel)) > maxPKCS11KeyID:
		return errors.New("the labels of the token and the key are too long")
	}

	return nil
}

// maxPKCS11KeyID is the format's limit on a key id; see docs/format.md.
const maxPKCS11KeyID = 512

// uri returns the RFC 7512 URI of the key. All reserved characters are
// percent-encoded, so the URI is printable ASCII, and different names give
// different URIs.
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

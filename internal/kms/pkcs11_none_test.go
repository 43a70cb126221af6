//go:build !pkcs11 || !cgo

package kms_test

import (
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

func TestPKCS11IsNotInThisBinary(t *testing.T) {
	w, err := kms.NewPKCS11(t.Context(), kms.PKCS11Config{
		Module: "/m.so", TokenLabel: "t", KeyLabel: "k", PIN: "918273",
	})

	wantErrorKind(t, "without the tag", kms.Invalid, err)
	if w != nil || !strings.Contains(err.Error(), "built without pkcs11; build with -tags pkcs11") ||
		strings.Contains(err.Error(), "918273") {
		t.Errorf("got %v, %v", w, err)
	}

	_, err = kms.NewPKCS11(t.Context(), kms.PKCS11Config{KeyLabel: "k"})
	if err == nil || !strings.Contains(err.Error(), "no module is configured") {
		t.Errorf("without a module: %v", err)
	}
}

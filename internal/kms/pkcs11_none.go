//go:build !pkcs11 || !cgo

package kms

import (
	"context"
	"errors"
)

// NewPKCS11 returns an error: this binary does not support HSMs, because
// their modules need cgo.
func NewPKCS11(_ context.Context, cfg PKCS11Config) (Wrapper, error) {
	err := cfg.check()
	if err == nil {
		err = errors.New("this binary was built without pkcs11; build with -tags pkcs11 (and CGO_ENABLED=1)")
	}
	return nil, &Error{Kind: Invalid, Op: "open", KeyID: cfg.uri(cfg.TokenLabel), Err: err}
}

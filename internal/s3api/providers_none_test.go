//go:build !pkcs11 || !cgo

package s3api_test

import "testing"

// hsmKey is nil: this binary was built without pkcs11.
func hsmKey(*testing.T) *owned { return nil }

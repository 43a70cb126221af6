//go:build !pkcs11 || !cgo

package s3api_test

import "testing"

// hsmKey returns nil: this binary was built without pkcs11.
func hsmKey(*testing.T) *owned { return nil }

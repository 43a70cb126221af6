//go:build goexperiment.runtimesecret

package crypt

import "runtime/secret"

// guard runs f so that the runtime erases what f leaves behind: registers
// and stack at once, and heap memory when it is collected.
func guard(f func()) { secret.Do(f) }
